"""Supervisely's JSON: one file an image, which is named like the image with .json behind it."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..bounds import LARGEST_PIXELS
from .labelme import bitmap, opposite
from .marks import Marks, check_corners
from .rle import encode_part
from .table import Entry, Format, declared, to_corners, to_numbers

_FINE_SIDE, _MOST_OVERSAMPLING = 4096, 8  # of the canvas that holes are cut out on


def _recognises(content: Any) -> bool:
    return isinstance(content, dict) and all(
        isinstance(content.get(name), kind) for name, kind in (("objects", list), ("size", dict))
    )


def _entries(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    size = declared(content["size"]["width"], content["size"]["height"])
    if not content["objects"]:
        yield "objects", (size, None)
    for number, each in enumerate(content["objects"]):
        yield f"object {number} ({each.get('classTitle')})", (size, each)


def _parse(part: Any) -> Entry:
    size, each = part
    if each is None:
        return Entry("", Marks(size=size))
    kind = each.get("geometryType") or ("bitmap" if each.get("bitmap") else "polygon")
    marks = _geometry(kind, each, size)
    category, who = str(each.get("classTitle") or ""), str(each.get("labelerLogin") or "")
    return Entry("", marks, who, (category,) if category else (), "" if marks else f"a {kind}")


def _geometry(kind: str, each: Mapping[str, Any], size: tuple[float, float] | None) -> Marks:
    if kind == "bitmap":
        left, top = (round(value) for value in to_numbers(each["bitmap"]["origin"], "origin", 2))
        return Marks(masks=(encode_part(_unpack(each["bitmap"]["data"]), left, top, *_known(size)),), size=size)
    if kind not in ("rectangle", "polygon"):
        if kind not in ("point", "line", "polyline", "graph"):
            raise ValueError(f"geometryType {kind!r} is not read; convert it to polygons or bitmaps")
        return Marks()
    corners = to_corners(each["points"]["exterior"], "exterior")
    if kind == "rectangle":
        return Marks(boxes=(opposite(corners),), size=size)
    holes = each["points"].get("interior") or ()
    if not holes:
        return Marks(polygons=(corners,), size=size)
    mask = _with_holes(corners, [to_corners(hole, "interior") for hole in holes], _known(size))
    return Marks(masks=(mask,), size=size)


def _known(size: tuple[float, float] | None) -> tuple[float, float]:
    if size is None:
        raise ValueError("a bitmap or a hole needs the image's size")
    return size


def _unpack(data: str) -> np.ndarray:
    try:
        unpacked = zlib.decompressobj().decompress(base64.b64decode(data), LARGEST_PIXELS)
    except (zlib.error, binascii.Error) as error:
        raise ValueError(f"a bitmap that can't be unpacked ({error})") from error
    return bitmap(unpacked)


def _with_holes(
    corners: tuple[float, ...], holes: list[tuple[float, ...]], size: tuple[float, float]
) -> dict[str, Any]:
    """The mask of a polygon without its holes."""
    height, width = encode_part(np.zeros((1, 1), bool), 0, 0, *size)["size"]  # refused if it can't be drawn
    times = min(max(_FINE_SIDE // max(height, width), 1), _MOST_OVERSAMPLING)
    canvas = Image.new("L", (width * times, height * times))
    draw = ImageDraw.Draw(canvas)
    for outline, inside in [(corners, 255), *((hole, 0) for hole in holes)]:
        check_corners(outline)
        if len(outline) >= 6:
            points = zip(outline[::2], outline[1::2], strict=True)
            draw.polygon([(x * times - 0.5, y * times - 0.5) for x, y in points], fill=inside)
    return encode_part(np.asarray(canvas.reduce(times)) >= 128, 0, 0, *size)


FORMAT = Format("Supervisely", "`size` and `objects`", _recognises, _entries, _parse, one_image=True)
