"""Any folder of images with a CSV manifest: `split,label,image,map,domain,group`.

Everything is checked, every image decoded once, before the data set is handed out: a run either starts with sound data
or stops with the full list of what to put right.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from .checks.inspection import check_files, judge_files, log_remarks
from .checks.outcomes import Outcomes
from .csv_cells import from_cell
from .csv_files import read_table
from .listing import Listing, MapReader, Row, check_annotator, listed_sources, read_tables
from .opening import check_labels, open_listing
from .paths import relative_cell, relative_path
from .source import DataError, Dataset, Source

REQUIRED_COLUMNS = ("split", "label", "image")
OPTIONAL_COLUMNS = ("map", "domain", "group", "predicted")
_WANTED = f"needed columns: {', '.join(REQUIRED_COLUMNS)}; optional: {', '.join(OPTIONAL_COLUMNS)}"


class OpenedSplit(NamedTuple):
    """One split of a manifest: its name, its examples, and the outcomes of its checks for the next opening."""

    split: str
    source: Source
    checked: Outcomes


def open_manifest(
    manifest: str,
    *,
    labels: tuple[str, ...] = (),
    to_train: bool = True,
    channels: int = 3,
    progress: bool = True,
    skip_unreadable: bool = False,
    known: Outcomes | None = None,
    **reading: Any,
) -> Dataset:
    """Opens and checks a manifest. A map that is constant counts as absent; how many is logged.

    Args:
      manifest: path of a UTF-8 CSV file with a header. Columns `split` (train, val, test), `label` and `image` are
        needed, `map`, `domain`, `group` and `predicted` (yes: the map is a network's) may be empty or absent, others
        are ignored. Paths are relative to the manifest's folder, or absolute and in it. A map is a picture, an array,
        or a table of marks, for one image or many (`annotations`); several annotators are separated by "|"
        (`listing.Row`).
      labels: class names in the order of their indices; empty takes those of the train split, sorted.
      to_train: of `Listing`; where nothing is trained and there is no train split, all rows name the classes.
      channels: 3 for RGB, 1 for grey.
      progress: show a bar if checking takes more than a few seconds.
      skip_unreadable: leave out rows whose files can't be read; `Dataset.skipped` lists them.
      known: outcomes of an earlier opening (`Dataset.checked`): unchanged files are not decoded again.
      **reading: how maps and images are read, by the names of `listing.READING`: as in `listing.MapReader`; `columns`
        and `categories` as in `listing.read_tables`.

    Raises:
      ConfigError: options that can't be.
      DataError: with every problem found, each naming file, row and remedy.
    """
    listing = list_manifest(manifest, labels=labels, to_train=to_train, **reading)
    return open_listing(listing, channels, progress, skip_unreadable, known)


def open_manifest_split(
    manifest: str | Path,
    split: str | None,
    class_names: tuple[str, ...],
    channels: int,
    *,
    progress: bool = True,
    known: Outcomes | None = None,
    **reading: Any,
) -> OpenedSplit:
    """Opens one split of a manifest for a model whose classes are fixed; it needs no train or validation split.

    Without a split's name it is `test`, or `val` where no row tests. Other arguments as in `open_manifest`. Raises
    DataError with every problem found: no such manifest or split, labels that are none of the model's classes, files
    that can't be read.
    """
    path = Path(manifest)
    listing = list_manifest(str(path), labels=class_names, **reading)
    split = split or ("test" if any(row.split == "test" for row in listing.rows) else "val")
    rows = tuple(row for row in listing.rows if row.split == split)
    if not rows:
        raise DataError([f"{path}: no row has split {split!r}; name a split that the manifest has with --split"])
    wanted = f"the model knows {', '.join(map(repr, class_names))}"
    told = lambda row: f"{row.place}: label {row.label!r}, but {wanted}; rename it as in training or drop the row"
    if problems := [told(row) for row in rows if row.label not in class_names]:
        raise DataError(problems)
    listing = replace(listing, rows=rows)
    outcomes, checked = check_files(listing, known, progress)
    found = judge_files(listing, outcomes)
    if problems := [*listing.problems, *found.problems]:
        raise DataError(problems)
    log_remarks(str(path), (*listing.notes, *found.remarks))
    return OpenedSplit(split, listed_sources(listing, outcomes, channels)[split], checked)


def list_manifest(
    manifest: str,
    *,
    labels: tuple[str, ...] = (),
    to_train: bool = True,
    skip_unreadable: bool = False,
    columns: Mapping[str, str] | None = None,
    categories: Sequence[str] = (),
    **reading: Any,
) -> Listing:
    """The manifest's rows, no image opened; arguments as in `open_manifest` (`skip_unreadable` makes no difference).

    Raises ConfigError for options that can't be, and DataError where the file is missing or can't be parsed.
    """
    check_labels(labels)
    path = Path(manifest)
    rows = _read_rows(path)
    tables = read_tables(path.parent, rows, columns or {}, categories)
    reader, problems = MapReader(path.parent, **reading, tables=tables.marks), list(tables.problems)
    problems += check_annotator(reader, rows)
    named = [row for row in rows if row.split == "train"] or ([] if to_train else rows)
    class_names = tuple(labels) or tuple(sorted({row.label for row in named if row.label}))
    if not rows:
        problems.append(f"{path}: no rows; {_WANTED}")
    told = "predicted is yes for a map that a network made, else empty"
    problems += [f"{row.place}: {told}; got {row.predicted!r}" for row in rows if row.predicted not in ("", "yes")]
    name, remarks = path.resolve().parent.name, tables.remarks
    return Listing(name, tuple(rows), class_names, reader, tuple(problems), remarks, to_train=to_train)


def is_manifest(path: Path) -> bool:
    """Whether a file is a CSV whose header has a manifest's columns."""
    if path.suffix.lower() != ".csv" or not path.is_file():  # a pipe may never end
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = [cell.strip() for cell in file.readline().split(",")]
    return {*REQUIRED_COLUMNS} <= {*header}


def _read_rows(path: Path) -> list[Row]:
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no file" if path.exists() else "no such manifest"
        raise DataError([f"{path}: {what}; give the path of a CSV file ({_WANTED})"])
    if zipfile.is_zipfile(path):
        raise DataError([f"{path}: a zip archive; unpack it and give the path of the CSV file in it"])
    columns = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
    table = read_table(path, REQUIRED_COLUMNS, _WANTED, exact=True)
    paths = {"image": partial(relative_path, path.parent), "map": partial(relative_cell, path.parent)}
    read = lambda cells: (paths.get(name, str)(from_cell(cells.get(name, ""))) for name in columns)
    return [Row(str(path), number, *read(cells)) for number, cells in table]
