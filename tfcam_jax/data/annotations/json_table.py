"""JSON with an object per image and annotator, in people's own keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import did_you_mean
from .columns import IGNORED, NAMES, find_columns, plain, to_entry
from .marks import Collected, Marks
from .rle import read_runs
from .table import Entry, Format, is_records, to_number, to_numbers

# Lists of marks, by the names they go by.
_LISTS: Mapping[str, tuple[str, ...]] = {
    "boxes": ("boxes", "bboxes", "bbox", "box"),
    "polygons": ("polygons", "polygon", "segmentation"),
    "masks": ("masks", "mask", "rle", "rles"),
    "fixations": ("fixations", "fixation"),
}
_LIST = {name: kind for kind, names in _LISTS.items() for name in names}


def own_keys(columns: Mapping[str, str]) -> Format:
    """The format, with other names of keys by their meaning (`columns.NAMES`).

    A list of objects, each with `image` and any of `boxes` ([[x, y, width, height], ...]), `polygons`
    ([[x, y, x, y, ...], ...]), `masks` (COCO RLEs), `fixations` ([[x, y, duration], ...]), or the columns of
    `csv_table`; one mark may stand without its list. `annotator`, `category`, `unit`, `image_width` and `image_height`
    are optional. Instead of a list also an object of such objects by their images' names.
    """

    def recognises(content: Any) -> bool:
        objects = _objects(content)
        return is_records([each for _, each in objects]) and any(_knows(each, columns) for _, each in objects)

    def entries(content: Any) -> Iterator[tuple[str, Any]]:
        for place, each in _objects(content):
            for part in _by_category(each, columns) if isinstance(each, dict) else [each]:
                yield place, (part, columns)

    return Format(
        "a JSON list of marks", "a list of objects with `image`, and boxes, polygons, masks or fixations",
        recognises, entries, _parse, renamed=True,
    )  # fmt: skip


def _objects(content: Any) -> list[tuple[str, Any]]:
    """Place and object of each entry."""
    if isinstance(content, dict):
        if content and all(isinstance(each, dict) and not _image(each) for each in content.values()):
            return [(f"entry {name!r}", {"image": name, **each}) for name, each in content.items()]
        return [("entry 0", content)]
    return [(f"entry {number}", entry) for number, entry in enumerate(content)] if isinstance(content, list) else []


def _image(entry: Mapping[str, Any]) -> bool:
    return any(plain(str(name)) in NAMES["image"] for name in entry)


def _knows(entry: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    names = {plain(name) for name in entry}
    return _image(entry) or bool(columns) or any(_list_kind(name) for name in names)


def _by_category(entry: Mapping[str, Any], columns: Mapping[str, str]) -> list[Mapping[str, Any]]:
    """An object, or one for each of its marks where it names as many categories as it has marks."""
    if isinstance(entry.get("objects"), dict):  # metadata.jsonl of Hugging Face's image folders
        own = entry["objects"]
        entry = {key: value for key, value in entry.items() if key != "objects"} | {"boxes": own.get("bbox") or []}
        entry["categories"] = next((own[name] for name in ("categories", "category") if name in own), None)
    is_category = lambda name: plain(name) in NAMES["category"] or name == columns.get("category")
    categories = [name for name in entry if is_category(name)]
    lists = [name for name in entry if _list_kind(name)]
    if len(categories) == len(lists) == 1:
        (name,), (kind,) = categories, lists
        both = entry[name], entry[kind]
        if all(isinstance(each, list) for each in both) and len(both[0]) == len(both[1]) > 1:
            return [{**entry, name: category, kind: [mark]} for category, mark in zip(*both, strict=True)]
    return [entry]


def _list_kind(name: str) -> str | None:
    return _LIST.get(plain(name))


def _parse(part: Any) -> Entry:
    """What an object says. Raises ValueError or TypeError where it can't be used."""
    entry, columns = part
    if not isinstance(entry, dict):
        raise ValueError("must be an object with `image`")
    lists = {name: kind for name in entry if (kind := _list_kind(name)) and name not in columns.values()}
    meanings, faults = find_columns([name for name in entry if name not in lists], columns)
    unknown = [name for name in entry if name not in lists and name not in meanings and plain(name) not in IGNORED]
    if faults:
        known = (*_LIST, *NAMES)
        hints = [hint for name in unknown if (hint := did_you_mean(plain(name), known))]
        raise ValueError("; ".join(faults) + "".join(hints[:1]))
    own = {meanings[name]: value for name, value in entry.items() if name in meanings}
    if not isinstance(own.get("image"), str) or not own["image"]:
        raise ValueError("no image named")
    category = own.pop("category", None)
    categories = category if isinstance(category, list) else [category] if category not in (None, "") else []
    row = to_entry(own)
    marks = Collected()
    marks.add(Marks(size=row.marks.size))
    for name, kind in lists.items():
        marks.add(_listed(kind, entry[name], own))
    marks.add(row.marks)
    return Entry(row.image, marks.marks(), row.annotator, tuple(map(str, categories)))


def _listed(kind: str, value: Any, own: Mapping[str, Any]) -> Marks:
    """Marks of one list, in the unit that the object declares."""
    if value is None:
        return Marks()
    if not isinstance(value, list | dict):
        raise ValueError(f"{kind}: a {type(value).__name__} must be a list")
    if kind == "masks" or (isinstance(value, dict) and "counts" in value):
        masks = [value] if isinstance(value, dict) else value
        for mask in masks:
            read_runs(mask)
        return Marks(masks=tuple(masks))
    if isinstance(value, dict) or (value and not isinstance(value[0], list | tuple | dict)):
        value = [value]  # one mark without its list
    if kind == "polygons" and value and all(_is_point(each) for each in value):
        value = [value]  # one polygon of points
    meaning = "box" if kind == "boxes" else "polygon"
    shared = {name: own[name] for name in ("unit", "image_width", "image_height") if name in own}
    marks = Collected()
    for each in value:
        if kind == "fixations":
            x, y, *duration = to_numbers(list(each) + [1.0] * (len(each) == 2), "fixations", 3)
            marks.add(to_entry({"x": x, "y": y, "duration": duration[0], **shared}).marks)
        elif isinstance(each, dict):
            named_values, faults = find_columns(each, {})
            if faults:
                raise ValueError(f"{kind}: {'; '.join(faults)}")
            marks.add(to_entry({named_values[k]: to_number(v, k) for k, v in each.items()} | shared).marks)
        else:
            numbers = to_numbers(each, kind, 4) if kind == "boxes" else each
            marks.add(to_entry({meaning: numbers, **shared}).marks)
    return marks.marks()


def _is_point(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and not isinstance(value[0], list | tuple)
