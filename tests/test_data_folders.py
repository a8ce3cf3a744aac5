"""Folders for each class: layouts that mean the same open as the same; what is not clear is refused by name."""

import json
import os
import shutil
from pathlib import Path

import fake_layouts
import numpy as np
import pytest
from PIL import Image
from slow_params import slow_but
from test_launch import launch
from tiny_folders import write_folders

from configs import chest_xray
from configs import folders as folders_config
from tfcam_jax.data.checks.prepare import prepare
from tfcam_jax.data.folders import list_folders, open_folders
from tfcam_jax.data.manifest import open_manifest
from tfcam_jax.data.maps_by_name import MAP_NAMES, common_endings, find_below, find_beside
from tfcam_jax.data.paths import join_map_cell, split_map_cell
from tfcam_jax.data.source import DataError
from tfcam_jax.data.unlisted import open_image_folder
from tfcam_jax.errors import ConfigError
from tfcam_jax.experiment import open_dataset, resolve
from tfcam_jax.inference import open_own_data, restore
from tfcam_jax.training import train

REPO = Path(__file__).parent.parent


def tiny_config(folder, **overrides):
    config = folders_config.get_config()
    config.data.folders.images = str(folder)
    config.data.image_size, config.model.name, config.epochs, config.batch_size = 32, "small_cnn", 1, 8
    config.strategy = "difference"
    config.update_from_flattened_dict(overrides)
    return config


def opened(folder, **options):
    return open_folders(str(folder), progress=False, **options)


def contents(dataset, names=lambda name: name):
    """Of each split by image: label, group, domain and map."""
    found = {}
    for split, source in dataset.splits.items():
        columns = (source.records.ids, source.records.labels.tolist(), source.records.groups, source.records.domains)
        for i, (name, *known) in enumerate(zip(*columns, strict=True)):
            saliency = source[i].saliency
            found[split, names(name)] = (*known, None if saliency is None else saliency.tobytes())
    return found


def problems(folder, **options):
    with pytest.raises(DataError) as caught:
        opened(folder, **options)
    return "\n".join(caught.value.problems)


def move_maps(folder, target, rename):
    """Moves maps from beside the images to `rename(path below the folder without mark and suffix)` below another."""
    for path in sorted(folder.rglob("*_map.png")):
        name = target / rename(path.relative_to(folder).as_posix().removesuffix("_map.png"))
        name.parent.mkdir(parents=True, exist_ok=True)
        path.rename(name)


def test_one_pool_is_split_by_class_and_by_group(tmp_path):
    folder = write_folders(tmp_path / "squares")
    dataset = opened(folder, group_pattern=r"/(\w\d+)_", domain_pattern=r"_(\d)\.")
    assert dataset.name == "squares" and dataset.class_names == ("bright", "dark") and dataset.drawn
    assert {split: len(source) for split, source in dataset.splits.items()} == {"train": 28, "val": 6, "test": 6}
    for source in dataset.splits.values():
        records = source.records
        assert abs(2 * records.labels.sum() - len(records)) <= 2 and set(records.domains) == {"0", "1"}
        assert all(records.groups.count(group) == 2 for group in records.groups)
        assert [name[name.index("/") + 1 : name.index("_")] for name in records.ids] == list(records.groups)
        assert records.has_map.tolist() == [not (int(n.split("_")[0][-1]) % 2 and n[-5] == "1") for n in records.ids]
    assert sum(source.records.has_map.sum() for source in dataset.splits.values()) == 30
    assert dataset.notes[0].startswith("no folders train, val, test: images are 70 % train, 15 % val, 15 % test")
    assert contents(opened(folder)).keys() != contents(opened(folder, seed=1)).keys()
    assert list(opened(folder, shares=(0.5, 0.5, 0)).splits) == ["train", "val"]
    assert opened(folder, labels=("dark", "bright")).class_names == ("dark", "bright")


