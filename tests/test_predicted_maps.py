"""Maps predicted for images that nobody annotated: who learned from whom, what is written, and what training takes."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import pearsonr
from tiny_manifest import write_manifest
from tiny_run import tiny_config

from tfcam_jax.data import written_manifest
from tfcam_jax.data.human_maps import MapChoice, describe_maps
from tfcam_jax.data.source import DataError, Dataset, Records, WithRecords
from tfcam_jax.errors import ConfigError
from tfcam_jax.experiment import open_dataset, resolve
from tfcam_jax.predicted_maps import predictor
from tfcam_jax.predicted_maps.predict import format_predicted, predict_maps

REPO = Path(__file__).parents[1]


def read_rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def write_rows(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def predicted(tmp_path_factory):
    """What launch/predict_maps.py leaves of the tiny set, whose every fourth image has no map (all of them bright)."""
    folder = tmp_path_factory.mktemp("predicted") / "data"
    manifest = write_manifest(folder, train=64)
    done = subprocess.run(
        [
            *(sys.executable, REPO / "launch/predict_maps.py", f"--config={REPO}/configs/manifest.py"),
            *(f"--config.data.manifest={manifest}", "--config.data.image_size=32", "--config.model.name=small_cnn"),
            *("--config.optimizer.learning_rate=0.05", "--config.augment.crop=0.0", "--config.augment.rotate=0.0"),
            *(f"--write_manifest={folder / 'predicted.csv'}", "--folds=2", "--steps=120"),
        ],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.slow
def test_predicted_maps_lie_where_people_would_have_marked(predicted):
    """The tiny set draws a map of every image; the manifest keeps some back."""
    folder, out = predicted
    before, after = read_rows(folder / "manifest.csv"), read_rows(folder / "predicted.csv")
    by_image = {row["image"]: row for row in after}
    correlations = []
    for row in before:
        new = by_image[row["image"]]
        if row["split"] == "train" and not row["map"]:
            assert new["predicted"] == "yes" and new["map"].startswith("predicted_maps/")
            truth = np.asarray(Image.open(folder / row["image"].replace("images", "maps")), float)
            found = np.asarray(Image.open(folder / new["map"]), float)
            assert found.shape == truth.shape and found.min() == 0 and found.max() == 255
            correlations.append(pearsonr(truth.ravel(), found.ravel()).statistic)
        else:
            assert new == row | {"predicted": ""}
    assert len(correlations) == 16 and np.mean(correlations) > 0.5
    record = json.loads((folder / "predicted.json").read_text())
    assert record["images"]["bright"] == {"images": 32, "annotated": 16, "predicted": 16}
    assert record["images"]["dark"]["predicted"] == 0 and record["config"]["model"]["name"] == "small_cnn"
    assert record["agreement"]["bright"]["predicted_cc"] > record["agreement"]["bright"]["mean_map"]
    assert (folder / "predicted.png").stat().st_size > 10_000 and "CC predicted" in out


@pytest.mark.slow
@pytest.mark.parametrize(("choice", "maps"), [("use", 64), ("ignore", 48), ("other_image", 64)])
def test_training_takes_predicted_maps_or_leaves_them(predicted, choice, maps):
    folder, _ = predicted
    config = tiny_config(folder / "predicted.csv")
    config.data.maps.predicted = choice
    dataset, plain = open_dataset(resolve(config)), open_dataset(resolve(tiny_config(folder / "manifest.csv")))
    train = dataset.splits["train"]
    assert train.records.has_map.sum() == maps
    told = f"{maps - 48} of these maps were predicted by a network"
    assert any(line.startswith(told) for line in describe_maps(dataset)) == (maps > 48)
    for split in ("val", "test"):
        np.testing.assert_array_equal(dataset.splits[split].records.has_map, plain.splits[split].records.has_map)
    saliency = lambda source, row: source[int(row)].saliency
    people = np.flatnonzero(plain.splits["train"].records.has_map)
    for row in people[:5]:
        np.testing.assert_array_equal(saliency(train, row), saliency(plain.splits["train"], row))
    own = {row: np.asarray(Image.open(folder / f"predicted_maps/images/train{row}.png.png")) for row in range(3, 64, 4)}
    for row in own:
        found = saliency(train, row)
        equal = [other for other in own if found is not None and np.allclose(255 * found, own[other], atol=0.5)]
        assert equal == {"use": [row], "ignore": []}.get(choice, equal)
        assert choice != "other_image" or (len(equal) == 1 and equal != [row])


@pytest.mark.slow
def test_a_predictor_never_saw_the_group_that_it_predicts(tmp_path, monkeypatch):
    manifest = write_manifest(tmp_path / "data", train=32)
    rows = read_rows(manifest)
    for number, row in enumerate(rows):
        row["group"] = f"g{number // 3}" if row["split"] == "train" else row["group"]  # with a map and without
    write_rows(manifest, rows)
    seen = []

    def fit(experiment, bar):
        return set(experiment.dataset.splits["train"].records.groups)

    def apply(experiment, learned, source):
        seen.append((learned, set(source.records.groups)))
        return predictor.Predicted(*np.zeros((2, len(source), 4, 4), np.float32))

    monkeypatch.setattr(predictor, "_fit", fit)
    monkeypatch.setattr(predictor, "_apply", apply)
    predict_maps(tiny_config(manifest), tmp_path / "data/predicted.csv", folds=4, steps=1)
    assert len({frozenset(learned) for learned, _ in seen}) == 4
    assert all(not learned & asked for learned, asked in seen)
    assert set().union(*(asked for _, asked in seen)) == {row["group"] for row in rows if row["split"] == "train"}
    held = sorted(path.name for path in manifest.parent.iterdir())
    assert len(held) == 3 + 4  # and nothing half-written
    for name in ("again_maps", "again.json", "again.png"):
        (manifest.parent / name).symlink_to("nowhere")
        with pytest.raises(ConfigError, match=rf"{name} is there already, and would be written"):
            predict_maps(tiny_config(manifest), manifest.parent / "again.csv", folds=4, steps=1)
        (manifest.parent / name).unlink()
    monkeypatch.setattr(written_manifest, "write_manifest", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        predict_maps(tiny_config(manifest), manifest.parent / "again.csv", folds=4, steps=1)
    assert sorted(path.name for path in manifest.parent.iterdir()) == held


def records(rng, n=60):
    labels = rng.integers(0, 2, n).astype(np.int32)
    groups = tuple(f"g{label}{rng.integers(0, 8)}" if rng.random() < 0.7 else "" for label in labels)
    return Records(tuple(map(str, range(n))), labels, ("",) * n, groups, rng.random(n) < 0.8)


class Bare(WithRecords):
    """A source of records alone."""

    def __init__(self, records):
        self.records = records

    def __getitem__(self, index):
        raise IndexError(index)


@pytest.mark.parametrize("seed", range(5))
def test_a_share_of_the_maps_is_of_each_class_whole_groups_and_part_of_a_larger_share(seed):
    drawn = records(np.random.default_rng(seed))
    dataset = Dataset("drawn", ("a", "b"), {"train": Bare(drawn), "val": Bare(drawn)})
    kept = {}
    for share in (0.1, 0.3, 0.9, 1.0):
        chosen = MapChoice(share=share, share_seed=seed).apply(dataset)
        kept[share] = chosen.splits["train"].records.has_map
        assert chosen.splits["val"].records.has_map.sum() == drawn.has_map.sum()
        for label in (0, 1):
            own = drawn.has_map & (drawn.labels == label)
            sizes = [sum(own[i] for i in range(60) if drawn.groups[i] == g) for g in set(drawn.groups) if g]
            beyond = (kept[share] & own).sum() - share * own.sum()
            assert 0 <= round(beyond, 9) < max([1, *sizes])
        for group in set(drawn.groups) - {""}:
            rows = [i for i in range(60) if drawn.groups[i] == group and drawn.has_map[i]]
            assert len({bool(kept[share][i]) for i in rows}) <= 1
    assert (kept[0.1] <= kept[0.3]).all() and (kept[0.3] <= kept[0.9]).all() and (kept[1.0] == drawn.has_map).all()


@pytest.mark.slow
def test_what_cannot_be_predicted_or_written_is_told_before_the_work(tmp_path, predicted):
    folder, _ = predicted
    config = tiny_config(folder / "manifest.csv")
    with pytest.raises(ConfigError, match=r"predicted.csv: there is such a file already"):
        predict_maps(config, folder / "predicted.csv")
    with pytest.raises(ConfigError, match="--folds must be at least 2"):
        predict_maps(config, folder / "other.csv", folds=1)
    rows = read_rows(folder / "manifest.csv")
    for row in rows:
        row["map"] = ""
    write_rows(folder / "bare.csv", rows)
    with pytest.raises(DataError, match="there is nothing to learn from"):
        predict_maps(tiny_config(folder / "bare.csv"), folder / "other.csv")
    full = [row | {"map": row["image"].replace("images", "maps")} for row in rows]
    write_rows(folder / "full.csv", full)
    with pytest.raises(DataError, match="every training image of dark, bright has a human map"):
        predict_maps(tiny_config(folder / "full.csv"), folder / "other.csv")
    assert not list(folder.glob("other*")) and not list(folder.glob(".other*"))
    write_rows(folder / "odd.csv", [row | {"predicted": "maybe"} for row in full])
    with pytest.raises(DataError, match=r"row 2: predicted is yes for .*, else empty; got 'maybe'"):
        open_dataset(resolve(tiny_config(folder / "odd.csv")))
    for key, value in {"predicted": "some", "share": 0.0, "share_seed": -1}.items():
        changed = tiny_config(folder / "manifest.csv")
        changed.data.maps[key] = value
        with pytest.raises(ConfigError, match=key):
            resolve(changed)


def test_the_table_says_where_predictions_are_worth_nothing():
    counts = {"images": 10, "annotated": 4, "predicted": 6}
    text = format_predicted(
        {
            "images": {"a": counts, "b": counts, "c": counts | {"annotated": 0, "predicted": 0}},
            "agreement": {
                "a": {"predicted_cc": 0.6, "mean_map": 0.2},
                "b": {"predicted_cc": 0.2, "mean_map": 0.3},
            },
        }
    )
    assert "b: held-out predictions agree no better" in text and "a: held-out" not in text
    assert "c: no image is annotated; none is predicted." in text


def test_a_class_with_fewer_maps_than_folds_is_told():
    labels, nothing = np.array([0] * 9 + [1] * 4, np.int32), ("",) * 13
    records = Records(tuple(map(str, range(13))), labels, nothing, nothing, np.ones(13, bool))
    with pytest.raises(DataError, match="--folds=5 needs as many annotated training images of each class; one has 4"):
        predictor._fold_of_rows(records, np.arange(13), 5, 0)
    assert set(predictor._fold_of_rows(records, np.arange(13), 4, 0)) == {0, 1, 2, 3}
