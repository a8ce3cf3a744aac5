"""YOLO's text: one file an image, a line per box or outline, in shares of the image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from .csv_table import Lines
from .marks import SHARES, Marks
from .table import Entry, Format, is_number, named_class, to_number
from .text import read_text

_ROUNDED = 0.01  # beyond the image; more is no rounding
_BOX, _TRACKED = 4, 6  # numbers behind the class: of a box; of a box, its confidence and its track's id
_MOST_KEYPOINTS = 4 + 3 * 150  # numbers; a whole body with face and hands has 133 points
_FIFTH = "a confidence, or a track's id"
NAMES = ("classes.txt", "obj.names", "labels.txt")


def _recognises(lines: Lines) -> bool:
    return all(is_number(cell) for _, cells in lines for cell in cells) and all(len(cells) > 4 for _, cells in lines)


def for_names(names: Mapping[str, str]) -> Format:
    """The format, with the names of the classes that the lines begin with the numbers of."""

    def entries(lines: Lines) -> Iterator[tuple[str, Any]]:
        if not lines:
            yield "the file", None
        kind = _kind(lines)
        for number, cells in lines:
            yield f"row {number}", (named_class(names, cells[0]), cells, kind)

    looks_like = "lines of numbers: class, x and y of the centre, width, height; or class and an outline"
    told = lambda _: names.values()
    return Format("YOLO", looks_like, _recognises, entries, _parse, told, one_image=True, remarks=_remarks)


def _kind(lines: Lines) -> str:
    """What stands behind the first four numbers of a file's long lines: "track", "keypoints", or "" for an outline.

    Raises ValueError where it can't be known. A track's id counts from 1, so that a last whole number above 1 is one.
    """
    shapes = [[to_number(cell, "a number") for cell in cells[1:]] for _, cells in lines]
    longest = max(map(len, shapes), default=0)
    if longest == _TRACKED:
        last = [cells[-1] for _, cells in lines if len(cells) == 1 + _TRACKED]
        if any(cell.isdigit() and int(cell) > 1 for cell in last):
            return "track"
        if all(cell == "1" for cell in last) and all(_in_image(each) for each in shapes):
            number = next(number for number, cells in lines if len(cells) == 1 + _TRACKED)
            what = "a triangle, or a box with a confidence and a track's id"
            raise ValueError(f"row {number}: 7 numbers that end in 1: {what}; write 1.0, or leave them out")
    return "keypoints" if longest > _TRACKED and _are_keypoints(shapes) else ""


def _are_keypoints(shapes: Sequence[Sequence[float]]) -> bool:
    """Whether lines of one length are boxes in the image and points in them, and can't well be outlines.

    They can't where they have an odd number of coordinates; where each third number is a visibility; where the line
    around the points crosses itself; or where its second corner, which is a width and a height, lies far off the rest.
    """
    count = len(shapes[0])
    if count > _MOST_KEYPOINTS or any(len(each) != count or not _in_image(each) for each in shapes):
        return False
    points = np.array([each[_BOX:] for each in shapes])
    if (count - _BOX) % 3 == 0:
        triples = points.reshape(len(shapes), -1, 3)
        seen = triples[..., 2]
        if _enclosed(shapes, triples[..., :2], seen > 0) and (count % 2 or np.isin(seen, (0, 1, 2)).all()):
            return True
    if count % 2:
        return False
    pairs = points.reshape(len(shapes), -1, 2)
    corners = np.array(shapes).reshape(len(shapes), -1, 2)
    seen = np.asarray((pairs != 0).any(-1))
    return _enclosed(shapes, pairs, seen) and any(_crosses(each) or _far_off(each) for each in corners)


def _in_image(values: Sequence[float]) -> bool:
    x, y, width, height = values[:_BOX]
    edges = x - width / 2, y - height / 2, 1 - x - width / 2, 1 - y - height / 2
    return min(width, height) > 0 and min(edges) >= -_ROUNDED


def _enclosed(
    shapes: Sequence[Sequence[float]], points: Float[np.ndarray, "n k 2"], seen: Bool[np.ndarray, "n k"]
) -> bool:
    """Whether the points that are seen lie in their boxes."""
    boxes = np.array([each[:_BOX] for each in shapes])[:, None]
    away = np.abs(points - boxes[..., :2]) - boxes[..., 2:] / 2
    return bool(seen.any() and (away[seen] <= _ROUNDED).all())


def _crosses(corners: Float[np.ndarray, "k 2"]) -> bool:
    """Whether two edges of a closed outline cross."""
    starts, ends = corners, np.roll(corners, -1, axis=0)
    edges = ends - starts
    cross = lambda along, to: np.sign(along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0])
    # Of each edge (rows), on which side the others' ends lie.
    sides = [cross(edges[:, None], each[None] - starts[:, None]) for each in (starts, ends)]
    parted = sides[0] * sides[1] < 0
    return bool((parted & parted.T).any())


def _far_off(corners: Float[np.ndarray, "k 2"]) -> bool:
    """Whether the second corner is farther from all others than those are from each other."""
    rest = np.delete(corners, 1, axis=0)
    low, high = rest.min(0), rest.max(0)
    beyond = np.maximum(np.maximum(low - corners[1], corners[1] - high), 0)
    return bool(np.linalg.norm(beyond) > np.linalg.norm(high - low))


def _remarks(lines: Lines) -> Iterator[str]:
    """What stands behind boxes."""
    kind = _kind(lines)
    behind = Counter(len(cells) - 1 - _BOX for _, cells in lines)
    several = {2: "a confidence and a track's id"} if kind == "track" else {}
    for count, lines_of in sorted(behind.items()):
        what = "1 number" if count == 1 else f"{count} numbers"
        if kind == "keypoints" and count:
            what += " of keypoints behind the box"
        elif count == 1 or count in several:
            what += f" behind the box ({several.get(count, _FIFTH)})"
        else:
            continue
        yield f"{lines_of} of {len(lines)} lines have {what}: read as boxes, the rest left out"


def _parse(part: Any) -> Entry:
    if part is None:  # an empty file: looked at, nothing there
        return Entry("", Marks(size=SHARES))
    (category, nameless), cells, kind = part
    values = [to_number(cell, "a number") for cell in cells[1:]]
    if len(values) in (_BOX, _BOX + 1) or kind == "keypoints" or (kind == "track" and len(values) == _TRACKED):
        x, y, width, height = values[:_BOX]
        _check(values[:_BOX])
        marks = Marks(boxes=((x - width / 2, y - height / 2, width, height),), size=SHARES)
        return Entry("", marks, "", (category,), nameless=nameless)
    if len(values) < 6 or len(values) % 2:
        raise ValueError(f"{len(cells)} numbers; a box has 5, an outline 1 + 2 a corner")
    _check(values)
    return Entry("", Marks(polygons=(tuple(values),), size=SHARES), "", (category,), nameless=nameless)


def _check(values: Sequence[float]) -> None:
    if not all(-_ROUNDED <= value <= 1 + _ROUNDED for value in values):
        raise ValueError(f"YOLO's numbers are shares of the image, 0 to 1; got {min(values):g} to {max(values):g}")


def read_names(path: Path) -> dict[str, str]:
    """Class names by number, from the list that tools write beside the labels or above them; empty without one.

    A class's number is its line's, the first being 0; a blank line is a class without a name.
    """
    for folder in (path.parent, path.parent.parent):
        for name in NAMES:
            if (folder / name).is_file() and folder / name != path:
                lines = (line.strip() for line in read_text(folder / name).splitlines())
                return {str(i): line for i, line in enumerate(lines) if line}
    return {}
