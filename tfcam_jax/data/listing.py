"""Rows of a list of images, and the checks that every list goes through, whoever's layout it has.

A row names files below a folder; a problem names the list, the row and a remedy. All problems are collected.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from .annotations import TABLE_SUFFIXES, Table, find_marks, read_picture, read_table, render
from .checks.near_duplicates import THUMBNAIL, perceptual_hash, thumbnail
from .decode import decode_image, decode_picture
from .human_maps import agreement, combine
from .source import SPLITS, DataError, Example, Records

ABSENT, EMPTY, CONSTANT, USABLE = "absent", "empty", "constant", "usable"


@dataclass(frozen=True)
class Row:
    """One image of a list.

    Attributes:
      list: the file that names it, or the folder that it was found in.
      number: its line in that file, a header being line 1; its place among the files found where there is no list.
      image: path below the listing's folder.
      map: what the annotators left: "" or nothing; a picture or table below the folder, or several, as in
        "anna=maps/anna/1.png|ben=maps/ben/1.png". Without names annotators are "1", "2", ...
    """

    list: str
    number: int
    split: str
    label: str
    image: str
    map: str = ""
    domain: str = ""
    group: str = ""

    @property
    def place(self) -> str:
        return f"{self.list}, row {self.number}"


@dataclass(frozen=True)
class MapReader:
    """Reads the human map of a row, whatever its form.

    Attributes:
      folder: what paths are relative to.
      combine: "mean", "majority" or an annotator's name, see `human_maps.combine`.
      sigma: of fixations, pixels of the image; in degrees of the visual field if `pixels_per_degree` is given.
      pixels_per_degree: of the image as it was shown; 0 means that sigma is in pixels.
      tables: path below the folder to what is in it, see `read_tables`.
    """

    folder: Path
    combine: str = "mean"
    sigma: float = 50.0
    pixels_per_degree: float = 0.0
    tables: Mapping[str, Table] = field(default_factory=dict)

    def __post_init__(self):
        if not (self.sigma > 0 and self.pixels_per_degree >= 0):
            raise ValueError(
                f"maps.sigma must be above 0 and maps.pixels_per_degree not negative; "
                f"got {self.sigma} and {self.pixels_per_degree}"
            )

    def open(self, path: str) -> bytes:
        """A file below the folder. Raises ValueError or OSError where there is none."""
        with open(os.path.join(self.folder, check_below(path)), "rb") as file:
            return file.read()

    def annotators(self, row: Row, height: int, width: int) -> dict[str, np.ndarray]:
        """Each annotator's map of a row's image, [h, w] float32; empty if nobody annotated it.

        Raises:
          ValueError, OSError: a file that is broken, missing or outside the folder; marks outside the image.
        """
        maps: dict[str, np.ndarray] = {}
        sigma = self.sigma * (self.pixels_per_degree or 1)
        for name, path in split_map_cell(row.map):
            if path in self.tables:
                marks = find_marks(self.tables[path], row.image)
                found = {annotator: render(own, height, width, sigma) for annotator, own in marks.items()}
                if name and len(found) == 1:
                    found = {name: next(iter(found.values()))}
            else:
                encoded = self.open(path)
                found = {name or str(len(maps) + 1): read_picture(encoded, os.path.splitext(path)[1])}
            for annotator, saliency in found.items():
                if annotator in maps:
                    raise ValueError(f"annotator {annotator} has two maps of this image; keep one or name them apart")
                maps[annotator] = saliency
        return maps

    def read(self, row: Row, height: int, width: int) -> Float[np.ndarray, "h w"] | None:
        """The combined map; None if nobody, or not the annotator asked for, annotated the image."""
        maps = self.annotators(row, height, width)
        return combine(maps, self.combine) if maps else None


@dataclass(frozen=True)
class Listing:
    """A data set as its owner's files describe it, before any image was opened.

    Attributes:
      name: for figures and tables.
      rows: in the order of the lists.
      class_names: position = class index.
      reader: of maps; its folder is what the rows' paths are relative to.
      problems: what was wrong with the lists themselves.
    """

    name: str
    rows: tuple[Row, ...]
    class_names: tuple[str, ...]
    reader: MapReader
    problems: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return self.reader.folder


@dataclass(frozen=True)
class Check:
    """What decoding a row's files showed.

    Attributes:
      problems: why the row can't be used.
      digest: identifies the image's pixels, "" if it can't be read.
      hash: alike for alike images, see `near_duplicates.perceptual_hash`.
      thumbnail: 16 x 16 grey values, to confirm that images with like hashes are alike.
      size: height and width, pixels.
      map: "absent", "empty" (all zero), "constant" or "usable".
      annotators: how many annotated the image.
      agreement: between them, see `human_maps.agreement`.
    """

    problems: tuple[str, ...]
    digest: str = ""
    hash: int = 0
    thumbnail: UInt8[np.ndarray, "16 16"] = field(default_factory=lambda: np.zeros((THUMBNAIL, THUMBNAIL), np.uint8))
    size: tuple[int, int] = (0, 0)
    map: str = ABSENT
    annotators: int = 0
    agreement: float | None = None


def split_map_cell(cell: str) -> list[tuple[str, str]]:
    """Annotator's name ("" if not given) and path of each part of a map cell."""
    parts = [part.strip() for part in cell.split("|") if part.strip()]
    return [(name.strip(), path.strip()) if path else ("", name) for name, _, path in (p.partition("=") for p in parts)]


