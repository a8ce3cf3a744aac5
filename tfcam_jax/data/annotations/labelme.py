"""LabelMe's JSON: one file an image."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..bounds import open_image
from .marks import Marks, ellipse
from .rle import encode_part
from .table import Entry, Format, declared, to_corners


def _recognises(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def _entries(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    size = declared(content.get("imageWidth"), content.get("imageHeight"))
    if not content["shapes"]:
        yield "shapes", (content["imagePath"], size, None)
    for number, shape in enumerate(content["shapes"]):
        yield f"shape {number} ({shape.get('label')})", (content["imagePath"], size, shape)


def _parse(part: Any) -> Entry:
    image, size, shape = part
    if shape is None:
        return Entry(image, Marks(size=size))
    kind = shape.get("shape_type") or "polygon"
    marks = _shape(kind, shape, size)
    category = str(shape.get("label") or "")
    return Entry(image, marks, "", (category,) if category else (), "" if marks else f"a {kind}")


def _shape(kind: str, shape: Mapping[str, Any], size: tuple[float, float] | None) -> Marks:
    corners = to_corners(shape["points"], "points")
    if kind == "rectangle" and len(corners) == 4:
        return Marks(boxes=(opposite(corners),), size=size)
    if kind in ("polygon", "rectangle", "rotation", "oriented_rectangle") and corners:
        return Marks(polygons=(corners,), size=size)
    if kind == "circle":
        x, y, edge_x, edge_y = corners
        radius = math.hypot(edge_x - x, edge_y - y)
        return Marks(polygons=(ellipse(x, y, radius, radius),), size=size)
    if kind == "mask":
        if size is None:
            raise ValueError("a mask needs imageWidth and imageHeight")
        left, top, _, _ = opposite(corners)
        mask = encode_part(bitmap(base64.b64decode(shape["mask"])), round(left), round(top), *size)
        return Marks(masks=(mask,), size=size)
    if kind not in ("point", "points", "line", "linestrip"):
        raise ValueError(f"shape_type {kind!r} is none that LabelMe has")
    return Marks()


def opposite(corners: tuple[float, ...]) -> tuple[float, ...]:
    """A box from any two opposite corners."""
    (x1, y1, x2, y2) = corners
    return min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1)


def bitmap(encoded: bytes) -> np.ndarray:
    """A mask from a small PNG: its alpha where it has one, otherwise what is not black."""
    try:
        image = open_image(encoded, ("PNG",))
        pixels = image.convert("RGBA").getchannel("A") if image.mode in ("RGBA", "LA") else image.convert("L")
        return np.asarray(pixels) > 0
    except Exception as error:  # Pillow's parsers raise whatever they stumble over.
        raise ValueError(f"a mask that is no PNG ({error})") from error


FORMAT = Format("LabelMe", "`shapes` and `imagePath`", _recognises, _entries, _parse)
