"""Data that change between two openings: each change is named, by split, number and names, and nothing else is."""

import csv
import json
import os
import shutil
import time

import fake_layouts
import numpy as np
import pytest
from absl import logging
from PIL import Image, ImageOps
from tiny_folders import write_folders
from tiny_manifest import write_manifest

from tfcam_jax.data.builders.cyborg_faces import CyborgFaces
from tfcam_jax.data.builders.demo import open_demo
from tfcam_jax.data.fingerprint import (
    Comparison,
    compare_fingerprints,
    digest_fingerprint,
    is_fingerprint,
    take_fingerprint,
)
from tfcam_jax.data.folders import open_folders
from tfcam_jax.data.human_maps import MapChoice, process_maps
from tfcam_jax.data.manifest import open_manifest
from tfcam_jax.data.protocol import apply_protocol
from tfcam_jax.data.source import DataError, Dataset, Example, Records, WithRecords
from tfcam_jax.data.unlisted import open_image_folder
from tfcam_jax.run.data_record import (
    compare_with_run,
    describe_dataset,
    keep_fingerprint,
    load_fingerprint,
    record_data,
    tell_differences,
)

SPLIT, LABEL, IMAGE, MAP, DOMAIN, GROUP, PREDICTED = range(7)


@pytest.fixture
def manifest(tmp_path):
    """The tiny manifest with a column `predicted`; the maps of the last two training images stand in a table."""
    path = write_manifest(tmp_path / "data")
    header, *rows = csv.reader(path.read_text().splitlines())
    rows[8][MAP] = rows[10][MAP] = "boxes.csv"
    write_rows(path, [[*header, "predicted"], *([*row, ""] for row in rows)])
    write_rows(path.with_name("boxes.csv"), BOXES)
    return path


BOXES = [["image", "x", "y", "width", "height"], ["images/train8.png", 4, 4, 8, 8], ["images/train10.png", 2, 3, 9, 7]]


