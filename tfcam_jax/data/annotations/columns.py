"""Columns and keys of tables that no tool prescribes: the names that people give them, and the marks that they make."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from ...errors import ConfigError, did_you_mean
from .marks import SHARES, Marks, percent
from .table import Entry, declared, to_number, to_numbers

# What a column means, by the names that it goes by: lower case, with "_" for other signs.
NAMES: Mapping[str, tuple[str, ...]] = {
    "image": (
        *("image", "image_id", "image_name", "image_path", "image_file", "image_filename", "image_index", "imageid"),
        *("filename", "file_name", "file", "filepath", "file_path", "path", "img", "img_name", "img_path", "stimulus"),
        *("imagename", "dicom_id"),
    ),
    "annotator": ("annotator", "annotator_id", "rad_id", "reader", "rater", "observer", "participant", "worker_id"),
    "category": (
        *("category", "category_name", "class", "class_name", "classname", "label", "label_name", "labelname"),
        *("finding", "finding_label", "categories", "labels"),
    ),
    "x": ("x", "left", "bbox_x", "x_left", "fix_x", "fixation_x", "gaze_x"),
    "y": ("y", "top", "bbox_y", "y_top", "fix_y", "fixation_y", "gaze_y"),
    "width": ("width", "w", "bbox_width", "bbox_w", "box_width"),
    "height": ("height", "h", "bbox_height", "bbox_h", "box_height"),
    "x_min": ("x_min", "xmin", "x1", "xtl", "x0", "bbox_x1", "bbox_xmin"),
    "y_min": ("y_min", "ymin", "y1", "ytl", "y0", "bbox_y1", "bbox_ymin"),
    "x_max": ("x_max", "xmax", "x2", "xbr", "right", "bbox_x2", "bbox_xmax"),
    "y_max": ("y_max", "ymax", "y2", "ybr", "bottom", "bbox_y2", "bbox_ymax"),
    "x_center": ("x_center", "center_x", "xcenter", "xc", "cx", "x_centre", "centre_x"),
    "y_center": ("y_center", "center_y", "ycenter", "yc", "cy", "y_centre", "centre_y"),
    "box": ("bbox", "box"),
    "polygon": ("polygon",),
    "duration": ("duration", "duration_ms", "duration_s", "fixation_duration", "dur", "fpogd"),
    "unit": ("unit", "units"),
    "image_width": ("image_width", "img_width", "img_w", "imagewidth", "original_width"),
    "image_height": ("image_height", "img_height", "img_h", "imageheight", "original_height"),
}
# What tells nothing of the marks, as tools and people write it beside them.
IGNORED = frozenset(
    {"", "unnamed_0", "id", "index", "class_id", "category_id", "annotation_id", "comment", "comments", "note", "notes"}
    | {"source", "area", "iscrowd", "date", "created_at", "updated_at", "split"}
)
_WKT = re.compile(r"\s*([a-z]+)\s*(\(.*\))\s*", re.IGNORECASE | re.DOTALL)
_MEANING = {name: meaning for meaning, names in NAMES.items() for name in names}
_GEOMETRY = ("polygon", "box", "x", "y", "width", "height", "x_min", "y_min", "x_max", "y_max", "x_center", "y_center")
_UNITS = {"": "", "pixel": "", "pixels": "", "px": "", "percent": "percent", "%": "percent"}
_UNITS |= dict.fromkeys(("share", "shares", "normalized", "normalised", "relative", "fraction"), "shares")


def check_columns(columns: Mapping[str, str]) -> None:
    """Raises ConfigError for a meaning that no column has."""
    if unknown := [name for name in columns if name not in NAMES]:
        hint = did_you_mean(unknown[0], NAMES) or f" Known are {', '.join(NAMES)}."
        raise ConfigError(f"data.maps.columns.{unknown[0]}: no such column.{hint}")


def plain(name: str) -> str:
    """A column's name in lower case, with "_" for signs."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def find_columns(header: Collection[str], columns: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Names in a file to what they mean, and what is wrong with them.

    `columns` gives names by their meaning where they are others than those known. Unknown ones are faults, as they may
    be what decides how the others are to be read.
    """
    faults = [
        f"no column {name!r} (data.maps.columns.{meaning}); found {', '.join(header)}"
        for meaning, name in columns.items()
        if name not in header
    ]
    meanings = {name: meaning for meaning, name in columns.items()}
    unknown = []
    for name in header:
        meaning = _MEANING.get(plain(name))
        if name in meanings or meaning in columns or plain(name) in IGNORED:
            continue
        if meaning is None:
            unknown.append(name)
        elif meaning in meanings.values():
            others = [other for other, known in meanings.items() if known == meaning]
            faults.append(f"{others[0]!r} and {name!r} are both {meaning}; choose by data.maps.columns.{meaning}")
        else:
            meanings[name] = meaning
    if unknown:
        what = f"unknown {', '.join(map(repr, unknown))} beside {', '.join(map(repr, meanings)) or 'nothing known'}"
        remedy = "delete it, or say what it is by data.maps.columns"
        faults.append(f"{what}; {remedy} (of {', '.join(NAMES)})")
    return meanings, faults


def has_marks(meanings: Collection[str]) -> bool:
    """Whether columns of these meanings can say where something is."""
    has = lambda *names: all(name in meanings for name in names)
    return (
        has("polygon") or has("box") or has("x", "y") or has("x_min", "y_min") or has("x_center", "y_center")
    )  # fmt: skip


def to_entry(cells: Mapping[str, Any]) -> Entry:
    """What a row says, its cells by their meaning. Raises ValueError where it can't be used."""
    category = str(cells.get("category", "") or "")
    marks, size = _shape(cells)
    unit = str(cells.get("unit", "") or "").strip().lower()
    if unit not in _UNITS:
        raise ValueError(f"unit is {unit!r}; use pixels, shares or percent")
    size = size or declared(cells.get("image_width"), cells.get("image_height"))
    if _UNITS[unit] == "percent":
        marks = percent(marks)
    else:
        size = SHARES if _UNITS[unit] else size
        marks = Marks(marks.boxes, marks.polygons, marks.masks, marks.fixations, size)
    who = str(cells.get("annotator", "") or "")
    return Entry(str(cells.get("image", "") or ""), marks, who, (category,) if category else ())


