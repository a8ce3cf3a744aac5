"""Networks that were trained elsewhere: evaluated, explained, trained on; and our checkpoints opened elsewhere."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from absl import logging
from PIL import Image
from safetensors.numpy import save_file
from test_launch import launch
from test_public_surface import fresh
from test_readme import REPO, blocks
from tiny_manifest import SIZE, write_manifest
from tiny_run import tiny_config

from tfcam_jax import training
from tfcam_jax.data.source import DataError
from tfcam_jax.errors import ConfigError
from tfcam_jax.evaluation import evaluate_leave_one_domain_out
from tfcam_jax.experiment import build_experiment, resolve
from tfcam_jax.inference import initial_state, restore
from tfcam_jax.metrics.scores import ScoresError, read_scores
from tfcam_jax.models import IMAGENET_MEAN, IMAGENET_STD
from tfcam_jax.models.weights import WeightsError
from tfcam_jax.run.checkpoints import CheckpointError, Checkpoints
from tfcam_jax.run.files import WorkdirError
from tfcam_jax.training import import_network, train

CLASSES = ("dark", "grey", "bright")  # not in the order of their names


def draw_weights(classes):
    """A state dict of small_cnn in PyTorch's names and layout."""
    rng, arrays, channels = np.random.default_rng(0), {}, 3
    for i, width in enumerate((16, 32, 64, 128)):
        arrays[f"Conv_{i}.weight"] = rng.normal(size=(width, channels, 3, 3)) / np.sqrt(9 * channels)
        arrays |= {f"BatchNorm_{i}.{name}": rng.uniform(0.5, 1.5, width) for name in ("weight", "running_var")}
        arrays |= {f"BatchNorm_{i}.{name}": rng.normal(size=width) / 5 for name in ("bias", "running_mean")}
        channels = width
    arrays |= {"head.weight": rng.normal(size=(classes, channels)), "head.bias": rng.normal(size=classes)}
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def logits_by_hand(arrays, image):
    """What the network of these weights says of a picture, uint8 [H, W, 3], in float64."""
    x = ((image / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)).transpose(2, 0, 1)
    for i in range(4):
        kernels = arrays[f"Conv_{i}.weight"].astype(np.float64)
        stride = 2 if i < 3 else 1
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::stride, ::stride]
        x = np.einsum("chwij,ocij->ohw", windows, kernels, optimize=True)
        scale, bias, mean, variance = (
            arrays[f"BatchNorm_{i}.{name}"][:, None, None].astype(np.float64)
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        x = np.maximum((x - mean) / np.sqrt(variance + 1e-5) * scale + bias, 0)
    return arrays["head.weight"] @ x.mean((1, 2)) + arrays["head.bias"]


def keep_splits(manifest, *splits):
    header, *lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join([header, *(line for line in lines if line.startswith(splits))]))
    return manifest


@pytest.fixture
def given(tmp_path):
    """A config for weights with three outputs and a manifest of test rows alone, of two classes."""
    save_file(draw_weights(3), tmp_path / "net.safetensors")
    config = tiny_config(keep_splits(write_manifest(tmp_path / "data", train=2, val=6, test=6), "test"))
    config.data.labels = CLASSES
    config.model.weights, config.model.keep_head = str(tmp_path / "net.safetensors"), True
    return config


