"""Label Studio's JSON, JSON_MIN and CSV: percent of the image's original size, and brush strokes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..bounds import LARGEST_PIXELS
from .csv_table import Lines, cells_of, header_of
from .marks import Marks, ellipse, turned_box
from .rle import encode_rle
from .table import Entry, Format, declared, is_records, to_corners, to_number

_IMAGE = re.compile(r"\.(png|jpe?g|tiff?|bmp|gif|webp|dcm)\b", re.IGNORECASE)
# What says nothing of where, and what is no area.
_NOWHERE = ("choices", "textarea", "rating", "number", "taxonomy", "labels", "pairwise", "datetime", "relation")
_OPAQUE = 128


def _tasks(content: Any) -> bool:
    listed = ("annotations", "completions")
    return is_records(content) and all(
        isinstance(each.get("data"), dict) and any(isinstance(each.get(name), list) for name in listed)
        for each in content
    )


def _image_of(data: Mapping[str, Any]) -> str:
    texts = [value for value in data.values() if isinstance(value, str)]
    named = [data[name] for name in ("image", "img") if isinstance(data.get(name), str)]
    return next((text for text in [*named, *texts] if _IMAGE.search(text)), named[0] if named else "")


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    for task in content:
        image = _image_of(task["data"])
        for annotation in task["annotations" if "annotations" in task else "completions"]:
            if annotation.get("was_cancelled"):  # skipped by its annotator
                continue
            place = f"task {task.get('id')}, annotation {annotation.get('id')}"
            yield from _regions(place, image, _who(annotation.get("completed_by")), annotation.get("result") or ())


def _who(given: Any) -> str:
    if isinstance(given, dict):
        given = given.get("email") or given.get("username") or given.get("id")
    return "" if given in (None, "") else str(given)


def _regions(place: str, image: str, who: str, results: Any) -> Iterator[tuple[str, Any]]:
    """A part per region: results of one id are its shape and its labels."""
    regions: dict[str, list[Mapping[str, Any]]] = {}
    for number, result in enumerate(results):
        if isinstance(result.get("value"), dict):
            regions.setdefault(str(result.get("id", number)), []).append(result)
    if not regions:
        yield place, (image, who, None, ())
    for identity, own in regions.items():
        labels = tuple(dict.fromkeys(label for result in own for label in _labels(result["value"])))
        yield f"{place}, region {identity}", (image, who, own, labels)


def _labels(value: Mapping[str, Any]) -> list[str]:
    return [str(label) for name, each in value.items() if name.endswith("labels") for label in each or ()]


def _parse(part: Any) -> Entry:
    image, who, results, labels = part
    if results is None:
        return Entry(image, Marks(), who)
    kinds = []
    for result in results:
        size = declared(result.get("original_width"), result.get("original_height"))
        if result.get("image_rotation"):
            raise ValueError(f"the image was turned by {result['image_rotation']} degrees; annotate it as it is")
        marks = _shape(result["value"], size)
        if marks:
            return Entry(image, marks, who, labels)
        kinds.append(str(result.get("type", "")) or "mark without extent")
    nowhere = all(kind in _NOWHERE for kind in kinds)
    return Entry(image, Marks(), who, labels, "" if nowhere else f"a {kinds[0]}")


def _shape(value: Mapping[str, Any], size: tuple[float, float] | None) -> Marks:
    """A value's area, in pixels of the original; nothing where it has none."""
    if "rle" in value:
        if size is None:
            raise ValueError("a brush stroke needs original_width and original_height")
        return Marks(masks=(encode_rle(decode_brush(value["rle"], round(size[1]), round(size[0]))),), size=size)
    geometry = {"points", "radiusX", "width"} & value.keys()
    if not geometry or "start" in value:
        return Marks()
    if size is None:
        raise ValueError("no original_width and original_height")
    across, down = size[0] / 100, size[1] / 100
    if "points" in value:
        corners = to_corners(value["points"], "points")
        return Marks(polygons=(corners,)).scaled(across, down, size)
    of = lambda name: to_number(value[name], name) * (down if name in ("y", "height", "radiusY") else across)
    angle = math.radians(to_number(value.get("rotation") or 0, "rotation"))
    x, y = of("x"), of("y")
    if "radiusX" in value:
        return Marks(polygons=(ellipse(x, y, of("radiusX"), of("radiusY"), angle),), size=size)
    if "height" not in value:  # a point, of a width as it is drawn
        return Marks()
    width, height = of("width"), of("height")
    if angle:
        return Marks(polygons=(turned_box(x, y, width, height, angle, (x, y)),), size=size)
    return Marks(boxes=((x, y, width, height),), size=size)


