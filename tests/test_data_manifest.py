"""Manifests: what comes out of sound ones, and that every fault is named with its file, row and remedy."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from absl import logging
from PIL import Image

from tfcam_jax.data.manifest import open_manifest
from tfcam_jax.data.source import DataError

COLUMNS = ("split", "label", "image", "map", "domain", "group")
REAL_SETS = Path(__file__).resolve().parents[2] / "shared" / "data"


def write_png(path, seed, size=(12, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path):
    """Four images in each split, two per class; the first of each class has a map of half the size."""
    rows = []
    for s, split in enumerate(("train", "val", "test")):
        for i in range(4):
            label = ("cat", "dog")[i % 2]
            write_png(tmp_path / f"images/{split}{i}.png", 10 * s + i)
            if i < 2:
                write_png(tmp_path / f"maps/{split}{i}.png", 100 + 10 * s + i, (6, 4), "L")
            saliency = f"maps/{split}{i}.png" if i < 2 else ""
            rows.append([split, label, f"images/{split}{i}.png", saliency, f"{split}_site", f"{split}_patient{i}"])
    write_manifest(tmp_path, rows)
    return tmp_path


def write_manifest(folder, rows, header=COLUMNS, **options):
    with (folder / "manifest.csv").open("w", newline="", **options) as file:
        csv.writer(file).writerows([header, *rows])


def read_rows(folder):
    with (folder / "manifest.csv").open(newline="") as file:
        return list(csv.reader(file))[1:]


def change(folder, row, **cells):
    """Overwrites cells of the row at that line of the file (2 = the first image)."""
    rows = read_rows(folder)
    for name, value in cells.items():
        rows[row - 2][COLUMNS.index(name)] = value
    write_manifest(folder, rows)


def problems(folder, **options):
    with pytest.raises(DataError) as caught:
        open_manifest(str(folder / "manifest.csv"), progress=False, **options)
    shown = str(caught.value)
    assert all(problem in shown for problem in caught.value.problems[:20])
    return caught.value.problems


def only_problem(folder, **options):
    found = problems(folder, **options)
    assert len(found) == 1, found
    assert found[0].startswith(str(folder / "manifest.csv"))
    return found[0]


def test_a_sound_manifest(folder):
    dataset = open_manifest(str(folder / "manifest.csv"))
    assert dataset.name == folder.name
    assert dataset.class_names == ("cat", "dog")
    assert list(dataset.splits) == ["train", "val", "test"]
    source = dataset.splits["val"]
    assert len(source) == len(source.records) == 4
    assert source.records.ids == tuple(f"images/val{i}.png" for i in range(4))
    assert source.records.domains == ("val_site",) * 4
    assert source.records.groups == tuple(f"val_patient{i}" for i in range(4))
    assert source.records.labels.dtype == np.int32
    np.testing.assert_array_equal(source.records.labels, [0, 1, 0, 1])
    np.testing.assert_array_equal(source.records.has_map, [True, True, False, False])
    example = source[1]
    np.testing.assert_array_equal(example.image, np.asarray(Image.open(folder / "images/val1.png")))
    np.testing.assert_allclose(example.saliency, np.asarray(Image.open(folder / "maps/val1.png")) / 255, rtol=1e-6)
    assert source[2].saliency is None


def test_grey_channels(folder):
    source = open_manifest(str(folder / "manifest.csv"), channels=1).splits["train"]
    expected = np.asarray(Image.open(folder / "images/train0.png").convert("L"))
    np.testing.assert_array_equal(source[0].image[..., 0], expected)
    with pytest.raises(ValueError, match="channels must be"):
        open_manifest(str(folder / "manifest.csv"), channels=4)


def test_labels_give_the_order_of_classes(folder):
    dataset = open_manifest(str(folder / "manifest.csv"), labels=("dog", "cat"))
    assert dataset.class_names == ("dog", "cat")
    np.testing.assert_array_equal(dataset.splits["train"].records.labels, [1, 0, 1, 0])
    rows = [[row[0], "dbca"[i % 4], *row[2:]] for i, row in enumerate(read_rows(folder))]
    write_manifest(folder, rows)
    assert open_manifest(str(folder / "manifest.csv")).class_names == ("a", "b", "c", "d")
    with pytest.raises(ValueError, match="twice"):
        open_manifest(str(folder / "manifest.csv"), labels=("dog", "dog"))


def test_optional_columns_and_test_split_may_be_absent_and_others_are_ignored(folder):
    rows = [[row[2], "note", row[1], row[0]] for row in read_rows(folder) if row[0] != "test"]
    write_manifest(folder, rows, header=("image", "remark", "label", "split"))
    dataset = open_manifest(str(folder / "manifest.csv"))
    assert list(dataset.splits) == ["train", "val"]
    records = dataset.splits["train"].records
    assert records.domains == records.groups == ("",) * 4
    assert not records.has_map.any()


def test_bom_crlf_spaces_quotes_and_blank_lines(folder):
    plain = open_manifest(str(folder / "manifest.csv"))
    lines = [", ".join([*row[:4], '"north, ward"', row[5]]) for row in read_rows(folder)]
    text = "\r\n".join([" , ".join(COLUMNS), "", *lines, ""]).replace(', "', ',"')
    (folder / "manifest.csv").write_bytes(text.encode("utf-8-sig"))
    dataset = open_manifest(str(folder / "manifest.csv"))
    assert dataset.splits["train"].records.ids == plain.splits["train"].records.ids
    assert set(dataset.splits["train"].records.domains) == {"north, ward"}


def test_missing_manifest(tmp_path):
    assert re.search("no such manifest; give the path of a CSV file", only_problem(tmp_path))
    (tmp_path / "manifest.csv").mkdir()
    assert "manifest.csv: a folder; give" in only_problem(tmp_path)


def test_missing_column(folder):
    write_manifest(folder, [row[1:] for row in read_rows(folder)], header=("Label", *COLUMNS[2:]))
    found = only_problem(folder)
    assert "row 1: no column split, label; found Label, image, map" in found
    assert "needed columns: split, label, image" in found
    (folder / "manifest.csv").write_text("")
    assert "the file is empty" in only_problem(folder)


def test_a_column_twice_is_refused(folder):
    rows = [[*row, row[1]] for row in read_rows(folder)]
    write_manifest(folder, rows, header=(*COLUMNS, "label"))
    assert "row 1: more than one column label: which one counts can't be known" in only_problem(folder)


def test_latin_1_is_refused(folder):
    change(folder, 3, domain="Süd")
    text = (folder / "manifest.csv").read_text()
    (folder / "manifest.csv").write_bytes(text.encode("latin-1"))
    assert re.search("not UTF-8 .* save it as UTF-8", only_problem(folder))


def test_broken_csv_and_ragged_rows(folder):
    rows = read_rows(folder)
    write_manifest(folder, [*rows, ["train", "cat"], [*rows[0], "extra"]])
    found = problems(folder)
    assert [re.search(r"row (\d+): must have as many cells", problem)[1] for problem in found] == ["14", "15"]
    with (folder / "manifest.csv").open("a") as file:
        file.write('train,cat,"never closed')
    assert re.search("row 16: not CSV .* correct the quotes", only_problem(folder))


def test_unknown_split(folder):
    change(folder, 5, split="training")
    assert "row 5: unknown split 'training'; use one of train, val, test" in only_problem(folder)


def test_label_not_in_the_list(folder):
    change(folder, 8, label="dgo")
    assert "row 8: label 'dgo' is none of cat, dog. Did you mean 'dog'?" in only_problem(folder)
    change(folder, 8, label="")
    assert "row 8: no label given" in only_problem(folder)
    change(folder, 8, label="dog")
    assert "label 'bird' never occurs in split train" in only_problem(folder, labels=("cat", "dog", "bird"))


@pytest.mark.parametrize("column", ["image", "map"])
def test_missing_file(folder, column):
    change(folder, 2, **{column: "images/nowhere.png"})
    assert re.search(f"row 2: {column} images/nowhere.png does not exist in .*; correct the path", only_problem(folder))


def test_image_not_given(folder):
    change(folder, 4, image="")
    assert "row 4: no image given; name a file" in only_problem(folder)


@pytest.mark.parametrize("path", ["../outside.png", "/outside.png", "images/../../outside.png"])
def test_paths_must_stay_in_the_folder(folder, path):
    write_png(folder.parent / "outside.png", 1)
    change(folder, 4, image=path)
    assert f"row 4: image {path} leaves the data folder" in only_problem(folder)


@pytest.mark.parametrize("column", ["image", "map"])
@pytest.mark.parametrize("keep", [0, 40, -30])
def test_broken_files_are_really_decoded(folder, column, keep):
    path = folder / f"{column}s/train1.png"
    path.write_bytes(path.read_bytes()[:keep])
    found = only_problem(folder)
    assert re.search(f"row 3: {column} {column}s/train1.png: (broken|not an) image", found)
    assert "replace the file or delete the row" in found


def test_a_folder_is_no_image(folder):
    change(folder, 2, image="images")
    assert re.search("row 2: image images: a folder, not a file; replace the file", only_problem(folder))


@pytest.mark.parametrize(("size", "sound"), [((8, 12), False), ((6, 5), False), ((7, 5), True), ((24, 16), True)])
def test_a_map_has_its_images_aspect_ratio_but_for_whole_pixels(folder, size, sound):
    write_png(folder / "maps/val0.png", 5, size, "L")
    if sound:
        open_manifest(str(folder / "manifest.csv"))
    else:
        found = only_problem(folder)
        assert f"row 6: map maps/val0.png is {size[0]} x {size[1]}, its image images/val0.png 12 x 8" in found
        assert "a map must cover the whole image" in found


@pytest.mark.parametrize("split", ["train", "val"])
def test_empty_split(folder, split):
    write_manifest(folder, [row for row in read_rows(folder) if row[0] != split])
    assert f"no row has split {split}; training needs train and val" in only_problem(folder)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_one_class_only(folder, split):
    write_manifest(folder, [row for row in read_rows(folder) if row[:2] != [split, "dog"]])
    found = "\n".join(problems(folder))
    assert f"split {split} holds only class 'cat'; add rows of another class" in found


def test_the_same_image_in_two_splits(folder):
    change(folder, 6, image="images/train0.png", map="")
    found = only_problem(folder)
    assert "row 6: image images/train0.png is also in split train (row 2: images/train0.png)" in found
    assert "keep it in one split only" in found


def test_a_copy_or_a_re_encoded_image_in_two_splits(folder):
    (folder / "images/val2.png").write_bytes((folder / "images/train2.png").read_bytes())
    Image.open(folder / "images/train3.png").save(folder / "images/copy.bmp")
    change(folder, 13, image="images/copy.bmp")
    first, second = problems(folder)
    assert "row 8: image images/val2.png is also in split train (row 4: images/train2.png)" in first
    assert "row 13: image images/copy.bmp is also in split train (row 5: images/train3.png)" in second


def test_one_image_with_two_labels(folder):
    change(folder, 5, image="images/train0.png")
    found = only_problem(folder)
    assert "row 5: image images/train0.png has label 'dog' here and 'cat' in row 2; keep one of them" in found


def test_a_group_in_two_splits(folder):
    change(folder, 9, group="train_patient1")
    found = only_problem(folder)
    assert "row 9: group train_patient1 is also in split train (row 3)" in found
    assert "keep a group in one split" in found


def test_constant_maps_count_as_absent_and_are_told(folder, caplog):
    logging.set_verbosity(logging.INFO)
    logging.get_absl_logger().propagate = True
    Image.new("L", (6, 4), 255).save(folder / "maps/train0.png")
    Image.new("L", (6, 4), 0).save(folder / "maps/train1.png")
    dataset = open_manifest(str(folder / "manifest.csv"))
    source = dataset.splits["train"]
    assert not source.records.has_map.any()
    assert source[0].saliency is None
    assert "train has 4 images, 0 with a human map" in caplog.text
    assert "2 maps of train are empty or constant; they count as absent" in dataset.notes
    assert "val has 4 images, 2 with a human map" in caplog.text


def test_all_problems_are_collected_and_the_message_is_bounded(folder):
    change(folder, 2, image="gone.png")
    change(folder, 7, label="bird")
    change(folder, 4, split="dev")
    found = "\n".join(problems(folder))
    assert all(f"row {number}:" in found for number in (2, 4, 7))
    write_manifest(folder, [[*row[:2], f"gone{i}.png", *row[3:]] for i in range(5) for row in read_rows(folder)])
    with pytest.raises(DataError) as caught:
        open_manifest(str(folder / "manifest.csv"))
    assert len(caught.value.problems) >= 60
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{len(caught.value.problems)} problems in the data:"
    assert lines[-1] == f"... and {len(caught.value.problems) - 20} more"
    assert len(lines) == 22


def test_a_file_that_breaks_later_is_named(folder):
    source = open_manifest(str(folder / "manifest.csv")).splits["train"]
    (folder / "images/train3.png").write_bytes(b"gone bad")
    with pytest.raises(DataError, match=r"images/train3.png: not an image.*it was sound when the run started"):
        source[3]


REAL_COUNTS = {
    "chest_xray": {"train": (163, 68), "val": (38, 15)},
    "magnetic_tile": {"train": (665, 96), "val": (124, 22), "test": (821, 230)},
    "breast_ultrasound": {"train": (126, 98), "val": (103, 0), "test": (406, 0)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL_COUNTS)
def test_real_sets(name):
    manifest = REAL_SETS / name / "manifest.csv"
    if not manifest.exists():
        pytest.skip(f"{manifest} is not here")
    dataset = open_manifest(str(manifest), channels=1)
    counts = {split: (len(source), source.records.has_map.sum()) for split, source in dataset.splits.items()}
    assert counts == REAL_COUNTS[name]
    assert dataset.splits["train"][0].image.shape[-1] == 1
