"""What annotators mark, drawn as maps.

Coordinates are pixels of the image, (0, 0) being the outer corner of the first pixel, unless the marks say otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from .rle import decode_rle, read_runs

Size = tuple[int, int]  # height, width

# The size that coordinates count in where they are shares of the image.
SHARES = (1.0, 1.0)

# Of a rendered map, pixels: far above any CAM's resolution, far below a radiograph's.
LONGER_SIDE = 512
# Of polygons, in each direction: Pillow fills the pixels on their edges too, which must stay thin on small maps.
_LEAST_OVERSAMPLING, _MOST_OVERSAMPLING = 4, 16
_CORNERS = 72  # of an ellipse
_MOST_CORNERS = 50_000  # of a polygon: each is looked at for each row of the canvas
_AT_A_TIME = 4096  # fixations
# Coordinates between these are shares of the image, if so large a part of a table's marks has none beyond.
_SHARES_FROM, _SHARES_TO, _NEARLY_ALL = -0.5, 2.0, 0.95


@dataclass(frozen=True)
class Marks:
    """What one annotator marked in one image.

    Attributes:
      boxes: x and y of the corner nearest to the origin, width, height.
      polygons: x, y of the corners one after the other.
      masks: COCO run-length encodings, `{"size": [height, width], "counts": ...}`, which have sizes of their own.
      fixations: x, y, duration in any unit; and, where it is known, pixels in a degree of the visual field along x and
        along y.
      size: width and height of the picture that coordinates count in; `SHARES` for shares of the image; None for the
        image as it is.
    """

    boxes: tuple[tuple[float, ...], ...] = ()
    polygons: tuple[tuple[float, ...], ...] = ()
    masks: tuple[Mapping[str, Any], ...] = ()
    fixations: tuple[tuple[float, ...], ...] = ()
    size: tuple[float, float] | None = None

    def __bool__(self) -> bool:
        return bool(self.boxes or self.polygons or self.masks or self.fixations)

    def __add__(self, other: Marks) -> Marks:
        """Both together; raises ValueError where they count in different sizes. Of many, see `Collected`."""
        both = Collected()
        both.add(self)
        both.add(other)
        return both.marks()

    def scaled(self, x: float, y: float, size: tuple[float, float] | None) -> Marks:
        """Coordinates multiplied along x and y, to count in another size."""
        by = lambda numbers: tuple(value * (y if i % 2 else x) for i, value in enumerate(numbers))
        resolution = lambda numbers: by(numbers) if numbers else ()
        return replace(
            self,
            boxes=tuple(map(by, self.boxes)),
            polygons=tuple(map(by, self.polygons)),
            fixations=tuple((*by(each[:2]), each[2], *resolution(each[3:])) for each in self.fixations),
            size=size,
        )


class Collected:
    """Marks of one image and annotator that come one after the other, in time that grows with their number."""

    def __init__(self):
        self._kinds: dict[str, list[Any]] = {"boxes": [], "polygons": [], "masks": [], "fixations": []}
        self._size: tuple[float, float] | None = None
        self._counting = False  # whether any has coordinates that count in that size

    def add(self, marks: Marks) -> None:
        """Raises ValueError where they count in another size than those before."""
        counting = bool(marks.boxes or marks.polygons or marks.fixations)
        if counting and self._counting and marks.size != self._size:
            raise ValueError(f"one image is declared {told_size(self._size)} and {told_size(marks.size)}; correct one")
        if not self._counting:
            self._size = marks.size if counting else self._size or marks.size
        self._counting |= counting
        for name, found in self._kinds.items():
            found += getattr(marks, name)

    def marks(self) -> Marks:
        """All together."""
        return Marks(**{name: tuple(found) for name, found in self._kinds.items()}, size=self._size)


def told_size(size: Sequence[float] | None) -> str:
    """Width and height in words."""
    if size is None:
        return "of no size"
    return "in shares" if tuple(size) == SHARES else f"{size[0]:g} x {size[1]:g}"


def percent(marks: Marks) -> Marks:
    """Marks in percent of the image as marks in shares."""
    return marks.scaled(0.01, 0.01, SHARES)


def ellipse(cx: float, cy: float, rx: float, ry: float, angle: float = 0.0) -> tuple[float, ...]:
    """Corners of a polygon in place of an ellipse turned by an angle, radians, from the x axis towards the y axis."""
    cos, sin = math.cos(angle), math.sin(angle)
    # As large in area as the ellipse, not inscribed.
    step = 2 * math.pi / _CORNERS
    grown = math.sqrt(step / math.sin(step))
    turn = [(rx * grown * math.cos(step * i), ry * grown * math.sin(step * i)) for i in range(_CORNERS)]
    return tuple(value for x, y in turn for value in (cx + x * cos - y * sin, cy + x * sin + y * cos))


def turned_box(
    x: float, y: float, width: float, height: float, angle: float, pivot: tuple[float, float]
) -> tuple[float, ...]:
    """Corners of a box turned by an angle, radians, from the x axis towards the y axis, about a point."""
    cos, sin = math.cos(angle), math.sin(angle)
    corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    away = [(cx - pivot[0], cy - pivot[1]) for cx, cy in corners]
    return tuple(v for dx, dy in away for v in (pivot[0] + dx * cos - dy * sin, pivot[1] + dx * sin + dy * cos))


def same_aspect(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two sizes are those of one picture, but for sides rounded to whole pixels."""
    return abs(one[0] * other[1] - one[1] * other[0]) < max(*one, *other)


