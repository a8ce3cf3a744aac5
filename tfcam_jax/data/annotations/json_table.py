"""JSON with an object per image and annotator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .marks import Marks, to_number
from .rle import read_runs

WHAT = "a list of objects with `image`"


def fits(content: Any) -> bool:
    """Whether the content is of this format."""
    return isinstance(content, list)


def entries(content: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """The objects, each with its place."""
    return ((f"entry {number}", entry) for number, entry in enumerate(content))


def parse(entry: Any) -> tuple[str, str, Marks]:
    """Image, annotator ("" if not named) and marks of an object.

    It has `image`, optionally `annotator`, and any of `boxes` ([[x, y, width, height], ...]), `polygons`
    ([[x, y, x, y, ...], ...]), `masks` (COCO RLEs) and `fixations` ([[x, y, duration], ...]).

    Raises:
      ValueError, TypeError: anything else.
    """
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