def test_importing_says_what_plays_no_part(given, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(training, "train_recipe", lambda recipe, workdir, **_: None)
    monkeypatch.setattr(training.logging, "warning", lambda message, *values: told.append(message % values))
    given.epochs = 7
    import_network(given, tmp_path / "run")
    given.epochs = 0
    import_network(given, tmp_path / "run")
    assert len(told) == 1 and f"config.epochs=7, strategy={given.strategy} and all" in told[0]


@pytest.fixture
def config_of_run(trained_run):
    """A config that begins from the run of tests/tiny_run.py, with its head, on its data."""
    config = tiny_config(trained_run.parent / "data/manifest.csv")
    config.model.weights, config.model.keep_head = str(trained_run), True
    return config


@pytest.mark.slow
def test_a_network_says_what_its_weights_say(given, tmp_path, capsys):
    workdir, arrays = tmp_path / "run", draw_weights(3)
    import_network(given, workdir)
    assert "The head's classes are taken to be 0 dark, 1 grey, 2 bright" in capsys.readouterr().out
    scores, names = read_scores(workdir / "scores.csv")
    assert names == CLASSES and len(scores) == 6
    for name, logits in zip(scores.ids, scores.logits, strict=True):
        expected = logits_by_hand(arrays, np.asarray(Image.open(tmp_path / "data" / name)))
        assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
    trained, results = restore(workdir), json.loads((workdir / "results.json").read_text())
    assert (trained.epoch, trained.domains, results["step"], list(results["sets"])) == (0, None, 0, ["test"])
    assert results["thresholds"] == {} and (given.epochs, trained.config.epochs) == (6, 0)
    found = trained.predict([tmp_path / "data" / name for name in scores.ids])
    np.testing.assert_allclose(found.logits, scores.logits, rtol=1e-5, atol=1e-6)
    with pytest.raises(ScoresError, match="imported network"):
        evaluate_leave_one_domain_out([workdir])


@pytest.mark.slow
@pytest.mark.end_to_end
def test_the_scripts_take_a_config_and_say_what_is_left_out(tmp_path):
    """Two classes and no validation images; the second script finds the run there."""
    arguments = [
        f"--config={REPO / 'configs/manifest.py'}",
        f"--config.data.manifest={keep_splits(write_manifest(tmp_path / 'data', 2, 6, 6), 'test')}",
        "--config.data.image_size=32",
        "--config.model.name=small_cnn",
        f"--config.model.weights={tmp_path / 'net.safetensors'}",
        "--config.model.keep_head=True",
        f"--workdir={tmp_path / 'run'}",
    ]
    save_file(draw_weights(2), tmp_path / "net.safetensors")
    explained = launch("explain.py", *arguments)
    assert explained.returncode == 0 and str(tmp_path / "run/report/index.html") in explained.stdout, explained.stderr
    assert "taken to be 0 bright, 1 dark; if that is not their order, give --config.data.labels" in explained.stdout
    evaluated = launch("evaluate.py", *arguments, "--faithfulness_images=0")
    assert evaluated.returncode == 0 and "taken to be" not in evaluated.stdout, evaluated.stderr
    assert "No figures at a threshold: there are no validation images." in evaluated.stdout
    assert "accuracies: of the larger logit" in evaluated.stdout
    found = json.loads((tmp_path / "run/evaluation/evaluation.json").read_text())
    assert found["thresholds"] == {} and found["thresholds_from"] is None
    # Nobody knows which domains it has seen, so there is neither a closed nor an open set.
    assert list(found["sets"]) == ["all"] and list(found["domains"]) == ["new", "old"]


@pytest.mark.slow
def test_thresholds_come_from_val_where_nothing_is_trained(trained_run, config_of_run, tmp_path):
    """The very network of a run, on its val and test rows alone: the same scores and thresholds."""
    shutil.copytree(trained_run.parent / "data", tmp_path / "data")
    config_of_run.data.manifest = str(keep_splits(tmp_path / "data/manifest.csv", "val", "test"))
    import_network(config_of_run, tmp_path / "run")
    there, here = (json.loads((run / "results.json").read_text()) for run in (trained_run, tmp_path / "run"))
    assert list(here["sets"]) == ["val", "test"]
    assert here["sets"]["val"]["map_agreement"] == pytest.approx(there["sets"]["val"]["map_agreement"], rel=1e-5)
    assert here["thresholds"]["margin"] == pytest.approx(there["thresholds"]["margin"], rel=1e-5)


def test_folders_without_splits_all_test(given, tmp_path):
    given.data.source, given.data.labels = "folders", ()
    given.data.folders.images = str(tmp_path / "photos")
    for number, name in enumerate(CLASSES):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (SIZE, SIZE), (80 * number,) * 3).save(tmp_path / "photos" / name / "one.png")
    given.epochs = 0
    dataset = build_experiment(resolve(given, untrained=True)).dataset
    assert dataset.class_names == ("bright", "dark", "grey") and {k: len(v) for k, v in dataset.splits.items()} == {
        "test": 3
    }


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model.weights": ""}, ConfigError, "weights would be random"),
        ({"model.keep_head": False}, ConfigError, "new head would be random.*keep_head=True"),
        pytest.param(
            {"data.labels": ("dark", "bright")},
            WeightsError,
            r"head has 3 outputs, the model's 2: .*data\.labels",
            marks=pytest.mark.slow,
        ),
        ({"model.weights": "absent.pth"}, WeightsError, "does not exist"),
        ({"data.manifest": "{train}"}, DataError, "no row has split test or val"),
    ],
)
def test_what_can_not_be_imported_is_refused_before_anything_is_written(given, tmp_path, change, error, message):
    train_rows = keep_splits(write_manifest(tmp_path / "other"), "train")
    places = {"{train}": str(train_rows)}
    for key, value in change.items():
        section, name = key.split(".")
        given[section][name] = places.get(value, value)
    with pytest.raises(error, match=re.compile(message, re.DOTALL)):
        import_network(given, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_training_no_epochs_points_to_evaluation(given, tmp_path):
    given.epochs = 0
    with pytest.raises(ConfigError, match=r"epochs is 0; .*launch/evaluate\.py .*keep_head=True"):
        train(given, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_interrupted_import_is_taken_up_a_finished_one_is_left_and_another_config_refused(
    given, tmp_path, monkeypatch
):
    workdir = tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="killed"):
        patched.setattr(Checkpoints, "save", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("killed")))
        import_network(given, workdir)
    assert (workdir / "config.json").exists()
    import_network(given, workdir)
    with monkeypatch.context() as patched:
        patched.setattr(training, "train_recipe", lambda *_: pytest.fail("made again"))
        import_network(given, workdir)
    given.data.image_size = 64
    with pytest.raises(WorkdirError, match="image_size: 32 there, 64 asked for"):
        import_network(given, workdir)


