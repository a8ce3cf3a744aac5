"""Preparing: the report says what is there, every fault is told at once, what is sound is packed and can be trained."""

import json
import pathlib
import subprocess
import sys

import fake_layouts
import numpy as np
import pytest
from fake_layouts import write_csv, write_map, write_picture
from PIL import Image, ImageEnhance
from sklearn.datasets import make_blobs
from tiny_manifest import write_manifest

from configs import chest_xray, cyborg_faces, default, demo, iris_pad
from tfcam_jax.data import written_manifest
from tfcam_jax.data.checks.near_duplicates import MAX_DISTANCE, alike_pairs, perceptual_hash, thumbnail
from tfcam_jax.data.checks.prepare import prepare
from tfcam_jax.data.checks.report import align
from tfcam_jax.data.outputs import claimed
from tfcam_jax.data.source import DataError
from tfcam_jax.errors import ConfigError, OutputError
from tfcam_jax.experiment import build_experiment, open_dataset, resolve
from tfcam_jax.training import train

REPO = pathlib.Path(__file__).parent.parent


def recipe(config):
    """What is prepared of a config."""
    return resolve(config).data


def manifest_config(path, **overrides):
    config = default.get_config()
    config.data.manifest = str(path)
    config.model.name = "small_cnn"
    config.data.image_size = 32
    config.update_from_flattened_dict(overrides)
    return config


def task_config(name, folder, data_dir, **overrides):
    config = {"cyborg_faces": cyborg_faces, "iris_pad": iris_pad, "chest_xray": chest_xray}[name].get_config()
    config.data[name].manual_dir, config.data[name].data_dir = str(folder), str(data_dir)
    config.data.image_size = 32
    config.model.name = "small_cnn"
    config.epochs, config.batch_size = 1, 8
    config.optimizer.learning_rate = 0.01
    config.update_from_flattened_dict(overrides)
    return config


WRITERS = {
    "cyborg_faces": fake_layouts.write_cyborg_faces,
    "iris_pad": fake_layouts.write_iris_lists,
    "chest_xray": fake_layouts.write_chest,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_one_command_and_then_training(name, tmp_path, capsys):
    """On a copy of each task's layout: checked, packed, trained for an epoch and evaluated."""
    config = task_config(name, WRITERS[name](tmp_path / "owner"), tmp_path / "prepared")
    assert prepare(recipe(config), check=True, out=tmp_path / "check")
    text = capsys.readouterr().out
    assert "Problems: 0" in text and "Ready: " + name in text
    assert (tmp_path / "check/contact_sheet.png").read_bytes().startswith(b"\x89PNG")
    config.data[name].manual_dir = ""  # From now on the prepared set is enough.
    results = train(config, tmp_path / "run")
    splits = open_dataset(resolve(config)).splits
    assert results["sets"]["val"]["images"] == len(splits["val"])
    assert results["skipped"] == 0


def test_report_counts_what_is_there(tmp_path, capsys):
    manifest = write_manifest(tmp_path / "data")
    assert prepare(recipe(manifest_config(manifest)), check=True, out=tmp_path / "check", remarks=["CAM 4x4"])
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines()]
    assert ["train", "bright", "old", "6", "3"] in lines and ["test", "dark", "new", "3", "3"] in lines
    assert ["train", "9", "0", "0", "3", "0", "-"] in lines
    assert ["val", "8", "1", "0"] in lines
    assert "open set: test alone has the domains new" in text
    assert "32 images are 32 x 32" in text
    report = json.loads((tmp_path / "check/report.json").read_text())
    assert report["notes"][0] == "CAM 4x4" and "\n  CAM 4x4\n" in text
    assert report["rows"] == 32 and report["maps"] == {"usable": 24, "absent": 8} and report["problems"] == []
    assert (tmp_path / "check/report.txt").read_text().strip() in text
    with Image.open(tmp_path / "check/contact_sheet.png") as sheet:
        # 2 kinds in training and validation each, of which 4 are shown, and 4 in test with 3 each; 4 in a row.
        assert sheet.size == (8 * 160, 7 * 186)