def check_below(path: str) -> str:
    """The path itself, if it stays below the folder that it is relative to. Raises ValueError if it leaves it."""
    first, *others = path.replace("\\", "/").split("/")
    if (not first and path) or ":" in first or ".." in (first, *others):
        raise ValueError(f"{path} leaves the data folder; give a path below it")
    return path


def read_tables(folder: Path, rows: Iterable[Row]) -> tuple[dict[str, Table], list[str]]:
    """Reads the tables that map cells name, each once. Returns them by path, and the problems found."""
    tables: dict[str, Table] = {}
    problems: list[str] = []
    first = {path: row for row in reversed(list(rows)) for _, path in split_map_cell(row.map)}
    for path, row in first.items():
        if PurePosixPath(path).suffix.lower() not in TABLE_SUFFIXES:
            continue
        try:
            tables[path] = read_table(folder / check_below(path))
        except (OSError, ValueError) as error:
            tables[path] = {}  # Once told, not again for every row.
            problems += [f"{row.place}: map {path}: {line}" for line in _reason(folder / path, error).split("\n")]
    return tables, problems


def check_table(listing: Listing) -> list[str]:
    """Problems that show without opening an image: names of splits, labels, and what each split holds."""
    problems = []
    for row in listing.rows:
        if row.split not in SPLITS:
            problems.append(f"{row.place}: unknown split {row.split!r}; use one of {', '.join(SPLITS)}")
        if not row.label:
            problems.append(f"{row.place}: no label given; name one or delete the row")
        elif listing.class_names and row.label not in listing.class_names:
            known = f"none of {', '.join(listing.class_names)}"
            problems.append(f"{row.place}: label {row.label!r} is {known}; {_mend(row.label, listing.class_names)}")
    return problems + check_splits(listing.rows[0].list if listing.rows else listing.name, listing)


def check_splits(place: str, listing: Listing) -> list[str]:
    """Splits that are missing or hold one class only."""
    problems = []
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


def check_files(listing: Listing, progress: bool) -> list[Check]:
    """Decodes every image and map, in threads; one `Check` per row."""
    bar = tqdm(total=len(listing.rows), desc=f"checking {listing.name}", unit=" images", delay=3, disable=not progress)
    with bar, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as executor:
        checks = []
        for check in executor.map(lambda row: check_row(listing.reader, row), listing.rows):
            checks.append(check)
            bar.update()
    return checks


