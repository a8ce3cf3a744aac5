"""COCO: `images` and `annotations` with boxes, polygons or run-length encodings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from . import json_table
from .marks import Marks

WHAT = "COCO"


def fits(content: Any) -> bool:
    """Whether the content is of this format."""
    objects = lambda part: isinstance(part, list) and all(isinstance(each, dict) for each in part)
    return isinstance(content, dict) and all(objects(content.get(name)) for name in ("images", "annotations"))


def entries(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Annotations, each with its place and its image's name; and images without any: somebody looked at them."""
    names = {image.get("id"): image.get("file_name") for image in content["images"]}
    marked = {entry.get("image_id") for entry in content["annotations"]}
    for identity, name in names.items():
        if identity not in marked:
            yield f"image {identity}", {"image": name}
    for number, entry in enumerate(content["annotations"]):
        yield f"annotation {number}", entry | {"image": names.get(entry.get("image_id"))}


def parse(entry: Mapping[str, Any]) -> tuple[str, str, Marks]:
    """As `json_table.parse`, which reads the same marks by other names. A box counts where there is no outline."""
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
    return json_table.parse({"image": entry["image"], "annotator": entry.get("annotator"), **marks})