def edit(manifest, line, **cells):
    rows = [row.split(",") for row in manifest.read_text().splitlines()]
    for name, value in cells.items():
        rows[line - 1][rows[0].index(name)] = value
    write_csv(manifest, rows)


def test_faults_and_traps_are_all_in_one_report(tmp_path, capsys):
    manifest = write_manifest(tmp_path / "data")
    folder = manifest.parent
    edit(manifest, 3, image="images/gone.png")
    edit(manifest, 5, label="brigt")
    edit(manifest, 14, group="train2")
    (folder / "images/train5.png").write_bytes((folder / "images/train5.png").read_bytes()[:99])
    (folder / "images/test0.png").write_bytes((folder / "images/train4.png").read_bytes())
    Image.new("L", (32, 32)).save(folder / "maps/train6.png")
    Image.new("L", (32, 32), 7).save(folder / "maps/train8.png")
    # A brighter, smaller and re-encoded copy.
    textured(3, 32).save(folder / "images/train9.png")
    copy = ImageEnhance.Brightness(Image.open(folder / "images/train9.png")).enhance(1.1).resize((28, 28))
    copy.save(folder / "images/val1.jpg", quality=90)
    edit(manifest, 15, image="images/val1.jpg", map="")
    config = manifest_config(manifest, **{"data.labels": ("dark", "bright")})
    assert not prepare(recipe(config), check=True, out=tmp_path / "check")
    report = json.loads((tmp_path / "check/report.json").read_text())
    found = "\n".join(report["problems"])
    assert "row 3: image images/gone.png does not exist" in found
    assert "row 5: label 'brigt'" in found and "Did you mean 'bright'?" in found
    assert "row 7: image images/train5.png: broken image" in found
    assert "row 14: group train2 is also in split train (row 4)" in found
    assert "row 22: image images/test0.png is also in split train (row 6" in found
    assert report["maps"]["empty"] == report["maps"]["constant"] == 1
    assert report["near_duplicates"] == 1 and report["unreadable"] == 2
    text = capsys.readouterr().out
    assert "images/val1.jpg (val) looks like images/train9.png (train), groups val1 and train9" in text
    assert "1 images repeat another one's pixels; 1 of them across splits" in text
    assert "2 maps are empty or constant" in text


def test_a_class_that_a_split_lacks_is_told_with_its_row(tmp_path, capsys):
    manifest = write_manifest(tmp_path / "data")
    edit(manifest, 5, label="brigth")
    edit(manifest, 27, label="brigth")
    assert not prepare(recipe(manifest_config(manifest)), check=True)
    text = capsys.readouterr().out
    wanted = f"class 'brigth' has 1 image in train ({manifest}, row 5) and none in val. Did you mean 'bright'? Correct "
    assert "Problems: 1" in text and wanted in text
    edit(manifest, 14, label="brigth")
    edit(manifest, 27, label="bright")
    assert not prepare(recipe(manifest_config(manifest)), check=True)
    wanted = (
        "protocol published: split test has 12 images, of classes bright, dark only; there are bright, brigth, dark"
    )
    text = capsys.readouterr().out
    assert "Problems: 1" in text and wanted in text


def test_without_check_faults_stop_as_in_training(tmp_path):
    manifest = write_manifest(tmp_path / "data")
    edit(manifest, 3, image="images/gone.png")
    with pytest.raises(DataError, match="row 3"):
        prepare(recipe(manifest_config(manifest)), check=False)
    with pytest.raises(ConfigError, match="no files to check: leave out --check and --write_manifest"):
        prepare(recipe(demo.get_config()), check=True)