def check_row(reader: MapReader, row: Row) -> Check:
    """Decodes a row's image and maps."""
    if not row.image:
        return Check((f"{row.place}: no image given; name a file or delete the row",))
    try:
        image = decode_image(reader.open(row.image), 3)
    except (OSError, ValueError) as error:
        return Check((f"{row.place}: image {_told(reader.folder, row.image, error)}",))
    seen = {
        "digest": hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest(),
        "hash": perceptual_hash(image),
        "thumbnail": thumbnail(image),
        "size": image.shape[:2],
    }
    try:
        maps = reader.annotators(row, *image.shape[:2])
    except (OSError, ValueError) as error:
        return Check((f"{row.place}: map {_told(reader.folder, row.map, error)}",), **seen)
    wrong = [saliency for saliency in maps.values() if not _same_aspect(image.shape[:2], saliency.shape)]
    if wrong:
        size = lambda array: f"{array.shape[1]} x {array.shape[0]}"
        remedy = "a map must cover the whole image; crop or export it again"
        what = f"map {row.map} is {size(wrong[0])}, its image {row.image} {size(image)}; {remedy}"
        return Check((f"{row.place}: {what}",), **seen)
    combined = combine(maps, reader.combine) if maps else None
    return Check((), **seen, map=kind_of_map(combined), annotators=len(maps), agreement=agreement([*maps.values()]))


def kind_of_map(saliency: np.ndarray | None) -> str:
    """Absent, empty, constant or usable."""
    if saliency is None:
        return ABSENT
    if saliency.min() < saliency.max():
        return USABLE
    return CONSTANT if saliency.max() > 0 else EMPTY


def _told(folder: Path, name: str, error: Exception) -> str:
    if str(error).startswith(name):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return f"{name} does not exist in {folder}; mend the path or delete the row"
    return f"{name}: {_reason(folder / name, error)}; replace the file or delete the row"


def _reason(path: Path, error: Exception) -> str:
    archive = next((p for p in [path, *path.parents] if p.is_file()), None)
    if archive is not None and zipfile.is_zipfile(archive):
        return f"{archive} is a zip archive; unpack it"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return str(error)


def _same_aspect(image: Sequence[int], saliency: Sequence[int]) -> bool:
    """Equal but for the rounding of the map's sides to whole pixels."""
    return abs(saliency[0] * image[1] - saliency[1] * image[0]) < max(image)


def check_leakage(rows: Sequence[Row], checks: Sequence[Check]) -> list[str]:
    """Images (by path or by pixels) and groups that stand in two splits, images that have two labels."""
    named = [(row.image, row) for row in rows if row.image]
    pixels = [(check.digest, row) for row, check in zip(rows, checks, strict=True) if check.digest]
    grouped = [(row.group, row) for row in rows if row.group]
    problems = []
    for first, other in _conflicts([*named, *pixels], "split"):
        what = f"image {other.image} is also in split {first.split} ({_where(first, other)}: {first.image})"
        problems.append(f"{other.place}: {what}; keep it in one split only")
    for first, other in _conflicts([*named, *pixels], "label"):
        what = f"image {other.image} has label {other.label!r} here and {first.label!r} in {_where(first, other)}"
        problems.append(f"{other.place}: {what}; keep one of them")
    for first, other in _conflicts(grouped, "split"):
        what = f"group {other.group} is also in split {first.split} ({_where(first, other)})"
        problems.append(f"{other.place}: {what}; keep a group in one split")
    return problems


def _where(first: Row, other: Row) -> str:
    return f"row {first.number}" if first.list == other.list else first.place


def _conflicts(keyed: Sequence[tuple[str, Row]], column: str) -> list[tuple[Row, Row]]:
    """Pairs of a row with the first row of the same key where `column` differs; each row once, in their order."""
    first: dict[str, Row] = {}
    pairs: dict[tuple[str, int], tuple[Row, Row]] = {}
    for key, row in keyed:
        before = first.setdefault(key, row)
        if getattr(before, column) != getattr(row, column):
            pairs.setdefault((row.list, row.number), (before, row))
    return [pairs[key] for key in sorted(pairs)]


