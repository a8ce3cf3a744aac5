"""A folder for each class, with or without train, val and test above them: no list is needed.

Everything from the listing on is the manifest's: checks, maps, protocols. What was guessed, drawn or left out of the
folders is in the listing's notes.
"""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import ConfigError
from .annotations import is_table
from .builders.owner_files import below, check_pattern, group_of
from .checks.outcomes import Outcomes
from .listing import Listing, MapReader, Row, SplitDraw, check_annotator, read_tables
from .manifest import is_manifest
from .maps_by_name import MAP_NAMES, common_endings, find_below, find_beside, name_annotators, names_in_use
from .opening import check_labels, open_listing
from .paths import join_map_cell
from .source import SPLIT_NAMES, SPLITS, DataError, Dataset, shorten
from .unlisted import walk_files

# Folders of these names hold maps, never a class.
_MAP_FOLDERS = frozenset({"maps", "masks", "heatmaps", "annotations", "saliency", "saliency_maps", "human_maps"})
_WANTED = "images lie in FOLDER/CLASS/, or in FOLDER/train/CLASS/, FOLDER/val/CLASS/ and FOLDER/test/CLASS/"
_IMAGES_KEY, _MAPS_KEY = "config.data.folders.images", "config.data.folders.maps"
_ORPHANS = (
    "map has no image of its name and is left out; rename it",
    "maps have no image of their name and are left out; rename them",
)
_NAMES_KEY, _IMAGE_NAMES_KEY = "config.data.folders.map_names", "config.data.folders.image_names"
# How many names a note lists before it counts the rest.
_SHOWN = 3


def open_folders(
    images: str,
    *,
    channels: int = 3,
    progress: bool = True,
    skip_unreadable: bool = False,
    known: Outcomes | None = None,
    **options: Any,
) -> Dataset:
    """Opens and checks the images of `list_folders`; other arguments and errors as of `opening.open_listing`."""
    return open_listing(list_folders(images, **options), channels, progress, skip_unreadable, known)


def list_folders(
    images: str,
    *,
    maps: str = "",
    map_names: Sequence[str] = MAP_NAMES,
    image_names: Sequence[str] = (),
    labels: tuple[str, ...] = (),
    to_train: bool = True,
    group_pattern: str = "",
    domain_pattern: str = "",
    shares: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    skip_unreadable: bool = False,
    columns: Mapping[str, str] | None = None,
    categories: Sequence[str] = (),
    **reading: Any,
) -> Listing:
    """The images below a folder, none opened.

    Folders train, val and test above the classes are the splits (also training, valid, validation, testing, in any
    letters). Without them all splits are drawn from all images; with train alone or with train and test, val is drawn
    from train. Where nothing is trained nothing is drawn: images without a split test. Images in subfolders of a class
    belong to it; hidden files and folders are left out.

    Args:
      images: folder with a folder for each class.
      maps: folder of maps, see `maps_by_name.find_below`, or one table for all images (`annotations`); "": they lie
        beside the images (`find_beside`).
      map_names: what the names of maps end in, where they end in more than the image's own.
      image_names: what the names of images end in that lie beside another image of the rest of their name and are no
        maps of it; also if `map_names` holds it. An ending of many that neither has is a problem of the listing.
      labels: class names in the order of their indices; empty takes the folders', sorted.
      to_train: of `Listing`.
      group_pattern: regular expression whose first group, found in an image's path below `images`, names what must not
        cross splits; "": unknown.
      domain_pattern: the same of where the image comes from.
      shares: of train, val and test where they are drawn; test may be 0. Of two that are drawn, their proportion.
      seed: of the draw.
      skip_unreadable: makes no difference.
      columns: of a table, as in `annotations.read_table`.
      categories: the same.
      **reading: by the names of `listing.OF_READER`, as in `listing.MapReader`.

    Raises ConfigError for options that can't be, and DataError where folders aren't there or not of this layout.
    """
    check_labels(labels)
    _check_draw(shares, seed)
    patterns = {"group": group_pattern, "domain": domain_pattern}
    for column, pattern in patterns.items():
        check_pattern(f"data.folders.{column}_pattern", pattern)
    folder = _existing_folder(images, _IMAGES_KEY)
    place = _maps_place(maps, folder)
    map_names = [name for name in map_names if name.lower() not in {each.lower() for each in image_names}]
    found = _find_images(folder, place, map_names)
    _check_endings(found, map_names, image_names, place)
    if place is not None:
        _leave_maps(found, place)
        if place.is_dir():
            _find_maps(found, place, map_names)
    root = Path(os.path.commonpath([folder, *([] if place is None else [place if place.is_dir() else place.parent])]))
    table = place.relative_to(root).as_posix() if place is not None and place.is_file() else ""
    rows = _make_rows(found, folder, place or folder, root, table, patterns)
    drawn = _draw(found, shares, seed) if to_train else None
    rows = [replace(row, split="" if drawn and row.split in drawn.shares else row.split) for row in rows]
    rows = rows if to_train else [replace(row, split=row.split or "test") for row in rows]
    tables = read_tables(root, rows, columns or {}, categories)
    trained = {row.label for row in rows if row.split in ("", "train")} or {row.label for row in rows}
    reader = MapReader(root, **reading, tables=tables.marks)
    named = check_annotator(reader, rows)
    problems, notes = (*found.problems, *tables.problems, *named), (*found.notes, *tables.remarks)
    class_names = tuple(labels) or tuple(sorted(trained))
    return Listing(folder.resolve().name, tuple(rows), class_names, reader, problems, notes, drawn, to_train)