def write_rows(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def edit(folder, *changes):
    """Sets cells of the manifest: row (the header being 0), column, value."""
    path = folder / "manifest.csv"
    rows = list(csv.reader(path.read_text().splitlines()))
    for row, column, value in changes:
        rows[row][column] = value
    write_rows(path, rows)


def rows_of(folder):
    return list(csv.reader((folder / "manifest.csv").read_text().splitlines()))


def taken(dataset):
    return json.loads(json.dumps(take_fingerprint(dataset.class_names, dataset.splits)))


def compared(path, change, known=None):
    before = open_manifest(str(path))
    then = taken(before)
    change(path.parent)
    return compare_fingerprints(then, taken(open_manifest(str(path), known=before.checked)))


def replace_images(folder):
    for name in ("train0", "train5", "train6", "train7"):
        path = folder / f"images/{name}.png"
        ImageOps.mirror(Image.open(path)).save(path)


def invert_a_map(folder):
    ImageOps.invert(Image.open(folder / "maps/test0.png")).save(folder / "maps/test0.png")


def swap_files_of_maps(folder):
    (folder / "maps/val0.png").rename(folder / "maps/x.png")
    (folder / "maps/val2.png").rename(folder / "maps/val0.png")
    (folder / "maps/x.png").rename(folder / "maps/val2.png")


def swap_cells_of_maps(folder):
    rows = rows_of(folder)
    edit(folder, (1, MAP, rows[2][MAP]), (2, MAP, rows[1][MAP]))


def swap_marks(folder):
    write_rows(
        folder / "boxes.csv", [BOXES[0], ["images/train8.png", *BOXES[2][1:]], ["images/train10.png", *BOXES[1][1:]]]
    )


def drop_a_row(folder):
    rows = rows_of(folder)
    write_rows(folder / "manifest.csv", [*rows[:3], *rows[4:]])


def add_rows(folder):
    rows = rows_of(folder)
    for name in ("n0", "n1"):
        Image.new("RGB", (32, 32), (7, 9, len(name) + int(name[1]))).save(folder / f"images/{name}.png")
    write_rows(
        folder / "manifest.csv", [*rows, *(["val", "dark", f"images/{n}.png", "", "old", n, ""] for n in ("n0", "n1"))]
    )


def reorder(folder):
    rows = rows_of(folder)
    write_rows(folder / "manifest.csv", [rows[0], rows[2], rows[1], *rows[3:]])


CHANGES = {
    replace_images: (
        "train: content of 4 images (images/train0.png, images/train5.png, images/train6.png, ... and 1 more)"
    ),
    invert_a_map: "test: human maps of 1 image (images/test0.png)",
    swap_files_of_maps: "val: human maps of 2 images (images/val0.png, images/val2.png)",
    swap_cells_of_maps: "train: human maps of 2 images (images/train0.png, images/train1.png)",
    swap_marks: "train: human maps of 2 images (images/train8.png, images/train10.png)",
    lambda folder: edit(folder, (1, MAP, "")): "train: human maps of 1 image (images/train0.png)",
    lambda folder: edit(folder, (1, LABEL, "bright"), (2, LABEL, "dark")): (
        "train: labels of 2 images (images/train0.png, images/train1.png)"
    ),
    lambda folder: edit(folder, (29, LABEL, "bright")): "test: labels of 1 image (images/test8.png)",
    lambda folder: edit(folder, (1, GROUP, "train1")): "train: groups of 1 image (images/train0.png)",
    lambda folder: edit(folder, (21, DOMAIN, "else")): "test: domains of 1 image (images/test0.png)",
    lambda folder: edit(folder, (1, PREDICTED, "yes")): "train: the column predicted of 1 image (images/train0.png)",
    drop_a_row: "train: removed 1 image (images/train2.png)",
    add_rows: "val: added 2 images (images/n0.png, images/n1.png)",
    lambda folder: edit(folder, (21, SPLIT, "train")): "test to train: moved 1 image (images/test0.png)",
    reorder: "train: rows in another order",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: CHANGES[change][:40])
def test_each_change_is_named_and_nothing_else(manifest, change):
    assert compared(manifest, change) == Comparison((CHANGES[change],))


def test_several_changes_are_told_together(manifest):
    def change(folder):
        invert_a_map(folder)
        edit(folder, (29, LABEL, "bright"), (29, GROUP, "g"))

    assert compared(manifest, change).changed == (
        "test: human maps of 1 image (images/test0.png)",
        "test: labels of 1 image (images/test8.png)",
        "test: groups of 1 image (images/test8.png)",
    )


def touch(folder):
    for path in folder.rglob("*.*"):
        os.utime(path, ns=(1, 1))


def move(folder):
    shutil.move(folder, folder.with_name("elsewhere"))
    os.symlink(folder.with_name("elsewhere"), folder)


def save_table_otherwise(folder):
    path = folder / "boxes.csv"
    path.write_text(path.read_text().replace(",", ";"))


def save_an_image_otherwise(folder):
    path = folder / "images/train0.png"
    size = path.stat().st_size
    Image.open(path).save(path, compress_level=0)
    assert path.stat().st_size != size


def move_maps(folder):
    (folder / "maps").rename(folder / "annotations")
    path = folder / "manifest.csv"
    path.write_text(path.read_text().replace("maps/", "annotations/"))


@pytest.mark.parametrize("change", [touch, move, save_table_otherwise, save_an_image_otherwise, move_maps])
def test_what_holds_the_same_is_the_same(manifest, change):
    assert compared(manifest, change) == Comparison()


def test_other_names_of_the_same_are_told_and_harmless(manifest):
    def rename(folder):
        (folder / "images").rename(folder / "pictures")
        for path in (folder / "manifest.csv", folder / "boxes.csv"):
            path.write_text(path.read_text().replace("images/", "pictures/"))

    changed, harmless, _ = compared(manifest, rename)
    assert not changed and len(harmless) == 3
    assert harmless[1].startswith("train: other names of 12 images (pictures/train0.png, ")


def test_another_decoder_is_told_and_harmless(manifest):
    dataset = open_manifest(str(manifest))
    now = taken(dataset)
    then = json.loads(json.dumps(now))
    then["splits"]["val"]["pixels"] = "f" * 8 + then["splits"]["val"]["pixels"][8:]
    told = "val: the files of 1 image (images/val0.png) are as before, and decoded otherwise"
    assert compare_fingerprints(then, now) == Comparison((), (told,))
    # Of data packed by an earlier version the pixels alone are known: then they count.
    then["splits"]["val"]["images"] = then["splits"]["val"]["maps"] = None
    changed, harmless, _ = compare_fingerprints(then, now)
    assert changed == ("val: content of 1 image (images/val0.png)",)
    assert harmless == ("val: of human maps it is known alone which images have one, not what they show",)
    assert compare_fingerprints({**then, "version": 0}, now).harmless[0].endswith("is not compared")
    assert "bright, dark now" in compare_fingerprints({**now, "class_names": ["dark", "bright"]}, now).classes


def test_protocol_and_choice_of_maps_are_part_of_it_and_placebos_are_not(manifest):
    """What a run takes: its splits, and the maps that it reads; not what stands in for them."""
    dataset = open_manifest(str(manifest))
    whole = taken(dataset)
    assert taken(process_maps(dataset, blur=0.1, threshold=0.0, placebo="border_ring", seed=0)) == whole
    fewer = compare_fingerprints(whole, taken(MapChoice(share=0.5).apply(dataset))).changed
    assert len(fewer) == 1 and fewer[0].startswith("train: human maps of 4 images")
    (closed,) = compare_fingerprints(whole, taken(apply_protocol(dataset, name="closed"))).changed
    assert closed.startswith("test: removed 6 images (images/test6.png, ")


def test_a_map_that_says_nothing_is_none(manifest):
    def flatten(value):
        return lambda folder: Image.new("L", (32, 32), value).save(folder / "maps/train0.png")

    assert compared(manifest, flatten(9)).changed == ("train: human maps of 1 image (images/train0.png)",)
    assert compared(manifest, flatten(70)) == Comparison()


def test_folders_and_images_without_a_list(tmp_path):
    folder = write_folders(tmp_path / "squares")
    options = {"seed": 0, "shares": (0.7, 0.15, 0.15)}
    opened = lambda: taken(open_folders(images=str(folder), **options))
    bare = lambda: taken(Dataset("", (), {"photographs": open_image_folder(folder, 3)}))
    then, listed = opened(), bare()
    assert opened() == then and bare() == listed
    ImageOps.mirror(Image.open(folder / "dark/d0_0.png")).save(folder / "dark/d0_0.png")
    (folder / "bright/b1_0_map.png").write_bytes((folder / "bright/b0_0_map.png").read_bytes())
    changed = compare_fingerprints(then, opened()).changed
    assert sorted(line.split(": ")[1] for line in changed) == [
        "content of 1 image (dark/d0_0.png)",
        "human maps of 1 image (bright/b1_0.png)",
    ]
    assert compare_fingerprints(listed, bare()).changed == ("photographs: content of 1 image (dark/d0_0.png)",)
    Image.new("RGB", (32, 32), 9).save(folder / "dark/a_new_one.png")
    assert any("added" in line or "moved" in line for line in compare_fingerprints(then, opened()).changed)


def test_the_demo_is_known_by_what_is_drawn(tmp_path):
    options = {"num_train": 6, "num_val": 4, "num_test": 4}
    one, other = (taken(open_demo(data_dir=str(tmp_path / name), **options)) for name in "ab")
    assert one == other and None not in (one["splits"]["train"]["images"], one["splits"]["train"]["maps"])
    for columns in (tmp_path / "a").rglob("*.columns.json"):  # of a set that an earlier version prepared
        columns.unlink()
    assert taken(open_demo(data_dir=str(tmp_path / "a"), **options)) == one


def test_owners_files_are_known_by_what_was_packed(tmp_path):
    folder = fake_layouts.write_cyborg_faces(tmp_path / "owner")
    packed = lambda: taken(CyborgFaces.open_files(manual_dir=str(folder), data_dir=str(tmp_path / "set")))
    then = packed()
    touch(folder)  # packed anew
    assert packed() == then
    ImageOps.mirror(Image.open(folder / "heatmaps/000003.png")).save(folder / "heatmaps/000003.png")
    assert compare_fingerprints(then, packed()).changed == (
        "train: human maps of 1 image (0_real/frgc_subset/000001/000003.png)",
    )


class Given(WithRecords):
    """A source in memory, which says nothing of its images."""

    def __init__(self, images, maps):
        count = len(images)
        ids, nothing = tuple(f"i{row}" for row in range(count)), ("",) * count
        self.records = Records(ids, np.zeros(count, np.int32), nothing, nothing, np.ones(count, bool))
        self.images, self.maps = images, maps

    def __getitem__(self, index):
        return Example.from_arrays(self.images[index], self.maps[index])


def test_images_in_memory_are_looked_at():
    images, maps = np.zeros((3, 4, 4, 3), np.uint8), np.ones((3, 4, 4), np.float32)
    of = lambda: take_fingerprint(["x"], {"train": Given(images, maps)})
    then = of()
    assert of() == then and digest_fingerprint(of()) == digest_fingerprint(then)
    images[1, 2, 2], maps[2, 0, 0] = 1, 0.5
    assert compare_fingerprints(then, of()).changed == (
        "train: content of 1 image (i1)",
        "train: human maps of 1 image (i2)",
    )
    assert digest_fingerprint(of()) != digest_fingerprint(then)


def test_names_that_occur_twice_are_told_apart():
    def of(*rows):
        given = Given(np.zeros((len(rows), 4, 4, 3), np.uint8), [None] * len(rows))
        ids, groups = zip(*rows, strict=True)
        given.records = Records(ids, given.records.labels, groups, groups, given.records.has_map)
        return take_fingerprint(["x"], {"train": given})

    one = of(("a", "1"), ("a", "2"), ("b", "1"))
    assert compare_fingerprints(one, of(("a", "1"), ("b", "1"))).changed == ("train: removed 1 image (a)",)
    assert "train: groups of 1 image (a)" in compare_fingerprints(one, of(("a", "1"), ("a", "3"), ("b", "1"))).changed


@pytest.mark.slow
def test_a_hundred_thousand_rows_take_seconds_and_megabytes(tmp_path):
    count = 100_000
    ids, digests = (
        tuple(f"images/{row:08d}.png" for row in range(count)),
        tuple(f"{row:08x}" * 2 for row in range(count)),
    )
    columns = {"digests": digests, "image_contents": digests, "map_contents": digests}
    nothing, labels = ("",) * count, np.zeros(count, np.int32)
    source = Given([], [])
    source.records = Records(ids, labels, nothing, nothing, np.ones(count, bool), **columns)
    dataset, start = Dataset("", ("x",), {"train": source}), time.process_time()
    keep_fingerprint(tmp_path, record_data(dataset))
    other = Given([], [])
    other.records = source.records[[*range(1, count), 0]]
    then = load_fingerprint(tmp_path)
    assert compare_fingerprints(then, taken(Dataset("", ("x",), {"train": other}))).changed
    assert time.process_time() - start < 20  # 2 s, but for slow machines; squared it would take hours
    assert (tmp_path / "data.json").stat().st_size < 100 * count


def test_what_is_kept_is_read_back_or_told_damaged(manifest, tmp_path, caplog):
    dataset = open_manifest(str(manifest))
    caplog.clear()
    assert load_fingerprint(tmp_path) is None and not caplog.text
    keep_fingerprint(tmp_path, record_data(dataset))
    assert load_fingerprint(tmp_path) == taken(dataset)
    content = (tmp_path / "data.json").read_text()
    assert is_fingerprint(taken(dataset)) and not is_fingerprint({"version": 1, "class_names": [], "splits": []})
    for damaged in (content[:-9], content.replace("train0.png", "train7.png"), "[]", "{}", ""):
        caplog.clear()
        (tmp_path / "data.json").write_text(damaged)
        assert load_fingerprint(tmp_path) is None and "data.json is damaged" in caplog.text


def test_differences_stop_unless_they_are_accepted_and_other_classes_always_do(caplog):
    logging.get_absl_logger().propagate = True
    found = Comparison(("test: labels of 1 image (a.png)",), ("val: told",))
    with pytest.raises(
        DataError, match=r"(?s)^m\.csv: the data.*labels of 1 image \(a\.png\)\nRestore.*--accept_changed_d"
    ):
        tell_differences("m.csv: the data", found, False, "go")
    assert not caplog.text
    tell_differences("m.csv: the data", found, True, "go")
    assert "labels of 1 image (a.png)" in caplog.text and "m.csv: val: told" in caplog.text
    with pytest.raises(DataError, match=r"(?s)classes: b, a now.*\nRestore them, or go\.$"):
        tell_differences("m.csv: the data", found._replace(classes="classes: b, a now, a, b then"), True, "go")


def test_of_a_run_without_a_fingerprint_that_is_compared_which_its_checkpoints_have(manifest, tmp_path):
    before = describe_dataset(open_manifest(str(manifest)))
    compared = lambda: compare_with_run(tmp_path, lambda: before, record_data(open_manifest(str(manifest))))
    (told,) = compared().harmless
    assert told.endswith("can't be compared") and not compared().changed
    replace_images(manifest.parent)
    assert compared().harmless[0] == "train: images were changed, or are decoded otherwise" and not compared().changed
    edit(manifest.parent, (1, LABEL, "bright"), (2, DOMAIN, "else"))
    assert compared().changed == ("train: its domains", "train: its rows, by name, label or whether they have a map")
    assert compare_with_run(tmp_path, lambda: None, record_data(open_manifest(str(manifest)))) == Comparison()
    before["class_names"] = ["bright"]
    assert compared().classes == "classes: bright, dark now, bright then"
