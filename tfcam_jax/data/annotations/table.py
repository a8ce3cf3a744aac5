"""A table of marks: what a file says of many images, whatever its format."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..source import DataError, shorten
from .marks import Collected, Marks, told_as_shares

# How many places a remark names.
_NAMED = 3
_LONGEST = 500  # characters of a reason
_TOLD = 80  # characters of a value that is none
# Of a coordinate or a duration: what is squared or added up must stay a number.
_LARGEST = 1e100


@dataclass(frozen=True)
class Entry:
    """What one place of a file says.

    Attributes:
      image: its name as the file has it; "" where the file is about one image and doesn't say which.
      marks: none where somebody looked and marked nothing.
      annotator: "" if not named.
      categories: what was marked, by name.
      unusable: a mark that encloses nothing, in words.
      nameless: the category is a number that the file's list of names lacks.
    """

    image: str
    marks: Marks = field(default_factory=Marks)
    annotator: str = ""
    categories: tuple[str, ...] = ()
    unusable: str = ""
    nameless: bool = False


@dataclass(frozen=True)
class Format:
    """A form that files have.

    Attributes:
      name: as people know it.
      looks_like: what it is recognised by, in words.
      recognises: whether a file's content has it; raises nothing.
      entries: the content's parts, each with its place in the file.
      parse: what a part says; raises ValueError, TypeError, KeyError, IndexError or AttributeError where it can't be
        used.
      categories: those that the content declares.
      one_image: the file is about one image, which its manifest row names.
      renamed: columns or keys may have other names.
      remarks: what the content holds and is not taken, or was guessed.
    """

    name: str
    looks_like: str
    recognises: Callable[[Any], bool]
    entries: Callable[[Any], Iterable[tuple[str, Any]]]
    parse: Callable[[Any], Entry]
    categories: Callable[[Any], Iterable[str]] = lambda content: ()
    one_image: bool = False
    renamed: bool = False
    remarks: Callable[[Any], Iterable[str]] = lambda content: ()


@dataclass(frozen=True)
class Table:
    """What a file says.

    Attributes:
      marks: image, by its name in the file ("" where it names none), to annotator to marks.
      categories: that the file knows.
      remarks: what was left out or guessed in reading it.
      renamed: columns or keys were read by the names that were asked for.
    """

    marks: Mapping[str, Mapping[str, Marks]] = field(default_factory=dict)
    categories: frozenset[str] = frozenset()
    remarks: tuple[str, ...] = ()
    renamed: bool = False


def read_format(form: Format, path: Path, content: Any, chosen: Sequence[str]) -> Table:
    """What the content of a file of that format says. Raises DataError with a line per problem, each with its place."""
    entries, problems, declared_names = [], [], frozenset()
    try:
        declared_names = frozenset(form.categories(content))
        for place, part in form.entries(content):
            try:
                entry = form.parse(part)
                if not (entry.image or form.one_image):
                    raise ValueError("no image named")
                if not all(isinstance(name, str) for name in (entry.image, entry.annotator, *entry.categories)):
                    raise ValueError("the name of an image, an annotator or a category is no text")
                entries.append((place, entry))
            except _MALFORMED as error:
                problems.append(f"{path}, {place}: {_reason(error)}")
    except _MALFORMED as error:
        of_format = "" if isinstance(error, ValueError) else f"not as {form.name} has it: "
        problems.append(f"{path}: {of_format}{_reason(error)}")
    if problems:
        raise DataError(problems)
    table = gather(path, entries, chosen)
    remarks = (*(f"{path}: {each}" for each in form.remarks(content)), *table.remarks)
    return replace(table, categories=table.categories | declared_names, remarks=remarks, renamed=form.renamed)


_MALFORMED = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError)


def _reason(error: Exception) -> str:
    told = str(error) if isinstance(error, ValueError) else f"malformed ({type(error).__name__}: {error})"
    return told if len(told) <= _LONGEST else f"{told[:_LONGEST]}..."


def gather(path: Path, entries: Sequence[tuple[str, Entry]], chosen: Sequence[str] = ()) -> Table:
    """Adds up entries, each with its place in the file, by image and annotator ("1" where none is named).

    Of `chosen` categories, where the file has categories at all; empty: all. What encloses nothing is left out beside
    marks of the same image and annotator. Raises DataError where there are none, and for other faults.
    """
    known = frozenset(name for _, entry in entries for name in entry.categories if entry.marks or not _is_none(name))
    parts: dict[str, dict[str, Collected]] = defaultdict(lambda: defaultdict(Collected))
    left_out: dict[tuple[str, str], list[str]] = defaultdict(list)
    problems = []
    for place, entry in entries:
        marks, unusable = _split(entry)
        if chosen and entry.nameless and not set(chosen) & set(entry.categories):
            what = f"class {entry.categories[0]!r} has no name in its list, so that data.maps.categories can't tell it"
            problems.append(f"{path}, {place}: {what}; add the name")
        if chosen and known and not set(chosen) & set(entry.categories):
            marks, unusable = Marks(size=marks.size), []
        annotator = entry.annotator or "1"
        try:
            parts[entry.image][annotator].add(marks)
        except ValueError as error:
            problems.append(f"{path}, {place}: {error}")
        left_out[entry.image, annotator] += [f"{place} ({what})" for what in unusable]
    table = collected_marks(parts)
    told = []
    for (image, annotator), places in left_out.items():
        if places and not table[image][annotator]:
            remedy = "encloses nothing; draw an outline there or delete it"
            problems += [f"{path}, {place}: {remedy}" for place in places]
        told += places
    if shares := told_as_shares(entry.marks for _, entry in entries):
        problems.append(f"{path}: {shares}")
    if problems:
        raise DataError(problems)
    remarks = [f"{path}: {len(told)} left out, as they enclose nothing: {named(told)}"] if told else []
    if nameless := [(place, entry.categories[0]) for place, entry in entries if entry.nameless]:
        classes = named(sorted({name for _, name in nameless}))
        remarks.append(f"{path}: {len(nameless)} marks are of a class without a name in its list: {classes}")
    return Table(table, known, tuple(remarks))


def collected_marks(parts: Mapping[str, Mapping[str, Collected]]) -> dict[str, dict[str, Marks]]:
    """The marks of each image and annotator."""
    return {image: {who: each.marks() for who, each in own.items()} for image, own in parts.items()}


def _is_none(category: str) -> bool:
    """Whether it says that nothing was found, as VinDr-CXR's rows without a box."""
    return category.casefold().replace("_", " ") in ("no finding", "no findings")


