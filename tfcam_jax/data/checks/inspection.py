"""The checks that every list goes through before anything is trained on it, whoever's layout it has.

A problem names the list, the row and a remedy. All are collected. Files are opened in threads; what an earlier start
found of unchanged ones is taken as it is.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from tqdm import tqdm

from ...errors import did_you_mean, visible
from ..bounds import decoding, decoding_threads
from ..decode import decode_image, guessed_bits, turned_by
from ..human_maps import agreement, is_usable, mostly_marked
from ..listing import OF_READER, Listing, MapReader, MarksError, Row, reason
from ..map_files import MapFile
from ..paths import not_utf8, split_map_cell
from ..protocol import draw_splits
from ..source import SPLITS, DataError, shorten
from .declared_sizes import check_sizes
from .leakage import check_leakage
from .outcomes import (
    ABSENT,
    BITS_8,
    BITS_12,
    BITS_16,
    CONSTANT,
    EMPTY,
    MOSTLY_MARKED,
    NOTES,
    TURNED,
    USABLE,
    Outcome,
    Outcomes,
    content_of,
)

_MOST_REMARKS = 20  # that are logged; a report has all
_SHOWN = 3  # names of files after a note
_BITS = {8: BITS_8, 12: BITS_12, 16: BITS_16}


@dataclass(frozen=True)
class Inspection:
    """A listing after its files were opened.

    Attributes:
      listing: what was inspected.
      outcomes: one per row.
      problems: all that must be put right: of the lists, the rows, their files, and leakage between splits.
      unreadable: those of them that concern single rows' files, which `skip_unreadable` leaves out.
      checked: outcomes of sound rows, for the next opening.
      remarks: what was guessed, scaled or left out, and is no problem; what was done to files' values, a line a kind.
    """

    listing: Listing
    outcomes: tuple[Outcome, ...]
    problems: tuple[str, ...]
    unreadable: tuple[str, ...]
    checked: Outcomes
    remarks: tuple[str, ...] = ()


class Judgement(NamedTuple):
    """What is wrong with files, and what was done about them that is no problem."""

    problems: tuple[str, ...]
    remarks: tuple[str, ...]


def inspect(
    listing: Listing, known: Outcomes | None = None, progress: bool = True, closely: bool = False
) -> Inspection:
    """Checks the lists, opens every file, looks for leakage; raises nothing. Arguments as of `check_files`."""
    outcomes, checked = check_files(listing, known, progress, closely)
    return _judge(_with_drawn_splits(listing, outcomes), outcomes, checked)


def _with_drawn_splits(listing: Listing, outcomes: Sequence[Outcome]) -> Listing:
    """The listing with a split for each row; a class that is too small for that is a problem."""
    if listing.draw is None:
        return listing
    drawn = [(row, outcome) for row, outcome in zip(listing.rows, outcomes, strict=True) if not row.split]
    if not drawn:
        return listing
    rows, seen = zip(*drawn, strict=True)
    columns = [row.label for row in rows], [row.group for row in rows], [outcome.digest for outcome in seen]
    shares = listing.draw.shares
    splits = draw_splits(*columns, shares, listing.draw.seed)
    parts = Counter(label for label, _ in set(zip(columns[0], splits, strict=True)))
    told = f"has too few images or whole groups for a part in each of {', '.join(shares)}; add some"
    lacking = sorted(label for label, count in parts.items() if count < len(shares))
    hint = lambda label: did_you_mean(label, parts.keys() - {label})
    problems = [f"{rows[0].list}: class {label!r} {told}.{hint(label)}" for label in lacking]
    names = iter(splits)
    filled = tuple(row if row.split else replace(row, split=next(names)) for row in listing.rows)
    return replace(listing, rows=filled, problems=(*listing.problems, *problems))


def _judge(listing: Listing, outcomes: Sequence[Outcome], checked: Outcomes) -> Inspection:
    unreadable = tuple(problem for outcome in outcomes for problem in outcome.problems)
    found = judge_files(listing, outcomes)
    problems = (*listing.problems, *check_table(listing), *found.problems, *check_leakage(listing.rows, outcomes))
    return Inspection(listing, tuple(outcomes), problems, unreadable, checked, (*listing.notes, *found.remarks))


def judge_files(listing: Listing, outcomes: Sequence[Outcome]) -> Judgement:
    """What the files of a listing show together, an outcome for each row: those of single rows among it."""
    unreadable = (problem for outcome in outcomes for problem in outcome.problems)
    sizes = check_sizes(listing, outcomes)
    problems = (*unreadable, *sizes.problems, *check_bits_in_use(listing, outcomes))
    return Judgement(problems, (*sizes.remarks, *note_lines(listing.rows, outcomes)))


def log_remarks(name: str, remarks: Sequence[str]) -> None:
    """Tells a user of a run, under the data's name, what was guessed, scaled or left out in reading them."""
    for remark in shorten(remarks, _MOST_REMARKS):
        logging.warning("%s: %s", name, remark)


