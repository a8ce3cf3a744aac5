"""Any folder of images with a CSV manifest: `split,label,image,map,domain,group`.

Everything is checked, every image decoded, before the data set is handed out: a run either starts with sound data or
stops with the full list of what to mend.
"""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from .decode import check_channels
from .listing import ABSENT, USABLE, Check, Listing, MapReader, Row, inspect, read_tables, rows_sources, usable_rows
from .source import SPLITS, DataError, Dataset

REQUIRED_COLUMNS = ("split", "label", "image")
OPTIONAL_COLUMNS = ("map", "domain", "group")


def open_manifest(
    manifest: str,
    *,
    labels: tuple[str, ...] = (),
    channels: int = 3,
    progress: bool = True,
    skip_unreadable: bool = False,
    combine: str = "mean",
    sigma: float = 50.0,
    pixels_per_degree: float = 0.0,
) -> Dataset:
    """Opens and checks a manifest.

    Args:
      manifest: path of a UTF-8 CSV file with a header. Columns `split` (train, val, test), `label` and `image` are
        needed, `map`, `domain` and `group` may be empty or absent, others are ignored. Paths are relative to the
        manifest's folder. A map is a picture, an NPY array, or a table that holds the marks of many images
        (`annotations.read_table`); several annotators are separated by "|" (`rows.Row`).
      labels: class names in the order of their indices; empty takes those of the train split, sorted.
      channels: 3 for RGB, 1 for grey.
      progress: show a bar if checking takes more than a few seconds.
      skip_unreadable: leave out rows whose files can't be read; `Dataset.skipped` lists them.
      combine: several annotators' maps into one: "mean", "majority" or an annotator's name.
      sigma: of fixations' Gaussians, pixels of the image, or degrees if `pixels_per_degree` is given.
      pixels_per_degree: pixels of the image in a degree of the visual field.

    Returns:
      The data set. A map that is constant counts as absent; how many is logged.

    Raises:
      DataError: with every problem found, each naming file, row and remedy.
    """
    check_channels(channels)
    listing = list_manifest(manifest, labels=labels, combine=combine, sigma=sigma, pixels_per_degree=pixels_per_degree)
    listing, checks, skipped = usable_rows(inspect(listing, progress), skip_unreadable)
    _log_maps(manifest, listing.rows, checks)
    return Dataset(listing.name, listing.class_names, rows_sources(listing, checks, channels), skipped)


def list_manifest(
    manifest: str,
    *,
    labels: tuple[str, ...] = (),
    combine: str = "mean",
    sigma: float = 50.0,
    pixels_per_degree: float = 0.0,
    skip_unreadable: bool = False,
) -> Listing:
    """The manifest's rows, no image opened; arguments as in `open_manifest` (`skip_unreadable` makes no difference).

    Raises:
      DataError: the file is missing or can't be parsed.
    """
    if len(set(labels)) < len(labels):
        raise ValueError(f"labels names a class twice: {', '.join(labels)}")
    path = Path(manifest)
    rows = read_rows(path)
    tables, problems = read_tables(path.parent, rows)
    reader = MapReader(path.parent, combine, sigma, pixels_per_degree, tables)
    class_names = tuple(labels) or tuple(sorted({row.label for row in rows if row.split == "train" and row.label}))
    if not rows:
        problems.append(f"{path}: no rows; {_columns_wanted()}")
    return Listing(path.resolve().parent.name, tuple(rows), class_names, reader, tuple(problems))


def read_rows(path: Path) -> list[Row]:
    """Parses the CSV. Raises DataError if it is missing, not UTF-8, lacks a column, or has ragged rows."""
    if not path.is_file():
        raise DataError([f"{path}: no such manifest; give the path of a CSV file ({_columns_wanted()})"])
    if zipfile.is_zipfile(path):
        raise DataError([f"{path}: a zip archive; unpack it and give the path of the CSV file in it"])
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header = [name.strip() for name in reader.fieldnames or ()]
            _check_header(path, header)
            reader.fieldnames = header
            lines = [(reader.line_num, cells) for cells in reader]
    except UnicodeDecodeError as error:
        raise DataError([f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"]) from error
    except csv.Error as error:
        raise DataError([f"{path}, row {reader.reader.line_num}: not CSV ({error}); mend the quotes"]) from error
    ragged = [number for number, cells in lines if None in cells or None in cells.values()]
    if ragged:
        wanted = f"as many cells as the header has columns ({len(header)}); quote cells that hold a comma"
        raise DataError([f"{path}, row {number}: must have {wanted}" for number in ragged])
    cell = lambda cells, column: cells.get(column, "").strip()
    return [
        Row(str(path), number, *(cell(cells, name) for name in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)))
        for number, cells in lines
    ]


def _log_maps(manifest: str, rows: Sequence[Row], checks: Sequence[Check]) -> None:
    for split in SPLITS:
        members = [check for row, check in zip(rows, checks, strict=True) if row.split == split]
        given = sum(check.map != ABSENT for check in members)
        usable = sum(check.map == USABLE for check in members)
        logging.info("%s: %s has %d images, %d with a human map", manifest, split, len(members), usable)
        if given > usable:
            logging.warning(
                "%s: %d maps of %s are empty or constant; they count as absent", manifest, given - usable, split
            )


def _check_header(path: Path, header: Sequence[str]) -> None:
    missing = [name for name in REQUIRED_COLUMNS if name not in header]
    if missing:
        found = f"found {', '.join(header)}" if header else "the file is empty"
        raise DataError([f"{path}, row 1: no column {', '.join(missing)}; {found}; {_columns_wanted()}"])


def _columns_wanted() -> str:
    return f"needed columns: {', '.join(REQUIRED_COLUMNS)}; optional: {', '.join(OPTIONAL_COLUMNS)}"
