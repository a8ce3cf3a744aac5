"""What is published holds the model to the bit and nothing private, and comes back from a hub, or says why not."""

import json
import logging
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
import stand_in_hub
import yaml
from huggingface_hub import constants as hub_constants

import tfcam_jax
from tfcam_jax.data.source import DataError
from tfcam_jax.inference import restore
from tfcam_jax.run import published
from tfcam_jax.run.files import WorkdirError
from tfcam_jax.run.published import PublishedError
from tfcam_jax.sharing import card
from tfcam_jax.sharing.privacy import without_paths
from tfcam_jax.sharing.publish import publish
from tfcam_jax.sharing.push import PushError, check_repository
from tfcam_jax.strategies import STRATEGIES

REPO = "someone/squares"
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 40, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def run(trained_run, tmp_path_factory):
    """The run, evaluated; nobody writes into it but what it publishes by default."""
    run = Path(shutil.copytree(trained_run, tmp_path_factory.mktemp("evaluated") / "run"))
    manifest = trained_run.parent / "data/manifest.csv"
    tfcam_jax.evaluate(run, data=manifest, out=run / "evaluation", faithfulness_images=0)
    return run


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    """The published run; nobody writes into it."""
    return publish(run, REPO, tmp_path_factory.mktemp("published") / "model", license="mit")


@pytest.fixture
def copy(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with nothing in it, an empty cache and a token; the client's uploads go by plain HTTP."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", stand_in_hub.TOKEN)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub_constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hub_constants, "HF_HUB_DISABLE_TELEMETRY", True)
    with stand_in_hub.serve() as served:
        monkeypatch.setattr(hub_constants, "ENDPOINT", served.endpoint)
        template = f"{served.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield served


def offer(hub, folder, **changed):
    """Puts a folder's files on the hub, without the client."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.repositories[REPO] = stand_in_hub.Repository(files=files | changed)


def edit_config(folder, change):
    """Changes the config of a published folder, and its checksum as its owner would."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    record = json.loads((folder / "tfcam_jax.json").read_text())
    record["files"]["config.json"] = published.digest_file(folder / "config.json")
    (folder / "tfcam_jax.json").write_text(json.dumps(record))


# Of the Hub's own client, of its HTTP library.
@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
def test_pushed_and_restored_it_says_the_same_to_the_bit(folder, trained_run, hub, capsys):
    publish(folder, REPO, push=True)
    assert f"{hub.endpoint}/{REPO}" in capsys.readouterr().out
    assert hub.repositories[REPO].private
    assert hub.repositories[REPO].files == {path.name: path.read_bytes() for path in folder.iterdir()}
    expected, found = tfcam_jax.restore(trained_run), tfcam_jax.restore(f"hf://{REPO}")
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), expected.variables, found.variables))
    for one, other in zip(expected.predict(IMAGES), found.predict(IMAGES), strict=True):
        np.testing.assert_array_equal(one, other)
    got = {line.rsplit("/")[-1] for line in hub.asked if line.startswith("GET") and "/resolve/" in line}
    assert got == {"model.safetensors", "config.json", "tfcam_jax.json", "results.json"}


def test_nothing_private_is_in_it(folder, run, trained_run):
    records = list((trained_run / "scores.csv").read_text().splitlines())[1:]
    names = {line.split(",")[0] for line in records}
    assert any("test0.png" in name for name in names)
    for path in folder.iterdir():
        content = path.read_bytes()
        assert str(trained_run.parent).encode() not in content and str(run).encode() not in content, path.name
        assert not [name for name in names if name.encode() in content], path.name
    assert not (folder / "scores.csv").exists() and not (folder / "examples.png").exists()
    assert (folder / "maps.png").stat().st_size > 1000


def test_paths_become_names_and_all_else_stays(tmp_path):
    (tmp_path / "net.pth").touch()
    config = {
        "data": {"manifest": "my/lists/m.csv", "lists": ["a/*.csv", "/root/b.csv"], "group_pattern": "/(a)/", "n": 3},
        "model": {"weights": str(tmp_path / "net.pth")},
        "data_dir": r"C:\sets\x",
        "empty": {},
    }
    public, changed = without_paths(config)
    assert public == {
        "data": {"manifest": "m.csv", "lists": ["a/*.csv", "b.csv"], "group_pattern": "/(a)/", "n": 3},
        "model": {"weights": "net.pth"},
        "data_dir": "x",
        "empty": {},
    }
    assert changed == ["data.manifest", "data.lists", "model.weights", "data_dir"]
    assert without_paths({"model": {"weights": "owner/name"}})[0] == {"model": {"weights": "owner/name"}}