FORMAT = Format("Label Studio", "tasks with `data` and `annotations`", _tasks, _entries, _parse)


def _min_values(task: Mapping[str, Any]) -> list[tuple[str, list[Any]]]:
    """Controls of a task whose values are regions."""
    return [
        (name, value)
        for name, value in task.items()
        if is_records(value) and any("original_width" in each for each in value)
    ]


def _recognises_min(content: Any) -> bool:
    return is_records(content) and any(_min_values(task) for task in content)


def _min_entries(content: Any) -> Iterator[tuple[str, Any]]:
    for number, task in enumerate(content):
        results = [
            {
                "id": f"{name} {i}",
                "value": value,
                "type": next((key for key in value if key.endswith("labels")), ""),
                **{key: value.get(key) for key in ("original_width", "original_height", "image_rotation")},
            }
            for name, values in _min_values(task)
            for i, value in enumerate(values)
        ]
        who = _who(task.get("annotator"))
        yield from _regions(f"task {task.get('id', number)}", _image_of(task), who, results)


MIN = Format("Label Studio (JSON_MIN)", "tasks with regions", _recognises_min, _min_entries, _parse)

_OWN_COLUMNS = {"annotation_id", "lead_time"}


def _recognises_csv(lines: Lines) -> bool:
    return set(header_of(lines)) >= _OWN_COLUMNS


def _csv_entries(lines: Lines) -> Iterator[tuple[str, Any]]:
    rows = [cells for _, cells in cells_of(lines)]
    tasks = [{name: _cell(cell) for name, cell in cells.items()} for cells in rows]
    return _min_entries(tasks)


def _cell(text: str) -> Any:
    return json.loads(text) if text.startswith("[{") else text


CSV = Format("Label Studio (CSV)", "columns annotation_id and lead_time", _recognises_csv, _csv_entries, _parse)


def decode_brush(encoded: Any, height: int, width: int) -> np.ndarray:
    """The mask of a brush stroke: pixels of red, green, blue and alpha, of which alpha says where it is.

    Bytes of `@thi.ng/rle-pack`: the number of values (32 bits), their width less one (5), four widths less one (4 each)
    of run lengths; then runs, each a bit that says whether its values repeat, two that choose the width of its length,
    and the length less one. Raises ValueError for other bytes, or more pixels than any image has.
    """
    if not (min(height, width) > 0 and height * width <= LARGEST_PIXELS):
        raise ValueError(f"a mask of {width} x {height} pixels can't be drawn; correct its size")
    bits = np.unpackbits(np.asarray(encoded, np.uint8))
    place = 0

    def read(count: int) -> int:
        nonlocal place
        if place + count > len(bits):
            raise ValueError("a brush stroke ends in the middle")
        found = int.from_bytes(np.packbits(bits[place : place + count]).tobytes(), "big") >> (-count % 8)
        place += count
        return found

    total, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    if total != 4 * height * width or word != 8:
        raise ValueError(f"a brush stroke of {total} values; an image of {width} x {height} has {4 * height * width}")
    values, at = np.zeros(total, np.uint8), 0
    while at < total:
        repeats = read(1)
        stop = min(at + 1 + read(sizes[read(2)]), total)
        if repeats:
            values[at:stop] = read(word)
        else:
            count = (stop - at) * word
            if place + count > len(bits):
                raise ValueError("a brush stroke ends in the middle")
            values[at:stop] = np.packbits(bits[place : place + count])
            place += count
        at = stop
    return values.reshape(height, width, 4)[..., 3] >= _OPAQUE