def declared_sizes(marks: Marks) -> set[tuple[float, float]]:
    """Widths and heights, pixels, that marks say their image has."""
    own = set() if marks.size in (None, SHARES) else {marks.size}
    return own | {(mask["size"][1], mask["size"][0]) for mask in marks.masks}


def to_pixels(marks: Marks, height: int, width: int) -> Marks:
    """Marks in the pixels of an image of that size. Raises ValueError if they were made on one of another aspect."""
    if marks.size is None:
        return marks
    if marks.size != SHARES and not same_aspect(marks.size, (width, height)):
        remedy = "give the image that was annotated, or correct the size"
        raise ValueError(f"marks of an image of {told_size(marks.size)}, but it is {width} x {height}; {remedy}")
    return marks.scaled(width / marks.size[0], height / marks.size[1], None)


def time_outside(marks: Marks, height: int, width: int) -> tuple[float, float]:
    """How long fixations rest outside an image of that size, and how long in all, in the unit of their durations.

    Those at (-1, -1) count for neither: owners write it where gaze was not on the image, and say so themselves.
    """
    placed = replace(marks, fixations=tuple(each for each in marks.fixations if tuple(each[:2]) != (-1, -1)))
    if not placed.fixations:
        return 0.0, 0.0
    x, y, duration = np.asarray([each[:3] for each in to_pixels(placed, height, width).fixations], np.float64).T
    return float(duration[~_inside(x, y, height, width)].sum()), float(duration.sum())


