"""JSON with an object per image and annotator, and COCO's, whose objects say the same by other names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..source import DataError
from .marks import Marks, Table, gather, to_number
from .rle import read_runs


def read(path: Path) -> Table:
    """Reads a list of objects, or COCO's `images` and `annotations` with boxes, polygons or run-length encodings.

    An object has `image`, optionally `annotator`, and any of `boxes` ([[x, y, width, height], ...]), `polygons`
    ([[x, y, x, y, ...], ...]), `masks` (COCO RLEs) and `fixations` ([[x, y, duration], ...]).

    Raises DataError, with a line per problem, each with its entry, and OSError where there is no such file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError([f"{path}: not JSON ({error})"]) from error
    if isinstance(content, list):
        return gather(path, ((f"entry {number}", entry) for number, entry in enumerate(content)), _parse)
    objects = lambda part: isinstance(part, list) and all(isinstance(each, dict) for each in part)
    if isinstance(content, dict) and objects(content.get("images")) and objects(content.get("annotations")):
        return gather(path, _coco_entries(content), _parse_coco)
    raise DataError([f"{path}: must be COCO or a list of objects with `image`"])


def _parse(entry: Any) -> tuple[str, str, Marks]:
    """Image, annotator ("" if not named) and marks of an object. Raises ValueError or TypeError for anything else."""
    if not (isinstance(entry, dict) and isinstance(entry.get("image"), str)):
        raise ValueError("no image named")
    masks = tuple(entry.get("masks", ()))
    for mask in masks:
        read_runs(mask)
    marks = Marks(
        boxes=tuple(_numbers(box, "boxes", 4) for box in entry.get("boxes", ())),
        polygons=tuple(_numbers(corners, "polygons") for corners in entry.get("polygons", ())),
        masks=masks,
        fixations=tuple(_numbers(point, "fixations", 3) for point in entry.get("fixations", ())),
    )
    return entry["image"], str(entry.get("annotator") or ""), marks


def _numbers(values: Any, name: str, count: int | None = None) -> tuple[float, ...]:
    if not isinstance(values, list | tuple) or (count is not None and len(values) != count):
        raise ValueError(f"{name}: {values!r} must be a list of {count or 'x, y, x, y, ...'} numbers")
    return tuple(to_number(value, name) for value in values)


def _coco_entries(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Annotations, each with its place and its image's name; and images without any: somebody looked at them."""
    names = {image.get("id"): image.get("file_name") for image in content["images"]}
    marked = {entry.get("image_id") for entry in content["annotations"]}
    for identity, name in names.items():
        if identity not in marked:
            yield f"image {identity}", {"image": name}
    for number, entry in enumerate(content["annotations"]):
        yield f"annotation {number}", entry | {"image": names.get(entry.get("image_id"))}


def _parse_coco(entry: Mapping[str, Any]) -> tuple[str, str, Marks]:
    """As `_parse`. A box counts where there is no outline."""
    if entry["image"] is None and "image_id" in entry:
        raise ValueError(f"image_id {entry['image_id']!r} is not among its images")
    marks: dict[str, Any] = {}
    outline = entry.get("segmentation")
    if isinstance(outline, dict):
        marks["masks"] = [outline]
    elif outline:
        marks["polygons"] = outline
    elif entry.get("bbox"):
        marks["boxes"] = [entry["bbox"]]
    return _parse({"image": entry["image"], "annotator": entry.get("annotator"), **marks})
