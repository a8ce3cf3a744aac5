"""Which entry of a table belongs to which image.

Names are compared without what systems and tools change: separators, Unicode form, surrounding spaces, folders in
front; a nearest folder that is another one does, where the table's folders are the images'. What two images could
claim goes to neither.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from urllib.parse import unquote, urlsplit

from .marks import Collected, Marks
from .table import Table, collected_marks, named

# Before a name, from Label Studio's uploads; after it, from Roboflow.
_UPLOADED = re.compile(r"[0-9a-f]{4,32}(?:-|__)(.+)")
_ROBOFLOW = re.compile(r"(.+)_(png|jpe?g|tiff?|bmp|webp)\.rf\.\w+\.\w+", re.IGNORECASE)
_SUFFIX = re.compile(r"\.(png|jpe?g|tiff?|bmp|gif|webp|dcm|dicom|jp2|pgm|ppm|npy)$", re.IGNORECASE)
_MOST_JOINED = 4  # parts of a path in a name such as patient1_study1_view1
_WHOLE = 10**6  # agreement of equal paths


@dataclass
class Found:
    """What belongs together.

    Attributes:
      names: image to the name of its entry.
      clashes: why some got none: images or entries that can't be told apart.
      guessed: image and entry whose names differ in more than what systems change.
      elsewhere: image and entry whose files have one name and lie in folders of different ones.
    """

    names: dict[str, str] = field(default_factory=dict)
    clashes: list[str] = field(default_factory=list)
    guessed: list[tuple[str, str]] = field(default_factory=list)
    elsewhere: list[tuple[str, str]] = field(default_factory=list)


@cache
def path_parts(name: str) -> tuple[str, ...]:
    """Folders and file name, as all systems would write them."""
    name = unicodedata.normalize("NFC", name).strip().replace("\\", "/")
    if "?d=" in name:  # Label Studio's local files
        name = unquote(name.split("?d=", 1)[1])
    elif "://" in name:
        name = unquote(urlsplit(name).path)
    return tuple(part for part in name.split("/") if part not in ("", ".")) or ("",)


def _bare(name: str) -> str:
    return _SUFFIX.sub("", name)


def _original(name: str) -> str:
    """A name without what tools put around it."""
    if found := _ROBOFLOW.fullmatch(name):
        return f"{found[1]}.{found[2]}"
    found = _UPLOADED.fullmatch(name)
    return found[1] if found else name


_Forms = Callable[[tuple[str, ...]], set[str]]
_Level = tuple[_Forms, _Forms]

# Forms that an entry's name and an image's path are compared in, from the strictest on.
_LEVELS: tuple[_Level, ...] = (
    (lambda name: {name[-1]}, lambda path: {path[-1]}),
    (
        lambda name: {name[-1]},
        lambda path: {_bare("_".join(path[-count:])) for count in range(1, _MOST_JOINED + 1)},
    ),
    (lambda name: {_original(name[-1])} - {name[-1]}, lambda path: {path[-1], _bare(path[-1])}),
    (
        lambda name: {_bare(each).casefold() for each in (name[-1], _original(name[-1]))},
        lambda path: {_bare(path[-1]).casefold()},
    ),
)
_FIRST_GUESSED = 2
_LOOSE = len(_LEVELS) - 1


def match_names(names: Iterable[str], images: Sequence[str]) -> Found:
    """Pairs names of a table with images' paths, both without repeats as `path_parts` sees them.

    Where the nearest folder of any entry is that of an image of its name, folders tell images apart, and an entry of
    another folder is none of theirs. Where no folders agree they are another machine's, and names alone count.
    """
    found, open_images, free = Found(), dict.fromkeys(images), dict.fromkeys(names)
    by_folder = any(_nearest(*pair) for level in _LEVELS for pair in _pairs(level, open_images, free))
    for number, level in enumerate(_LEVELS):
        pairs = _pairs(level, open_images, free)
        if by_folder:
            pairs = [pair for pair in pairs if _nearest(*pair) is not False]
        for image, name in _settle(pairs, found, tell=number < _LOOSE):
            found.names[image] = name
            if number >= _FIRST_GUESSED:
                found.guessed.append((image, name))
            elif _nearest(image, name) is False:
                found.elsewhere.append((image, name))
        taken = {*found.names.values()}
        open_images = {image: None for image in open_images if image not in found.names}
        free = {name: None for name in free if name not in taken}
    return found


def _pairs(level: _Level, images: Iterable[str], names: Iterable[str]) -> list[tuple[str, str]]:
    """Images and names that have a form in common."""
    of_name, of_image = level
    with_form = defaultdict(list)
    for name in names:
        for form in of_name(path_parts(name)):
            with_form[form].append(name)
    return [
        (image, name)
        for image in images
        for name in dict.fromkeys(each for form in of_image(path_parts(image)) for each in with_form[form])
    ]


def _nearest(image: str, name: str) -> bool | None:
    """Whether the folders that the files lie in have one name; None if one names no folder."""
    one, other = path_parts(image), path_parts(name)
    return one[-2].casefold() == other[-2].casefold() if min(len(one), len(other)) > 1 else None


def _settle(pairs: Sequence[tuple[str, str]], found: Found, tell: bool) -> list[tuple[str, str]]:
    """Of pairs that may belong together those that do: the longest agreeing paths first, and only one to one."""
    by_depth = defaultdict(list)
    for image, name in pairs:
        by_depth[_agreement(path_parts(image), path_parts(name))].append((image, name))
    settled, gone = [], set()
    for depth in sorted(by_depth, reverse=True):
        rest = [(image, name) for image, name in by_depth[depth] if ("", image) not in gone and (name,) not in gone]
        names, images = defaultdict(list), defaultdict(list)
        for image, name in rest:
            names[image].append(name)
            images[name].append(image)
        for image, name in rest:
            if len(names[image]) == 1 and len(images[name]) == 1:
                settled.append((image, name))
            gone |= {("", image), (name,)}
        if tell:
            remedy = "write longer paths there that tell them apart"
            found.clashes += [
                f"entry {name!r} may be that of {named(own)}; {remedy}" for name, own in images.items() if len(own) > 1
            ]
            found.clashes += [
                f"image {image} may be {named(own)}; {remedy}"
                for image, own in names.items()
                if len(own) > 1 and all(len(images[name]) == 1 for name in own)
            ]
    return settled


def _agreement(one: Sequence[str], other: Sequence[str]) -> int:
    """How many folders agree, from the last one on."""
    if tuple(one) == tuple(other):
        return _WHOLE
    pairs = zip(reversed(one[:-1]), reversed(other[:-1]), strict=False)
    return next((count for count, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)) - 1)


@dataclass(frozen=True)
class Assigned:
    """A table's marks by image, problems, and remarks of what is no problem."""

    marks: Mapping[str, Mapping[str, Marks]]
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def assign(table: Table, images: Sequence[str], path: str) -> Assigned:
    """Gives the images that name a table what it says of each.

    Args:
      table: as read.
      images: their paths, each once.
      path: of the table, for what is told.
    """
    if not table.marks:
        return Assigned({}, (f"{path}: holds no entry; give the file that has the marks",), table.remarks)
    if set(table.marks) == {""}:
        if len(images) == 1:
            return Assigned({images[0]: table.marks[""]}, (), table.remarks)
        what = f"is about one image and doesn't say which, but {len(images)} rows name it: {named(images)}"
        return Assigned({}, (f"{path}: {what}; give each its own, or a column `image`",), table.remarks)
    entries, problems = _by_path(table, path)
    found = match_names(entries, images)
    if not found.names and not found.clashes:
        has, want = named([*map(repr, entries)]), named([*map(repr, images)])
        what = f"none of its {len(entries)} entries ({has}) is of the {len(images)} images that name it ({want})"
        return Assigned({}, (*problems, f"{path}: {what}; correct the names, or data.maps.columns"), table.remarks)
    problems += [f"{path}: {clash}" for clash in found.clashes]
    remarks = [*table.remarks, *_tell(found, entries, images, path)]
    return Assigned({image: entries[name] for image, name in found.names.items()}, tuple(problems), tuple(remarks))