LAYOUTS = {
    "mirrored": lambda name: f"{name}.png",
    "mirrored with a mark": lambda name: f"{name}-Mask.png",
    "flat": lambda name: f"{Path(name).name}.png",
    "an annotator's folder": lambda name: f"anna/{name}.png",
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("place", slow_but(["maps", "squares/maps"], "maps"))
def test_maps_in_a_folder_of_their_own_are_those_beside_the_images(tmp_path, layout, place):
    folder = write_folders(tmp_path / "squares")
    beside = contents(opened(folder))
    move_maps(folder, tmp_path / place, LAYOUTS[layout])
    found = opened(folder, maps=str(tmp_path / place))
    assert contents(found, lambda name: name.removeprefix("squares/")) == beside
    assert len(found.notes) == 1
    if "annotator" in layout:
        assert opened(folder, maps=str(tmp_path / place), combine="anna").splits["train"].records.has_map.any()
        told = problems(folder, maps=str(tmp_path / place), combine="Anna")
        assert "no map is by 'Anna'; known are anna, beside mean and majority. Did you mean 'anna'?" in told


def test_a_list_of_class_names_among_labels_is_no_map(tmp_path):
    found = find_below(["classes.txt", "cats/1.txt"], {"cats/1.png": ("", "cats")}, MAP_NAMES, "labels")
    assert found.others == ["classes.txt"] and not found.orphans and found.of == {"cats/1.png": [("", "cats/1.txt")]}


def test_a_map_goes_to_the_image_of_its_own_class_or_to_none(tmp_path):
    """Files are numbered in each class; of one class alone somebody drew maps."""
    folder = write_folders(tmp_path / "squares", maps=str(tmp_path / "maps"), mark="")
    for path in sorted(tmp_path.rglob("*_*.png")):
        path.rename(path.with_name(path.name[1:]))
    shutil.rmtree(tmp_path / "maps/dark")
    listing = list_folders(str(folder), maps=str(tmp_path / "maps"))
    assert {row.label for row in listing.rows if row.map} == {"bright"} and not listing.problems
    (folder / "bright/0_0.png").unlink()
    listing = list_folders(str(folder), maps=str(tmp_path / "maps"))
    assert "1 map has no image of its name and is left out" in listing.notes[-1]
    assert "bright/0_0.png" in listing.notes[-1]
    (tmp_path / "maps/bright/9_0.png").rename(tmp_path / "maps/9_0.png")
    told = problems(folder, maps=str(tmp_path / "maps"))
    assert "maps/9_0.png could be that of bright/9_0.png or dark/9_0.png; put maps under the images' paths" in told


def test_arrays_tables_and_several_annotators_beside_an_image(tmp_path):
    folder = write_folders(tmp_path / "squares", each=8)
    human = np.zeros((32, 32), np.float32)
    human[3:9, 4:12] = 1
    np.save(folder / "dark/d0_0.npy", human)
    (folder / "dark/d1_1.json").write_text(json.dumps([{"image": "d1_1.png", "boxes": [[4, 3, 8, 6]]}]))
    Image.fromarray(np.uint8(255 * human)).save(folder / "dark/d1_0_map_anna.png")
    (folder / "dark/d1_0_map.png").rename(folder / "dark/d1_0_map_ben.png")
    cells = {row.image: split_map_cell(row.map) for row in list_folders(str(folder)).rows}
    assert cells["dark/d0_0.png"] == [("", "dark/d0_0.npy"), ("", "dark/d0_0_map.png")]
    assert cells["dark/d1_0.png"] == [("anna", "dark/d1_0_map_anna.png"), ("ben", "dark/d1_0_map_ben.png")]
    table = next(value for (_, name), value in contents(opened(folder)).items() if name == "dark/d1_1.png")
    anna = next(value for (_, name), value in contents(opened(folder, combine="anna")).items() if "d1_0" in name)
    assert table[-1] == anna[-1] == human.tobytes()


def test_one_table_for_all_images(tmp_path):
    folder = write_folders(tmp_path / "squares", each=8, mark="_other")
    for path in folder.rglob("*_other.png"):
        path.unlink()
    entries = [{"image": name, "boxes": [[4, 3, 8, 6]]} for name in ("dark/d0_0.png", "b1_0.png", "gone.png")]
    (tmp_path / "boxes.json").write_text(json.dumps(entries))
    dataset = opened(folder, maps=str(tmp_path / "boxes.json"))
    marked = {name for (_, name), (*_, saliency) in contents(dataset).items() if saliency}
    assert marked == {"squares/dark/d0_0.png", "squares/bright/b1_0.png"}
    assert "boxes.json: 1 of 3 entries belong to no image: gone.png" in dataset.notes
    (folder / "bright/d0_0.png").write_bytes((folder / "bright/b0_0.png").read_bytes())
    (tmp_path / "boxes.json").write_text(json.dumps([{"image": "d0_0.png", "boxes": [[4, 3, 8, 6]]}]))
    told = problems(folder, maps=str(tmp_path / "boxes.json"))
    assert "entry 'd0_0.png' may be that of squares/bright/d0_0.png, squares/dark/d0_0.png" in told


def test_folders_are_the_splits_and_val_is_drawn_where_it_is_missing(tmp_path):
    folder = write_folders(tmp_path / "squares", splits=("Training", "valid", "test"), each=12)
    dataset = opened(folder)
    assert {split: len(source) for split, source in dataset.splits.items()} == {"train": 24, "val": 24, "test": 24}
    assert dataset.notes == ("Training/ is taken for split train, valid/ is taken for split val",) and not dataset.drawn
    assert all(name.startswith("valid/") for name in dataset.splits["val"].records.ids)
    shutil.rmtree(folder / "valid")
    dataset = opened(folder, group_pattern=r"/(\w\d+)_")
    assert {split: len(source) for split, source in dataset.splits.items()} == {"train": 20, "val": 4, "test": 24}
    assert not set(dataset.splits["train"].records.groups) & set(dataset.splits["val"].records.groups)
    assert "no folder val holds images: train's are 82 % train, 18 % val" in dataset.notes[0] and dataset.drawn
    shutil.rmtree(folder / "test")
    assert list(opened(folder).splits) == ["train", "val"]


def test_whatever_is_left_out_is_told_once(tmp_path):
    folder = write_folders(tmp_path / "squares", each=8)
    (folder / "dark/deeper").mkdir()
    (folder / "dark/d0_0.png").rename(folder / "dark/deeper/d0_0.png")
    (folder / "dark/d0_0_map.png").rename(folder / "dark/deeper/d0_0_map.png")
    (folder / "nothing").mkdir()
    (folder / ".cache").mkdir()
    for name in (".DS_Store", "notes.txt", "dark/lost_map.png", "dark/notes.txt", "lying_about.png"):
        (folder / name).write_bytes((folder / "dark/d0_1.png").read_bytes())
    assert list(opened(folder).notes[1:]) == [
        "nothing/ holds no image and is left out",
        "1 image lies in no class's folder and is left out: lying_about.png",
        "1 map has no image of its name and is left out; rename it, or, if it is an image, take its ending out of "
        "config.data.folders.map_names: dark/lost_map.png",
        "2 other files are left out: notes.txt, dark/notes.txt",
        "1 hidden file is left out: .DS_Store",
    ]
    (folder / "own.csv").write_text("split,label,image,map\n")
    (folder / "dark/notes.txt").unlink()
    assert "1 other file is left out: notes.txt" in list_folders(str(folder)).notes
    listing = list_folders(str(folder), map_names=(), image_names=("map",))
    assert {"dark/lost_map.png", "dark/d0_1.png", "dark/deeper/d0_0_map.png"} <= {row.image for row in listing.rows}


def rename(folder, ending, new, every=1):
    for path in sorted(folder.rglob(f"*{ending}.png"))[::every]:
        path.rename(path.with_name(f"{path.name.removesuffix(f'{ending}.png')}{new}.png"))


def test_an_ending_of_many_images_is_no_image_of_its_own_until_somebody_says_so(tmp_path):
    """Maps with a name of their own, half of them with another; then they are named as maps, or as pictures."""
    folder = write_folders(tmp_path / "squares")
    before = contents(opened(folder))
    rename(folder, "_map", "_Mask")
    rename(folder, "_Mask", "_GT", every=2)
    told = problems(folder)
    assert "15 images end in 'gt' beside an image of the name before it, such as dark/d0_1_GT.png at dark/d0_1" in told
    assert """if they are maps, give --config.data.folders.map_names="('mask', 'gt',)"; if they are""" in told
    assert told.endswith("""pictures of their own, --config.data.folders.image_names="('gt',)\"""")
    assert contents(opened(folder, map_names=("mask", "gt"))) == before
    rows = list_folders(str(folder), image_names=("gt",))
    assert len(rows.rows) == 40 + 15 and not rows.problems
    with pytest.raises(DataError, match="15 images end in 'gt'"):
        open_dataset(resolve(tiny_config(folder)))
    assert open_dataset(resolve(tiny_config(folder, **{"data.folders.map_names": ("mask", "gt")})))
    pictures = list_folders(str(folder), image_names=("GT", "mask", "flip"))
    assert len(pictures.rows) == 40 + 30 and not pictures.problems and not any(row.map for row in pictures.rows)
    assert pictures.notes[-1] == "config.data.folders.image_names: no image's name ends in 'flip'"


def test_which_endings_are_common():
    images = [f"a/{i}.jpg" for i in range(40)]
    ends = lambda *names: [f"a/{i}{name}.png" for name in names for i in range(3)]
    count = lambda files, known=(): {ending: len(own) for ending, own in common_endings(files, known).items()}
    assert count(images + ends("_gt")) == {"gt": 3} and common_endings(images + ends(" gt"), ())["gt"][0] == (
        "a/0 gt.png",
        "a/0.jpg",
    )
    assert count(images + ends("_human-map", "-human-map")) == {"human-map": 6}
    assert count(images + ends("_gt", "_gt_anna", ".GT_ben")) == {"gt": 9}
    assert count(images + ends("_2", "_2_gt", "-(1)")) == {"gt": 3}
    assert count(images + ends("_gt", "_flip"), ("flip",)) == {"gt": 3}
    assert not count(images + ends("_gt")[:2]) and not count([f"b/{i}_gt.png" for i in range(9)] + images)
    others = [f"a/{i}_name{chr(97 + i)}.png" for i in range(26)]
    assert not count(images + others) and not count(images + others + others[:2] + ends("_gt"))


def test_a_misspelt_class_folder_is_told_once(tmp_path):
    folder = write_folders(tmp_path / "squares", splits=("train", "val"), each=12)
    (folder / "val/dark").rename(folder / "val/drak")
    told = problems(folder)
    assert "val/drak: 12 images: label 'drak' is none of bright, dark. Did you mean 'dark'?" in told.splitlines()
    assert told.count("drak") == 2
    (folder / "val/drak").rename(folder / "val/dark")
    wanted = "class 'drak' has 1 image in train (train/drak/1.png) and none in val. Did you mean 'dark'?"
    (folder / "train/drak").mkdir()
    Image.new("RGB", (32, 32), 9).save(folder / "train/drak/1.png")
    assert problems(folder).startswith(wanted)


def only_other_files(folder):
    (folder / "third").mkdir()
    (folder / "third/1.heic").write_bytes(b"photo")


def nested_maps(folder):
    move_maps(folder, folder, lambda name: f"{Path(name).parent}/masks/{Path(name).name}.png")


def one_image_of_a_class(folder):
    (folder / "third").mkdir()
    Image.new("RGB", (32, 32), 9).save(folder / "third/1.png")


FAULTS = {
    "one class": (lambda folder: shutil.rmtree(folder / "dark"), "one folder only, bright; there must be one for each"),
    "a wrapper": (
        lambda folder: wrap(folder, "all"),
        "did you mean .*/all",
    ),
    "only a test": (lambda folder: wrap(folder, "test"), "images of split test and none of train"),
    "splits below classes": (
        lambda folder: move(folder, "dark", "dark/train"),
        r"dark holds train: put splits above the classes",
    ),
    "a split beside classes": (lambda folder: wrap(folder, "train", "dark"), "train are splits and bright are not"),
    "two train folders": (
        lambda folder: (wrap(folder, "train", "dark"), wrap(folder, "Training", "bright")),
        "two folders are split train; join them",
    ),
    "no image of a class": (only_other_files, "third: no image in it, but other files; convert them"),
    "capitals": (lambda folder: wrap(folder, "Dark", "bright"), "labels 'Dark' .* and 'dark' .*differ in case"),
    "maps in a class": (nested_maps, r"dark/masks: a folder of maps by its name; give .*config.data.folders.maps"),
    "too few": (one_image_of_a_class, "class 'third' has too few images or whole groups for a part in each of train"),
    "no images": (lambda folder: (shutil.rmtree(folder), folder.mkdir()), "0 images, none of them in a folder of its"),
    "no folder": (shutil.rmtree, "no such folder; correct config.data.folders.images"),
    "a bar": (
        lambda folder: [path.rename(path.with_name(f"a|{path.name}")) for path in folder.glob("dark/d0_0*")],
        r"can't stand in a manifest; rename what holds a '\|'",
    ),
}


def move(folder, name, target):
    (folder / name).rename(folder / "moved")
    (folder / target).parent.mkdir(parents=True, exist_ok=True)
    (folder / "moved").rename(folder / target)


def wrap(folder, target, *names):
    """Puts classes, or all of them, into a folder below the images'."""
    for name in names or ("dark", "bright"):
        move(folder, name, f"{target}/{name}")


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_clear_is_refused_by_name(tmp_path, fault):
    folder = write_folders(tmp_path / "squares", each=8)
    change, message = FAULTS[fault]
    change(folder)
    with pytest.raises(DataError, match=message):
        opened(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_pattern": "p[0-9"}, "group_pattern is .*, no regular expression"),
        ({"domain_pattern": "p[0-9]"}, "domain_pattern is .*, which has no group"),
        ({"shares": (0.5, 0.5)}, "must be three numbers with the sum 1"),
        ({"shares": (0.7, 0.0, 0.3)}, "both above 0"),
        ({"seed": -1}, "seed must not be negative"),
        ({"labels": ("dark", "dark")}, "names a class twice"),
        ({"group_pattern": "(x)_"}, "group_pattern '.x._' matches no image, such as bright/b0_0.png"),
        ({"maps": "elsewhere"}, "no such folder; correct config.data.folders.maps"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, message):
    folder = write_folders(tmp_path / "squares", each=8)
    with pytest.raises((ConfigError, DataError), match=message):
        opened(folder, **options)
    with pytest.raises(ConfigError, match=r"config\.data\.folders\.images is empty"):
        resolve(tiny_config(""))


@pytest.mark.parametrize("protocol", slow_but(["published", "k_fold"], "published"))
@pytest.mark.parametrize("where", slow_but(["squares", "."], "."))
def test_a_written_manifest_opens_as_the_same_data(tmp_path, capsys, protocol, where):
    """Also where a folder's name holds what separates an annotator's name."""
    place = tmp_path / "run=3"
    folder = write_folders(place / "squares")
    (folder / "dark/d0_0_map.png").rename(folder / "dark/d0_0_map_anna.png")
    np.save(folder / "dark/d0_0_map_ben.npy", np.eye(32, dtype=np.float32))
    np.save(folder / "dark/d1_0.npy", np.eye(32, dtype=np.float32))
    overrides = {"data.folders.group_pattern": r"/(\w\d+)_", "data.protocol.name": protocol}
    config = tiny_config(folder, **overrides)
    for target in (place / where / "own.csv", tmp_path / "above.csv"):
        assert prepare(resolve(config).data, check=target.name == "own.csv", write_manifest=target)
        assert f"--config.data.manifest={target}" in capsys.readouterr().out
        before, written = open_dataset(resolve(config)), open_manifest(str(target), progress=False)
        prefix = folder.relative_to(target.parent).as_posix().removeprefix(".")
        ids = lambda name, prefix=prefix: name.removeprefix(f"{prefix}/")
        assert contents(written, ids) == contents(before)
        assert written.class_names == before.class_names
        for split, source in before.splits.items():
            assert [ids(name) for name in written.splits[split].records.ids] == list(source.records.ids)
    with pytest.raises(ConfigError, match="there is such a file already"):
        prepare(resolve(config).data, check=False, write_manifest=target)


def test_a_manifest_that_would_not_open_as_the_same_is_not_written(tmp_path):
    folder = write_folders(tmp_path / "all/squares", each=8, mark="_other")
    for path in folder.rglob("*_other.png"):
        path.unlink()
    recipe = lambda **overrides: resolve(tiny_config(folder, **overrides)).data
    with pytest.raises(
        ConfigError, match=r"names files below its own folder only; write it into .*squares or a folder"
    ):
        prepare(recipe(), check=False, write_manifest=folder / "dark/here.csv")
    with pytest.raises(ConfigError, match=r"must name a \.csv file in a folder that is there"):
        prepare(recipe(), check=False, write_manifest=tmp_path / "gone/here.csv")
    (folder / "dark/ d9_9.png").write_bytes((folder / "dark/d0_0.png").read_bytes())
    (folder / "dark").rename(folder / " dark")
    with pytest.raises(DataError, match=r"dark/d0_0\.png: not read back as it is; rename what begins or ends"):
        prepare(recipe(), check=False, write_manifest=tmp_path / "here.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["all"]


def test_maps_in_an_owners_own_tables_are_not_written(tmp_path):
    config = chest_xray.get_config()
    config.data.chest_xray.data_dir = str(tmp_path / "set")
    config.data.chest_xray.manual_dir = str(fake_layouts.write_chest(tmp_path / "owner", ("reflacx",)))
    with pytest.raises(ConfigError, match=r"maps of chest_xray stand in its owner's own tables \(reflacx/main_data/"):
        prepare(resolve(config).data, check=False, write_manifest=tmp_path / "own.csv")


def test_arrays_of_any_kind_lie_beside_their_images_or_below_a_folder():
    arrays = ["a/1.nii.gz", "a/2_map.npz", "a/3_mask_anna.mat"]
    images, found = find_beside(["a/1.png", "a/2.png", "a/3.png", *arrays], MAP_NAMES)
    assert images == ["a/1.png", "a/2.png", "a/3.png"] and not found.others
    below = find_below(arrays, dict.fromkeys(images, ("", "a")), MAP_NAMES, "maps")
    for each in (found, below):
        assert [pair for image in images for pair in each.of[image]] == list(zip(["", "", "anna"], arrays, strict=True))


def test_map_cells_are_read_back():
    for parts in ([("", "a=b/1.png")], [("anna", "a=b.png"), ("", "c.png"), ("", "d=e")], [("", "c.png")], []):
        assert split_map_cell(join_map_cell(parts)) == parts
    for parts in ([("", "a|b.png")], [("", " a.png")], [("a=b", "c.png")]):
        with pytest.raises(ValueError, match="can't stand in a manifest"):
            join_map_cell(parts)


@pytest.mark.slow
def test_a_run_is_not_evaluated_on_splits_drawn_anew(tmp_path):
    folder = write_folders(tmp_path / "squares")
    train(tiny_config(folder), tmp_path / "run")
    trained = restore(tmp_path / "run")
    assert len(open_own_data(trained, tmp_path / "run").splits["test"]) == 6
    Image.new("RGB", (32, 32), 9).save(folder / "dark/a_new_one.png")
    with pytest.raises(
        DataError, match=r"(?s)not those that .* (added|moved) .*splits are drawn anew when images come or go"
    ):
        open_own_data(trained, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.end_to_end
def test_from_folders_and_from_their_manifest_the_same_is_learnt(tmp_path):
    folder, manifest = write_folders(tmp_path / "squares"), tmp_path / "squares/own.csv"
    options = ("--config.data.image_size=32", "--config.model.name=small_cnn", "--config.epochs=1")
    folders = (f"--config={REPO / 'configs/folders.py'}", f"--config.data.folders.images={folder}", *options)
    prepared = launch("prepare.py", *folders, "--check", f"--write_manifest={manifest}", f"--out={tmp_path / 'check'}")
    assert prepared.returncode == 0 and "Problems: 0" in prepared.stdout, prepared.stderr
    assert "train      28    2" in prepared.stdout and "drawn class by class" in prepared.stdout
    assert "drawn" not in prepared.stderr
    listed = (f"--config={REPO / 'configs/manifest.py'}", f"--config.data.manifest={manifest}", *options)
    results = []
    for name, arguments in (("folders", folders), ("listed", listed)):
        done = launch("train.py", *arguments, "--config.strategy=difference", f"--workdir={tmp_path / name}")
        assert done.returncode == 0, done.stderr
        assert ("drawn class by class" in done.stderr) == (name == "folders")
        assert ("\nwarning: squares: no folders train, val, test" in f"\n{done.stderr}") == (name == "folders")
        results.append(json.loads((tmp_path / name / "results.json").read_text())["sets"])
    assert results[0] == results[1]


def test_names_that_are_not_utf8_are_named_before_any_work(tmp_path):
    """No table or page can hold them: the run would end at its end."""
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (8, 8)).save(photos / "plain.png")
    (photos / "plain.png").rename(os.fsdecode(os.fsencode(photos) + b"/\xff.png"))
    with pytest.raises(DataError, match=r"\\udcff\.png: not UTF-8, .*rename it"):
        open_image_folder(photos, 3)
