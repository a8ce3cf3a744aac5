"""What annotators mark, drawn as maps.

Coordinates are pixels of the image, (0, 0) being the outer corner of the first pixel.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from ..source import DataError
from .rle import decode_rle, read_runs

Entry = TypeVar("Entry")

Size = tuple[int, int]  # height, width

# Of a rendered map, pixels: far above any CAM's resolution, far below a radiograph's.
LONGER_SIDE = 512
_OVERSAMPLING = 4


@dataclass(frozen=True)
class Marks:
    """What one annotator marked in one image, in the image's pixels.

    Attributes:
      boxes: x and y of the corner nearest to the origin, width, height.
      polygons: x, y of the corners one after the other.
      masks: COCO run-length encodings, `{"size": [height, width], "counts": ...}`.
      fixations: x, y, duration in any unit.
    """

    boxes: tuple[tuple[float, ...], ...] = ()
    polygons: tuple[tuple[float, ...], ...] = ()
    masks: tuple[Mapping[str, Any], ...] = ()
    fixations: tuple[tuple[float, ...], ...] = ()

    def __add__(self, other: Marks) -> Marks:
        return Marks(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


# Image name to annotator to marks: many images' marks, as a table holds them.
Table = Mapping[str, Mapping[str, Marks]]


def gather(path: Path, entries: Iterable[tuple[str, Entry]], parse: Callable[[Entry], tuple[str, str, Marks]]) -> Table:
    """Adds up what the entries of a file say, by image and annotator; the annotator is "1" where none is named.

    Each entry comes with its place in the file. `parse` gives its image, annotator and marks, and raises ValueError or
    TypeError where it can't be used; DataError then has a line per problem.
    """
    table: dict[str, dict[str, Marks]] = defaultdict(dict)
    problems = []
    for place, entry in entries:
        try:
            image, annotator, marks = parse(entry)
            if not image:
                raise ValueError("no image named")
        except (ValueError, TypeError) as error:
            problems.append(f"{path}, {place}: {error}")
            continue
        own = table[image]
        own[annotator or "1"] = own.get(annotator or "1", Marks()) + marks
    if problems:
        raise DataError(problems)
    return dict(table)


def to_number(value: Any, name: str) -> float:
    """A finite number; raises ValueError, with the name of what it is, for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number):
        raise ValueError(f"{name} is {value!r}, not a number")
    return number


def render(marks: Marks, height: int, width: int, sigma: float) -> Float[np.ndarray, "h w"]:
    """Draws marks as a map of the image's shape, its longer side at most 512.

    Boxes, polygons and masks give the share of each map pixel that any of them covers; fixations give Gaussians,
    weighted by duration, added up and divided by their peak; those off the image are left out. Marks of both kinds are
    joined by the maximum. `sigma` is the standard deviation of a fixation's Gaussian; it, `height` and `width` are in
    pixels of the image. Raises ValueError for marks outside the image or of no extent, and masks of another size.
    """
    scale = min(1.0, LONGER_SIDE / max(height, width))
    shape, size = (max(1, round(height * scale)), max(1, round(width * scale))), (height, width)
    _check_inside(marks, height, width)
    layers = [_box_coverage(box, shape, size) for box in marks.boxes]
    if marks.polygons:
        layers.append(_polygon_coverage(marks.polygons, shape, size))
    layers += [_mask_coverage(mask, shape, size) for mask in marks.masks]
    if marks.fixations:
        layers.append(_fixation_density(marks.fixations, shape, size, sigma))
    return np.maximum.reduce(layers) if layers else np.zeros(shape, np.float32)


def _check_inside(marks: Marks, height: int, width: int) -> None:
    # A pixel of tolerance: owners round, and some count pixels from 1.
    inside = lambda x, y: -1 <= x <= width + 1 and -1 <= y <= height + 1
    where = f"outside the image's {width} x {height} pixels; do they belong to another size of it?"
    for x, y, w, h in marks.boxes:
        if w <= 0 or h <= 0:
            raise ValueError(f"a box of width {w:g} and height {h:g} marks nothing")
        if not (inside(x, y) and inside(x + w, y + h)):
            raise ValueError(f"box {x:g}, {y:g}, {w:g}, {h:g} reaches {where}")
    for corners in marks.polygons:
        if len(corners) < 6 or len(corners) % 2:
            raise ValueError(f"a polygon needs three corners or more, x and y each; got {len(corners)} numbers")
        if not all(inside(x, y) for x, y in zip(corners[::2], corners[1::2], strict=True)):
            raise ValueError(f"a polygon reaches {where}")
    for _, _, duration in marks.fixations:
        if duration < 0:
            raise ValueError(f"a fixation lasts {duration:g}; durations are not negative")


# Shapes are those of the map, sizes those of the image.
def _box_coverage(box: Sequence[float], shape: Size, size: Size) -> Float[np.ndarray, "h w"]:
    x, y, w, h = box
    rows = _covered(y * shape[0] / size[0], (y + h) * shape[0] / size[0], shape[0])
    columns = _covered(x * shape[1] / size[1], (x + w) * shape[1] / size[1], shape[1])
    return (rows[:, None] * columns[None, :]).astype(np.float32)


def _covered(start: float, stop: float, count: int) -> Float[np.ndarray, " count"]:
    """Share of each of `count` unit intervals that lies between start and stop."""
    edges = np.arange(count)
    return np.clip(np.minimum(stop, edges + 1) - np.maximum(start, edges), 0, 1)


def _polygon_coverage(polygons: Sequence[Sequence[float]], shape: Size, size: Size) -> Float[np.ndarray, "h w"]:
    fine = shape[0] * _OVERSAMPLING, shape[1] * _OVERSAMPLING
    canvas = Image.new("L", (fine[1], fine[0]))
    draw = ImageDraw.Draw(canvas)
    for corners in polygons:
        # Pillow counts from pixel centres.
        xs = [x * fine[1] / size[1] - 0.5 for x in corners[::2]]
        ys = [y * fine[0] / size[0] - 0.5 for y in corners[1::2]]
        draw.polygon(list(zip(xs, ys, strict=True)), fill=255)
    return np.asarray(canvas.reduce(_OVERSAMPLING), np.float32) / 255


def _mask_coverage(mask: Mapping[str, Any], shape: Size, size: Size) -> Float[np.ndarray, "h w"]:
    (height, width), (rows, columns, _) = size, read_runs(mask)
    # Before it is decoded, as a file may claim any size.
    if abs(rows * width - columns * height) >= max(height, width):
        raise ValueError(f"a mask of {columns} x {rows} pixels in an image of {width} x {height}")
    picture = Image.fromarray(decode_rle(mask).astype(np.float32))
    return np.asarray(picture.resize((shape[1], shape[0]), Image.Resampling.BOX))


def _fixation_density(
    fixations: Sequence[Sequence[float]], shape: Size, size: Size, sigma: float
) -> Float[np.ndarray, "h w"]:
    (height, width), (x, y, duration) = size, np.asarray(fixations, np.float64).T
    # Eyes also rest beside the image; owners then write -1.
    kept = (x >= 0) & (x <= width) & (y >= 0) & (y <= height)
    x, y, duration = x[kept], y[kept], duration[kept]
    distance = lambda at, count, side: (np.arange(count) + 0.5) * side / count - at[:, None]
    along = lambda at, count, side: np.exp(-0.5 * (distance(at, count, side) / sigma) ** 2)
    density = (duration[:, None] * along(y, shape[0], height)).T @ along(x, shape[1], width)
    peak = density.max()
    return (density / peak if peak > 0 else density).astype(np.float32)