def _by_path(table: Table, path: str) -> tuple[dict[str, dict[str, Marks]], list[str]]:
    """A table's marks with names that are one path joined, and a problem where they can't be."""
    first: dict[tuple[str, ...], str] = {}
    joined: dict[str, dict[str, Collected]] = defaultdict(lambda: defaultdict(Collected))
    problems = []
    for name, annotators in table.marks.items():
        own = joined[first.setdefault(path_parts(name), name)]
        for annotator, marks in annotators.items():
            try:
                own[annotator].add(marks)
            except ValueError as error:
                problems.append(f"{path}, {name}: {error}")
    return collected_marks(joined), problems


def _tell(found: Found, entries: Mapping[str, object], images: Sequence[str], path: str) -> list[str]:
    remarks = []
    if found.guessed:
        pairs = named([f"{name} for {image}" for image, name in found.guessed])
        remarks.append(f"{path}: {len(found.guessed)} entries found by a name that is nearly the image's: {pairs}")
    if found.elsewhere:
        pairs = named([f"{name} for {image}" for image, name in found.elsewhere])
        what = f"{len(found.elsewhere)} entries found by the file's name alone, as no entry's folder is its image's"
        remarks.append(f"{path}: {what}: {pairs}")
    if without := [image for image in images if image not in found.names]:
        remarks.append(f"{path}: {len(without)} of {len(images)} images that name it have no entry: {named(without)}")
    taken = set(found.names.values())
    if spare := [name for name in entries if name not in taken]:
        remarks.append(f"{path}: {len(spare)} of {len(entries)} entries belong to no image: {named(spare)}")
    return remarks
