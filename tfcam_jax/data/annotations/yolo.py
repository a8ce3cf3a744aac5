"""YOLO's text: one file an image, a line per box or outline, in shares of the image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..csv_files import read_lines
from .marks import SHARES, Marks
from .table import Entry, Format, is_number, to_number

_ROUNDED = 0.01  # beyond the image; more is no rounding
_NAMES = ("classes.txt", "obj.names", "labels.txt")


def _recognises(lines: Sequence[tuple[int, Sequence[str]]]) -> bool:
    return all(is_number(cell) for _, cells in lines for cell in cells) and all(len(cells) > 4 for _, cells in lines)


def for_names(names: Mapping[str, str]) -> Format:
    """The format, with the names of the classes that the lines begin with the numbers of."""

    def entries(lines: Sequence[tuple[int, Sequence[str]]]) -> Iterator[tuple[str, Any]]:
        if not lines:
            yield "the file", None
        for number, cells in lines:
            yield f"row {number}", (names.get(cells[0], cells[0]), cells)

    looks_like = "lines of numbers: class, x and y of the centre, width, height; or class and an outline"
    return Format("YOLO", looks_like, _recognises, entries, _parse, lambda _: names.values(), one_image=True)


def _parse(part: Any) -> Entry:
    if part is None:  # an empty file: looked at, nothing there
        return Entry("", Marks(size=SHARES))
    category, cells = part
    values = [to_number(cell, "a number") for cell in cells[1:]]
    if len(values) in (4, 5):  # the fifth is a model's confidence
        x, y, width, height = values[:4]
        _check(values[:4])
        return Entry("", Marks(boxes=((x - width / 2, y - height / 2, width, height),), size=SHARES), "", (category,))
    if len(values) < 6 or len(values) % 2:
        raise ValueError(f"{len(cells)} numbers; a box has 5, an outline 1 + 2 a corner")
    _check(values)
    return Entry("", Marks(polygons=(tuple(values),), size=SHARES), "", (category,))


def _check(values: Sequence[float]) -> None:
    if not all(-_ROUNDED <= value <= 1 + _ROUNDED for value in values):
        raise ValueError(f"YOLO's numbers are shares of the image, 0 to 1; got {min(values):g} to {max(values):g}")


def read_names(path: Path) -> dict[str, str]:
    """Class names by number, from the list that tools write beside the labels or above them; empty without one."""
    for folder in (path.parent, path.parent.parent):
        for name in _NAMES:
            if (folder / name).is_file() and folder / name != path:
                return {str(i): cells[0] for i, (_, cells) in enumerate(read_lines(folder / name))}
    return {}