def usable_rows(inspection: Inspection, skip_unreadable: bool) -> tuple[Inspection, tuple[str, ...]]:
    """What to go on with, free of problems, and a line for each unreadable row left out.

    Raises DataError for any problem; with `skip_unreadable`, for any but those of single rows' files.
    """
    skipped = inspection.unreadable if skip_unreadable else ()
    if skipped:
        listing, outcomes = inspection.listing, inspection.outcomes
        rows = tuple(row for row, outcome in zip(listing.rows, outcomes, strict=True) if not outcome.problems)
        sound = tuple(outcome for outcome in outcomes if not outcome.problems)
        # Judged once more, as a split may have lost a class.
        inspection = _judge(replace(listing, rows=rows), sound, inspection.checked)
    if inspection.problems:
        raise DataError([*inspection.problems, *skipped])
    return inspection, skipped


def check_table(listing: Listing) -> list[str]:
    """Problems that show without opening an image: names of splits, labels, and what each split holds."""
    problems, doubtful = _check_spellings(listing)
    told = []
    for row in listing.rows:
        if row.split not in SPLITS:
            told.append((row, f"unknown split {row.split!r}; use one of {', '.join(SPLITS)}"))
        if not row.label:
            told.append((row, "no label given; name one or delete the row"))
        elif listing.class_names and row.label not in listing.class_names and row.label not in doubtful:
            hint = did_you_mean(row.label, listing.class_names) or " Correct it, or give the full list of labels."
            told.append((row, f"label {row.label!r} is none of {', '.join(listing.class_names)}.{hint}"))
    problems += _with_places(told)
    return [*problems, *(_check_splits(listing, doubtful) if listing.to_train else _check_evaluated(listing))]


def _check_evaluated(listing: Listing) -> list[str]:
    """A problem where no row could evaluate a network that is not trained here."""
    place = listing.rows[0].list if listing.rows else listing.name
    found = {row.split for row in listing.rows}
    return [] if found & {"val", "test"} else [f"{place}: no row has split test or val; evaluation needs one of them"]


def _check_splits(listing: Listing, doubtful: Collection[str]) -> list[str]:
    """A problem for each split that training can't do without, and for each class that one of them lacks."""
    # What is too few to draw has been told.
    problems = _check_validation(listing, doubtful) if listing.draw is None else []
    place = listing.rows[0].list if listing.rows else listing.name
    for split in SPLITS:
        found = {row.label for row in listing.rows if row.split == split}
        if not found and split != "test":
            problems.append(f"{place}: no row has split {split}; training needs train and val")
        if split == "train" and found:
            never = [name for name in listing.class_names if name not in found]
            problems += [f"{place}: label {name!r} never occurs in split train; add rows or drop it" for name in never]
        if len(found) == 1:
            problems.append(f"{place}: split {split} holds only class {found.pop()!r}; add rows of another class")
    return problems


