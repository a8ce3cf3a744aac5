"""CSV with a row per box, polygon or fixation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..csv_files import read_table
from .marks import Marks, Table, gather, to_number


def read(path: Path, renamed: Mapping[str, str] | None = None) -> Table:
    """Reads a CSV of marks.

    Column `image`, then `x, y, width, height` or `x_min, y_min, x_max, y_max` for a box, `polygon` ("x y x y ...")
    for a polygon, or `x, y` and, if wanted, `duration` for a fixation; `annotator` is optional. Rows without any of
    the numbers say that the image was looked at and nothing marked. `renamed` maps names in this file to those above,
    for owners' tables. Raises DataError, with a line per problem, each with its row, and OSError: no such file.
    """
    parse = lambda cells: (cells.get("image", ""), cells.get("annotator", ""), _marks(cells))
    return gather(path, ((f"row {number}", cells) for number, cells in read_table(path, renamed=renamed)), parse)


def _marks(cells: Mapping[str, str]) -> Marks:
    given = lambda *names: all(cells.get(name) for name in names)
    numbers = lambda *names: tuple(to_number(cells[name], name) for name in names)
    if given("polygon"):
        return Marks(polygons=(tuple(to_number(text, "polygon") for text in cells["polygon"].split()),))
    if given("x", "y", "width", "height"):
        return Marks(boxes=(numbers("x", "y", "width", "height"),))
    if given("x_min", "y_min", "x_max", "y_max"):
        left, top, right, bottom = numbers("x_min", "y_min", "x_max", "y_max")
        return Marks(boxes=((left, top, right - left, bottom - top),))
    if given("x", "y") and not {"width", "height"} & cells.keys():
        duration = to_number(cells["duration"], "duration") if given("duration") else 1.0
        return Marks(fixations=((*numbers("x", "y"), duration),))
    partly = [name for name in ("x", "y", "width", "height", "x_min", "y_min", "x_max", "y_max") if given(name)]
    if partly:
        raise ValueError(f"incomplete: only {', '.join(partly)} given")
    return Marks()