def render(marks: Marks, height: int, width: int, sigma: float, degrees: float = 0.0) -> Float[np.ndarray, "h w"]:
    """Draws marks as a map of the image's shape, its longer side at most 512.

    Boxes, polygons and masks give the share of each map pixel that any of them covers; fixations give Gaussians,
    weighted by duration, added up and divided by their peak; those off the image are left out. Marks of both kinds are
    joined by the maximum. `sigma` is the standard deviation of a fixation's Gaussian; it, `height` and `width` are in
    pixels of the image. Where `degrees` is not 0, it holds in place of sigma for fixations that know their resolution.
    Marks made on the same image of another size are scaled. Raises ValueError for marks outside the image or of no
    extent, and where the other size is no other size of this image.
    """
    _check_extent(marks)
    marks = to_pixels(marks, height, width)
    scale = min(1.0, LONGER_SIDE / max(height, width))
    shape, size = (max(1, round(height * scale)), max(1, round(width * scale))), (height, width)
    _check_inside(marks, height, width)
    drawn = np.zeros(shape, np.float32)
    for box in dict.fromkeys(marks.boxes):
        _cover_box(drawn, box, size)
    if marks.polygons:
        np.maximum(drawn, _polygon_coverage(marks.polygons, shape, size), out=drawn)
    for mask in marks.masks:
        np.maximum(drawn, _mask_coverage(mask, shape, size), out=drawn)
    if marks.fixations:
        np.maximum(drawn, _fixation_density(marks.fixations, shape, size, sigma, degrees), out=drawn)
    return drawn


def _check_extent(marks: Marks) -> None:
    """Refuses what lies within one pixel: shares of the image that nobody declared as such."""
    remedy = "shares of the image? Then say so: a column or key `unit` with shares (or percent)"
    within = lambda x, y, w, h: (w < 1 and h < 1) or (x + w <= 1 and y + h <= 1)
    if marks.size == SHARES:
        return
    for x, y, w, h in marks.boxes:
        if w > 0 and h > 0 and within(x, y, w, h):
            raise ValueError(f"box {x:g}, {y:g}, {w:g}, {h:g} is smaller than a pixel; {remedy}")
    for corners in marks.polygons:
        if len(corners) > 4 and max(corners) <= 1:
            raise ValueError(f"a polygon lies within the first pixel; {remedy}")
    if marks.fixations and 0 < max(value for each in marks.fixations for value in each[:2]) <= 1:
        raise ValueError(f"all fixations lie within the first pixel; {remedy}")


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
        check_corners(corners)
        if not all(inside(x, y) for x, y in zip(corners[::2], corners[1::2], strict=True)):
            raise ValueError(f"a polygon reaches {where}")
    for each in marks.fixations:
        if each[2] < 0:
            raise ValueError(f"a fixation lasts {each[2]:g}; durations are not negative")


def check_corners(corners: Sequence[float]) -> None:
    """Raises ValueError for a polygon of more corners than can be drawn in a moment."""
    if len(corners) > 2 * _MOST_CORNERS:
        raise ValueError(
            f"a polygon of {len(corners) // 2:,} corners; at most {_MOST_CORNERS:,} are drawn: simplify it"
        )


def told_as_shares(every: Iterable[Marks]) -> str:
    """In words, that the marks of a table, in pixels as they are declared, are shares of the images; "" if they aren't.

    They are if nearly all lie within the first two pixels, some between pixels: trackers give a little below 0 or above
    1, rounding too. Fixations at -1 are nowhere.
    """
    spans = [span for marks in every if marks.size != SHARES for span in _spans(marks)]
    shares = [(low, high) for low, high, whole in spans if low >= _SHARES_FROM and high <= _SHARES_TO]
    whole = all(whole for low, high, whole in spans if low >= _SHARES_FROM and high <= _SHARES_TO)
    if whole or len(shares) < _NEARLY_ALL * len(spans):
        return ""
    low, high = min(low for low, _ in shares), max(high for _, high in shares)
    what = f"{len(shares)} of {len(spans)} marks lie within {low:g} to {high:g}: shares of the image?"
    remedy = "a column or key `unit` with shares (data.maps.columns.unit where it is called otherwise); or convert them"
    return f"{what} Then say so by {remedy}"


def _spans(marks: Marks) -> Iterator[tuple[float, float, bool]]:
    """Least and largest coordinate of each mark, and whether all are whole numbers."""
    boxes = ((x, y, x + w, y + h) for x, y, w, h in marks.boxes)
    fixations = (each[:2] for each in marks.fixations if -1 not in each[:2])
    for values in (*boxes, *filter(None, marks.polygons), *fixations):
        yield min(values), max(values), all(value == round(value) for value in values)


