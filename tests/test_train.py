"""Whole runs in this process: files, figures, continuing, refusing."""

import csv
import functools
import json
import shutil

import jax
import numpy as np
import pytest
from flax import traverse_util
from ml_collections import ConfigDict
from safetensors.numpy import save_file
from tiny_manifest import write_manifest

from configs import default
from tfcam_jax import training as train
from tfcam_jax.data.human_maps import describe_maps
from tfcam_jax.data.source import DataError, choose_rows
from tfcam_jax.devices.memory import OutOfMemoryError
from tfcam_jax.errors import ConfigError, UserError
from tfcam_jax.evaluation import evaluate, evaluate_source
from tfcam_jax.experiment import build_experiment, open_dataset, resolve
from tfcam_jax.metrics.scores import read_scores
from tfcam_jax.models.weights import WeightsError
from tfcam_jax.run.checkpoints import Checkpoints
from tfcam_jax.run.files import WorkdirError
from tfcam_jax.run.metric_window import NonFiniteError
from tfcam_jax.run.workdir import check_workdir, load_config
from tfcam_jax.steps import EvalOutput
from tfcam_jax.study.compare import compare


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_manifest(tmp_path_factory.mktemp("data"))


def make_config(manifest, **overrides) -> ConfigDict:
    config = default.get_config()
    config.data.manifest = str(manifest)
    config.data.labels = ("dark", "bright")
    config.data.image_size = 32
    config.model.name = "small_cnn"
    config.batch_size, config.epochs, config.log_every_steps = 5, 3, 2
    config.optimizer.learning_rate = 0.05
    config.augment.flip = 0.5
    config.strategy = "opposed"
    for key, value in overrides.items():
        *sections, name = key.split(".")
        functools.reduce(getattr, sections, config)[name] = value  # a key that is not there is added, as Python may
    return config


def read_lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def stored_state(workdir, config, name="latest"):
    like = build_experiment(resolve(config)).random_state()
    with Checkpoints(workdir) as checkpoints:
        restored = checkpoints.restore_latest(like) if name == "latest" else checkpoints.restore_best(lambda _: like)
    return jax.device_get(restored[0]), restored[1]


@pytest.fixture(scope="module")
def finished(manifest, tmp_path_factory):
    """A finished run: its folder, its config and what training returned."""
    workdir, config = tmp_path_factory.mktemp("runs") / "whole", make_config(manifest)
    return workdir, config, train.train(config, workdir)


def test_run_leaves_config_provenance_metrics_and_results(finished, manifest):
    workdir, config, results = finished
    assert json.loads((workdir / "results.json").read_text()) == results
    assert load_config(workdir) == json.loads(config.to_json())
    run = json.loads((workdir / "run.json").read_text())
    assert run["packages"]["jax"] == jax.__version__ and run["devices"]
    lines = read_lines(workdir)
    # Three batches of 5, 5 and 2 an epoch, written after the second and at the end; then validation.
    assert [line["step"] for line in lines] == [2, 3, 3, 5, 6, 6, 8, 9, 9]
    assert [line["train/cross_entropy_examples"] for line in lines if "epoch" not in line] == [10, 2] * 3
    assert sum(line["train/opposed_examples"] for line in lines if "epoch" not in line) == 3 * 9
    assert list((workdir / "tensorboard").glob("events*"))
    scores, names = read_scores(workdir / "scores.csv")
    assert (scores.splits, list(names)) == (("val",) * 8 + ("test",) * 12, results["class_names"])
    assert {name: entry["images"] for name, entry in results["sets"].items()} == {"val": 8, "closed": 6, "open": 6}
    assert results["class_names"] == ["dark", "bright"]


def test_images_kept_decoded_change_nothing(finished, manifest, tmp_path, capsys):
    """`finished` decoded and kept them; one run reads them as they are kept, another decodes them in each epoch."""
    workdir, config, _ = finished
    (kept,) = (manifest.parent / ".tfcam_jax").glob("decoded-*")
    written = kept.stat().st_ino
    for megabytes in (1024, 0):
        again = config.copy_and_resolve_references()
        again.data.cache_megabytes = megabytes
        train.train(again, tmp_path / str(megabytes))
        assert "were spent waiting for data." in capsys.readouterr().out
        for name in ("metrics.jsonl", "results.json", "scores.csv"):
            assert (tmp_path / str(megabytes) / name).read_bytes() == (workdir / name).read_bytes()
    assert kept.stat().st_ino == written


