"""CreateML's JSON: boxes by their centres."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .marks import Marks
from .table import Entry, Format, is_records, to_number

_LISTS = ("annotations", "annotation")


def _recognises(content: Any) -> bool:
    if not (is_records(content) and all(any(isinstance(each.get(name), list) for name in _LISTS) for each in content)):
        return False
    marks = [mark for each in content for name in _LISTS for mark in each.get(name) or ()]
    return any(isinstance(mark, dict) and "coordinates" in mark for mark in marks)


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    for number, each in enumerate(content):
        image = next((each[name] for name in ("image", "imagefilename", "filename", "imageURL") if each.get(name)), "")
        marks = next(each[name] for name in _LISTS if name in each)
        if not marks:
            yield f"entry {number}", (image, None)
        for place, mark in enumerate(marks):
            yield f"entry {number}, annotation {place}", (image, mark)


def _parse(part: Any) -> Entry:
    image, mark = part
    if mark is None:
        return Entry(image)
    at = {name: to_number(mark["coordinates"][name], name) for name in ("x", "y", "width", "height")}
    box = at["x"] - at["width"] / 2, at["y"] - at["height"] / 2, at["width"], at["height"]
    return Entry(image, Marks(boxes=(box,)), "", (str(mark["label"]),) if mark.get("label") else ())


FORMAT = Format(
    "CreateML", "a list of objects with `annotations` that have `coordinates`", _recognises, _entries, _parse
)