def _shape(cells: Mapping[str, Any]) -> tuple[Marks, tuple[float, float] | None]:
    """A row's marks, and the size that its width and height declare where they are not the box's."""
    given = lambda *names: all(cells.get(name) not in (None, "") for name in names)
    numbers = lambda *names: tuple(to_number(cells[name], name) for name in names)
    if given("polygon"):
        return Marks(polygons=(_numbers_in(cells["polygon"], "polygon"),)), None
    if given("box"):
        box = to_numbers(_numbers_in(cells["box"], "box"), "box", 4)
        return Marks(boxes=(box,)), declared(cells.get("width"), cells.get("height"))
    if given("x_center", "y_center", "width", "height"):
        x, y, width, height = numbers("x_center", "y_center", "width", "height")
        return Marks(boxes=((x - width / 2, y - height / 2, width, height),)), None
    corner = next((pair for pair in (("x_min", "y_min"), ("x", "y")) if given(*pair)), None)
    if corner and given("x_max", "y_max"):
        left, top, right, bottom = numbers(*corner, "x_max", "y_max")
        if right < left or bottom < top:
            raise ValueError(f"x_max {right:g} and y_max {bottom:g} must not be below {left:g} and {top:g}")
        box = left, top, right - left, bottom - top
        return Marks(boxes=(box,)), _beside_corners(cells, box)
    if corner and given("width", "height"):
        return Marks(boxes=(numbers(*corner, "width", "height"),)), None
    if given("x", "y") and not {"width", "height", "x_max", "y_max"} & cells.keys():
        duration = to_number(cells["duration"], "duration") if given("duration") else 1.0
        return Marks(fixations=((*numbers("x", "y"), duration),)), None
    partly = [name for name in _GEOMETRY if given(name)]
    beside = {"x_max", "box", "polygon"} & cells.keys()  # then width and height may be the image's
    if partly and not (beside and set(partly) <= {"width", "height"}):
        raise ValueError(f"incomplete: only {', '.join(partly)} given")
    return Marks(), declared(cells.get("width"), cells.get("height")) if partly else None


def _beside_corners(cells: Mapping[str, Any], box: tuple[float, ...]) -> tuple[float, float] | None:
    """What a width and height beside corners declare: nothing where they are the box's, else the image's size."""
    size = declared(cells.get("width"), cells.get("height"))
    if size is None or all(abs(a - b) <= 1 for a, b in zip(size, box[2:], strict=True)):
        return None
    if box[0] + box[2] <= size[0] + 1 and box[1] + box[3] <= size[1] + 1:
        return size
    raise ValueError(f"width {size[0]:g} and height {size[1]:g} are neither the box's nor those of an image around it")


def _numbers_in(value: Any, name: str) -> tuple[float, ...]:
    """Numbers of a list, of a list of points, or of text in whatever brackets, WKT's POLYGON among them."""
    if isinstance(value, str):
        if wkt := _WKT.fullmatch(value):
            if wkt[1].upper() != "POLYGON":
                raise ValueError(f"{name}: WKT's {wkt[1].upper()} is not read; give one POLYGON a row")
            if wkt[2].count("(") > 2:
                raise ValueError(f"{name}: a WKT polygon with holes is not read; give a mask, or its outline alone")
            value = wkt[2]
        value = [part for part in re.split(r"[\s,;\[\]()]+", value) if part]
    if isinstance(value, list | tuple) and value and all(isinstance(point, list | tuple) for point in value):
        return tuple(number for point in value for number in to_numbers(point, name, 2))
    return to_numbers(value, name) if len(value) != 0 else ()
