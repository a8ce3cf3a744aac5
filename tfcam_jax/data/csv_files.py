"""The one reader of CSV: manifests, owners' lists, tables of marks.

Files are UTF-8, with or without a BOM, with any line end and with quoted commas; cells are stripped, and lines that
hold nothing but separators, as spreadsheets leave at the end, are left out. Lines have numbers, the first being 1.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from .source import DataError

# What a cell without content may hold: separators of other dialects, spaces that `str.strip` leaves.
_EMPTY = ";|\t \ufeff\u200b"


def read_lines(path: Path, delimiter: str = ",") -> list[tuple[int, list[str]]]:
    """Number and cells of all lines that hold something.

    Raises DataError, which says where, for what is not UTF-8 or not CSV, and OSError where there is no such file.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True, delimiter=delimiter)
        try:
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
        except UnicodeDecodeError as error:
            raise DataError([f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"]) from error
        except csv.Error as error:
            raise DataError([f"{path}, row {reader.line_num}: not CSV ({error}); correct the quotes"]) from error
    return [(number, cells) for number, cells in lines if any(cell.strip(_EMPTY) for cell in cells)]


def read_table(
    path: Path,
    needed: Sequence[str] = (),
    hint: str = "",
    renamed: Mapping[str, str] | None = None,
    exact: bool = False,
) -> list[tuple[int, dict[str, str]]]:
    """Rows of a CSV with a header: line number, and cells by column.

    Args:
      path: of the file.
      needed: columns that must be there.
      hint: what to say where one isn't.
      renamed: names in this file to the names that the rows shall have.
      exact: a row must have as many cells as the header. Otherwise it may have fewer, and empty ones beyond: owners
        write headers whose last names are missing.

    Raises:
      DataError: as `read_lines`; a column that isn't there, or is twice; rows of another length, each by its number.
      OSError: no such file.
    """
    lines = read_lines(path)
    header = [(renamed or {}).get(name, name) for name in lines[0][1]] if lines else []
    missing = [name for name in needed if name not in header]
    if missing:
        found = f"found {', '.join(header)}" if header else "the file is empty"
        raise DataError([f"{path}, row 1: no column {', '.join(missing)}; {found}; {hint}"])
    # Owners' tables may have twins among the columns that nobody asks for.
    if twice := [name for name in repeated(header) if exact or name in needed]:
        told = f"more than one column {', '.join(twice)}: which one counts can't be known; rename or remove the others"
        raise DataError([f"{path}, row 1: {told}"])
    count = len(header)
    fits = lambda cells: len(cells) == count if exact else not any(cells[count:])
    wanted = f"{'' if exact else 'at most '}as many cells as the header has columns ({count})"
    told = f"must have {wanted}; quote cells that hold a comma"
    if wrong := [f"{path}, row {number}: {told}" for number, cells in lines if not fits(cells)]:
        raise DataError(wrong)
    return [(number, dict(zip(header, cells, strict=False))) for number, cells in lines[1:]]


def repeated(header: Sequence[str]) -> list[str]:
    """Names that a header has more than once; columns without a name are no twins."""
    return sorted({name for name in header if name and header.count(name) > 1})


def read_list(path: Path, lengths: Collection[int], wanted: str) -> tuple[list[tuple[int, list[str]]], list[str]]:
    """Lines of a list without a header, and a problem for each that has not one of these numbers of cells.

    A file that can't be read is a single problem. `wanted` says what a line holds.
    """
    try:
        lines = read_lines(path)
    except DataError as error:
        return [], error.problems
    told = lambda number, cells: f"{path}, row {number}: {len(cells)} cells; must hold {wanted}"
    wrong = [told(number, cells) for number, cells in lines if len(cells) not in lengths]
    return [(number, cells) for number, cells in lines if len(cells) in lengths], wrong