@dataclass
class _Found:
    """Images with their split ("" where no folder gives one) and class, their maps with annotators, what to tell.

    Paths of images are below their folder, those of maps below theirs.
    """

    images: dict[str, tuple[str, str]]
    maps: Mapping[str, Sequence[tuple[str, str]]]
    problems: list[str]
    notes: list[str]


def _existing_folder(path: str, key: str) -> Path:
    folder = Path(os.path.abspath(Path(path).expanduser()))
    if folder.is_file():
        what = "a zip archive; unpack it and give the folder" if zipfile.is_zipfile(folder) else "a file"
        raise DataError([f"{folder}: {what}; {key} must be a folder"])
    if not path or not folder.is_dir():
        raise DataError([f"{folder}: no such folder; correct {key}"])
    return folder


def _maps_place(maps: str, images: Path) -> Path | None:
    """Folder or table of the maps; None where they lie beside the images."""
    place = Path(os.path.abspath(Path(maps).expanduser()))
    if not maps or place == images:
        return None
    if place.is_file() and is_table(place.name):
        return place
    place = _existing_folder(maps, _MAPS_KEY)
    if images.is_relative_to(place):
        raise DataError([f"{place}: {_MAPS_KEY} holds the images too; give a folder of maps alone"])
    return place


def _find_images(folder: Path, place: Path | None, map_names: Sequence[str]) -> _Found:
    """Images, their splits and classes, and the maps beside them. What is at `place` is none of them."""
    listed = [path for path in walk_files(folder) if place is None or not (folder / path).is_relative_to(place)]
    files = [path for path in listed if not PurePosixPath(path).name.startswith(".")]
    tops = [name for name in _subfolders(folder) if folder / name != place]
    _refuse_map_folders(folder, files)
    splits = _split_folders(folder, tops)
    images, beside = find_beside(files, map_names)
    above = [path.split("/")[:-1] for path in images]  # split and class, or class alone, and what is below
    depth = 2 if splits else 1
    pairs = list(zip(images, above, strict=True))
    placed = {path: (splits.get(own[0], ""), own[depth - 1]) for path, own in pairs if len(own) >= depth}
    stray = [path for path, own in pairs if len(own) < depth]
    if not placed:
        packed = [path for path in beside.others if path.lower().endswith(".zip")]
        hint = f"; unpack {', '.join(packed)}" if packed else ""
        raise DataError([f"{folder}: {len(stray)} images, none of them in a folder of its class; {_WANTED}{hint}"])
    found = _Found(placed, beside.of, beside.problems, [])
    classes = [f"{top}/{name}" for top in splits for name in _subfolders(folder / top)] if splits else tops
    _check_classes(found, folder, classes, [*beside.others, *beside.orphans])
    found.notes += _alias_notes(splits)
    in_no_class = "image lies in no class's folder and is left out", "images lie in no class's folder and are left out"
    found.notes += _told(*in_no_class, stray)
    others = [path for path in beside.others if not is_manifest(folder / path)]
    found.notes += _left_out_notes(beside.orphans, others, sorted(set(listed) - set(files)))
    return found