def test_best_is_the_later_of_the_most_accurate(finished):
    workdir, config, results = finished
    accuracy = [line["val/accuracy"] for line in read_lines(workdir) if "epoch" in line]
    assert results["epoch"] == max(range(3), key=lambda epoch: (accuracy[epoch], epoch)) + 1
    assert stored_state(workdir, config, "best")[1]["epoch"] == results["epoch"]


def test_finished_run_is_not_trained_again(finished):
    workdir, config, results = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    assert train.train(config, workdir) == results
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_workdir_of_another_config_is_refused_and_left_alone(finished, manifest):
    workdir, *_ = finished
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    with pytest.raises(WorkdirError, match=r"strategy: 'opposed' there, 'contrast' asked for"):
        train.train(make_config(manifest, strategy="contrast"), workdir)
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


def test_folder_that_is_no_run_is_refused(manifest, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(WorkdirError, match="not a run"):
        train.train(make_config(manifest), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"strategy": "oposed"}, "Did you mean 'opposed'"),
        ({"model.name": "resnet19"}, "Did you mean 'resnet18'"),
        ({"optimizer.name": "sdg"}, "optimizer.name is 'sdg'"),
        ({"optimizer.schedule": "cosine", "optimizer.step_epochs": 3}, "no option 'step_epochs'"),
        ({"optimizer.name": "adam", "optimizer.momentum": 0.9}, "no option 'momentum'"),
        ({"strategy": "contrast", "guidance.divergence": "l1"}, "no option 'divergence'"),
        ({"batch_size": 0}, "config.batch_size is 0"),
        ({"data.manifest": ""}, "data.manifest is empty"),
        ({"data.mean": (0.5,)}, r"data.mean is \(0.5,\); it must be three numbers"),
        ({"data.std": ("a", "b", "c")}, "data.std is .*; it must be three numbers"),
        ({"data.std": (1.0, 1.0, 0.0)}, "data.std is .* above 0"),
        ({"evaluation.select_by": "auc"}, "evaluation.select_by"),
        ({"model.dtype": "float16"}, "model.dtype"),
        ({"model.head_init": "pytorhc"}, "model.head_init is 'pytorhc'. Did you mean 'pytorch'"),
        ({"model.dropout": 1.0}, "model.dropout is 1.0"),
        ({"model.batch_norm_momentum": -0.1}, "model.batch_norm_momentum is -0.1"),
        ({"data.resize_through": (0,)}, r"data.resize_through is \(0,\)"),
        ({"data.resize_through": (256, 3)}, r"data.resize_through is \(256, 3\): .* 3 px a side has fewer pixels"),
        ({"batch_size": 4000}, "config.batch_size is 4000, and there are 12 images to train on"),
        ({"data.maps.resize": "strait"}, "data.maps.resize is 'strait'. Did you mean 'straight'"),
        ({"data.maps.resize": "straight", "strategy": "input_gradient"}, "set config.data.maps.resize=with_image"),
        ({"parallel.mode": "pmpa"}, "Did you mean 'pmap'"),
        ({"parallel.batch_norm": "global"}, "parallel.batch_norm is 'global'"),
        ({"parallel.devices": 99}, "config.parallel.devices is 99; there are 2 devices"),
        ({"parallel.mode": "pmap", "parallel.shard_state": True}, "config.parallel.shard_state needs"),
        ({"accumulate_steps": 0}, "config.accumulate_steps is 0"),
        ({"accumulate_steps": 6}, "a batch of 5 examples"),
        ({"model.name": "inception_v3"}, "32x32 px are too small for InceptionV3"),
        (
            {"optimizer.learning_rate": -0.1},
            r"optimizer.learning_rate is -0\.1; it must be .* above 0",
        ),
        ({"optimizer.learning_rate": 0.0}, r"optimizer.learning_rate is 0\.0; it must be .* above 0"),
        ({"optimizer.warmup_epochs": 4.0}, r"optimizer.warmup_epochs is 4.0: .*config.epochs=3"),
        ({"model.keep_head": True}, "model.weights is empty: config.model.keep_head would keep random values"),
        ({"model.freeze_batch_norm": True}, "config.model.freeze_batch_norm would keep random values"),
        ({"augment.map_blur": (0.1, 2.0), "strategy": "entropy"}, "augment.map_blur .*entropy reads none"),
        (
            {"data.maps.placebo": "mean_map", "strategy": "cross_entropy"},
            "data.maps.placebo .*reads none",
        ),
        ({"data.protocol.fold": 1}, "data.protocol.fold is a part of protocol k_fold"),
        ({"augment.saturation": 0.5, "data.channels": 1}, "augment.saturation does nothing to grey images"),
        ({"batch_size": 10**9}, r"batch_size is 1000000000, of images of 32 px .*GiB"),
        ({"evaluation.batch_size": 10**9}, r"evaluation.batch_size is 1000000000.*GiB"),
        ({"data.image_size": 50000}, r"config.batch_size is 5, of images of 50000 px .*GiB"),
        ({"epochs": 10**9}, r"config.epochs is 1000000000: 3 steps each .* at most 715827882"),
        ({"optimizer.weight_decay": float("nan")}, "optimizer.weight_decay is nan"),
        ({"optimizer.clip_norm": float("inf")}, "optimizer.clip_norm is inf; .*; 0: no clipping"),
        ({"optimizer.warmup_epochs": -1.0}, r"optimizer.warmup_epochs is -1\.0"),
        ({"optimizer.momentum": -0.9}, r"optimizer.momentum is -0\.9"),
        ({"optimizer.step_epochs": 0}, "config.optimizer.step_epochs is 0; it must be a whole number, at least 1"),
        ({"data.image_size": 0}, "config.data.image_size is 0; it must be a whole number, at least 1"),
        ({"epoch": 3}, "config has no key 'epoch'. Did you mean 'epochs'"),
        ({"optimizer.lerning_rate": 0.1}, "config.optimizer has no key 'lerning_rate'. Did you mean 'learning_rate'"),
        ({"augment.flp": 0.5}, "config.augment has no key 'flp'. Did you mean 'flip'"),
        ({"guidance.divergance": "l1"}, "config.guidance has no key 'divergance'. Did you mean 'divergence'"),
        ({"data.maps.blurr": 0.1}, "config.data.maps has no key 'blurr'. Did you mean 'blur'"),
        ({"data.protocol.nam": "open"}, "config.data.protocol has no key 'nam'. Did you mean 'name'"),
        ({"model.nam": "resnet18"}, "config.model has no key 'nam'"),
        ({"data.demo.x": 1}, "config.data.demo has no key 'x'"),
        (
            {"model.name": "resnet18"},
            "data.image_size is 32: strategy 'opposed' compares the places of a CAM, and here it has one: .* "
            r"Take --config.data.image_size=224 \(7x7\) or --config.model.output_stride=16 \(2x2\) or "
            r"--config.model.name=small_cnn \(4x4, from scratch\)",
        ),
    ],
)
def test_bad_values_are_refused_before_anything_is_written(manifest, tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        train.train(make_config(manifest, **overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("overrides", [{"strategy": "hard_negative"}, {"guidance.alpha": 1.0}, {"data.image_size": 33}])
def test_one_place_is_refused_only_where_places_are_compared(manifest, overrides):
    resolve(make_config(manifest, **{"model.name": "resnet18"} | overrides))


def test_bad_data_are_refused_before_anything_is_written(tmp_path):
    manifest = write_manifest(tmp_path / "data")
    (tmp_path / "data/images/train3.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"row 5.*train3\.png"):
        train.train(make_config(manifest), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nan_stops_the_run_and_names_step_and_term(manifest, tmp_path):
    config = make_config(manifest, **{"optimizer.learning_rate": 1e6})
    told = r"step \d+: the (term '\w+' of the loss|norm of the gradient) is .*images/train\d+\.png"
    with pytest.raises(NonFiniteError, match=told):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run/results.json").exists()


@pytest.mark.parametrize("error", [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 4096 bytes.\nmore")])
@pytest.mark.parametrize("saved", [False, True])
def test_a_start_without_enough_memory_gives_its_folder_back(manifest, tmp_path, monkeypatch, error, saved):
    """Before the first checkpoint nothing stays that would refuse a smaller batch; a checkpoint is never removed."""

    def fail(run, state, epoch, *rest):
        if saved:
            run.save(state, 0, 0, 0)
            run.checkpoints.wait()
        raise error

    monkeypatch.setattr(train, "train_one_epoch", fail)
    config, workdir = make_config(manifest), tmp_path / "run"
    with pytest.raises(OutOfMemoryError, match=r"not enough memory: .*Lower config.batch_size or"):
        train.train(config, workdir)
    smaller = resolve(make_config(manifest, batch_size=2)).stored
    if saved:
        assert check_workdir(workdir, resolve(config).stored) and (workdir / "checkpoints/0").is_dir()
        with pytest.raises(WorkdirError, match="another config"):
            check_workdir(workdir, smaller)
    else:
        assert not check_workdir(workdir, smaller)
        assert {path.name for path in workdir.iterdir()} <= {".lock", ".lock.holder"}


def test_predictions_are_those_of_single_images(finished):
    """Batches, padding and order leave no trace: each image alone gives the same logits."""
    workdir, config, _ = finished
    built = build_experiment(resolve(config))
    state, _ = stored_state(workdir, config, "best")
    source = built.dataset.splits["test"]
    together = evaluate_source(built, state, source)
    single = config.copy_and_resolve_references()
    single.evaluation.batch_size = 1
    alone = evaluate_source(build_experiment(resolve(single)), state, source)
    assert isinstance(together, EvalOutput) and len(together.labels) == 12
    for name in ("logits", "true_map", "false_map", "saliency"):
        np.testing.assert_allclose(getattr(together, name), getattr(alone, name), atol=1e-5)
    np.testing.assert_array_equal(together.usable, source.records.has_map)


def save_weights(workdir, config, path):
    """The best checkpoint's network as a file in PyTorch's layout."""
    state, _ = stored_state(workdir, config, "best")
    tensors = {}
    for collection in (state.params, state.batch_stats):
        for names, leaf in traverse_util.flatten_dict(collection).items():
            leaf, module = np.asarray(leaf), ".".join(names[:-1])
            leaf = leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T
            kind = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
            tensors[f"{module}.{kind.get(names[-1], names[-1])}"] = np.ascontiguousarray(leaf)
    save_file(tensors, path)


@pytest.mark.slow
def test_weights_are_loaded_at_the_start_and_not_needed_again(manifest, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = make_config(manifest, epochs=1)
    train.train(config, tmp_path / "scratch")
    save_weights(tmp_path / "scratch", config, tmp_path / "weights.safetensors")
    config.model.weights, config.model.keep_head = str(tmp_path / "weights.safetensors"), True
    config.optimizer.learning_rate = 1e-37  # changes no weight
    train.train(config, tmp_path / "tuned")
    before, after = (stored_state(tmp_path / name, config, "best")[0].params for name in ("scratch", "tuned"))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    (tmp_path / "weights.safetensors").unlink()
    evaluate(tmp_path / "tuned", faithfulness_images=0)
    with pytest.raises(WeightsError, match=r"weights\.safetensors does not exist"):
        train.train(config, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_seed_decides_weights_and_order(manifest):
    one, other = (build_experiment(resolve(make_config(manifest, seed=seed))) for seed in (0, 1))
    assert (next(iter(one.train_epoch(0)))["index"] != next(iter(other.train_epoch(0)))["index"]).any()
    kernels = [built.random_state().params["head"]["kernel"] for built in (one, other)]
    assert (kernels[0] != kernels[1]).any()


def test_rows_to_look_at_alternate_classes_and_prefer_maps(finished):
    records = build_experiment(resolve(finished[1])).dataset.splits["train"].records
    rows = choose_rows(records, 6)
    assert len(set(rows)) == 6
    np.testing.assert_array_equal(records.labels[rows], [0, 1, 0, 1, 0, 1])
    assert records.has_map[rows].all()
    assert len(choose_rows(records, 100)) == len(records)


def with_maps_of(manifest, folder, keep):
    """The manifest's data again, in another folder, whose training rows have a map where `keep` says so."""
    shutil.copytree(manifest.parent, folder)
    rows = list(csv.DictReader((folder / "manifest.csv").read_text().splitlines()))
    for number, row in enumerate(rows):
        row["map"] = row["map"] if row["split"] != "train" or keep(number, row) else ""
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "manifest.csv"


@pytest.mark.parametrize(
    "overrides", [{"strategy": "cyborg"}, {"strategy": "cyborg", "data.maps.placebo": "mean_map"}], ids=str
)
def test_guidance_without_a_single_map_is_refused_before_anything_is_written(manifest, tmp_path, overrides):
    bare = with_maps_of(manifest, tmp_path / "data", lambda number, row: False)
    with pytest.raises(DataError, match=r"none of the \d+ training images has a usable human map.*--check"):
        train.train(make_config(bare, **overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    config = make_config(bare, **{"compare.strategies": ("cross_entropy", "cyborg")})
    with pytest.raises(DataError, match="guidance would be void"):
        compare(config, tmp_path / "study")
    assert not list((tmp_path / "study").glob("*/config.json"))


@pytest.mark.slow
def test_what_needs_no_maps_trains_without_any(manifest, tmp_path, capsys):
    bare = with_maps_of(manifest, tmp_path / "data", lambda number, row: False)
    for name, overrides in {"a": {"strategy": "entropy"}, "b": {"strategy": "cyborg", "guidance.alpha": 1.0}}.items():
        results = train.train(make_config(bare, epochs=1, **overrides), tmp_path / name)
        assert {each["maps"] for each in results["training_maps"].values()} == {0}
    assert "Human maps in training" not in capsys.readouterr().out


def test_unmarked_images_are_told_and_counted_and_alpha_stands_in_the_lines(manifest, tmp_path, capsys):
    """Of class dark nobody drew a map: its images are a term of their own, and the schedule is that of the steps."""
    one_class = with_maps_of(manifest, tmp_path / "one", lambda number, row: row["label"] == "bright")
    options = {"guidance.unmarked": "flat", "guidance.unmarked_classes": ("dark",), "guidance.schedule": "linear_down"}
    train.train(make_config(one_class, epochs=1, log_every_steps=1, strategy="cyborg", **options), tmp_path / "run")
    out, lines = capsys.readouterr().out, [line for line in read_lines(tmp_path / "run") if "train/alpha" in line]
    assert "nothing to mark: the 6 of dark without a human map." in out and "No image of dark" not in out
    assert [line["train/alpha"] for line in lines] == pytest.approx([1 - 0.5 * (1 - step / 3) for step in range(3)])
    assert sum(line["train/unmarked_examples"] for line in lines) == 6
    for line in lines:
        means = {name: line[f"train/{name}"] or 0 for name in ("cross_entropy", "cyborg", "unmarked")}
        rest = means["cyborg"] + means["unmarked"]
        expected = line["train/alpha"] * means["cross_entropy"] + (1 - line["train/alpha"]) * rest
        assert line["train/loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("drak", "unmarked_classes is 'drak'.*Did you mean 'dark'"),
        ("dark", "all 6 training images of 'dark' have a human"),
    ],
)
def test_unmarked_classes_that_take_no_example_are_refused(manifest, tmp_path, name, message):
    options = {"guidance.unmarked": "flat", "guidance.unmarked_classes": (name,)}
    with pytest.raises(UserError, match=message):
        train.train(make_config(manifest, strategy="cyborg", **options), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_maps_of_one_class_or_of_few_images_are_told(manifest, tmp_path, capsys):
    one_class = with_maps_of(manifest, tmp_path / "one", lambda number, row: row["label"] == "bright")
    results = train.train(make_config(one_class, epochs=1, strategy="cyborg"), tmp_path / "run")
    out, counts = capsys.readouterr().out, results["training_maps"]
    assert counts["dark"]["maps"] == 0 < counts["bright"]["maps"] <= counts["bright"]["images"]
    shares = ", ".join(f"{name} {each['maps']} of {each['images']}" for name, each in counts.items())
    assert f"Human maps in training: {shares}\n" in out and f"Training images with a human map: {shares}." in out
    assert "No image of dark has a human map" in out and "Only" not in out
    few = with_maps_of(write_manifest(tmp_path / "many", train=24), tmp_path / "few", lambda number, row: number < 2)
    told = describe_maps(open_dataset(resolve(make_config(few))))
    assert told[1:] == ["Only 2 of 24 training images have a human map: guidance will have little to say."]
