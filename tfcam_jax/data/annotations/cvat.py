"""CVAT for images 1.1: XML with many images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from .marks import Marks, ellipse, turned_box
from .rle import encode_part
from .table import Entry, Format, declared, to_number

_NO_AREA = ("polyline", "points", "cuboid", "skeleton")


def _recognises(root: Element) -> bool:
    return root.tag == "annotations"


def _entries(root: Element) -> Iterator[tuple[str, Any]]:
    if root.find("track") is not None:
        raise ValueError("tracks of a video; export it as CVAT for images 1.1")
    for image in root.iter("image"):
        size = declared(image.get("width"), image.get("height"))
        shapes = [shape for shape in image if shape.tag != "tag"]  # a tag is the whole image's
        if not shapes:
            yield f"image {image.get('id')}", (image.get("name"), size, None)
        for number, shape in enumerate(shapes):
            yield f"image {image.get('id')}, {shape.tag} {number}", (image.get("name"), size, shape)


def _parse(part: Any) -> Entry:
    image, size, shape = part
    if shape is None:
        return Entry(image or "", Marks(size=size))
    marks = _shape(shape, shape.attrib, size)
    label = shape.get("label")
    return Entry(image or "", marks, "", (label,) if label else (), "" if marks else f"a {shape.tag}")


def _shape(shape: Element, given: Mapping[str, str], size: tuple[float, float] | None) -> Marks:
    of = lambda *names: [to_number(given[name], name) for name in names]
    angle = math.radians(to_number(given.get("rotation") or 0, "rotation"))
    if shape.tag == "box":
        left, top, right, bottom = of("xtl", "ytl", "xbr", "ybr")
        if angle:
            pivot = (left + right) / 2, (top + bottom) / 2
            return Marks(polygons=(turned_box(left, top, right - left, bottom - top, angle, pivot),), size=size)
        return Marks(boxes=((left, top, right - left, bottom - top),), size=size)
    if shape.tag == "polygon":
        points = [point.split(",") for point in given["points"].split(";") if point]
        return Marks(polygons=(tuple(to_number(value, "points") for x, y in points for value in (x, y)),), size=size)
    if shape.tag == "ellipse":
        cx, cy, rx, ry = of("cx", "cy", "rx", "ry")
        return Marks(polygons=(ellipse(cx, cy, rx, ry, angle),), size=size)
    if shape.tag == "mask":
        if size is None:
            raise ValueError("a mask needs the image's width and height")
        left, top, width, height = (round(value) for value in of("left", "top", "width", "height"))
        runs = [int(run) for run in given["rle"].split(",")]
        if min(runs) < 0 or sum(runs) != width * height or width * height > size[0] * size[1] + 1:
            raise ValueError(f"an RLE's runs must fill its {width} x {height} pixels; they give {sum(runs)}")
        part = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)  # along the rows
        return Marks(masks=(encode_part(part, left, top, *size),), size=size)
    if shape.tag not in _NO_AREA:
        raise ValueError(f"a shape {shape.tag!r} is none that CVAT has")
    return Marks()


def _categories(root: Element) -> Iterable[str]:
    return (name.text.strip() for name in root.iterfind("meta//label/name") if name.text)


FORMAT = Format("CVAT for images 1.1", "the root <annotations>", _recognises, _entries, _parse, _categories)