def _left_out_notes(orphans: Sequence[str], others: Sequence[str], hidden: Sequence[str]) -> list[str]:
    """Notes on maps without an image, files of other kinds, and hidden ones."""
    lost = f", or, if it is an image, take its ending out of {_NAMES_KEY}"
    lost = _ORPHANS[0] + lost, _ORPHANS[1] + lost.replace("it is an image", "they are images").replace("its", "their")
    return [
        *_told(*lost, orphans),
        *_told("other file is left out", "other files are left out", others),
        *_told("hidden file is left out", "hidden files are left out", hidden),
    ]


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _split_folders(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """The split of each top folder, or none if they are classes. Raises DataError where that can't be told."""
    splits = {name: SPLIT_NAMES[name.lower()] for name in names if name.lower() in SPLIT_NAMES}
    if not splits:
        within = {name: _subfolders(folder / name) for name in names}
        if len(names) == 1:
            hint = f"; did you mean {_IMAGES_KEY}={folder / names[0]}?" if within[names[0]] else ""
            raise DataError([f"{folder}: one folder only, {names[0]}; there must be one for each class{hint}"])
        for name, inner in within.items():
            if inner and all(each.lower() in SPLIT_NAMES for each in inner):
                raise DataError([f"{folder / name} holds {', '.join(inner)}: put splits above the classes; {_WANTED}"])
        return {}
    if others := [name for name in names if name not in splits]:
        what = f"{', '.join(splits)} are splits and {', '.join(others[:_SHOWN])} are not"
        raise DataError([f"{folder}: {what}; move one or the other elsewhere, or rename it; {_WANTED}"])
    if twice := [split for split, count in Counter(splits.values()).items() if count > 1]:
        raise DataError([f"{folder}: {', '.join(splits)}: two folders are split {twice[0]}; join them"])
    return splits


def _refuse_map_folders(folder: Path, files: Sequence[str]) -> None:
    """Raises DataError where maps in a folder of theirs would be taken for images."""
    parents = {parent for path in files for parent in PurePosixPath(path).parents}
    if wrong := sorted(str(parent) for parent in parents if parent.name.lower() in _MAP_FOLDERS):
        remedy = f"give the path of one folder with all maps as {_MAPS_KEY}, or rename it if it holds images"
        raise DataError([f"{folder / name}: a folder of maps by its name; {remedy}" for name in wrong])


def _check_classes(found: _Found, folder: Path, classes: Sequence[str], others: Sequence[str]) -> None:
    """Tells of class folders without an image, and refuses those that hold files of other kinds only."""
    above = lambda paths: {str(parent) for path in paths for parent in PurePosixPath(path).parents}
    filled, used = above(found.images), above(others)
    for name in classes:
        if name in used and name not in filled:
            found.problems.append(f"{folder / name}: no image in it, but other files; convert them to PNG or JPEG")
        elif name not in filled:
            found.notes.append(f"{name}/ holds no image and is left out")


def _alias_notes(splits: Mapping[str, str]) -> list[str]:
    aliases = [f"{name}/ is taken for split {split}" for name, split in splits.items() if name != split]
    return [", ".join(aliases)] if aliases else []


def _told(one: str, several: str, paths: Sequence[str]) -> list[str]:
    """A note on these files, in words for one or for several; none if there are none."""
    what = one if len(paths) == 1 else several
    return [f"{len(paths)} {what}: {', '.join(shorten(paths, _SHOWN))}"] if paths else []


def _check_endings(found: _Found, map_names: Sequence[str], image_names: Sequence[str], place: Path | None) -> None:
    """A problem for each ending of many images' names that may be that of maps; the remedy keeps the names in use."""
    beside = [path for maps in found.maps.values() for _, path in maps]
    used = list(map_names) if place else names_in_use(beside, map_names)
    option = lambda key, names: f'--{key}="({", ".join(map(repr, names))},)"'
    for ending, pairs in common_endings(found.images, image_names).items():
        path, base = pairs[0]
        maps, images = option(_NAMES_KEY, [*used, ending]), option(_IMAGE_NAMES_KEY, [*image_names, ending])
        told = f"{len(pairs)} images end in {ending!r} beside an image of the name before it, such as {path} at {base}"
        found.problems.append(f"{told}; if they are maps, give {maps}; if they are pictures of their own, {images}")
    for name in image_names:
        if not names_in_use(found.images, [name]):
            found.notes.append(f"{_IMAGE_NAMES_KEY}: no image's name ends in {name!r}")


def _leave_maps(found: _Found, place: Path) -> None:
    """Leaves out maps beside the images, as there is another place for maps."""
    beside = [path for maps in found.maps.values() for _, path in maps]
    why = f"left out, as {_MAPS_KEY} is {place}"
    found.notes += _told(f"map beside its image is {why}", f"maps beside their images are {why}", beside)
    found.maps = {}


def _find_maps(found: _Found, place: Path, map_names: Sequence[str]) -> None:
    """Takes the maps from a folder of their own."""
    files = [path for path in walk_files(place) if not PurePosixPath(path).name.startswith(".")]
    below_place = find_below(files, found.images, map_names, str(place))
    found.problems += below_place.problems
    if not below_place.of and not below_place.problems:
        what = f"none of its {len(files)} files has the name of an image"
        found.problems.append(
            f"{place}: {what}, such as {next(iter(found.images))}; rename the maps, or correct {_MAPS_KEY}"
        )
    others = [path for path in below_place.others if not is_manifest(place / path)]
    found.notes += _told(f"{_ORPHANS[0]} ({place})", f"{_ORPHANS[1]} ({place})", below_place.orphans)
    found.notes += _told(f"other file of {place} is left out", f"other files of {place} are left out", others)
    found.maps = below_place.of


def _make_rows(
    found: _Found, folder: Path, place: Path, root: Path, table: str, patterns: Mapping[str, str]
) -> list[Row]:
    """A row for each image, with its group and domain by the patterns."""
    under = lambda whole: "" if whole == root else whole.relative_to(root).as_posix()
    rows = []
    for path, (split, label) in found.images.items():
        maps = [(name, below(under(place), each)) for name, each in name_annotators(found.maps.get(path, ()))]
        try:
            cell = join_map_cell([("", table)] if table else maps)
        except ValueError as error:
            found.problems.append(f"{folder / path}: map {error}")
            cell = ""
        columns: dict[str, Any] = {column: group_of(path, pattern) for column, pattern in patterns.items()}
        rows.append(Row(str(folder), 0, split, label, below(under(folder), path), cell, **columns))
    for column, pattern in patterns.items():
        lacking = [row.image for row in rows if not getattr(row, column)]
        what = f"config.data.folders.{column}_pattern {pattern!r}"
        if pattern and len(lacking) == len(rows):
            found.problems.append(f"{what} matches no image, such as {lacking[0]}; correct it")
        elif pattern:
            why = f"no {column}, as {what} does not match"
            found.notes += _told(f"image has {why}", f"images have {why}", lacking)
    return rows


def _draw(found: _Found, shares: Sequence[float], seed: int) -> SplitDraw | None:
    """What the folders leave open, told in a note; None if nothing. Raises DataError for splits without train."""
    splits = {split for split, _ in found.images.values()}
    if {"train", "val"} <= splits:
        return None
    if splits != {""} and "train" not in splits:
        raise DataError([f"there are images of split {', '.join(sorted(splits))} and none of train; {_WANTED}"])
    drawn = {name: share for name, share in zip(SPLITS, shares, strict=True) if share}
    if "train" in splits:
        drawn = {name: drawn[name] for name in ("train", "val")}
    parts = ", ".join(f"{100 * share / sum(drawn.values()):.0f} % {name}" for name, share in drawn.items())
    why = "no folder val holds images: train's are" if "train" in splits else "no folders train, val, test: images are"
    how = f"drawn class by class with seed {seed}, equal images and whole groups together"
    found.notes.insert(0, f"{why} {parts}, {how} (config.data.folders.shares, seed)")
    return SplitDraw(drawn, seed)


def _check_draw(shares: Sequence[float], seed: int) -> None:
    if len(shares) != len(SPLITS) or min(shares) < 0 or 0 in shares[:2] or abs(sum(shares) - 1) > 1e-6:
        wanted = "must be three numbers with the sum 1, of train, val (both above 0) and test"
        raise ConfigError(f"config.data.folders.shares {wanted}; got {tuple(shares)}")
    if seed < 0:
        raise ConfigError(f"config.data.folders.seed must not be negative; got {seed}")
