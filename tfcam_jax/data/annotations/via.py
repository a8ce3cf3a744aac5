"""VGG Image Annotator 2: projects, exports of annotations as JSON and CSV. MakeSense writes the same JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .csv_table import Lines, cells_of, with_columns
from .marks import Marks, ellipse
from .table import Entry, Format, to_number

_NO_AREA = ("point", "polyline", "line")


def _images(content: Any) -> Any:
    return content.get("_via_img_metadata", content) if isinstance(content, dict) else None


def _recognises(content: Any) -> bool:
    images = _images(content)
    return isinstance(images, dict) and bool(images) and all(
        isinstance(each, dict) and "filename" in each and "regions" in each for each in images.values()
    )  # fmt: skip


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    _check_names([each["filename"] for each in _images(content).values()])
    for key, image in _images(content).items():
        regions = image["regions"]
        regions = list(regions.values()) if isinstance(regions, dict) else regions
        if not regions:
            yield f"image {key}", (image["filename"], None, None)
        for number, region in enumerate(regions):
            shape, attributes = region["shape_attributes"], region.get("region_attributes")
            yield f"image {key}, region {number}", (image["filename"], shape, attributes)


def _check_names(names: Sequence[str]) -> None:
    """Raises ValueError where images of several sizes in bytes, which VIA tells them apart by, have one name."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{len(twice)} file names are those of several images, as {twice[0]!r}; tell them apart")


def _parse(part: Any) -> Entry:
    image, shape, attributes = part
    if not shape:
        return Entry(image)
    kind = shape["name"]
    marks = _shape(kind, shape)
    return Entry(image, marks, "", _categories(attributes or {}), "" if marks else f"a {kind}")


def _shape(kind: str, shape: Mapping[str, Any]) -> Marks:
    of = lambda *names: [to_number(shape[name], name) for name in names]
    if kind == "rect":
        return Marks(boxes=(tuple(of("x", "y", "width", "height")),))
    if kind == "polygon":
        pairs = zip(shape["all_points_x"], shape["all_points_y"], strict=True)
        return Marks(polygons=(tuple(to_number(value, "all_points") for pair in pairs for value in pair),))
    if kind == "circle":
        x, y, radius = of("cx", "cy", "r")
        return Marks(polygons=(ellipse(x, y, radius, radius),))
    if kind == "ellipse":
        angle = to_number(shape.get("theta") or 0, "theta")  # radians
        x, y, across, down = of("cx", "cy", "rx", "ry")
        return Marks(polygons=(ellipse(x, y, across, down, angle),))
    if kind not in _NO_AREA:
        raise ValueError(f"shape {kind!r} is none that VIA has")
    return Marks()


def _categories(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """Values of a region's attributes; of check boxes those that are set."""
    found = []
    for value in attributes.values():
        if isinstance(value, dict):
            found += [name for name, chosen in value.items() if chosen]
        elif value not in ("", None):
            found.append(str(value))
    return tuple(found)


FORMAT = Format("VIA 2", "images with `filename` and `regions`", _recognises, _entries, _parse)


def _rows(lines: Lines) -> Iterator[tuple[str, Sequence[Any]]]:
    rows = list(cells_of(lines))
    images = {(cells["filename"], cells.get("file_size")) for _, cells in rows}
    _check_names([name for name, _ in images])
    for place, cells in rows:
        texts = [cells.get(name) or "{}" for name in ("region_shape_attributes", "region_attributes")]
        yield place, (cells["filename"], *texts)


def _parse_row(part: Any) -> Entry:
    image, *texts = part
    return _parse((image, *map(_cell, texts)))


def _cell(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"{text!r} must be a JSON object")
    return value


CSV = Format(
    "VIA 2 (CSV)", "columns filename and region_shape_attributes",
    with_columns("filename", "region_shape_attributes"), _rows, _parse_row,
)  # fmt: skip
