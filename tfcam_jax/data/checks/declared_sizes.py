"""Marks against the images that they were made on: sizes that tables declare, and gaze beside the image."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from ..annotations.marks import Marks, declared_sizes, same_aspect, time_outside, told_size
from ..listing import Listing, Row
from .outcomes import Outcome

Annotators = Mapping[str, Marks]

# Of the time that fixations last: beyond this share of a table's, or of one image's, they are another picture's.
_MOST_OUTSIDE = 0.1
_MOST_OUTSIDE_IMAGE = 0.5


class Sizes(NamedTuple):
    """What is wrong with sizes, and what was done about them."""

    problems: tuple[str, ...]
    remarks: tuple[str, ...]


def check_sizes(listing: Listing, outcomes: Sequence[Outcome]) -> Sizes:
    """Compares tables with the sizes of images as they were found; an outcome for each row of the listing."""
    problems, remarks = [], []
    sizes = {row.image: outcome.size for row, outcome in zip(listing.rows, outcomes, strict=True) if outcome.digest}
    places = {row.image: row for row in reversed(listing.rows)}
    for path, own in _pooled(listing.reader.tables, sizes).items():
        remarks += _scaled(path, own, sizes)
        wrong, told = _outside(path, own, sizes, places)
        problems += wrong
        remarks += told
        if not (listing.reader.pixels_per_degree or listing.reader.degrees) and any(_resolutions(own)):
            what = "gives pixels per degree for each fixation, but data.maps.sigma counts in pixels"
            remarks.append(f"{path}: {what}; to have it in degrees, set data.maps.pixels_per_degree above 0")
    return Sizes(tuple(problems), tuple(remarks))


def _pooled(
    tables: Mapping[str, Mapping[str, Annotators]], sizes: Mapping[str, tuple[int, int]]
) -> Mapping[str, dict[str, Annotators]]:
    """Tables with the images that have a size; those of one image each, as many tools write them, together."""
    pooled: dict[str, dict[str, Annotators]] = defaultdict(dict)
    alone = sum(len(table) == 1 for table in tables.values())
    for path, table in tables.items():
        name = f"*{PurePosixPath(path).suffix}" if alone > 1 and len(table) == 1 else path
        pooled[name] |= {image: annotators for image, annotators in table.items() if image in sizes}
    return pooled


def _resolutions(table: Mapping[str, Annotators]) -> Iterator[bool]:
    return (len(each) > 3 for own in table.values() for marks in own.values() for each in marks.fixations)


def _scaled(path: str, table: Mapping[str, Annotators], sizes: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    kinds: Counter[tuple[str, str]] = Counter()
    for image, annotators in table.items():
        height, width = sizes[image]
        declared = {size for marks in annotators.values() for size in declared_sizes(marks)}
        others = [size for size in declared if size != (width, height) and same_aspect(size, (width, height))]
        if others:
            kinds[told_size(others[0]), told_size((width, height))] += 1
    if kinds:
        (size, own), _ = kinds.most_common(1)[0]
        more = f" (and {len(kinds) - 1} other pairs of sizes)" if len(kinds) > 1 else ""
        what = f"{kinds.total()} of {len(table)} images are declared in another size, such as {size} for {own}{more}"
        yield f"{path}: {what}: their marks were scaled"


def _outside(
    path: str,
    table: Mapping[str, Annotators],
    sizes: Mapping[str, tuple[int, int]],
    places: Mapping[str, Row],
) -> tuple[list[str], list[str]]:
    outside, total, alone = 0.0, 0.0, []
    for image, annotators in table.items():
        try:
            times = [time_outside(marks, *sizes[image]) for marks in annotators.values()]
        except ValueError:  # a declared size that is not the image's, which its row tells
            continue
        beside, whole = (sum(each) for each in zip(*times, strict=True))
        outside, total = outside + beside, total + whole
        if beside > _MOST_OUTSIDE_IMAGE * whole:
            alone.append(f"{places[image].place}: map {path}: {beside / whole:.0%} of the gaze on {image}")
    remedy = "lies outside the image, by time; are the coordinates those of another size, or of the screen? "
    remedy += "Convert them, or declare the size by image_width and image_height"
    if outside > _MOST_OUTSIDE * total:
        return [f"{path}: {outside / total:.0%} of the gaze {remedy}"], []
    what = "of the gaze lies outside the images, by time, and is left out"
    return [f"{each} {remedy}" for each in alone], [f"{path}: {outside / total:.1%} {what}"] if outside else []
