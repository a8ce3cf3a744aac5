"""Human annotations in the forms people keep, rendered to maps.

    pictures      PNG, JPEG, TIFF... of any mode and bit depth, and NPY arrays
    tables        CSV with a row per box, polygon or fixation; JSON of the same; COCO (boxes, polygons, RLE)

A table serves many images: its entries are found by the image's path, its file name or its file name without the
suffix. Coordinates are pixels of the image, (0, 0) being the outer corner of the first pixel.
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw

from .decode import decode_map

TABLE_SUFFIXES = (".csv", ".json")
# Of a rendered map, pixels: far above any CAM's resolution, far below a radiograph's.
LONGER_SIDE = 512
_OVERSAMPLING = 4

Box = tuple[float, float, float, float]
Fixation = tuple[float, float, float]


@dataclass(frozen=True)
class Marks:
    """What one annotator marked in one image, in the image's pixels.

    Attributes:
      boxes: x and y of the corner nearest to the origin, width, height.
      polygons: x, y of the corners one after the other.
      masks: COCO run-length encodings, `{"size": [height, width], "counts": ...}`.
      fixations: x, y, duration in any unit.
    """

    boxes: tuple[Box, ...] = ()
    polygons: tuple[tuple[float, ...], ...] = ()
    masks: tuple[Mapping[str, Any], ...] = ()
    fixations: tuple[Fixation, ...] = ()

    def __add__(self, other: Marks) -> Marks:
        return Marks(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


# Image name to annotator to marks.
Table = Mapping[str, Mapping[str, Marks]]


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


def decode_rle(mask: Mapping[str, Any]) -> Bool[np.ndarray, "h w"]:
    """Decodes a COCO run-length encoding, uncompressed (a list of runs) or compressed (a string).

    Runs go down the columns and alternate between outside and inside, beginning outside. In the compressed form each
    run is a number of 5-bit digits, lowest first, in characters from "0" on; from the fourth on, a run is given as its
    difference to the one before the last (cocodataset/cocoapi, maskApi.c).

    Raises:
      ValueError: not such a mapping, or runs that don't fill the mask.
    """
    try:
        (height, width), counts = mask["size"], mask["counts"]
        runs = _decompress(counts) if isinstance(counts, str | bytes) else [int(count) for count in counts]
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError('an RLE must be {"size": [height, width], "counts": runs}') from error
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise ValueError(f"an RLE's runs must fill its {width} x {height} pixels; they give {sum(runs)}")
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(width, height).T


def _decompress(counts: str | bytes) -> list[int]:
    digits = [character - 48 for character in (counts.encode() if isinstance(counts, str) else counts)]
    runs: list[int] = []
    number = place = 0
    for digit in digits:
        number |= (digit & 31) << (5 * place)
        place += 1
        if digit & 32:  # More digits follow.
            continue
        if digit & 16:  # The sign bit of the highest digit.
            number -= 1 << (5 * place)
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number = place = 0
    if place:
        raise ValueError("a compressed RLE ends in the middle of a run")
    return runs


def read_picture(encoded: bytes, suffix: str) -> Float[np.ndarray, "h w"]:
    """Decodes a map from the bytes of a picture or, with suffix ".npy", of a NumPy array.

    Arrays are [h, w] or [h, w, 1], finite and non-negative. Booleans and integers up to 1 are taken as they are, larger
    integers are divided by their type's largest value, floats beyond 1 by their own largest.

    Raises:
      ValueError: neither, or broken.
    """
    if suffix.lower() != ".npy":
        return decode_map(encoded)
    try:
        array = np.load(io.BytesIO(encoded), allow_pickle=False)
    except Exception as error:  # NumPy raises whatever it stumbles over.
        raise ValueError(f"not a NumPy array ({error})") from error
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 or not array.size or array.dtype.kind not in "buif":
        raise ValueError(f"a map must be [h, w] numbers; got shape {array.shape}, {array.dtype}")
    values = array.astype(np.float32)
    if not (np.isfinite(values).all() and values.min() >= 0):
        raise ValueError("a map must be finite and non-negative")
    if values.max() > 1:
        values /= np.iinfo(array.dtype).max if array.dtype.kind in "ui" else values.max()
    return values


def read_table(path: Path, columns: Mapping[str, str] | None = None) -> Table:
    """Reads a CSV or JSON of marks.

    CSV: column `image`, then `x, y, width, height` or `x_min, y_min, x_max, y_max` for a box, `polygon` ("x y x y ...")
    for a polygon, or `x, y` and, if wanted, `duration` for a fixation; `annotator` is optional. Rows without any of
    the numbers say that the image was looked at and nothing marked.
    JSON: a list of objects with `image`, optionally `annotator`, and any of `boxes` ([[x, y, width, height], ...]),
    `polygons` ([[x, y, x, y, ...], ...]), `masks` (COCO RLEs) and `fixations` ([[x, y, duration], ...]); or COCO.

    Args:
      path: of the file.
      columns: names in this file to the names above, for owners' tables.

    Returns:
      Marks by image and annotator; the annotator is "1" where none is named.

    Raises:
      ValueError: with one line per problem, each with its row or entry.
    """
    if path.suffix.lower() == ".json":
        return _read_json(path)
    return _read_csv(path, columns or {})


def find_marks(table: Table, image: str) -> Mapping[str, Marks]:
    """Marks of an image by annotator; empty if the table doesn't mention it."""
    path = PurePosixPath(image)
    for name in (image, path.name, path.stem):
        if name in table:
            return table[name]
    return {}


