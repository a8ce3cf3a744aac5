"""Checks are done once: what an earlier opening found is taken, what changed is decoded again."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from fake_layouts import write_csv
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_manifest import write_manifest

from tfcam_jax.data.checks import inspection
from tfcam_jax.data.checks.inspection import note_lines
from tfcam_jax.data.checks.leakage import find_conflicts
from tfcam_jax.data.checks.outcomes import BITS_16, Outcome, load_outcomes, outcomes_json
from tfcam_jax.data.checks.report import make_report
from tfcam_jax.data.listing import Row
from tfcam_jax.data.manifest import list_manifest, open_manifest, open_manifest_split
from tfcam_jax.data.source import DataError, Example
from tfcam_jax.data.transforms import Resize, apply
from tfcam_jax.saliency import to_cam_resolution

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


def swap_for_an_equally_old_one(folder):
    """Size and time of writing are as before."""
    path, other = folder / "images/train1.png", folder / "images/other.png"
    status = path.stat()
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(path)


def change_table(folder):
    write_csv(folder / "boxes.csv", [["image", "x", "y", "width", "height"], ["images/train0.png", 4, 4, 8, 9]])


def change_cell(folder):
    manifest = folder / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("maps/train1.png", "ann=maps/train1.png"))


@pytest.mark.parametrize(
    "change", [change_image, change_map, touch_image, swap_for_an_equally_old_one, change_table, change_cell]
)
def test_what_changed_is_decoded_again(manifest, decoded, change):
    known = open_manifest(str(manifest)).checked
    decoded.clear()
    change(manifest.parent)
    dataset = open_manifest(str(manifest), known=known)
    assert len(decoded) == 1
    assert dataset.splits["train"].records.has_map[1] == (change is not change_map)
    assert len(dataset.checked) == ROWS and len(set(dataset.checked) - set(known)) == 1


@pytest.mark.parametrize(
    "option",
    [{"sigma": 9.0}, {"pixels_per_degree": 2.0}, {"combine": "majority"}, {"invert": True}, {"page": 1}, {"bits": 12}],
)
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


CONTENTS = ["b" * 16, ""]
SOUND = {"k": ["a" * 64, *CONTENTS, 3, 4, "usable", "map_mask", "image_turned"]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "damaged"),
        ('{"version":4,"rows":{"k":["', "damaged"),
        ("[]", "damaged"),
        ('{"rows":{}}', "damaged"),
        (json.dumps({"version": 4, "rows": []}), "damaged"),
        (json.dumps({"version": 4, "rows": {"k": ["ab", *CONTENTS, 3, 4, "usable"]}}), "damaged"),
        (json.dumps({"version": 4, "rows": {"k": ["a" * 64, *CONTENTS, 3, "4", "usable"]}}), "damaged"),
        (json.dumps({"version": 4, "rows": {"k": ["a" * 64, *CONTENTS, 3, 4, "fine"]}}), "damaged"),
        (json.dumps({"version": 4, "rows": {"k": ["a" * 64, *CONTENTS, 3, 4, "usable", "odd"]}}), "damaged"),
        (json.dumps({"version": 4, "rows": {"k": ["a" * 64, "b", "", 3, 4, "usable"]}}), "damaged"),
        (json.dumps({"version": 3, "rows": SOUND}), "another version"),
    ],
)
def test_a_damaged_file_is_told_and_counts_for_nothing(tmp_path, caplog, content, said):
    logging.set_verbosity(logging.INFO)
    logging.get_absl_logger().propagate = True
    path = tmp_path / "checks.json"
    path.write_text(json.dumps({"version": 4, "rows": SOUND}))
    outcomes = {"k": Outcome((), "a" * 64, (3, 4), "usable", ("map_mask", "image_turned"), *CONTENTS)}
    assert load_outcomes(path) == outcomes and not caplog.text
    assert json.loads(outcomes_json(outcomes)) == json.loads(path.read_text())
    path.write_text(content)
    assert load_outcomes(path) == {}
    assert said in caplog.text and "all images are checked again" in caplog.text


def test_no_file_is_no_fault(tmp_path, caplog):
    assert load_outcomes(tmp_path / "checks.json") == {} and not caplog.text


def test_conflicts_are_with_the_first_row_or_the_one_of_highest_rank():
    columns = {"name": ["a", "b", "a", "", "b"], "group": ["", "", "x", "x", "x"]}
    assert find_conflicts(columns, "uvvwv") == [(2, 0, "name"), (3, 2, "group")]
    assert find_conflicts(columns, "uvvwv", [0, 0, 1, 2, 1]) == [(0, 2, "name"), (2, 3, "group"), (4, 3, "group")]


def write_films(folder, largest):
    """A manifest whose images are films in files of 16 bits with these largest values, one after the other."""
    manifest = write_manifest(folder)
    for i, value in enumerate(largest):
        path = folder / f"images/train{i}.png"
        ramp = np.linspace(0, value, 32 * 32).reshape(32, 32) * (1 if i % 2 else [1] * 31 + [0.5])
        Image.fromarray(ramp.astype(np.uint16)).save(path)
    return manifest


def test_films_of_different_depth_are_refused_until_someone_says_which_it_is(tmp_path, caplog):
    logging.set_verbosity(logging.INFO)
    logging.get_absl_logger().propagate = True
    manifest = write_films(tmp_path / "data", [4095, 3000, 65535, 0])
    with pytest.raises(
        DataError, match=r"different depth, 2 as if 12 .*train0\.png.* 1 as if 16 .*train2\.png"
    ) as told:
        open_manifest(str(manifest))
    assert "data.bits" in str(told.value)
    with pytest.raises(DataError, match="look of different depth"):
        open_manifest_split(manifest, "train", ("dark", "bright"), 1)
    for bits, brightest in ((0, [255, 187, 255]), (16, [16, 12, 255])):
        source = open_manifest(str(manifest), channels=1, bits=bits).splits["train"]
        assert [source[i].image.max() for i in range(3)] == brightest
    manifest = write_films(tmp_path / "alike", [4095, 3000])
    dataset = open_manifest(str(manifest), channels=1)
    assert [dataset.splits["train"][i].image.max() for i in range(2)] == [255, 187]
    (note,) = dataset.notes
    assert note.startswith("2 images in files of 16 bits stay below 4096 and were read as 12 bits")
    open_manifest_split(manifest, "train", ("dark", "bright"), 1)
    assert caplog.text.count(f"{manifest}: {note}") == 1 and caplog.text.count("16 bits") == 1


def test_what_was_done_to_maps_is_told_once_with_a_count_and_names_and_again_from_what_is_kept(manifest):
    folder = manifest.parent
    for i in (2, 4, 5, 6, 8):
        inverted = 255 - np.asarray(Image.open(folder / f"maps/train{i}.png"))
        Image.fromarray(inverted if i < 8 else (255 - inverted) // 255).save(folder / f"maps/train{i}.png")
    first = open_manifest(str(manifest))
    said = "4 maps mark more than half of their image; if they are inverted, set data.maps.invert: maps/train2.png, "
    for known in (None, first.checked):
        notes = open_manifest(str(manifest), known=known).notes
        (marked,) = (note for note in notes if note.startswith(said))
        assert marked.endswith("train5.png, ... and 1 more") and len(notes) == 2
        assert sum("1 maps hold 0 and one other value below white" in note for note in notes) == 1
    report = make_report(inspection.inspect(list_manifest(str(manifest)), closely=True))
    assert [each for each in report.figures["notes"] if each in notes] == list(notes)
    assert note_lines([Row("list", 2, "train", "x", "a.png", "m.png")], [Outcome(notes=(BITS_16,))]) == []
    with pytest.raises(DataError, match="differ in case"):
        manifest.write_text(manifest.read_text().replace("train,dark", "train,Dark", 1))
        open_manifest(str(manifest))


def test_a_map_drawn_on_the_stored_pixels_of_a_turned_image_is_refused(manifest):
    folder = manifest.parent
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.random.default_rng(0).integers(0, 255, (20, 32, 3), np.uint8)
    drawn = np.zeros((20, 32), np.uint8)
    drawn[3:9, 4:12] = 255
    Image.fromarray(stored).save(folder / "images/train1.png", exif=exif)
    Image.fromarray(drawn).save(folder / "maps/train1.png")
    with pytest.raises(DataError, match=r"row 3: map .* is 32 x 20, its image .* 20 x 32;.*EXIF orientation 6"):
        open_manifest(str(manifest))
    Image.fromarray(np.rot90(drawn, -1)).save(folder / "maps/train1.png")
    source = open_manifest(str(manifest)).splits["train"]
    np.testing.assert_array_equal(source[1].saliency, np.rot90(drawn, -1) / 255)


# Kinds of maps that may come out constant at a CAM's few places, by a random generator and a side.
KINDS = {
    "a pixel": lambda rng, side: (np.arange(side * side) == rng.integers(side * side)).reshape(side, side) * 1.0,
    "all but a pixel": lambda rng, side: 1 - KINDS["a pixel"](rng, side),
    "faint on grey": lambda rng, side: 0.5 + 10.0 ** rng.uniform(-7, -1) * rng.random((side, side)),
    "a faint blob on grey": lambda rng, side: 0.5 + 10.0 ** rng.uniform(-7, -1) * blob(rng, side),
    "stripes": lambda rng, side: np.add.outer(np.arange(side), np.zeros(side)) // rng.integers(1, 30) % 2,
    "a chessboard": lambda rng, side: np.add.outer(np.arange(side), np.arange(side)) // rng.integers(1, 9) % 2,
    "constant": lambda rng, side: np.full((side, side), rng.random()),
    "a blob": lambda rng, side: 1e-3 * blob(rng, side),
}


def blob(rng, side):
    row, column = rng.uniform(0, side, 2)
    distance = np.hypot(*np.ogrid[-row : side - row - 0.5, -column : side - column - 0.5])
    return np.exp(-0.5 * (distance / rng.uniform(1, side)) ** 2)


@given(st.sampled_from(sorted(KINDS)), st.integers(0, 10**6), st.integers(8, 400), st.sampled_from([64, 224]))
@settings(max_examples=50, deadline=None)
def test_a_map_that_is_usable_for_the_check_is_usable_in_training(kind, seed, side, image_size):
    """And one that is not never reaches training, see `ListedSource`: one definition."""
    human = np.asarray(KINDS[kind](np.random.default_rng(seed), side), np.float32)
    if inspection.kind_of_map(human) == "usable":
        _, moved = apply(Example.from_arrays(np.zeros((8, 8, 1), np.uint8), human), Resize(image_size))
        for places in (4, 7, 10):
            assert to_cam_resolution(jnp.asarray(moved), (places, places))[1]


def test_maps_of_which_a_cam_keeps_nothing_are_constant():
    rng = np.random.default_rng(0)
    expected = {"a pixel": "usable", "a blob": "usable", "all but a pixel": "constant", "constant": "constant"}
    assert {kind: inspection.kind_of_map(np.float32(KINDS[kind](rng, 200))) for kind in expected} == expected
    assert inspection.kind_of_map(np.zeros((9, 9), np.float32)) == "empty"
    assert inspection.kind_of_map(None) == "absent"
