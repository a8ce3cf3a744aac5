"""What the collections of chest films have in common: how one is recognised and read, and which films are used."""

from __future__ import annotations

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np

from ...annotations import read_table as read_marks
from ...annotations.marks import Marks
from ...annotations.table import Table
from ...csv_files import read_table
from ...listing import Row
from ...protocol import draw_splits
from ...source import SPLITS, DataError
from ..file_search import FileSearch
from ..owner_files import Found

NORMAL, ABNORMAL = "normal", "abnormal"

Read = TypeVar("Read")


@dataclass(frozen=True)
class Film:
    """One film of a collection.

    Attributes:
      row: its image is as listed, its split is the owner's own, "" where there is none, its map "" or a picture's cell.
      marks: by annotator; those who marked nothing count, but where nobody marked anything there is no map.
      table: path below `manual_dir` of the file that holds them.
    """

    row: Row
    marks: Mapping[str, Marks] = field(default_factory=dict)
    table: str = ""

    @property
    def annotated(self) -> bool:
        return bool(self.row.map) or any(self.marks.values())


@dataclass
class Reading:
    """What a collection's reader is given and fills.

    Attributes:
      folder: of all collections, `manual_dir`.
      files: those below it that tell the collection.
      options: the builder's config.
      search: for the films.
      found: takes problems and notes.
      images: folder below `folder` that the films' paths are relative to; None where the reader found the films.
      films: what was read.
      tables: of marks, by their paths below `folder`.
    """

    folder: Path
    files: Sequence[str]
    options: Any
    search: FileSearch
    found: Found
    images: str | None = ""
    films: list[Film] = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)

    @property
    def root(self) -> str:
        """The collection's own folder below `folder`, "" being the same."""
        return os.path.commonpath([path.rpartition("/")[0] or "." for path in self.files]).lstrip(".")

    @property
    def path(self) -> Path:
        return self.folder / self.root

    def below(self, name: str) -> str:
        """Path below `folder` of a file of the collection."""
        return f"{self.root}/{name}" if self.root else name

    def add(self, row: Row, marks: Mapping[str, Marks], table: str) -> None:
        """Adds a film with what is marked on it in the collection's file of that name."""
        self.films.append(Film(row, marks, self.below(table)))

    def cells(self, path: Path, wanted: tuple[str, ...], purpose: str = "it lists the films") -> list[tuple[int, dict]]:
        """Rows of an owner's CSV by column; problems go to what is found."""
        rows = self.attempt(lambda: read_table(path, wanted, "is it the original?"), path, purpose)
        if rows == []:
            self.found.problems.append(f"{path}, row 1: no rows; is it the original?")
        return rows or []

    def marks(self, name: str) -> Mapping[str, Mapping[str, Marks]]:
        """What an owner's table of marks says of each image, by annotator; nothing if it can't be read."""
        path, options = self.path / name, self.options
        read = lambda: read_marks(path, options.columns, options.categories)
        table = self.attempt(read, path, "it holds what the radiologists marked") or Table()
        self.tables[self.below(name)] = table
        self.found.notes += table.remarks
        return table.marks

    def attempt(self, read: Callable[[], Read], path: Path, purpose: str) -> Read | None:
        try:
            return read()
        except DataError as error:
            self.found.problems += error.problems
        except OSError:
            self.found.problems.append(f"{path}: no such file; {purpose}")
        return None


@dataclass(frozen=True)
class Collection:
    """One owner's films.

    Attributes:
      name: as users choose it, and a key of `COLLECTIONS`.
      signature: names (glob patterns) of the files that tell its folder.
      read: fills a `Reading`.
      has_splits: whether its owner splits it.
      recognise: whether the first line of such a file is its.
      scattered: whether its files may lie in several folders.
    """

    name: str
    signature: tuple[str, ...]
    read: Callable[[Reading], None]
    has_splits: bool = False
    recognise: Callable[[Sequence[str]], bool] = lambda cells: True
    scattered: bool = False

    def find(self, folder: Path, files: Sequence[str]) -> list[str]:
        """Those of the files below `folder` that tell it, all in one folder unless it is `scattered`; [] without any.

        Raises DataError where it is there twice.
        """
        fits = lambda path: any(fnmatchcase(PurePosixPath(path).name, pattern) for pattern in self.signature)
        found = [path for path in files if fits(path) and self.recognise(_first_line(folder / path))]
        roots = sorted({path.rpartition("/")[0] for path in found})
        if len(roots) > 1 and not self.scattered:
            places = " and ".join(str(folder / root) for root in roots)
            raise DataError([f"{self.name}: its lists lie in {places}; keep one of them below {folder}"])
        return found