def test_the_card_has_metadata_and_what_a_reader_must_know(folder):
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    head = yaml.safe_load(head)
    assert (head["license"], head["pipeline_tag"], head["library_name"]) == ("mit", "image-classification", "tfcam_jax")
    evaluation = json.loads((folder / "evaluation.json").read_text())
    told = {entry["dataset"]["config"]: entry["metrics"] for entry in head["model-index"][0]["results"]}
    assert {name: {m["type"]: m["value"] for m in metrics}["roc_auc"] for name, metrics in told.items()} == {
        name: round(own["scores"]["margin"]["auroc"], 4) for name, own in evaluation["sets"].items()
    }
    assert evaluation["data"] == "manifest.csv" and "| all * | 12 | 6 | 6 | " in text
    for part in (
        f'restore("hf://{REPO}")',
        "**reconstructions**",
        "no medical device",
        "| train | 24 | 18 | 12 | 12 |",
    ):
        assert part in text
    assert "(maps.png)" in text


def test_every_strategy_has_its_origin():
    assert card._STRATEGIES.keys() == STRATEGIES.keys()


@pytest.mark.slow
def test_what_was_published_of_the_same_run_is_replaced_unless_changed_by_hand(run):
    config = (run / "config.json").read_bytes()
    first = publish(run, REPO)
    assert first == run / "published" and not (first / "examples.png").exists()
    assert "No licence was given" in (first / "README.md").read_text()
    publish(run, REPO, images=3)
    assert (first / "examples.png").exists() and (run / "config.json").read_bytes() == config
    (first / "README.md").write_text("by hand")
    with pytest.raises(WorkdirError, match=r"was changed since it was published \(README\.md\)"):
        publish(run, REPO)
    assert (first / "README.md").read_text() == "by hand"


def test_without_its_data_a_run_is_published_and_what_lacks_is_told(trained_run, tmp_path, caplog):
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    shutil.rmtree(run / "checks.json", ignore_errors=True)
    config = json.loads((run / "config.json").read_text())
    config["data"]["manifest"] = "absent.csv"
    (run / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING, logger="absl"):
        folder = publish(run, REPO)
    assert not (folder / "maps.png").exists()
    assert "the picture is left out" in caplog.text and "evaluation.json is not there" in caplog.text
    text = (folder / "README.md").read_text()
    assert "| train | 24 | 18 | 12 | 12 |" in text and "without intervals" in text