def _with_places(told: Sequence[tuple[Row, str]]) -> list[str]:
    """What there is to tell of rows: a line for each that stands in a list, of others a line for each folder."""
    lines, folders = [], defaultdict(list)
    for row, what in told:
        if row.number:
            lines.append(f"{row.place}: {what}")
        else:
            folders[row.list, row.split, row.label, what].append(row.image)
    for (source, *_, what), images in folders.items():
        place = os.path.commonpath([os.path.dirname(image) for image in images]) or source
        lines.append(f"{place}: {len(images)} {'image' if len(images) == 1 else 'images'}: {what}")
    return lines


def _check_validation(listing: Listing, doubtful: Collection[str]) -> list[str]:
    """A problem for each class of training that validation lacks, but for one that is told of otherwise."""
    validated = {row.label for row in listing.rows if row.split == "val"}
    rows_of: dict[str, list[Row]] = defaultdict(list)
    for row in listing.rows:
        if row.split == "train" and row.label in listing.class_names and row.label not in doubtful:
            rows_of[row.label].append(row)
    problems = []
    for label in sorted(rows_of.keys() - validated) if len(validated) > 1 else ():
        own = rows_of[label]
        count = "1 image" if len(own) == 1 else f"{len(own)} images"
        first = f"({'' if len(own) == 1 else 'first '}{_spot(own[0])})"
        hint = did_you_mean(label, [name for name in listing.class_names if name != label])
        remedy = "Correct the label, or give val images of this class"
        problems.append(f"class {label!r} has {count} in train {first} and none in val.{hint} {remedy}")
    return problems


def _spot(row: Row) -> str:
    """Where a row is to be found: its line, or its file where it stands in no list."""
    return row.place if row.number else row.image


def _check_spellings(listing: Listing) -> tuple[list[str], set[str]]:
    """A problem for labels that differ in nothing a reader would see as another class; and those labels."""
    rows_of: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in listing.rows:
        plain = " ".join(unicodedata.normalize("NFKC", row.label).casefold().split())
        rows_of[plain][row.label].append(row)
    problems, doubtful = [], set()
    for spellings in rows_of.values():
        if len(spellings) > 1:
            told = [f"{label!r} ({len(rows)} rows, first {_spot(rows[0])})" for label, rows in spellings.items()]
            what = "differ in case, spaces or Unicode form only; write one of them throughout"
            problems.append(f"labels {' and '.join(told)} {what}")
            doubtful |= spellings.keys()
    return problems, doubtful


def check_bits_in_use(listing: Listing, outcomes: Sequence[Outcome]) -> list[str]:
    """A problem where images in files of 16 bits were read as of different depth, without anyone having said so."""
    if listing.reader.bits is not None:
        return []
    names = {
        bits: [row.image for row, outcome in zip(listing.rows, outcomes, strict=True) if note in outcome.notes]
        for bits, note in _BITS.items()
    }
    found = {bits: images for bits, images in names.items() if images}
    if len(found) < 2:
        return []
    told = [f"{len(images)} as if {bits} were in use (such as {images[0]})" for bits, images in found.items()]
    remedy = "give data.bits, say 12 or 16; or 0 to scale each by its own largest value"
    return [f"{listing.name}: images in files of 16 bits look of different depth, {' and '.join(told)}; {remedy}"]