@pytest.mark.slow
def test_skipped_rows_are_counted_in_the_results(tmp_path, capsys):
    manifest = write_manifest(tmp_path / "data")
    (manifest.parent / "images/train5.png").write_bytes(b"nothing")
    (manifest.parent / "maps/train2.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="2 problems"):
        build_experiment(resolve(manifest_config(manifest)))
    config = manifest_config(manifest, **{"data.skip_unreadable": True, "epochs": 1})
    assert prepare(recipe(config), check=False, remarks=["CAM 4x4"])
    assert "\nCAM 4x4\nReady: data" in capsys.readouterr().out
    results = train(config, tmp_path / "run")
    assert results["skipped"] == 2
    assert len(open_dataset(resolve(config)).splits["train"]) == 10


def test_what_is_left_after_skipping_must_still_be_trainable(tmp_path):
    manifest = write_manifest(tmp_path / "data")
    for i in range(1, 8, 2):
        (manifest.parent / f"images/val{i}.png").write_bytes(b"nothing")
    config = manifest_config(manifest, **{"data.skip_unreadable": True})
    with pytest.raises(DataError, match="split val holds only class 'dark'"):
        open_dataset(resolve(config))


def test_a_protocol_is_part_of_the_check(tmp_path, capsys):
    manifest = write_manifest(tmp_path / "data")
    config = manifest_config(manifest, **{"data.protocol.name": "open", "data.protocol.domains": ("new",)})
    assert prepare(recipe(config), check=True)
    assert ["test", "12", "9", "12", "new,", "old"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    config.data.protocol.domains = ("ancient",)
    assert not prepare(recipe(config), check=True)
    assert "no image has domain 'ancient'" in capsys.readouterr().out
    config = manifest_config(manifest, **{"data.protocol.name": "k_fold", "data.protocol.num_folds": 4})
    folds = open_dataset(resolve(config)).splits
    assert {split: len(source) for split, source in folds.items()} == {"train": 16, "val": 8, "test": 8}


def test_maps_of_a_config_reach_training(tmp_path):
    """Annotators, blur, threshold and placebo, from the config to the batches."""
    manifest = write_manifest(tmp_path / "data")
    plain = open_dataset(resolve(manifest_config(manifest))).splits
    changed = {"strategy": "cyborg", "data.maps.placebo": "other_image", "data.maps.threshold": 0.5}
    config = manifest_config(manifest, **changed)
    changed = open_dataset(resolve(config)).splits
    maps = lambda source: [source[i].saliency for i in range(len(source)) if source.records.has_map[i]]
    for one, other in zip(maps(plain["val"]), maps(changed["val"]), strict=True):
        np.testing.assert_array_equal(one, other)
    key = lambda saliency: saliency.tobytes()
    assert sorted(map(key, maps(plain["train"]))) == sorted(map(key, maps(changed["train"])))
    assert any(key(a) != key(b) for a, b in zip(maps(plain["train"]), maps(changed["train"]), strict=True))
    for name, value, message in (
        ("data.maps.placebo", "mean", "Did you mean 'mean_map'"),
        ("data.maps.blur", 0.9, r"maps.blur is 0.9; it must be .*at most 0.5"),
        ("data.balance", "sample", "Did you mean 'sampling'"),
        ("data.protocol.name", "kfold", "protocol.name is 'kfold'. Did you mean 'k_fold'. Known: published"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_experiment(resolve(manifest_config(manifest, **{name: value})))


def textured(seed, size=64):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    return coarse.resize((size, size), Image.Resampling.BICUBIC)


def alike(images):
    arrays = [np.asarray(image) for image in images]
    digests = [array.tobytes().hex() for array in arrays]
    return alike_pairs([perceptual_hash(a) for a in arrays], [thumbnail(a) for a in arrays], digests).tolist()


def test_near_duplicates_are_found_and_others_are_not():
    original = textured(0)
    variants = [
        original.resize((40, 40), Image.Resampling.LANCZOS),
        ImageEnhance.Brightness(original).enhance(0.8),
        ImageEnhance.Contrast(original).enhance(0.8),
        original.convert("L").convert("RGB"),
    ]
    others = [textured(seed) for seed in range(1, 200)]
    assert alike([original, *others]) == []
    for variant in variants:
        assert alike([original, *others, variant]) == [[0, 200]]
    assert alike([original, original]) == []  # Equal, not alike.


def test_a_common_hash_is_not_enough():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 256, (2, 16, 16), np.uint8)
    assert alike_pairs([5, 5], [one, other], ["a", "b"]).tolist() == []
    assert alike_pairs([5, 5], [one, one // 2], ["a", "b"]).tolist() == [[0, 1]]


def test_pairs_by_parts_of_the_hash_are_those_of_all_comparisons():
    """Against every pair compared, on hashes that cluster as those of real sets do."""
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 2**63, 40, np.uint64)
    flips = np.array([np.bitwise_or.reduce(np.uint64(1) << rng.integers(0, 64, n).astype(np.uint64)) if n else 0
                      for n in rng.integers(0, 6, 400)], np.uint64)  # fmt: skip
    hashes = rng.choice(centres, 400) ^ flips
    expected = {
        (i, j)
        for i in range(400)
        for j in range(i + 1, 400)
        if bin(int(hashes[i]) ^ int(hashes[j])).count("1") <= MAX_DISTANCE
    }
    same = [np.zeros((16, 16), np.uint8)] * 400
    found = alike_pairs(hashes.tolist(), same, [str(i) for i in range(400)])
    assert {tuple(pair) for pair in found.tolist()} == expected and len(expected) > 500


def test_border_signal_and_few_groups_are_noted(tmp_path, capsys):
    """Class 1 has a bright rim; images come in tens from one group."""
    folder = tmp_path / "data"
    features, labels = make_blobs(120, 3, centers=2, random_state=0)
    rows = [["split", "label", "image", "group"]]
    for i, (_, label) in enumerate(zip(features, labels, strict=True)):
        pixels = np.asarray(textured(i)).copy()
        pixels[:4] = 40 if label else 0
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"images/{i}.png")
        rows.append(
            ["train" if i < 100 else "val", f"c{label}", f"images/{i}.png", f"g{i // 5}" if i < 100 else f"v{i}"]
        )
    write_csv(folder / "manifest.csv", rows)
    assert prepare(recipe(manifest_config(folder / "manifest.csv")), check=True)
    text = capsys.readouterr().out
    assert "train: 100 images come from 20 groups only (5.0 images each)" in text
    auroc = float(text.split("with AUROC ")[1].split(";")[0])
    assert auroc > 0.95
    assert "training has no human maps" in text


def test_aligned():
    assert align([("a", "n"), ("long", "12"), ("b", "3")]) == ["a     n", "long  12", "b      3"]
    assert align([]) == []


BAD_FILES = {
    "truncated.jpg": "broken image",
    "bomb.png": "too large an image to open safely",
    "notes.txt": "not an image of a format that is read",
    "../outside.png": "leaves the data folder",
    "images.zip/1.png": "is a zip archive; unpack it",
    "folder": "a folder, not a file",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_told_with_their_row(tmp_path, name):
    import io
    import struct
    import zipfile
    import zlib

    manifest = write_manifest(tmp_path / "data")
    folder = manifest.parent
    file = io.BytesIO()
    textured(1).save(file, "JPEG")
    (folder / "truncated.jpg").write_bytes(file.getvalue()[: len(file.getvalue()) // 2])
    # A small file that claims to hold 40,000 x 40,000 pixels.
    data = b"IDAT" + zlib.compress(bytes(1000))
    header = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunks = [struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) for body in (header, data)]
    (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    (folder / "notes.txt").write_text("no image")
    write_picture(tmp_path / "outside.png", 1)
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        archive.writestr("1.png", "x")
    (folder / "folder").mkdir()
    edit(manifest, 4, image=name, map="")
    with pytest.raises(DataError) as caught:
        open_dataset(resolve(manifest_config(manifest)))
    assert len(caught.value.problems) == 1
    problem = caught.value.problems[0]
    assert problem.startswith(f"{manifest}, row 4: image {name}") and BAD_FILES[name] in problem


def test_sixteen_bits_and_cmyk_are_trained_on_as_they_are_seen(tmp_path):
    manifest = write_manifest(tmp_path / "data")
    folder = manifest.parent
    deep = np.random.default_rng(0).integers(0, 65536, (32, 32), np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    ink = Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 4), np.uint8), "CMYK")
    ink.save(folder / "ink.jpg")
    edit(manifest, 2, image="deep.png")
    edit(manifest, 3, image="ink.jpg")
    source = open_dataset(resolve(manifest_config(manifest))).splits["train"]
    np.testing.assert_allclose(source[0].image[..., 0], deep / 257, atol=0.51)
    np.testing.assert_array_equal(source[1].image, np.asarray(Image.open(folder / "ink.jpg").convert("RGB")))


def test_a_zip_or_a_folder_in_place_of_a_manifest(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("manifest.csv", "split,label,image")
    with pytest.raises(DataError, match=r"data\.zip: a zip archive; unpack it"):
        open_dataset(resolve(manifest_config(tmp_path / "data.zip")))
    with pytest.raises(DataError, match="a folder; give"):
        open_dataset(resolve(manifest_config(tmp_path)))


def test_manifest_maps_in_tables_and_from_several_annotators(tmp_path, capsys):
    manifest = write_manifest(tmp_path / "data")
    folder = manifest.parent
    write_csv(folder / "boxes.csv", [["image", "x", "y", "width", "height"], ["images/train0.png", 4, 4, 8, 8]])
    write_map(folder / "maps/ben.png", 1, (32, 32))
    edit(manifest, 2, map="boxes.csv")
    edit(manifest, 3, map="anna=maps/train1.png|ben=maps/ben.png")
    edit(manifest, 4, map="boxes.csv")  # Not in the table: nobody marked it.
    assert prepare(recipe(manifest_config(manifest)), check=True)
    row = next(line.split() for line in capsys.readouterr().out.splitlines() if line.split()[:2] == ["train", "8"])
    assert row[4:6] == ["4", "1"] and -1 < float(row[6]) < 1
    source = open_dataset(resolve(manifest_config(manifest))).splits["train"]
    expected = np.zeros((32, 32))
    expected[4:12, 4:12] = 1
    np.testing.assert_array_equal(source[0].saliency, expected)
    only_ben = open_dataset(resolve(manifest_config(manifest, **{"data.maps.combine": "ben"}))).splits["train"]
    assert only_ben.records.has_map.sum() == 1
    np.testing.assert_array_equal(only_ben[1].saliency, np.asarray(Image.open(folder / "maps/ben.png")) > 0)
    (folder / "boxes.csv").write_text("image,x,y,width,height\nimages/train0.png,30,4,8,8\n")
    with pytest.raises(DataError, match=r"row 2: map boxes.csv: .*box 30, 4, 8, 8 reaches outside"):
        open_dataset(resolve(manifest_config(manifest)))


@pytest.mark.slow
@pytest.mark.end_to_end
def test_launch(tmp_path):
    manifest = write_manifest(tmp_path / "data")
    command = [sys.executable, REPO / "launch/prepare.py", f"--config={REPO / 'configs/manifest.py'}", "--check"]
    command += [f"--config.data.manifest={manifest}", f"--out={tmp_path / 'check'}"]
    run = lambda: subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    done = run()
    assert done.returncode == 0 and "Problems: 0" in done.stdout, done.stderr
    assert "CAM 4x4, 16 places, each 32 px of the 128 px image. Finer: " in done.stdout
    edit(manifest, 3, image="images/gone.png")
    done = run()
    assert done.returncode == 1 and "row 3" in done.stdout
    assert "can't be trained on" in done.stderr and "Traceback" not in done.stderr


def test_a_table_of_marks_is_read_as_the_config_says_and_what_is_left_open_is_told(tmp_path, capsys):
    """Other names of columns, one category of two, a size that is not the file's, an image without an entry."""
    path = write_manifest(tmp_path / "data")
    lines = [line.split(",") for line in path.read_text().splitlines()]
    column = lines[0].index("map")
    path.write_text(
        "\n".join(
            ",".join([*line[:column], "t.csv" if i else "map", *line[column + 1 :]]) for i, line in enumerate(lines)
        )
    )
    images = [line[lines[0].index("image")] for line in lines[1:]]
    rows = [("file", "left_edge", "y", "w", "h", "what", "image_width", "image_height")]
    rows += [(image, 8, 16, 24, 32, kind, 64, 64) for image in images[1:] for kind in ("face", "hair")]
    rows[2] = (images[1], 0, 0, 64, 64, "hair", 64, 64)
    write_csv(path.parent / "t.csv", rows)
    columns = {"image": "file", "x": "left_edge", "category": "what"}
    config = manifest_config(path, **{f"data.maps.columns.{name}": value for name, value in columns.items()})
    config.data.maps.categories = ("face",)
    assert prepare(recipe(config), check=True)
    told = capsys.readouterr().out
    for remark in ("images that name it have no entry: images/train0.png", "such as 64 x 64 for 32 x 32: their marks"):
        assert (
            f"t.csv: 1 of 32 {remark}" in told
            or f"t.csv: 31 of 31 images are declared in another size, {remark}" in told
        )
        assert any(remark in note for note in recipe(config).open().notes)
    wanted = np.zeros((32, 32))
    wanted[8:24, 4:16] = 1
    source = recipe(config).open().splits["train"]
    np.testing.assert_array_equal(source[1].saliency, wanted)
    assert source.records.has_map.tolist() == [False] + [True] * 11
    config.data.maps.categories = ("nose",)
    with pytest.raises(DataError, match="no table has 'nose'; known are face, hair"):
        recipe(config).open()


def test_a_report_replaces_an_earlier_one_and_no_files_of_others(tmp_path):
    asked = recipe(manifest_config(write_manifest(tmp_path / "data")))
    for _ in range(2):
        assert prepare(asked, check=True, out=tmp_path / "check")
    assert sorted(path.name for path in (tmp_path / "check").iterdir()) == [
        "contact_sheet.png",
        "report.json",
        "report.txt",
    ]
    (tmp_path / "check/notes.txt").write_text("of somebody")
    for folder in ("check", "data"):
        with pytest.raises(OutputError, match="which is not of a report on data"):
            prepare(asked, check=True, out=tmp_path / folder)


def test_a_manifest_is_written_by_one_at_a_time_and_over_nothing(tmp_path, monkeypatch):
    asked, target = recipe(manifest_config(write_manifest(tmp_path / "data"))), tmp_path / "data" / "new.csv"
    with claimed(target), pytest.raises(OutputError, match="another process is writing"):
        prepare(asked, check=False, write_manifest=target)
    assert not target.exists()
    target.symlink_to("nowhere.csv")
    with pytest.raises(ConfigError, match="there is such a file already"):
        prepare(asked, check=False, write_manifest=target)
    target.unlink()
    monkeypatch.setattr(written_manifest, "_check_read_back", lambda *_: target.write_text("of somebody"))
    with pytest.raises(DataError, match="came to be meanwhile"):
        prepare(asked, check=False, write_manifest=target)
    assert target.read_text() == "of somebody"
    assert sorted(path.name for path in target.parent.iterdir()) == ["images", "manifest.csv", "maps", "new.csv"]