@pytest.mark.slow
def test_training_goes_on_from_another_run(trained_run, config_of_run, tmp_path):
    """Its folder or the checkpoints in it, its head or a new one; where the weights come from is kept."""
    config_of_run.epochs = 1
    config_of_run.model.weights = str(trained_run / "checkpoints")
    theirs = restore(trained_run)
    kept, origin = initial_state(build_experiment(resolve(config_of_run)))
    jax.tree.map(np.testing.assert_array_equal, *((each.params, each.batch_stats) for each in (kept, theirs.state)))
    assert int(kept.step) == 0 and origin["head"] == "kept"
    config_of_run.model.keep_head = False
    train(config_of_run, tmp_path / "run")
    noted = json.loads((tmp_path / "run/run.json").read_text())["weights"]
    best = json.loads((trained_run / "results.json").read_text())
    assert (noted["run"], noted["step"], noted["epoch"]) == (str(trained_run), best["step"], best["epoch"])
    new, _ = initial_state(build_experiment(resolve(config_of_run)))
    jax.tree.map(
        np.testing.assert_array_equal, *({k: v for k, v in s.params.items() if k != "head"} for s in (new, kept))
    )
    assert (new.params["head"]["kernel"] != kept.params["head"]["kernel"]).any()


@pytest.mark.slow
def test_equal_weights_have_equal_fingerprints_wherever_they_come_from(given, tmp_path):
    origin = lambda: initial_state(build_experiment(resolve(given, untrained=True))).origin
    import_network(given, tmp_path / "one")
    one = json.loads((tmp_path / "one/run.json").read_text())["weights"]
    given.epochs, given.model.weights = 0, str(tmp_path / "one")
    two = origin()
    assert one["fingerprint"] == two["fingerprint"] and two["step"] == 0 and len(one["sha256"]) == 64
    (tmp_path / "net.safetensors").unlink()
    changed = draw_weights(3)
    changed["Conv_2.weight"][3, 2, 1, 0] += 1e-3
    save_file(changed, tmp_path / "net.safetensors")
    given.model.weights = str(tmp_path / "net.safetensors")
    assert origin()["fingerprint"] != one["fingerprint"]


@pytest.mark.slow
def test_a_run_that_does_not_fit_is_named(trained_run, config_of_run, tmp_path, caplog):
    start = lambda: initial_state(build_experiment(resolve(config_of_run)))
    config_of_run.data.mean = (0.5, 0.5, 0.5)
    logging.get_absl_logger().propagate = True
    start()
    assert "here they are mean (0.5, 0.5, 0.5)" in caplog.text
    config_of_run.data.labels = ("bright", "dark")
    with pytest.raises(
        WeightsError, match=r"of the classes dark, bright, in this order; .*labels=\"\('dark', 'bright'\)\""
    ):
        start()
    config_of_run.model.name, config_of_run.data.image_size = "resnet18", 64
    with pytest.raises(WeightsError, match=r"holds a small_cnn, and config\.model\.name is resnet18"):
        start()
    config_of_run.model.name = "small_cnn"
    broken = shutil.copytree(trained_run, tmp_path / "broken")
    config_of_run.model.weights = str(broken)
    for path in broken.glob("checkpoints/*/record/metadata"):
        path.write_text(path.read_text()[:10])
    with pytest.raises(CheckpointError, match="record is damaged"):
        train(config_of_run, tmp_path / "run")
    shutil.rmtree(broken / "checkpoints")
    with pytest.raises(CheckpointError, match="no best checkpoint"):
        train(config_of_run, tmp_path / "run")
    (broken / "run.json").unlink()
    with pytest.raises(WeightsError, match="holds no run of this project"):
        train(config_of_run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_opens_without_this_package(trained_run, tmp_path):
    """The lines of launch/README.md, in a process of one device; the run was written on two."""
    (code,) = [block for block in blocks("python", (REPO / "launch/README.md").read_text()) if "orbax" in block]
    assert len(code.strip().splitlines()) == 5 and '"runs/mine"' in code
    told = (
        f"import os\nos.environ['XLA_FLAGS'] = ''\nrefuse('tfcam_jax')\n{code.replace('runs/mine', str(trained_run))}"
    )
    told += (
        "\nassert jax.device_count() == 1\n"
        f"flat = jax.tree_util.tree_leaves_with_path({{k: state[k] for k in ('params', 'batch_stats')}})\n"
        f"np.savez({str(tmp_path / 'found.npz')!r}, **{{jax.tree_util.keystr(path): leaf for path, leaf in flat}})\n"
        "try:\n    import tfcam_jax\nexcept ModuleNotFoundError:\n    print('refused')\n"
    )
    done = fresh(told)
    assert done.returncode == 0 and done.stdout == "refused\n", done.stderr
    found, expected = (
        np.load(tmp_path / "found.npz"),
        jax.tree_util.tree_leaves_with_path(restore(trained_run).variables),
    )
    assert set(found) == {jax.tree_util.keystr(path) for path, _ in expected}
    for path, leaf in expected:
        np.testing.assert_array_equal(found[jax.tree_util.keystr(path)], leaf)