def note_lines(rows: Sequence[Row], outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each kind of note on the rows' files: what it says, how many rows have it, and the first of them."""
    names: dict[str, list[str]] = defaultdict(list)
    for row, outcome in zip(rows, outcomes, strict=True):
        for note in outcome.notes:
            names[note].append(row.map if note.startswith("map_") else row.image)
    told = [(names[note], text) for note, text in NOTES.items() if text and note in names]
    return [f"{len(files)} {text}: {', '.join(shorten(files, _SHOWN))}" for files, text in told]


def check_files(
    listing: Listing, known: Outcomes | None = None, progress: bool = True, closely: bool = False
) -> tuple[list[Outcome], dict[str, Outcome]]:
    """Decodes every image and map, but those known. Returns an outcome per row, and those of sound rows by their keys.

    Args:
      listing: what to check.
      known: outcomes by `row_keys`, as an earlier call returned them.
      progress: show a bar if it takes more than a few seconds.
      closely: find what a report tells beyond what training needs; nothing is then taken from `known`.
    """
    keys = row_keys(listing)
    known = {} if closely else known or {}
    found = {i: known[key] for i, key in enumerate(keys) if key and key in known}
    waiting = [i for i in range(len(keys)) if i not in found]
    bar = {"total": len(waiting), "desc": f"checking {visible(listing.name)}", "delay": 3}
    bar["disable"] = None if progress else True  # None: shown in a terminal
    with ThreadPoolExecutor(decoding_threads()) as executor:
        checked = executor.map(lambda i: _check_in_turn(listing.reader, listing.rows[i], closely), waiting)
        found |= zip(waiting, list(tqdm(checked, unit=" images", **bar)), strict=True)
    outcomes = [found[i] for i in range(len(keys))]
    sound = {key: outcome for key, outcome in zip(keys, outcomes, strict=True) if key and not outcome.problems}
    return outcomes, sound


def row_keys(listing: Listing) -> list[str]:
    """What each row's outcome depends on, as a digest: its files by name, size and times, its marks, how maps are read.

    "" for a row that lacks a file. Of a table it is the row's own marks that count: what columns and categories made
    of them, and nothing of its other rows.
    """
    return keys_of(listing.reader, listing.rows)


def keys_of(reader: MapReader, rows: Sequence[Row]) -> list[str]:
    """`row_keys` of some rows that the reader reads."""
    options = (os.path.realpath(reader.folder), [getattr(reader, name) for name in OF_READER], reader.degrees)
    stat = cache(lambda path: _size_and_times(os.path.join(reader.folder, path)))
    keys = []
    for row in rows:
        maps = [path for _, path in split_map_cell(row.map)]
        files = [(name, stat(name)) for name in (row.image, *(path for path in maps if path not in reader.tables))]
        marks = [reader.tables[path].get(row.image) for path in maps if path in reader.tables]
        known = all(status for _, status in files)
        depends = repr((options, row.map, row.predicted, files, marks))
        keys.append(hashlib.sha256(depends.encode()).hexdigest()[:32] if known else "")
    return keys


def _size_and_times(path: str) -> tuple[int, int, int] | None:
    """Two times, as a file that takes another's name keeps the time when it was written."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # no such file; a name that no file can have
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _check_in_turn(reader: MapReader, row: Row, closely: bool) -> Outcome:
    with decoding():
        return check_row(reader, row, closely)


def check_row(reader: MapReader, row: Row, closely: bool) -> Outcome:
    """Decodes a row's image and maps."""
    if not row.image:
        return Outcome((f"{row.place}: no image given; name a file or delete the row",))
    if shown := not_utf8(", ".join(filter(None, (row.image, row.map, row.label, row.domain, row.group)))):
        return Outcome((f"{row.place}: {shown}: not UTF-8, which tables and pages are written in; rename it",))
    if row.looked:
        places = f"{', '.join(row.looked[:-1])} and {row.looked[-1]}"
        told = f"{row.image} does not exist; {reader.folder} holds none of {places}"
        return Outcome((f"{row.place}: image {told}; correct the path or delete the row",), missing=True)
    try:
        encoded = reader.open(row.image)
        image = decode_image(encoded, 3, reader.bits)
    except (OSError, ValueError) as error:
        told = f"{row.place}: image {_told(reader.folder, row, row.image, error)}"
        return Outcome((told,), missing=isinstance(error, FileNotFoundError))
    digest = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
    bits = 0 if reader.bits else guessed_bits(encoded)
    content, noted = content_of(encoded), (_BITS[bits],) if bits else ()
    seen = Outcome(digest=digest, size=image.shape[:2], notes=noted, image_content=content)
    if closely:
        from .near_duplicates import perceptual_hash, thumbnail  # with SciPy, which training has no need of here

        seen = replace(seen, hash=perceptual_hash(image), thumbnail=thumbnail(image))
    contents: dict[str, str] = {}

    def read(path: str) -> bytes:
        content = reader.open(path)
        contents[path] = content_of(content)
        return content

    try:
        maps = reader.annotators(row, *seen.size, read)
    except (OSError, ValueError) as error:
        return replace(seen, problems=(f"{row.place}: map {_told(reader.folder, row, row.map, error)}",))
    turned = turned_by(encoded) if maps else 1
    if misfit := _misfit(row, seen.size, maps, turned):
        return replace(seen, problems=(f"{row.place}: {misfit}",))
    values = {name: each.values for name, each in maps.items()}
    notes = {note for each in maps.values() for note in each.notes}
    notes |= {MOSTLY_MARKED} if any(map(mostly_marked, values.values())) else set()
    notes |= {TURNED} if turned > 1 else set()
    kind = kind_of_map(reader.joined(row, maps))
    seen = replace(seen, map=kind, notes=(*seen.notes, *sorted(notes)), map_content=_map_content(reader, row, contents))
    return replace(seen, annotators=len(maps), agreement=agreement([*values.values()])) if closely else seen


def _map_content(reader: MapReader, row: Row, contents: Mapping[str, str]) -> str:
    """What the annotators of a row left, in the order of its cell: of files `contents`, of tables the marks.

    Neither a file's name nor its place makes a difference.
    """
    parts = []
    for name, path in split_map_cell(row.map):
        marks = reader.tables[path].get(row.image, {}) if path in reader.tables else {}
        # What an annotator did not use is left out: a later version may know more kinds of marks.
        used = {each: sorted((k, v) for k, v in vars(own).items() if v) for each, own in marks.items()}
        parts.append((name, contents.get(path, ""), sorted(used.items())))
    return content_of(repr(parts).encode()) if parts else ""


def _misfit(row: Row, size: tuple[int, int], maps: Mapping[str, MapFile], turned: int) -> str:
    """What to say where a map has another aspect ratio than its image; "" where all fit."""
    height, width = size
    for h, w in (each.values.shape for each in maps.values()):
        if abs(h * width - w * height) >= max(height, width):  # more than sides rounded to whole pixels
            remedy = "a map must cover the whole image; crop or export it again"
            if turned >= 5 and abs(h * height - w * width) < max(height, width):
                told = "it was drawn on the image as stored, but viewers turn that by its EXIF orientation"
                remedy = f"{told} {turned}; turn the map alike, or save both without orientation"
            return f"map {row.map} is {w} x {h}, its image {row.image} {width} x {height}; {remedy}"
    return ""


def kind_of_map(saliency: np.ndarray | None) -> str:
    """What a combined map is worth, in the words of `Outcome.map`: constant is what `is_usable` finds no use for."""
    if saliency is None:
        return ABSENT
    if not saliency.max() > 0:
        return EMPTY
    return USABLE if is_usable(saliency) else CONSTANT


def _told(folder: Path, row: Row, name: str, error: Exception) -> str:
    if str(error).startswith(name):
        return str(error)
    otherwise = "delete the row" if row.number else "take it out of the folder"
    if isinstance(error, MarksError):
        return f"{name}: {error}; correct or delete the entry"
    if isinstance(error, FileNotFoundError):
        return f"{name} does not exist in {folder}; correct the path or {otherwise}"
    return f"{name}: {reason(folder / name, error)}; replace the file or {otherwise}"
