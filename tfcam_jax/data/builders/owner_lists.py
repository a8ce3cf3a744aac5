"""Lists of a line an image, `split,class,path`, as the field writes them: any letter case, with or without a header."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from ..csv_files import read_lines
from ..decode import image_suffixes
from ..listing import SplitDraw
from ..source import SPLIT_NAMES, SPLITS, DataError

# What owners call the columns, in small letters and without other characters.
COLUMNS: Mapping[str, frozenset[str]] = {
    "split": frozenset({"split", "set", "subset", "partition", "phase", "traintest"}),
    "kind": frozenset({"class", "label", "groundtruth", "classlabel", "truth"}),
    "image": frozenset(
        {"image", "imagelocation", "imagepath", "imagename", "imagefile", "path", "file", "filename", "filepath"}
    ),
    "group": frozenset({"group", "subject", "subjectid", "person", "personid", "patient", "patientid", "eye", "eyeid"}),
    "type": frozenset({"type", "attacktype", "attack", "pai", "paispecies", "patype", "spooftype", "category"}),
}
_WANTED = "split,class,path or split,class,path,group or path,class"
_NO_SOURCE = frozenset(SPLIT_NAMES) | frozenset(
    "image images img imgs data dataset set list lists split splits csv".split()  # noqa: SIM905
)
# Of images whose split nobody gives: the owner's list trains, and nothing else validates.
DRAWN = SplitDraw({"train": 0.85, "val": 0.15}, seed=0)


@dataclass(frozen=True)
class Line:
    """One image of a list: what stands in its cells, "" where the list has none, the split by its own name."""

    list: Path
    number: int
    split: str
    kind: str
    image: str
    group: str = ""
    type: str = ""


@dataclass(frozen=True)
class OwnerList:
    """A list with its lines, and a line for each that can't be used or column that is not."""

    path: Path
    lines: tuple[Line, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def splits(self) -> set[str]:
        return {line.split for line in self.lines}

    @property
    def tests_only(self) -> bool:
        """No line trains or validates: the list tests, whether or not it says so."""
        return bool(self.lines) and self.splits <= {"test", ""}


def read_owner_list(path: Path, type_column: str = "", splits: Sequence[str] = SPLITS) -> OwnerList:
    """Reads a list; what is wrong with it or its lines is in its problems.

    A header is told by its names (`COLUMNS`). Without one a line is `split,class,path`, then perhaps a group, or, of
    two cells, path and class in either order. A cell that names no split of `splits` is a problem. `type_column` is
    the name, or the number from 1, of the column that holds the type of an attack.
    """
    try:
        cells = read_lines(path)
    except DataError as error:
        return OwnerList(path, (), tuple(error.problems))
    header = _read_header(cells[0][1]) if cells else {}
    problems, notes, lines, longest = [], [], [], max((len(own) for _, own in cells), default=0)
    if header:
        problems += [f"{path}, row 1: two columns are the {name}" for name in _twice(cells[0][1])]
        used = {*header.values(), _type_index(type_column, cells[0][1])}
        unread = [name for i, name in enumerate(cells[0][1]) if i not in used]
        notes += [f"{path}: columns that are not read: {', '.join(unread)}"] if unread else []
    for number, own in cells[bool(header) :]:
        short = len(own) == 2 < longest  # it lacks a cell
        columns = header or (None if short else _guess_columns(own, type_column))
        if columns is None or max(columns.values()) >= len(own):
            problems.append(f"{path}, row {number}: {len(own)} cells; must hold {_WANTED}")
            continue
        named = {name: own[i] for name, i in columns.items()}
        index = _type_index(type_column, cells[0][1] if header else [])
        if type_column:
            named["type"] = own[index] if index is not None and index < len(own) else ""
        if "split" in columns:
            named["split"] = SPLIT_NAMES.get(named["split"].lower(), named["split"])
            if named["split"] not in splits:
                use = f"use {', '.join(splits[:-1])} or {splits[-1]}"
                problems.append(f"{path}, row {number}: unknown split {named['split']!r}; {use}")
        lines.append(Line(path, number, **{"split": "", "kind": "", **named}))
    if type_column and not any(line.type for line in lines):
        problems.append(f"{path}: no column {type_column!r} of attack types; correct type_column")
    return OwnerList(path, tuple(lines), tuple(problems), tuple(notes))


def share_out(lists: Sequence[OwnerList]) -> tuple[list[Line], SplitDraw | None, list[str]]:
    """Lines with the splits that they have among these lists, how the others' are drawn, and notes of what was moved.

    `test` lines of a list that trains validate where another list tests, or else test. A list of no splits tests. Where
    nothing validates, lines that train lose their split: training and validation are drawn of them.
    """
    trains = [each for each in lists if "train" in each.splits]
    tests = [each for each in lists if each.tests_only]
    notes: list[str] = []
    validates = any("val" in each.splits for each in lists)
    moved = {each.path for each in trains if "test" in each.splits} if tests and not validates else set()
    if moved:
        names = ", ".join(sorted(path.name for path in moved))
        notes.append(f"test rows of {names} validate, as {', '.join(each.path.name for each in tests)} tests")
        validates = True
    draw = DRAWN if trains and not validates else None
    lines = []
    for each in lists:
        own = {"": "test"} | ({"test": "val"} if each.path in moved else {}) | ({"train": ""} if draw else {})
        lines += [replace(line, split=own.get(line.split, line.split)) for line in each.lines]
    return lines, draw, notes


def tell_draw(lists: Sequence[OwnerList], draw: SplitDraw) -> str:
    """A note of how training and validation are drawn of the lists' train rows."""
    why = "no list validates" if len(lists) > 1 else f"{lists[0].path.name} is the only list"
    grouped = any(line.group for each in lists for line in each.lines)
    whole = "whole groups together" if grouped else "image by image, as no groups are known"
    shares = ", ".join(f"{share:.0%} {name}" for name, share in draw.shares.items())
    return f"{why}: of its train rows {shares}, drawn class by class with seed {draw.seed}, {whole}"


def words_besides(name: str, known: frozenset[str] = frozenset()) -> str:
    """A file's or folder's name in small letters, its words joined by "_", without those that say nothing of a source.

    These are names of splits, "images", "list" and the like, numbers, and the `known` ones.
    """
    words = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_").split("_")
    return "_".join(word for word in words if word not in (_NO_SOURCE | known) and not word.isdigit())


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _read_header(cells: Sequence[str]) -> dict[str, int]:
    """Index of each column that is known; {} if these are not names of columns, an image's and a class's among them."""
    found = {}
    for i, cell in enumerate(cells):
        for name, known in COLUMNS.items():
            if _plain(cell) in known:
                found.setdefault(name, i)
    return found if {"image", "kind"} <= found.keys() else {}


def _twice(cells: Sequence[str]) -> list[str]:
    counts = {name: sum(_plain(cell) in known for cell in cells) for name, known in COLUMNS.items()}
    return [name for name, count in counts.items() if count > 1]


def _guess_columns(cells: Sequence[str], type_column: str) -> dict[str, int] | None:
    """Columns of a line without a header; None where it has too few or too many cells."""
    if len(cells) == 2:
        is_image = [PurePosixPath(cell).suffix.lower() in image_suffixes() for cell in cells]
        return {"image": 1, "kind": 0} if is_image == [False, True] else {"image": 0, "kind": 1}
    index = _type_index(type_column, [])
    own = [i for i in range(len(cells)) if i != index]
    names = ("split", "kind", "image", "group")
    return dict(zip(names, own, strict=False)) if len(own) in (3, 4) else None


def _type_index(type_column: str, header: Sequence[str]) -> int | None:
    """Index of the column that holds attack types; None where no such column was named."""
    if type_column in header:
        return header.index(type_column)
    return int(type_column) - 1 if type_column.isdigit() else None