def test_what_is_in_the_way_is_not_touched(folder, trained_run, copy, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    with pytest.raises(WorkdirError, match="is not a published model"):
        publish(trained_run, REPO, tmp_path / "mine")
    record = json.loads((copy / "tfcam_jax.json").read_text())
    (copy / "tfcam_jax.json").write_text(json.dumps({**record, "run": 1}))
    with pytest.raises(WorkdirError, match="of another run"):
        publish(trained_run, REPO, copy)
    # A failure half-way leaves nothing.
    monkeypatch.setattr("tfcam_jax.sharing.publish.write_card", lambda contents: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        publish(trained_run, REPO, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "mine"]


@pytest.mark.parametrize("name", ["squares", "a/b/c", "some one/x", "someone/-x", ""])
def test_names_that_no_repository_has(name):
    with pytest.raises(PushError, match="owner/name"):
        check_repository(name)


def test_a_push_that_can_not_be_says_what_to_do_and_leaves_the_folder(copy, hub, monkeypatch):
    def told(**options) -> str:
        with pytest.raises(PushError) as error:
            publish(copy, REPO, push=True, **options)
        return str(error.value)

    with pytest.raises(PushError, match="was written for someone/squares"):
        publish(copy, "someone/else", push=True)
    hub.repositories[REPO] = stand_in_hub.Repository()
    assert "exists and is public: give --private=False" in told()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "may not write to someone" in told(private=False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "hf auth login" in told()
    monkeypatch.setattr("huggingface_hub.get_token", lambda: stand_in_hub.TOKEN)
    monkeypatch.setattr(hub_constants, "ENDPOINT", "http://127.0.0.1:1")
    message = told()
    assert "no connection to 127.0.0.1:1" in message and f"--workdir={copy} --repo={REPO} --push" in message
    assert hub.repositories[REPO].files == {} and is_whole(copy)


def is_whole(folder):
    files = json.loads((folder / "tfcam_jax.json").read_text())["files"]
    return all(published.digest_file(folder / name) == digest for name, digest in files.items())


@pytest.mark.slow
def test_evaluated_and_explained_on_other_data_and_never_written_to(run, folder, trained_run, hub, tmp_path):
    offer(hub, folder)
    name, manifest = f"hf://{REPO}", trained_run.parent / "data/manifest.csv"
    tfcam_jax.evaluate(name, data=manifest, out=tmp_path / "figures", faithfulness_images=0)
    for file in ("evaluation.json", "scores.csv", "tables.txt"):
        assert (tmp_path / "figures" / file).read_bytes() == (run / "evaluation" / file).read_bytes()
    page = tfcam_jax.explain(name, out=tmp_path / "report", data=manifest)
    assert '"run":"squares"' in page.read_text()
    (snapshot,) = (tmp_path / "cache/models--someone--squares/snapshots").iterdir()
    assert {path.name for path in snapshot.iterdir()} == {
        "config.json",
        "model.safetensors",
        "results.json",
        "tfcam_jax.json",
    }


def test_what_a_published_model_needs_is_told(folder, tmp_path):
    for verb in (tfcam_jax.evaluate, tfcam_jax.explain):
        with pytest.raises(WorkdirError, match="give a folder as --out"):
            verb(folder)
        with pytest.raises(WorkdirError, match="give a folder as --out"):
            verb(f"hf://{REPO}")
        with pytest.raises(DataError, match=r"trained on manifest\.csv .*24 train, 8 val, 12 test.*--data=MANIFEST"):
            verb(folder, out=tmp_path / "out")


def test_without_a_connection_the_copy_serves_and_is_told(folder, hub, monkeypatch, caplog):
    with pytest.raises(PublishedError, match="no such repository, or it is private"):
        restore(f"hf://{REPO}")
    offer(hub, folder)
    commit = hub.repositories[REPO].commit
    with pytest.raises(PublishedError, match="no such branch, tag or commit"):
        restore(f"hf://{REPO}@old")
    first = published.fetch_published(f"hf://{REPO}")
    assert first.name == commit
    hub.asked.clear()
    assert published.fetch_published(f"hf://{REPO}@{commit}") == first and not hub.asked
    # A newer commit is looked up; then the hub is gone.
    hub.repositories[REPO].files["README.md"] = b"newer"
    newer = published.fetch_published(f"hf://{REPO}")
    assert newer.name == hub.repositories[REPO].commit != commit
    monkeypatch.setattr(hub_constants, "ENDPOINT", "http://127.0.0.1:1")
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert published.fetch_published(f"hf://{REPO}") == newer
    assert f"the copy of commit {newer.name}" in caplog.text and "no connection" in caplog.text
    with pytest.raises(PublishedError, match="no copy of main is here"):
        published.fetch_published("hf://someone/else")


@pytest.mark.parametrize("name", ["hf://squares", "hf://a/b/c", "hf://a/b@../../x", "hf://a/b@", "hf://"])
def test_places_that_can_not_be(name):
    with pytest.raises(PublishedError, match="write hf://owner/name"):
        published.fetch_published(name)


def test_a_repository_of_something_else(folder, hub):
    offer(hub, folder)
    del hub.repositories[REPO].files["tfcam_jax.json"]
    with pytest.raises(PublishedError, match=r"has no tfcam_jax\.json"):
        restore(f"hf://{REPO}")


def test_a_stranger_s_repository_runs_no_code_and_opens_no_file_of_ours(copy, hub, monkeypatch):
    edit_config(copy, lambda config: config["model"].update(name="antigravity:build"))
    offer(hub, copy)
    with pytest.raises(PublishedError, match=r"is not imported\. If you trust it"):
        restore(f"hf://{REPO}")
    edit_config(copy, lambda config: config["model"].update(name="small_cnn"))
    edit_config(copy, lambda config: config["data"].update(manifest="/etc/passwd", num_workers=9999))
    offer(hub, copy)
    trained = restore(f"hf://{REPO}")
    assert trained.recipe.num_workers == 0
    with pytest.raises(DataError, match="without its images"):
        tfcam_jax.evaluate(f"hf://{REPO}", out=copy.parent / "out")


def test_a_file_that_is_too_large_is_not_got(folder, hub, monkeypatch):
    offer(hub, folder)
    monkeypatch.setitem(published._MOST_BYTES, "model.safetensors", 1000)
    with pytest.raises(PublishedError, match=r"model\.safetensors has \d+ bytes there, and may have 1000"):
        restore(f"hf://{REPO}")
    assert not [line for line in hub.asked if line.startswith("GET") and line.endswith("safetensors")]


def test_damage_and_other_networks_are_told(copy):
    weights = copy / "model.safetensors"
    content, arrays = bytearray(weights.read_bytes()), safetensors.numpy.load_file(weights)
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(PublishedError, match=r"model\.safetensors is absent, damaged, or was changed"):
        restore(copy)
    safetensors.numpy.save_file({**arrays, "params/head/bias": np.zeros(9, np.float32)}, weights)
    with pytest.raises(PublishedError, match=r"1 arrays differ: params/head/bias is \[\[9\], 'F32'\] there"):
        restore(copy)
    weights.write_bytes(b"no weights")
    with pytest.raises(PublishedError, match="damaged"):
        restore(copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "epochs": 7}))
    with pytest.raises(PublishedError, match=r"config\.json is absent, damaged, or was changed"):
        restore(copy)
    (copy / "tfcam_jax.json").write_text('{"format": 2}')
    with pytest.raises(PublishedError, match="this version reads 1"):
        restore(copy)
    (copy / "tfcam_jax.json").write_text('{"format": 1, "class_names": "ab"}')
    with pytest.raises(PublishedError, match="is damaged"):
        restore(copy)


def test_names_of_classes_may_hold_slashes():
    split = {"images": 3, "maps": 1, "classes": {"N/A": 2, "b": 1}}
    assert [say(split) for _, say in card._of_splits(("N/A", "b"))] == ["3", "1", "2", "1"]
