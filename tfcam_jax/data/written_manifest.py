"""Data and splits written as a manifest, which opens as the same records and maps."""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from ..errors import ConfigError
from .annotations import read_table
from .annotations.matching import assign
from .csv_cells import csv_text
from .listing import Listing, Row
from .manifest import OPTIONAL_COLUMNS, REQUIRED_COLUMNS, list_manifest
from .paths import join_map_cell, local_path, split_map_cell
from .source import DataError, Dataset

_COLUMNS = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)


def check_target(target: str | Path, listing: Listing) -> Path:
    """The path of a CSV to write.

    Raises ConfigError where there is a file already, or none could name the listing's images and maps.
    """
    path = local_path(target, "--write_manifest")
    if os.path.lexists(path):
        raise ConfigError(f"{path}: there is such a file already; give --write_manifest another name, or delete it")
    if path.suffix.lower() != ".csv" or not path.parent.is_dir():
        raise ConfigError(f"{path}: --write_manifest must name a .csv file in a folder that is there")
    where, folder = Path(os.path.realpath(path.parent)), Path(os.path.realpath(listing.reader.folder))
    if not folder.is_relative_to(where):
        remedy = f"write it into {listing.reader.folder} or a folder above"
        raise ConfigError(f"{path}: a manifest names files below its own folder only; {remedy}")
    if own := [table for table in listing.reader.tables if not listing.problems and not _is_plain(listing, table)]:
        what = f"maps of {listing.name} stand in its owner's own tables ({', '.join(own)})"
        raise ConfigError(f"{path}: {what}, which a manifest can't name; leave out --write_manifest")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{path}: its folder takes no files; give --write_manifest another place")
    return path


def _is_plain(listing: Listing, table: str) -> bool:
    """Whether a table of marks has a form that every manifest may name."""
    try:
        own = listing.reader.tables[table]
        return assign(read_table(listing.reader.folder / table), list(own), table).marks == own
    except (OSError, DataError, KeyError):  # an owner's form is whatever isn't ours
        return False


def write_manifest(
    path: Path, listing: Listing, dataset: Dataset, predicted: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Writes the images of a data set, as its protocol splits them, whole or not at all; returns what to tell.

    Args:
      path: of the CSV, as `check_target` gives it; held by the caller, see `outputs.claimed`.
      listing: that the data set was opened from: it has the maps' files.
      dataset: whose examples are named by their rows' images.
      predicted: image to the map that a network made of it, below the CSV's folder, in place of what the listing has.

    Raises:
      DataError: a name that a manifest can't hold, or a table of marks that names images otherwise; a full disk.
    """
    where, folder = os.path.realpath(path.parent), os.path.realpath(listing.reader.folder)
    prefix = "" if where == folder else Path(folder).relative_to(where).as_posix()
    sources = _rows(listing, dataset)
    rows, problems = [], []
    for row in sources:
        try:
            rows.append(_below(prefix, row, predicted.get(row.image) if row.split == "train" else None))
        except ValueError as error:
            problems.append(f"{row.place}: {row.image}: {error}")
    if problems:
        raise DataError(problems)
    columns = [name for name in _COLUMNS if name != "predicted" or any(row.predicted for row in rows)]
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("w", newline="", encoding="utf-8") as file:
            file.write(csv_text([columns, *([getattr(row, name) for name in columns] for row in rows)]))
            file.flush()
            os.fsync(file.fileno())
        _check_read_back(partial, rows, sources, listing, dataset.class_names)
        if os.path.lexists(path):
            raise DataError([f"{path} came to be meanwhile; it is left as it is"])
        partial.replace(path)
    except (OSError, UnicodeEncodeError) as error:
        raise DataError([f"{path} can't be written: {error}"]) from error
    finally:
        partial.unlink(missing_ok=True)
    return _tell(path, rows, listing, dataset)


def _rows(listing: Listing, dataset: Dataset) -> list[Row]:
    """The listing's row of each of the data set's examples, with the split that it has there."""
    waiting = defaultdict(deque)
    for row in listing.rows:
        waiting[row.image, row.label, row.domain, row.group].append(row)
    rows = []
    for split, source in dataset.splits.items():
        records = source.records
        labels = [dataset.class_names[label] for label in records.labels]
        for key in zip(records.ids, labels, records.domains, records.groups, strict=True):
            rows.append(replace(waiting[key].popleft(), split=split))
    return rows


def _below(prefix: str, row: Row, predicted: str | None) -> Row:
    """The row with its paths below a folder above, or its predicted map; ValueError for a map that can't be named."""
    down = lambda path: f"{prefix}/{path}" if prefix else path
    image, maps = down(row.image), [(name, down(path)) for name, path in split_map_cell(row.map)]
    if predicted is not None:
        return replace(row, image=image, map=join_map_cell([("", predicted)]), predicted="yes")
    return replace(row, image=image, map=join_map_cell(maps))


def _check_read_back(
    path: Path, rows: Sequence[Row], sources: Sequence[Row], listing: Listing, class_names: tuple[str, ...]
) -> None:
    """Raises DataError, with the rows' images, unless the file is read as these rows, and their tables as before."""
    written = list_manifest(str(path), labels=class_names)
    cells = lambda row: [getattr(row, name) for name in _COLUMNS]
    problems = list(written.problems)
    if len(written.rows) != len(rows):
        problems.append(f"{len(rows)} rows were written and {len(written.rows)} are read; rename files without names")
    for row, other, source in zip(rows, written.rows, sources, strict=False):
        if cells(row) != cells(other):
            problems.append(f"{row.image}: not read back as it is; rename what begins or ends with a space")
        tables = [] if row.predicted else zip(split_map_cell(row.map), split_map_cell(source.map), strict=True)
        for (_, table), (_, before) in tables:
            old, new = listing.reader.tables, written.reader.tables
            if before in old and old[before].get(source.image) != new[table].get(row.image):
                problems.append(f"{row.image}: {table} calls it otherwise; write the manifest into the images' folder")
    if problems:
        raise DataError(problems)


def _tell(path: Path, rows: Sequence[Row], listing: Listing, dataset: Dataset) -> str:
    keys = f"--config.data.source=manifest --config.data.manifest={path}"
    if list(dataset.class_names) != sorted({row.label for row in rows if row.split == "train"}):
        keys += f' --config.data.labels="{tuple(dataset.class_names)!r}"'
    left = len(listing.rows) - len(rows)
    told = f"; {left} rows that no split holds are left out" if left else ""
    return f"Written: {path}, {len(rows)} images{told}. To use it: {keys}"