def _split(entry: Entry) -> tuple[Marks, list[str]]:
    """An entry's marks, and those that enclose nothing in words."""
    marks = entry.marks
    unusable = [entry.unusable] if entry.unusable else []
    unusable += [f"a polygon of {len(each) // 2} points" for each in marks.polygons if len(each) < 6]
    unusable += ["a box without extent" for box in marks.boxes if 0 in box[2:]]
    boxes = tuple(box for box in marks.boxes if 0 not in box[2:])
    return replace(marks, boxes=boxes, polygons=tuple(each for each in marks.polygons if len(each) >= 6)), unusable


def named(names: Sequence[str]) -> str:
    """The first few of some names."""
    return ", ".join(shorten(names, _NAMED))


def named_class(names: Mapping[str, str], number: str) -> tuple[str, bool]:
    """A class's name, which is its number where the list lacks it; and whether there is a list, and that lacks it."""
    return names.get(number) or number, bool(names) and not names.get(number)


def is_number(text: str) -> bool:
    """Whether a cell holds a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def to_number(value: Any, name: str) -> float:
    """A finite number; raises ValueError, with the name of what it is, for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not abs(number) <= _LARGEST or isinstance(value, bool):
        raise ValueError(f"{name} is {_short(value)}, not a number")
    return number


def _short(value: Any) -> str:
    """What a file says where something else should stand, however much it is."""
    text = (
        f"{type(value).__name__} of {len(value):,}"
        if isinstance(value, list | dict) and len(value) > 9
        else repr(value)
    )
    return text if len(text) <= _TOLD else f"{text[:_TOLD]}... ({len(text):,} characters)"


def to_numbers(values: Any, name: str, count: int | None = None) -> tuple[float, ...]:
    """Finite numbers of a list, as many as `count`; raises ValueError for anything else."""
    if not isinstance(values, list | tuple) or (count is not None and len(values) != count):
        raise ValueError(f"{name}: {_short(values)} must be a list of {count or 'x, y, x, y, ...'} numbers")
    if count is None and len(values) % 2:
        raise ValueError(f"{name}: {len(values)} numbers; x and y each")
    return tuple(to_number(value, name) for value in values)


def to_corners(points: Any, name: str) -> tuple[float, ...]:
    """x, y, x, y, ... of a list of [x, y]."""
    return tuple(value for point in points for value in to_numbers(point, name, 2))


def declared(width: Any, height: Any) -> tuple[float, float] | None:
    """A declared size; None where it is not given, or 0 as some tools write then."""
    size = [0.0 if side in (None, "") else to_number(side, "a size") for side in (width, height)]
    return (size[0], size[1]) if min(size) > 0 else None


def is_records(content: Any) -> bool:
    """Whether it is a list of objects, and not empty."""
    return isinstance(content, list) and bool(content) and all(isinstance(each, dict) for each in content)
