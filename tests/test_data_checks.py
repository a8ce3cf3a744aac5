"""Checks are done once: what an earlier opening found is taken, what changed is decoded again."""

import json
import os

import numpy as np
import pytest
from absl import logging
from fake_layouts import write_csv
from PIL import Image
from tiny_manifest import write_manifest

from tfcam_jax.data.checks import inspection
from tfcam_jax.data.checks.leakage import find_conflicts
from tfcam_jax.data.checks.outcomes import Outcome, load_outcomes, outcomes_json
from tfcam_jax.data.manifest import open_manifest
from tfcam_jax.data.source import DataError

ROWS = 32  # of the manifest


@pytest.fixture
def manifest(tmp_path):
    """The tiny manifest; the map of the first row is in a table, with those of others."""
    path = write_manifest(tmp_path / "data")
    write_csv(path.parent / "boxes.csv", [["image", "x", "y", "width", "height"], ["images/train0.png", 4, 4, 8, 8]])
    path.write_text(path.read_text().replace("maps/train0.png", "boxes.csv"))
    return path


@pytest.fixture
def decoded(monkeypatch):
    """Counts the images that are decoded to be checked."""
    sizes, original = [], inspection.decode_image
    monkeypatch.setattr(inspection, "decode_image", lambda *args: sizes.append(len(args[0])) or original(*args))
    return sizes


def test_a_second_opening_decodes_nothing(manifest, decoded, tmp_path):
    first = open_manifest(str(manifest))
    assert len(decoded) == len(first.checked) == ROWS
    (tmp_path / "checks.json").write_text(outcomes_json(first.checked))
    assert list(tmp_path.glob("checks*")) == [tmp_path / "checks.json"]
    known = load_outcomes(tmp_path / "checks.json")
    assert known == first.checked
    decoded.clear()
    again = open_manifest(str(manifest), known=known)
    assert decoded == [] and again.checked == first.checked
    for split, source in first.splits.items():
        assert again.splits[split].records.digests == source.records.digests
        np.testing.assert_array_equal(again.splits[split].records.has_map, source.records.has_map)
    # Not of the same folder: paths are part of the key, the way they are written isn't.
    os.symlink(manifest.parent, tmp_path / "link")
    open_manifest(str(tmp_path / "link/manifest.csv"), known=known)
    assert decoded == []


def change_image(folder):
    Image.new("RGB", (32, 32), (9, 8, 7)).save(folder / "images/train1.png")


def change_map(folder):
    Image.new("L", (32, 32), 7).save(folder / "maps/train1.png")


def touch_image(folder):
    os.utime(folder / "images/train1.png", ns=(1, 1))


def change_table(folder):
    write_csv(folder / "boxes.csv", [["image", "x", "y", "width", "height"], ["images/train0.png", 4, 4, 8, 9]])


def change_cell(folder):
    manifest = folder / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("maps/train1.png", "ann=maps/train1.png"))


@pytest.mark.parametrize("change", [change_image, change_map, touch_image, change_table, change_cell])
def test_what_changed_is_decoded_again(manifest, decoded, change):
    known = open_manifest(str(manifest)).checked
    decoded.clear()
    change(manifest.parent)
    dataset = open_manifest(str(manifest), known=known)
    assert len(decoded) == 1
    assert dataset.splits["train"].records.has_map[1] == (change is not change_map)
    assert len(dataset.checked) == ROWS and len(set(dataset.checked) - set(known)) == 1


@pytest.mark.parametrize("option", [{"sigma": 9.0}, {"pixels_per_degree": 2.0}, {"combine": "majority"}])
def test_other_options_are_another_check(manifest, decoded, option):
    known = open_manifest(str(manifest)).checked
    decoded.clear()
    open_manifest(str(manifest), known=known, **option)
    assert len(decoded) == ROWS


def test_faults_are_never_known_and_leakage_is_looked_for_all_the_same(manifest, decoded):
    folder = manifest.parent
    sound = (folder / "images/train1.png").read_bytes()
    (folder / "images/train1.png").write_bytes(b"nothing")
    known = open_manifest(str(manifest), skip_unreadable=True).checked
    assert len(known) == ROWS - 1
    for _ in range(2):
        decoded.clear()
        with pytest.raises(DataError, match=r"row 3: image images/train1\.png: not an image"):
            open_manifest(str(manifest), known=known)
        assert len(decoded) == 1
    (folder / "images/train1.png").write_bytes(sound)
    known = open_manifest(str(manifest)).checked
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([*lines, lines[1].replace("train,", "test,", 1)]))
    decoded.clear()
    with pytest.raises(DataError, match=r"row 34: image images/train0\.png is also in split train"):
        open_manifest(str(manifest), known=known)
    assert decoded == []


SOUND = {"k": ["a" * 64, 3, 4, "usable"]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "damaged"),
        ('{"version":2,"rows":{"k":["', "damaged"),
        ("[]", "damaged"),
        ('{"rows":{}}', "damaged"),
        (json.dumps({"version": 2, "rows": []}), "damaged"),
        (json.dumps({"version": 2, "rows": {"k": ["ab", 3, 4, "usable"]}}), "damaged"),
        (json.dumps({"version": 2, "rows": {"k": ["a" * 64, 3, "4", "usable"]}}), "damaged"),
        (json.dumps({"version": 2, "rows": {"k": ["a" * 64, 3, 4, "fine"]}}), "damaged"),
        (json.dumps({"version": 0, "rows": SOUND}), "another version"),
    ],
)
def test_a_damaged_file_is_told_and_counts_for_nothing(tmp_path, caplog, content, said):
    logging.set_verbosity(logging.INFO)
    logging.get_absl_logger().propagate = True
    path = tmp_path / "checks.json"
    path.write_text(json.dumps({"version": 2, "rows": SOUND}))
    assert load_outcomes(path) == {"k": Outcome((), "a" * 64, (3, 4), "usable")} and not caplog.text
    path.write_text(content)
    assert load_outcomes(path) == {}
    assert said in caplog.text and "all images are checked again" in caplog.text


def test_no_file_is_no_fault(tmp_path, caplog):
    assert load_outcomes(tmp_path / "checks.json") == {} and not caplog.text


def test_conflicts_are_with_the_first_row_or_the_one_of_highest_rank():
    columns = {"name": ["a", "b", "a", "", "b"], "group": ["", "", "x", "x", "x"]}
    assert find_conflicts(columns, "uvvwv") == [(2, 0, "name"), (3, 2, "group")]
    assert find_conflicts(columns, "uvvwv", [0, 0, 1, 2, 1]) == [(0, 2, "name"), (2, 3, "group"), (4, 3, "group")]