def choose_films(films: Sequence[Film], name: str, options: Any) -> tuple[list[Film], str]:
    """The films that are used, of a collection that is drawn by patient, and a note of which they are.

    All annotated films, and normal ones that nobody annotated, `normals` for each annotated abnormal film: all those of
    patients who are taken in random order, passing over who would bring too many. Abnormal films that nobody annotated
    are left out with `annotated_only`.
    """
    marked = [film for film in films if film.annotated]
    bare = [film for film in films if not film.annotated]
    others = [film for film in bare if film.row.label != NORMAL and not options.annotated_only]
    normal = [film for film in bare if film.row.label == NORMAL]
    wanted = round(options.normals * sum(film.row.label != NORMAL for film in marked))
    taken = _draw_patients(normal, wanted, options.seed) if options.normals else normal
    used = {id(film) for film in (*marked, *others, *taken)}
    left = Counter(film.row.label for film in films if id(film) not in used)
    parts = [f"{len(marked)} annotated films of {_patients(marked)}"]
    parts += [f"{len(others)} abnormal films without marks"] if others else []
    parts += [f"{len(taken)} normal films without marks of {_patients(taken)}"] if normal else []
    note = f"{name}: {', '.join(parts)}"
    note += f", drawn with seed {options.seed}" if len(taken) < len(normal) else ""
    if left:
        note += f"; left out: {', '.join(f'{count} {label}' for label, count in sorted(left.items()))} without marks"
    return [film for film in films if id(film) in used], note


def _draw_patients(films: Sequence[Film], wanted: int, seed: int) -> list[Film]:
    """All films of patients taken in random order, at most `wanted` films."""
    of_patient = defaultdict(list)
    for film in films:
        of_patient[film.row.group or film.row.image].append(film)
    patients = sorted(of_patient)
    taken: list[Film] = []
    for i in np.random.default_rng(seed).permutation(len(patients)):
        if len(taken) + len(of_patient[patients[i]]) <= wanted:
            taken += of_patient[patients[i]]
    return taken


def split_films(films: Sequence[Film], shares: Mapping[str, float], seed: int) -> list[Film]:
    """The films with splits drawn by patient: annotated and other ones of each class as near the shares as can be."""
    kinds = [f"{film.row.label} {film.annotated}" for film in films]
    drawn = draw_splits(kinds, [film.row.group for film in films], [], shares, seed)
    return [replace(film, row=replace(film.row, split=split)) for film, split in zip(films, drawn, strict=True)]


def check_splits(films: Sequence[Film], name: str, own: bool) -> list[str]:
    """Problems of splits that are of no use: no annotated film in training, or a split without one of the kinds."""
    marked = Counter(film.row.split for film in films if film.annotated)
    if marked and not marked["train"] and own:
        what = f"of its {sum(marked.values())} annotated films none trains as its owner splits them"
        return [f"{name}: {what}; take {name} out of data.chest_xray.owner_splits to split them by patient"]
    problems = []
    for split in SPLITS if not own else ():
        kinds = {(film.row.label, film.annotated) for film in films if film.row.split == split}
        lacking = {(film.row.label, film.annotated) for film in films} - kinds
        for label, annotated in sorted(lacking):
            what = f"no {'annotated ' if annotated else ''}{label} film is in {split}"
            problems.append(f"{name}: {what}; there are too few patients, or data.chest_xray.shares are too small")
    return problems


def _patients(films: Sequence[Film]) -> str:
    groups = {film.row.group for film in films} - {""}
    return f"{len(groups)} patients" if groups else "unknown patients"


def _first_line(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return [cell.strip() for cell in next(csv.reader([file.readline()]), [])]
