"""CSV with a row per box, polygon or fixation, in people's own columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..csv_files import repeated
from .columns import find_columns, has_marks, to_entry
from .table import Format

Lines = Sequence[tuple[int, Sequence[str]]]


def header_of(lines: Lines) -> Sequence[str]:
    """The cells of the first line."""
    return lines[0][1] if lines else ()


def with_columns(*names: str) -> Any:
    """Whether lines have these columns, as a `Format` asks."""
    return lambda lines: set(names) <= set(header_of(lines))


def cells_of(lines: Lines) -> Iterator[tuple[str, dict[str, str]]]:
    """Place and cells by column of each row below the header. Raises ValueError for longer rows, and names twice."""
    header = header_of(lines)
    if twice := repeated(header):
        raise ValueError(f"row 1: more than one column {', '.join(twice)}; rename or remove the others")
    wrong = [number for number, cells in lines[1:] if any(cells[len(header) :])]
    if wrong:
        told = ", ".join(map(str, wrong[:5]))
        raise ValueError(f"row {told}: more cells than the header has columns ({len(header)}); quote those with commas")
    for number, cells in lines[1:]:
        yield f"row {number}", dict(zip(header, cells, strict=False))


def own_columns(columns: Mapping[str, str]) -> Format:
    """The format, with other names of columns by their meaning (`columns.NAMES`).

    A row has `image` and one of: `x, y, width, height`; `x_min, y_min, x_max, y_max`; `x_center, y_center, width,
    height`; `box` ("x y width height"); `polygon` ("x y x y ..."); `x, y` and, if wanted, `duration` for a fixation.
    `annotator`, `category`, `unit` (pixels, shares, percent), `image_width` and `image_height` are optional. Rows
    without any of the numbers say that the image was looked at and nothing marked. Without the column `image` a table
    is about the one image whose manifest row names it.
    """

    def recognises(lines: Lines) -> bool:
        return has_marks(find_columns(header_of(lines), columns)[0].values()) or bool(columns)

    def entries(lines: Lines) -> Iterator[tuple[str, Any]]:
        meanings, faults = find_columns(header_of(lines), columns)
        if not has_marks(meanings.values()):
            faults.append("no columns that say where a mark is")
        if faults:
            raise ValueError("row 1: " + "; ".join(faults))
        for place, cells in cells_of(lines):
            own = {meanings[name]: cell for name, cell in cells.items() if name in meanings}
            yield place, (own, "image" in meanings.values())

    def parse(part: Any) -> Any:
        cells, names_image = part
        entry = to_entry(cells)
        if names_image and not entry.image:
            raise ValueError("no image named")
        return entry

    looks_like = "columns such as image,x,y,width,height or x_min,y_min,x_max,y_max or polygon or x,y,duration"
    return Format("a CSV of marks", looks_like, recognises, entries, parse, one_image=True, renamed=True)
