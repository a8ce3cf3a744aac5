"""Pascal VOC's XML: boxes, one file an image. Its masks are pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any
from xml.etree.ElementTree import Element

from .marks import Marks, turned_box
from .table import Entry, Format, declared, to_number

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def _recognises(root: Element) -> bool:
    return root.tag == "annotation"


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _entries(root: Element) -> Iterator[tuple[str, Any]]:
    image = _text(root, "filename") or _text(root, "path")
    size = declared(_text(root, "size/width"), _text(root, "size/height"))
    objects = root.findall("object")
    if not objects:
        yield "annotation", (image, size, None)
    for number, each in enumerate(objects):
        yield f"object {number} ({_text(each, 'name')})", (image, size, each)


def _parse(part: Any) -> Entry:
    image, size, each = part
    if each is None:
        return Entry(image, Marks(size=size))
    category, found = _text(each, "name"), _shape(each, size)
    marks = Marks(found.boxes, found.polygons, size=size)
    return Entry(image, marks, "", (category,) if category else ())


def _shape(each: Element, size: tuple[float, float] | None) -> Marks:
    """An object's outline, its turned box, or its box."""
    number = lambda path: to_number(_text(each, path), path)
    outline = each.find("polygon")
    if outline is not None:
        if outline.find("pt") is not None:
            corners = [_text(point, axis) for point in outline.iterfind("pt") for axis in ("x", "y")]
        else:
            corners = [_text(outline, f"{axis}{i}") for i in range(1, len(outline) // 2 + 1) for axis in ("x", "y")]
        return Marks(polygons=(tuple(to_number(value, "polygon") for value in corners),))
    if each.find("robndbox") is not None:
        cx, cy, width, height, angle = (number(f"robndbox/{name}") for name in ("cx", "cy", "w", "h", "angle"))
        left, top = cx - width / 2, cy - height / 2
        return Marks(polygons=(turned_box(left, top, width, height, math.remainder(angle, 2 * math.pi), (cx, cy)),))
    return Marks(boxes=(_box(each, size),))


def _box(each: Element, size: tuple[float, float] | None) -> tuple[float, ...]:
    """A box from its first and last pixels, which count from 1: in our coordinates it begins one before the first.

    Tools that count from 0 are a pixel off, also beyond the image, where it is cut off.
    """
    left, top, right, bottom = (to_number(_text(each, f"bndbox/{name}"), name) for name in _CORNERS)
    if right < left or bottom < top:
        raise ValueError(f"xmax {right:g} and ymax {bottom:g} must not be below xmin {left:g} and ymin {top:g}")
    left, top = (at - 1 if at >= 1 else min(at, 0) for at in (left, top))
    if size is not None:
        right, bottom = (side if side < at <= side + 1 else at for at, side in zip((right, bottom), size, strict=True))
    return left, top, right - left, bottom - top


FORMAT = Format("Pascal VOC", "the root <annotation>", _recognises, _entries, _parse)
