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

    Args:
      path: of the file, for messages.
      entries: each with its place in the file.
      parse: an entry's image, annotator and marks; raises ValueError or TypeError where it can't be used.

    Raises:
      DataError: with one line per problem.
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
    joined by the maximum.

    Args:
      marks: of one annotator.
      height: of the image, pixels.
      width: of the image, pixels.
      sigma: standard deviation of a fixation's Gaussian, image pixels.

    Raises:
      ValueError: a mark outside the image, of no extent, or a mask of another size.
    """
    scale = min(1.0, LONGER_SIDE / max(height, width))
    shape = max(1, round(height * scale)), max(1, round(width * scale))
    _check_inside(marks, height, width)
    layers = [_box_coverage(box, shape, height, width) for box in marks.boxes]
    if marks.polygons:
        layers.append(_polygon_coverage(marks.polygons, shape, height, width))
    layers += [_mask_coverage(mask, shape, height, width) for mask in marks.masks]
    if marks.fixations:
        layers.append(_fixation_density(marks.fixations, shape, height, width, sigma))
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


def _box_coverage(box: Sequence[float], shape: tuple[int, int], height: int, width: int) -> Float[np.ndarray, "h w"]:
    x, y, w, h = box
    rows = _covered(y * shape[0] / height, (y + h) * shape[0] / height, shape[0])
    columns = _covered(x * shape[1] / width, (x + w) * shape[1] / width, shape[1])
    return (rows[:, None] * columns[None, :]).astype(np.float32)


def _covered(start: float, stop: float, count: int) -> Float[np.ndarray, " count"]:
    """Share of each of `count` unit intervals that lies between start and stop."""
    edges = np.arange(count)
    return np.clip(np.minimum(stop, edges + 1) - np.maximum(start, edges), 0, 1)


def _polygon_coverage(
    polygons: Sequence[Sequence[float]], shape: tuple[int, int], height: int, width: int
) -> Float[np.ndarray, "h w"]:
    fine = shape[0] * _OVERSAMPLING, shape[1] * _OVERSAMPLING
    canvas = Image.new("L", (fine[1], fine[0]))
    draw = ImageDraw.Draw(canvas)
    for corners in polygons:
        # Pillow counts from pixel centres.
        xs = [x * fine[1] / width - 0.5 for x in corners[::2]]
        ys = [y * fine[0] / height - 0.5 for y in corners[1::2]]
        draw.polygon(list(zip(xs, ys, strict=True)), fill=255)
    return np.asarray(canvas.reduce(_OVERSAMPLING), np.float32) / 255


def _mask_coverage(
    mask: Mapping[str, Any], shape: tuple[int, int], height: int, width: int
) -> Float[np.ndarray, "h w"]:
    rows, columns, _ = read_runs(mask)
    # Before it is decoded, as a file may claim any size.
    if abs(rows * width - columns * height) >= max(height, width):
        raise ValueError(f"a mask of {columns} x {rows} pixels in an image of {width} x {height}")
    picture = Image.fromarray(decode_rle(mask).astype(np.float32))
    return np.asarray(picture.resize((shape[1], shape[0]), Image.Resampling.BOX))


def _fixation_density(
    fixations: Sequence[Sequence[float]], shape: tuple[int, int], height: int, width: int, sigma: float
) -> Float[np.ndarray, "h w"]:
    x, y, duration = np.asarray(fixations, np.float64).T
    # Eyes also rest beside the image; owners then write -1.
    kept = (x >= 0) & (x <= width) & (y >= 0) & (y <= height)
    x, y, duration = x[kept], y[kept], duration[kept]
    along = lambda at, count, size: np.exp(
        -0.5 * (((np.arange(count) + 0.5) * size / count - at[:, None]) / sigma) ** 2
    )
    density = (duration[:, None] * along(y, shape[0], height)).T @ along(x, shape[1], width)
    peak = density.max()
    return (density / peak if peak > 0 else density).astype(np.float32)
