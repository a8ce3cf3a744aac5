"""Cells of CSV files that we write and people open: no name in them is a formula to a spreadsheet."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from typing import Any

# What spreadsheets take for a formula; also behind apostrophes, so that each apostrophe that is written is taken off.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
_NUMBERS = re.compile(rf"{_NUMBER}( {_NUMBER})*")


def to_cell(value: Any) -> Any:
    """The value, with an apostrophe before a text that begins as a formula does; numbers stay as they are."""
    if not isinstance(value, str) or not _FORMULA.match(value) or _NUMBERS.fullmatch(value):
        return value
    return f"'{value}"


def from_cell(cell: str) -> str:
    """The text that `to_cell` made the cell of."""
    return cell[1:] if cell[:1] == "'" and _FORMULA.match(cell) else cell


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Rows as CSV, each cell by `to_cell`, lines ended by a line feed."""
    return "".join(_line([to_cell(value) for value in row]) for row in rows)


def _line(cells: list[Any]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerow(cells)  # so that either sign in a cell is quoted
    return f"{text.getvalue()[:-2]}\n"
