"""Paths in manifests as people's systems write them."""

import os
from pathlib import Path

import pytest
from tiny_manifest import write_manifest

from tfcam_jax.data.manifest import list_manifest, open_manifest
from tfcam_jax.data.paths import check_below, local_path, relative_cell, relative_path, split_map_cell
from tfcam_jax.data.source import DataError
from tfcam_jax.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    """A data folder with three files, and a link to it."""
    data = tmp_path / "data"
    for name in ("images/1.png", "images/a=1.png", "back\\slash.png"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).touch()
    (tmp_path / "link").symlink_to(data)
    return data


def test_paths_come_out_relative_with_slashes(folder):
    link = folder.parent / "link"
    for base in (folder, link):
        for path in (
            "images/1.png",
            "./images//1.png",
            "images\\1.png",
            f"{folder}/images/1.png",
            f"{link}/images/1.png",
        ):
            assert relative_path(base, path) == "images/1.png"
        assert relative_path(base, "back\\slash.png") == "back\\slash.png"
        assert relative_path(base, "") == ""
    assert relative_path(folder, str(folder)) == str(folder)


@pytest.mark.parametrize("path", ["../x.png", "a/../../x.png", "/elsewhere/x.png", "{}-2/x.png", "C:\\data\\x.png"])
def test_paths_out_of_the_folder_are_refused_with_the_remedy(folder, path):
    kept = relative_path(folder, path.format(folder))
    with pytest.raises(ValueError, match="leaves the data folder; move the file into it, or give its path below it"):
        check_below(kept)


def test_map_cells(folder):
    assert split_map_cell("") == []
    assert split_map_cell("a.png") == [("", "a.png")]
    assert split_map_cell("anna=x/a.png | ben=b.npy") == [("anna", "x/a.png"), ("ben", "b.npy")]
    cells = {
        "images/a=1.png": [("", "images/a=1.png")],
        "images\\a=1.png|ben=images\\1.png": [("", "images/a=1.png"), ("ben", "images/1.png")],
        f"anna={folder}/images/a=1.png": [("anna", "images/a=1.png")],
        "anna = images/1.png": [("anna", "images/1.png")],
        "images/b=1.png": [("images/b", "1.png")],
    }
    for cell, expected in cells.items():
        assert split_map_cell(relative_cell(folder, cell)) == expected


def test_a_manifest_with_windows_and_absolute_paths_and_trailing_rows_is_the_plain_one(tmp_path):
    manifest = write_manifest(tmp_path / "data")
    plain, text = list_manifest(str(manifest)), manifest.read_text()
    written = [
        text.replace("images/", "images\\").replace("maps/", "maps\\"),
        text.replace("images/", f"{manifest.parent}/images/").replace("maps/", f"{manifest.parent}/maps/"),
        text + ",,,,,\n , , ,,,\n\n;;;;;\n\t\t\n",
    ]
    for content in written:
        manifest.write_text(content)
        assert list_manifest(str(manifest)).rows == plain.rows
        assert open_manifest(str(manifest)).splits["train"].records.has_map.sum() == 9
    os.rename(manifest.parent, tmp_path / "moved")
    (tmp_path / "moved/manifest.csv").write_text(written[1])
    with pytest.raises(DataError, match=r"row 2: image /.*/data/images/train0.png leaves the data folder; move"):
        open_manifest(str(tmp_path / "moved/manifest.csv"))


def test_a_map_file_may_have_an_equals_sign_in_its_name(tmp_path):
    manifest = write_manifest(tmp_path / "data")
    os.rename(manifest.parent / "maps/train1.png", manifest.parent / "maps/a=1.png")
    manifest.write_text(manifest.read_text().replace("maps/train1.png", "maps/a=1.png"))
    source = open_manifest(str(manifest)).splits["train"]
    assert source.records.has_map[1] and source[1].saliency.sum() == 100
    assert list(source.reader.annotators(source.rows[1], 32, 32)) == ["1"]


@pytest.mark.parametrize("spelling", ["Dark", "da  rk", "DARK", "cafe\u0301"])
def test_labels_that_look_the_same_are_refused_together(tmp_path, spelling):
    other = {"da  rk": "da rk", "cafe\u0301": "caf\u00e9"}.get(spelling, "dark")
    manifest = write_manifest(tmp_path / "data")
    lines = manifest.read_text().replace(",dark,", f",{other},").splitlines()
    changed = [line.replace(f",{other},", f",{spelling},") if n in (3, 5, 13) else line for n, line in enumerate(lines)]
    manifest.write_text("\n".join(changed))
    for labels in ((), (other, "bright")):
        with pytest.raises(DataError) as caught:
            open_manifest(str(manifest), labels=labels)
        (found,) = caught.value.problems
        assert f"{other!r} (13 rows, first {manifest}, row 2)" in found and f"{spelling!r} (3 rows, first" in found
        assert "differ in case, spaces or Unicode form only; write one of them throughout" in found


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("", "--out is empty"),
        (" ", "--out is empty"),
        ("gs://bucket/run", "gs:// is not read"),
        (Path("s3://bucket/run"), "s3:// is not read"),
        ("file:///run", "file:// is not read"),
        ("a\udcff", r"a\\udcff, a name that is not UTF-8"),
        ("~nobody_of_that_name/x", "no such home folder"),
        ("x" * 256, r"x\.\.\., a name that is too long"),
        ("x/" * 3000, "too long"),
    ],
)
def test_paths_that_are_none_of_this_machine_are_told(given, told):
    with pytest.raises(ConfigError, match=told):
        local_path(given, "--out")


def test_a_users_paths_are_taken_as_they_are_but_for_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert local_path("~/x", "--out") == Path("/home/somebody/x")
    for plain in ("x/~", "a b/é", "C:/x", "./x", "../x", "a:b/c"):
        assert local_path(plain, "--out") == Path(plain)