# Shapes are those of the map, sizes those of the image.
def _cover_box(drawn: Float[np.ndarray, "h w"], box: Sequence[float], size: Size) -> None:
    """Raises the map to the share of each place that the box covers."""
    x, y, w, h = box
    shape = drawn.shape
    rows, down = _covered(y * shape[0] / size[0], (y + h) * shape[0] / size[0], shape[0])
    columns, across = _covered(x * shape[1] / size[1], (x + w) * shape[1] / size[1], shape[1])
    place = drawn[rows, columns]
    np.maximum(place, (down[:, None] * across[None, :]).astype(np.float32), out=place)


def _covered(start: float, stop: float, count: int) -> tuple[slice, Float[np.ndarray, " part"]]:
    """Those of `count` unit intervals that may lie between start and stop, and the share of each that does."""
    first, last = max(math.floor(start), 0), min(math.ceil(stop), count)
    edges = np.arange(first, max(first, last))
    return slice(first, first + len(edges)), np.clip(np.minimum(stop, edges + 1) - np.maximum(start, edges), 0, 1)


def _polygon_coverage(polygons: Sequence[Sequence[float]], shape: Size, size: Size) -> Float[np.ndarray, "h w"]:
    times = min(max(4 * LONGER_SIDE // max(shape), _LEAST_OVERSAMPLING), _MOST_OVERSAMPLING)
    fine = shape[0] * times, shape[1] * times
    canvas = Image.new("L", (fine[1], fine[0]))
    draw = ImageDraw.Draw(canvas)
    for corners in polygons:
        # Pillow counts from pixel centres.
        xs = [x * fine[1] / size[1] - 0.5 for x in corners[::2]]
        ys = [y * fine[0] / size[0] - 0.5 for y in corners[1::2]]
        draw.polygon(list(zip(xs, ys, strict=True)), fill=255)
    return np.asarray(canvas.reduce(times), np.float32) / 255


def _mask_coverage(mask: Mapping[str, Any], shape: Size, size: Size) -> Float[np.ndarray, "h w"]:
    (height, width), (rows, columns, _) = size, read_runs(mask)
    # Before it is decoded, as a file may claim any size.
    if not same_aspect((columns, rows), (width, height)):
        raise ValueError(f"a mask of {columns} x {rows} pixels in an image of {width} x {height}")
    picture = Image.fromarray(decode_rle(mask).astype(np.float32))
    return np.asarray(picture.resize((shape[1], shape[0]), Image.Resampling.BOX))


def _fixation_density(
    fixations: Sequence[Sequence[float]], shape: Size, size: Size, sigma: float, degrees: float
) -> Float[np.ndarray, "h w"]:
    (height, width) = size
    distance = lambda at, count, side: (np.arange(count) + 0.5) * side / count - at[:, None]
    along = lambda at, count, side, width: np.exp(-0.5 * (distance(at, count, side) / width[:, None]) ** 2)
    density = np.zeros(shape)
    for start in range(0, len(fixations), _AT_A_TIME):
        some = fixations[start : start + _AT_A_TIME]
        x, y, duration = np.asarray([each[:3] for each in some], np.float64).T
        known = lambda axis, some=some: np.array(
            [degrees * each[axis] if degrees and len(each) > 3 else sigma for each in some]
        )
        # Eyes also rest beside the image; owners then write -1.
        kept = _inside(x, y, height, width)
        down = along(y[kept], shape[0], height, known(4)[kept])
        density += (duration[kept][:, None] * down).T @ along(x[kept], shape[1], width, known(3)[kept])
    peak = density.max()
    return (density / peak if peak > 0 else density).astype(np.float32)


def _inside(x: np.ndarray, y: np.ndarray, height: int, width: int) -> np.ndarray:
    return (x >= 0) & (x <= width) & (y >= 0) & (y <= height)
