"""CSV without a header: boxes as MakeSense and RetinaNet's trainers write them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .csv_table import Lines
from .marks import Marks
from .table import Entry, Format, declared, is_number, to_number


def _like(kinds: str) -> Any:
    """Whether each line's cells are numbers (n), others (t), or either (?), as a `Format` asks."""
    fits = lambda cell, kind: kind == "?" or is_number(cell) == (kind == "n")
    return lambda lines: (
        bool(lines) and all(len(cells) == len(kinds) and all(map(fits, cells, kinds)) for _, cells in lines)
    )


def _rows(lines: Lines) -> Iterator[tuple[str, Any]]:
    return ((f"row {number}", cells) for number, cells in lines)


def _parse_makesense(cells: Any) -> Entry:
    label, *box, image, width, height = cells
    box = tuple(to_number(value, "a box") for value in box)
    return Entry(image, Marks(boxes=(box,), size=declared(width, height)), "", (label,) if label else ())


MAKESENSE = Format(
    "MakeSense", "eight cells without a header: label, x, y, width, height, image, its width and height",
    _like("?nnnntnn"), _rows, _parse_makesense,
)  # fmt: skip


def _refuse_points(cells: Any) -> Entry:
    raise ValueError("MakeSense's points enclose nothing; draw rectangles or polygons")


MAKESENSE_POINTS = Format("MakeSense's points", "six cells", _like("?nntnn"), _rows, _refuse_points)


def _retinanet(lines: Lines) -> bool:
    return bool(lines) and all(
        len(cells) == 6 and not is_number(cells[0]) and all(not cell or is_number(cell) for cell in cells[1:5])
        for _, cells in lines
    )


def _parse_retinanet(cells: Any) -> Entry:
    image, *corners, label = cells
    if not any(corners):
        return Entry(image)
    left, top, right, bottom = (to_number(value, "a box") for value in corners)
    return Entry(image, Marks(boxes=((left, top, right - left, bottom - top),)), "", (label,) if label else ())


RETINANET = Format(
    "RetinaNet", "six cells without a header: image, x_min, y_min, x_max, y_max, class",
    _retinanet, _rows, _parse_retinanet,
)  # fmt: skip