@dataclass(frozen=True)
class Inspection:
    """A listing after its files were opened.

    Attributes:
      listing: what was inspected.
      checks: one per row.
      problems: all that must be mended: of the lists, the rows, their files, and leakage between splits.
      unreadable: those of them that concern single rows' files, which `skip_unreadable` leaves out.
    """

    listing: Listing
    checks: tuple[Check, ...]
    problems: tuple[str, ...]
    unreadable: tuple[str, ...]


def inspect(listing: Listing, progress: bool = True) -> Inspection:
    """Checks the lists, opens every file, looks for leakage; raises nothing."""
    checks = check_files(listing, progress)
    unreadable = [problem for check in checks for problem in check.problems]
    problems = [*listing.problems, *check_table(listing), *unreadable, *check_leakage(listing.rows, checks)]
    return Inspection(listing, tuple(checks), tuple(problems), tuple(unreadable))


def usable_rows(inspection: Inspection, skip_unreadable: bool) -> tuple[Listing, list[Check], tuple[str, ...]]:
    """The rows to go on with.

    Returns:
      The listing without unreadable rows, the checks of what is left, and a line for each row left out.

    Raises:
      DataError: any problem; with `skip_unreadable`, any but those of single rows' files.
    """
    if not skip_unreadable or not inspection.unreadable:
        if inspection.problems:
            raise DataError(inspection.problems)
        return inspection.listing, list(inspection.checks), ()
    kept = [i for i, check in enumerate(inspection.checks) if not check.problems]
    whole = inspection.listing
    listing = Listing(whole.name, tuple(whole.rows[i] for i in kept), whole.class_names, whole.reader, whole.problems)
    checks = [inspection.checks[i] for i in kept]
    # Once more, as a split may have lost a class.
    problems = [*listing.problems, *check_table(listing), *check_leakage(listing.rows, checks)]
    if problems:
        raise DataError([*problems, *inspection.unreadable])
    return listing, checks, inspection.unreadable


@dataclass(frozen=True)
class RowsSource:
    """One split of a listing; files are read when asked for."""

    rows: tuple[Row, ...]
    reader: MapReader
    channels: int
    records: Records

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        row = self.rows[index]
        try:
            picture = decode_picture(self.reader.open(row.image), self.channels)
            size = (picture.height, picture.width)
            return Example(picture, self.reader.read(row, *size) if self.records.has_map[index] else None)
        except (OSError, ValueError) as error:
            path = self.reader.folder / row.image
            raise DataError([f"{path}: {error}; it was sound when the run started"]) from error


def rows_sources(listing: Listing, checks: Sequence[Check], channels: int) -> dict[str, RowsSource]:
    """A source per split that has rows."""
    sources = {}
    for split in SPLITS:
        members = [(row, check) for row, check in zip(listing.rows, checks, strict=True) if row.split == split]
        if members:
            rows, split_checks = zip(*members, strict=True)
            records = rows_records(rows, split_checks, listing.class_names)
            sources[split] = RowsSource(rows, listing.reader, channels, records)
    return sources


def rows_records(rows: Sequence[Row], checks: Sequence[Check], class_names: Sequence[str]) -> Records:
    """The columns of some rows."""
    return Records(
        ids=tuple(row.image for row in rows),
        labels=np.array([class_names.index(row.label) for row in rows], np.int32),
        domains=tuple(row.domain for row in rows),
        groups=tuple(row.group for row in rows),
        has_map=np.array([check.map == USABLE for check in checks]),
        digests=tuple(check.digest for check in checks),
    )


def _mend(label: str, class_names: Sequence[str]) -> str:
    close = difflib.get_close_matches(label, class_names, 1)
    return f"did you mean {close[0]}?" if close else "mend it, or give the full list of labels"
