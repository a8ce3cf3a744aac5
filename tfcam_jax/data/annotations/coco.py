"""COCO's JSON, which most tools export, and SALICON's, which has fixations in it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .marks import Marks, turned_box
from .rle import read_runs
from .table import Entry, Format, declared, named_class, to_number, to_numbers


def _recognises(content: Any) -> bool:
    objects = lambda part: isinstance(part, list) and all(isinstance(each, dict) for each in part)
    return isinstance(content, dict) and objects(content.get("images")) and objects(content.get("annotations"))


def _names(content: Mapping[str, Any]) -> dict[str, str]:
    """Category names by their ids, which are numbers or text."""
    listed = content.get("categories") or ()
    return {str(each.get("id")): str(each.get("name", each.get("id"))) for each in listed}


def _entries(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Annotations, each with its image and category; and images without any: somebody looked at them."""
    images = {str(image.get("id")): image for image in content["images"]}
    for key in ("id", "file_name"):  # A name that two folders have is not one image.
        twice = [value for value, count in Counter(image.get(key) for image in content["images"]).items() if count > 1]
        if twice:
            raise ValueError(f"{len(twice)} images share their {key} with another, as {twice[0]!r}; tell them apart")
    marked, names = {str(entry.get("image_id")) for entry in content["annotations"]}, _names(content)
    for identity, image in images.items():
        if identity not in marked:
            yield f"image {identity}", (image, None, ("", False))
    for number, entry in enumerate(content["annotations"]):
        category = entry.get("category_id")
        name = named_class(names, str(category)) if category is not None else ("", False)
        yield f"annotation {entry.get('id', number)}", (images.get(str(entry.get("image_id"))), entry, name)


def _parse(part: Any) -> Entry:
    """An annotation's outline; its box where it has none."""
    image, entry, (category, nameless) = part
    if image is None:
        raise ValueError(f"image_id {entry.get('image_id')!r} is not among its images")
    name, size = str(image.get("file_name") or ""), declared(image.get("width"), image.get("height"))
    if entry is None:
        return Entry(name, Marks(size=size))
    who = str(entry.get("annotator") or entry.get("worker_id") or "")
    if "fixations" in entry:  # SALICON: row and column, counted from 1
        points = [to_numbers(point, "fixations", 2) for point in entry["fixations"]]
        marks = Marks(fixations=tuple((column - 0.5, row - 0.5, 1.0) for row, column in points), size=size)
        return Entry(name, marks, who)
    marks = _outline(entry, size)
    if not marks:
        raise ValueError("marks nothing: neither `segmentation` nor `bbox`")
    return Entry(name, marks, who, (category,) if category else (), nameless=nameless)


def _outline(entry: Mapping[str, Any], size: tuple[float, float] | None) -> Marks:
    outline = entry.get("segmentation")
    if isinstance(outline, dict):
        outline = [outline]
    if isinstance(outline, list) and outline and isinstance(outline[0], int | float):  # VIA's
        outline = [outline]
    parts = [each for each in outline or () if each]
    masks = tuple(each for each in parts if isinstance(each, dict))
    for mask in masks:
        read_runs(mask)
    if parts:
        polygons = tuple(to_numbers(each, "segmentation") for each in parts if not isinstance(each, dict))
        return Marks(polygons=polygons, masks=masks, size=size)
    return _box(entry, size) if entry.get("bbox") else Marks()


def _box(entry: Mapping[str, Any], size: tuple[float, float] | None) -> Marks:
    """A box, turned about its centre where CVAT says so, in degrees, clockwise as it is seen."""
    box = to_numbers(entry["bbox"], "bbox", 4)
    attributes = entry.get("attributes")
    given = {**(attributes if isinstance(attributes, dict) else {}), **entry}.get("rotation")
    angle = math.radians(to_number(given or 0, "rotation"))
    if not angle:
        return Marks(boxes=(box,), size=size)
    left, top, width, height = box
    return Marks(
        polygons=(turned_box(left, top, width, height, angle, (left + width / 2, top + height / 2)),), size=size
    )


def _categories(content: Mapping[str, Any]) -> Iterable[str]:
    return _names(content).values()


FORMAT = Format("COCO or SALICON", "`images` and `annotations`", _recognises, _entries, _parse, _categories)


def _recognises_pathologies(content: Any) -> bool:
    return isinstance(content, dict) and any(_masks_of(each) or _contours_of(each) for each in content.values())


def _masks_of(entry: Any) -> list[tuple[str, Any]]:
    if not isinstance(entry, dict):
        return []
    is_mask = lambda each: isinstance(each, dict) and {"size", "counts"} <= each.keys()
    return [(name, each) for name, each in entry.items() if is_mask(each)]


def _contours_of(entry: Any) -> list[tuple[str, Any]]:
    if not (isinstance(entry, dict) and "img_size" in entry):
        return []
    return [(name, each) for name, each in entry.items() if name != "img_size" and isinstance(each, list)]


def _pathologies(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for image, entry in content.items():
        marked = _masks_of(entry) or _contours_of(entry)
        if not marked:
            yield f"image {image}", (image, "", None, None)
        for name, mask in marked:
            yield f"image {image}, {name}", (image, name, mask, entry.get("img_size"))


def _parse_pathology(part: Any) -> Entry:
    image, name, mask, size = part
    if mask is None:
        return Entry(image)
    if isinstance(mask, dict):
        _, _, runs = read_runs(mask)
        return Entry(image, Marks(masks=(mask,)) if len(runs) > 1 else Marks(), "", (name,))
    height, width = (to_number(side, "img_size") for side in size)
    polygons = tuple(tuple(v for point in each for v in to_numbers(point, name, 2)) for each in mask)
    return Entry(image, Marks(polygons=polygons, size=(width, height)), "", (name,))


CHEXLOCALIZE = Format(
    "CheXlocalize", "RLEs or contours by image and pathology",
    _recognises_pathologies, _pathologies, _parse_pathology,
)  # fmt: skip