def _read_csv(path: Path, columns: Mapping[str, str]) -> Table:
    table: dict[str, dict[str, Marks]] = defaultdict(dict)
    problems = []
    for number, cells in read_csv_rows(path, columns):
        try:
            image, annotator = cells.get("image", ""), cells.get("annotator", "") or "1"
            if not image:
                raise ValueError("no image named")
            marks = _marks_of_cells(cells)
        except ValueError as error:
            problems.append(f"{path}, row {number}: {error}")
            continue
        table[image][annotator] = table[image].get(annotator, Marks()) + marks
    if problems:
        raise ValueError("\n".join(problems))
    return dict(table)


def read_csv_rows(path: Path, columns: Mapping[str, str] | None = None) -> list[tuple[int, dict[str, str]]]:
    """Rows of a UTF-8 CSV with a header, with their line numbers; cells and names are stripped, `columns` renames.

    Raises:
      ValueError: not UTF-8, not CSV, or a row with more cells than the header. Cells beyond an unnamed last column,
        as in NIH's box list, are empty and ignored.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [(columns or {}).get(name.strip(), name.strip()) for name in next(reader, [])]
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if cells]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{path}, row {reader.line_num}: not CSV ({error}); mend the quotes") from error
    long = [number for number, cells in lines if any(cells[len(header) :])]
    if long:
        wanted = f"at most {len(header)} cells, as the header has; quote cells that hold a comma"
        raise ValueError("\n".join(f"{path}, row {number}: must have {wanted}" for number in long))
    return [(number, dict(zip(header, cells, strict=False))) for number, cells in lines]


def _marks_of_cells(cells: Mapping[str, str]) -> Marks:
    given = lambda *names: all(cells.get(name) for name in names)
    numbers = lambda *names: tuple(_number(cells[name], name) for name in names)
    if given("polygon"):
        return Marks(polygons=(tuple(_number(text, "polygon") for text in cells["polygon"].split()),))
    if given("x", "y", "width", "height"):
        return Marks(boxes=(numbers("x", "y", "width", "height"),))
    if given("x_min", "y_min", "x_max", "y_max"):
        left, top, right, bottom = numbers("x_min", "y_min", "x_max", "y_max")
        return Marks(boxes=((left, top, right - left, bottom - top),))
    if given("x", "y") and not {"width", "height"} & cells.keys():
        duration = _number(cells["duration"], "duration") if given("duration") else 1.0
        return Marks(fixations=((*numbers("x", "y"), duration),))
    partly = [name for name in ("x", "y", "width", "height", "x_min", "y_min", "x_max", "y_max") if given(name)]
    if partly:
        raise ValueError(f"incomplete: only {', '.join(partly)} given")
    return Marks()


def _number(text: Any, name: str) -> float:
    try:
        number = float(text)
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number):
        raise ValueError(f"{name} is {text!r}, not a number")
    return number


def _read_json(path: Path) -> Table:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        return _from_entries(path, _coco_entries(path, content))
    if not isinstance(content, list):
        raise ValueError(f"{path}: must be COCO or a list of objects with `image`")
    return _from_entries(path, enumerate(content))


def _coco_entries(path: Path, content: Mapping[str, Any]) -> Iterable[tuple[int, Any]]:
    names = {image.get("id"): image.get("file_name") for image in content["images"]}
    for name in names.values():
        yield -1, {"image": name}  # In the file: looked at, even if nothing was marked.
    for number, entry in enumerate(content["annotations"]):
        if entry.get("image_id") not in names:
            raise ValueError(f"{path}, annotation {number}: image_id {entry.get('image_id')!r} is not among its images")
        marked: dict[str, Any] = {"image": names[entry["image_id"]], "annotator": entry.get("annotator")}
        outline = entry.get("segmentation")
        if isinstance(outline, dict):
            marked["masks"] = [outline]
        elif outline:
            marked["polygons"] = outline
        elif entry.get("bbox"):
            marked["boxes"] = [entry["bbox"]]
        yield number, marked


def _from_entries(path: Path, entries: Iterable[tuple[int, Any]]) -> Table:
    table: dict[str, dict[str, Marks]] = defaultdict(dict)
    problems = []
    for number, entry in entries:
        try:
            if not (isinstance(entry, dict) and isinstance(entry.get("image"), str) and entry["image"]):
                raise ValueError("no image named")
            annotator = str(entry.get("annotator") or "1")
            marks = Marks(
                boxes=tuple(_numbers(box, "boxes", 4) for box in entry.get("boxes", ())),
                polygons=tuple(_numbers(corners, "polygons") for corners in entry.get("polygons", ())),
                masks=tuple(entry.get("masks", ())),
                fixations=tuple(_numbers(point, "fixations", 3) for point in entry.get("fixations", ())),
            )
            for mask in marks.masks:
                decode_rle(mask)
        except (ValueError, TypeError) as error:
            problems.append(f"{path}, entry {number}: {error}")
            continue
        if marks == Marks() and number < 0:
            table[entry["image"]].setdefault(annotator, marks)
        else:
            table[entry["image"]][annotator] = table[entry["image"]].get(annotator, Marks()) + marks
    if problems:
        raise ValueError("\n".join(problems))
    return {image: _without_placeholder(marks) for image, marks in table.items()}


def _without_placeholder(marks: Mapping[str, Marks]) -> Mapping[str, Marks]:
    """A COCO image counts as looked at by nobody in particular once somebody in particular has marked it."""
    named = {annotator: own for annotator, own in marks.items() if own != Marks()}
    return named or marks


def _numbers(values: Any, name: str, count: int | None = None) -> tuple[float, ...]:
    if not isinstance(values, list | tuple) or (count is not None and len(values) != count):
        raise ValueError(f"{name}: {values!r} must be a list of {count or 'x, y, x, y, ...'} numbers")
    return tuple(_number(value, name) for value in values)


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


def _box_coverage(box: Box, shape: tuple[int, int], height: int, width: int) -> Float[np.ndarray, "h w"]:
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
    canvas = Image.new("L", fine[::-1])
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
    inside = decode_rle(mask)
    if abs(inside.shape[0] * width - inside.shape[1] * height) >= max(height, width):
        raise ValueError(f"a mask of {inside.shape[1]} x {inside.shape[0]} pixels in an image of {width} x {height}")
    picture = Image.fromarray(inside.astype(np.float32))
    return np.asarray(picture.resize(shape[::-1], Image.Resampling.BOX))


def _fixation_density(
    fixations: Sequence[Fixation], shape: tuple[int, int], height: int, width: int, sigma: float
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
