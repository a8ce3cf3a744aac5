"""What the owners' layouts have in common: lists, images and maps found by what a list says, splits by a hash."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from ...errors import ConfigError
from ..annotations.marks import Marks
from ..listing import Row, SplitDraw
from ..maps_by_name import MAP_NAMES, find_below, name_annotators
from ..paths import join_map_cell
from ..source import shorten
from ..unlisted import walk_files
from .file_search import FileSearch, Sought

# How many names a note lists before it counts the rest.
_SHOWN = 3
_HOW = {
    "tail": "by the end of their paths, below another folder",
    "name": "by their file names alone",
    "spelling": "under another suffix or in other letters",
}


@dataclass
class Found:
    """What an owner's files hold.

    Attributes:
      rows: an image each; their paths are as listed until `place_images` finds the files.
      problems, notes: of the lists, as in `listing.Listing`.
      tables: marks of images by their paths, under the path of their file.
      draw: of rows whose split is "".
    """

    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tables: dict[str, dict[str, Mapping[str, Marks]]] = field(default_factory=dict)
    draw: SplitDraw | None = None

    def place_images(self, search: FileSearch, folder: str, by_name: bool = True) -> None:
        """Gives each row the path of its file; a path that is no file's keeps the places where it was looked for.

        `folder` is what the lists' paths are relative to. A file that has no more than its name in common with a
        listed path is taken only with `by_name`, and if no other listed path has that name. How files were found, where
        not at their own paths, is noted; one that could be several, or is that of several, is a problem.
        """
        listed = [row.image for row in self.rows]
        names = Counter(PurePosixPath(path).name for path in {path.replace("\\", "/") for path in listed})
        alone = lambda path: by_name and names[PurePosixPath(path.replace("\\", "/")).name] == 1
        sought = [search.find(path, folder, alone(path)) for path in listed]
        self.rows = [
            replace(row, image=each.path, looked=each.looked) for row, each in zip(self.rows, sought, strict=True)
        ]
        self._tell_of_images(listed, sought)

    def _tell_of_images(self, listed: Sequence[str], sought: Sequence[Sought]) -> None:
        examples = {how: [] for how in _HOW}
        first: dict[str, tuple[str, Row]] = {}
        for path, each, row in zip(listed, sought, self.rows, strict=True):
            if each.rivals:
                files = " or ".join(each.rivals[:_SHOWN])
                self.problems.append(
                    f"{row.place}: image {path} could be {files}; give its whole path, or move the others"
                )
            elif each.how in examples:
                examples[each.how].append(f"{path} at {each.path}")
            other, before = first.setdefault(each.path, (path, row))
            if not each.looked and other != path:
                what = f"image {path} would be {each.path}, which is {other} of {before.place} too"
                self.problems.append(f"{row.place}: {what}; put the images under the paths that are listed")
        self.notes += [
            f"{len(own)} images were found {_HOW[how]}: {', '.join(shorten(own, _SHOWN))}"
            for how, own in examples.items()
            if own
        ]

    def add_maps(self, folder: Path, maps: str, map_names: Sequence[str] = MAP_NAMES, split: str = "") -> int:
        """Gives rows, of one split or all, the maps below `folder / maps` that have their image's path or name.

        The rules are those of `maps_by_name.find_below`. Maps that are of no image are noted. Returns how many rows
        have one.
        """
        images = {row.image: (row.split, row.label) for row in self.rows if split in ("", row.split)}
        files = [path for path in walk_files(folder / maps) if not PurePosixPath(path).name.startswith(".")]
        of_images = find_below(files, images, map_names, maps)
        self.problems += [f"{folder}: {problem}" for problem in of_images.problems]
        if orphans := of_images.orphans:
            whose = f"no image of {split}" if split else "no image that is listed"
            self.notes.append(f"{len(orphans)} maps of {maps} are of {whose} and are left out, {_some(orphans)}")
        if others := of_images.others:
            what = f"other file of {maps} is" if len(others) == 1 else f"other files of {maps} are"
            self.notes.append(f"{len(others)} {what} left out, {_some(others)}")
        cells = {image: self._cell(image, maps, of_images.of[image]) for image in of_images.of}
        self.rows = [
            replace(row, map=cells.get(row.image, "")) if split in ("", row.split) else row for row in self.rows
        ]
        return sum(bool(row.map) for row in self.rows)

    def _cell(self, image: str, maps: str, own: Sequence[tuple[str, str]]) -> str:
        try:
            return join_map_cell([(name, below(maps, path)) for name, path in name_annotators(own)])
        except ValueError as error:
            self.problems.append(f"{image}: map {error}")
            return ""


def map_places(maps: str, image: str, images: str = "", map_names: Sequence[str] = MAP_NAMES) -> str:
    """The three places where the map of an image is looked for, in words; `images` is no part of a map's path."""
    path = PurePosixPath(image.removeprefix(f"{images}/") if images else image)
    by_path, by_name = path.with_suffix(".*").as_posix(), f"**/{path.stem}.*"
    marked = f"**/{path.stem}_{{{','.join(map_names)}}}.*"
    return f"{image} would have one at {below(maps, by_path)}, {below(maps, by_name)} or {below(maps, marked)}"


def find_folder(folder: Path, name: str) -> str:
    """Path below `folder` of the folder of that name, which may lie deeper if it is the only one; else the name."""
    if not name or (folder / name).is_dir():
        return name
    found = [path for path in folder.glob(f"*/{name}") if path.is_dir()]
    return found[0].relative_to(folder).as_posix() if len(found) == 1 else name


def find_lists(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """Files below the folder that fit any of the glob patterns, sorted."""
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def below(folder: str, path: str) -> str:
    """A path relative to a folder whose own name may be ""; a leading slash, as owners write it, is ignored."""
    path = path.lstrip("/")
    return f"{folder}/{path}" if folder else path


def group_of(path: str, pattern: str) -> str:
    """What the first group of a regular expression matches in a path; "" without a pattern or a match."""
    found = re.search(pattern, path) if pattern else None
    return (found[1] or "") if found else ""


def check_pattern(key: str, pattern: str) -> None:
    """Raises ConfigError, which names the key, for what is no regular expression or has no group."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ConfigError(f"config.{key} is {pattern!r}, no regular expression: {error}") from error
    if pattern and not groups:
        wanted = "put what names it in parentheses, as in '(patient[0-9]+)_'"
        raise ConfigError(f"config.{key} is {pattern!r}, which has no group: {wanted}")


def split_by_share(name: str, val: float = 0.1, test: float = 0.2) -> str:
    """train, val or test by a number that depends on the name (of a patient, where one is known) alone.

    A split stays as it is when a set grows.
    """
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return "test" if share < test else "val" if share < test + val else "train"


def _some(names: Sequence[str]) -> str:
    return f"such as {names[0]}" if len(names) > 1 else names[0]
