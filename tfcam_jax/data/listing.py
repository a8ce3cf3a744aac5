"""Lists of images: a row names the files of one image below a folder, and a source reads them when asked for."""

from __future__ import annotations

import os
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ..errors import ConfigError, did_you_mean
from .annotations import is_table, read_table
from .annotations.columns import check_columns
from .annotations.marks import Marks, render
from .annotations.matching import assign
from .annotations.table import Table, named
from .array_files import ARRAYS, suffix_of
from .bounds import LARGEST_PIXELS, refuse_no_file
from .checks.outcomes import USABLE, Outcome
from .decode import check_bits, decode_picture
from .human_maps import HOW, combine
from .map_files import MapFile, read_map_file
from .paths import check_below, split_map_cell
from .source import SPLITS, DataError, Example, Records, WithRecords

# Options of a source that say how files are read, whatever the list: by `MapReader`, whose fields the first are, and by
# `read_tables`.
OF_READER = ("combine", "sigma", "pixels_per_degree", "invert", "page", "bits")
READING = (*OF_READER, "columns", "categories")


@dataclass(frozen=True)
class Row:
    """One image of a list.

    Attributes:
      list: the file that names it, or the folder that it was found in.
      number: its line in that file, a header being line 1; 0 where there is no list.
      image: path below the listing's folder.
      map: what the annotators left: "" or nothing; a picture or table below the folder, or several, as in
        "anna=maps/anna/1.png|ben=maps/ben/1.png". Without names annotators are "1", "2", ...
      predicted: "yes" if the map is a network's prediction, else "".
      looked: the places where an image that isn't there was looked for; empty where it was found, or nobody looked.
    """

    list: str
    number: int
    split: str
    label: str
    image: str
    map: str = ""
    domain: str = ""
    group: str = ""
    predicted: str = ""
    looked: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def place(self) -> str:
        return f"{self.list}, row {self.number}" if self.number else self.list


# Of one image: each has a map of its own, and all pairs are compared.
MOST_ANNOTATORS = 200


class MarksError(ValueError):
    """A table's marks that can't be drawn on their image."""


@dataclass(frozen=True)
class MapReader:
    """Reads the files of a row, maps of whatever form. Raises ConfigError for an option that can't be.

    Attributes:
      folder: what paths are relative to.
      combine: "mean", "majority" or an annotator's name, see `human_maps.combine`.
      sigma: of fixations, pixels of the image; in degrees of the visual field if `pixels_per_degree` is given.
      pixels_per_degree: of the image as it was shown, where its table doesn't say; 0 means that sigma is in pixels.
      invert: maps are turned around, 1 - map, before annotators are combined.
      page: of map files of several pages, slices or frames, the first being 1; None: files of several are refused.
      bits: in use in images of 16, see `decode.decode_picture`.
      tables: path below the folder to image to annotator to marks, see `assign_tables`.
      degrees: in place of sigma, for fixations whose table says how many pixels made a degree; 0: as sigma says.
    """

    folder: Path
    combine: str = "mean"
    sigma: float = 50.0
    pixels_per_degree: float = 0.0
    invert: bool = False
    page: int | None = None
    bits: int | None = None
    tables: Mapping[str, Mapping[str, Mapping[str, Marks]]] = field(default_factory=dict)
    degrees: float = 0.0

    def __post_init__(self):
        if not (self.sigma > 0 and self.pixels_per_degree >= 0):
            wanted = "maps.sigma must be above 0 and maps.pixels_per_degree not negative"
            raise ConfigError(f"{wanted}; got {self.sigma} and {self.pixels_per_degree}")
        if self.page is not None and self.page < 1:
            raise ConfigError(f"maps.page counts from 1; got {self.page}")
        check_bits(self.bits)

    def open(self, path: str) -> bytes:
        """A file below the folder. Raises ValueError or OSError where there is none, or what is no file."""
        place = os.path.join(self.folder, check_below(path))
        refuse_no_file(place)
        with open(place, "rb") as file:
            return file.read()

    def annotators(
        self, row: Row, height: int, width: int, read: Callable[[str], bytes] | None = None
    ) -> dict[str, MapFile]:
        """Each annotator's map of a row's image, and what was done to it; empty if nobody annotated the image.

        A predicted map is read as it was written, whatever `page` and `invert` say of people's. `read` opens a file in
        place of `open`.

        Raises ValueError or OSError: a file that is broken, missing or outside the folder; marks outside the image.
        """
        maps: dict[str, MapFile] = {}
        sigma = self.sigma * (self.pixels_per_degree or 1)
        degrees = self.sigma if self.pixels_per_degree else self.degrees
        for name, path in split_map_cell(row.map):
            if path in self.tables:
                marks = self.tables[path].get(row.image, {})
                marks = {name: next(iter(marks.values()))} if name and len(marks) == 1 else marks
                if len(marks) > MOST_ANNOTATORS:
                    raise MarksError(f"{row.image}: {len(marks):,} annotators; at most {MOST_ANNOTATORS} are read")
                try:
                    drawn = {annotator: render(own, height, width, sigma, degrees) for annotator, own in marks.items()}
                except ValueError as error:
                    raise MarksError(f"{row.image}: {error}") from error
                found = {each: MapFile(1 - values if self.invert else values) for each, values in drawn.items()}
            else:
                page, invert = (None, False) if row.predicted else (self.page, self.invert)
                given = read_map_file((read or self.open)(path), path, (height, width), page, invert)
                found = {name or str(len(maps) + 1): given}
            for annotator, saliency in found.items():
                if annotator in maps:
                    raise ValueError(f"annotator {annotator} has two maps of this image; keep one or name them apart")
                maps[annotator] = saliency
            check_together(maps)
        return maps

    def read(self, row: Row, height: int, width: int) -> Float[np.ndarray, "h w"] | None:
        """The combined map; None if nobody, or not the annotator asked for, annotated the image."""
        return self.joined(row, self.annotators(row, height, width))

    def joined(self, row: Row, maps: Mapping[str, MapFile]) -> Float[np.ndarray, "h w"] | None:
        """The one map of `annotators`, as of `read`; a predicted map is that, whoever's maps are asked for."""
        values = {name: each.values for name, each in maps.items()}
        return combine(values, "mean" if row.predicted else self.combine) if values else None


def check_together(maps: Mapping[str, MapFile]) -> None:
    """Raises ValueError where the maps of one image are more than are held, by their number or their pixels."""
    if len(maps) > MOST_ANNOTATORS:
        raise ValueError(f"more than {MOST_ANNOTATORS} maps of one image")
    largest = max((each.values.size for each in maps.values()), default=0)  # the others are brought to its size
    if len(maps) * largest > 2 * LARGEST_PIXELS:
        raise ValueError(f"{len(maps)} maps of one image, of up to {largest:,} pixels; scale them down")


@dataclass(frozen=True)
class SplitDraw:
    """How rows without a split get one (`protocol.draw_splits`).

    Attributes:
      shares: of the splits that are drawn; above 0, whatever their sum.
      seed: of the draw.
    """

    shares: Mapping[str, float]
    seed: int = 0


@dataclass(frozen=True)
class Listing:
    """A data set as its owner's files describe it, before any image was opened.

    Attributes:
      name: for figures and tables.
      rows: in the order of the lists.
      class_names: position = class index.
      reader: of maps; its folder is what the rows' paths are relative to.
      problems: what was wrong with the lists themselves.
      notes: what was guessed, drawn or left out, a line each; nobody need do anything about it.
      draw: of rows whose split is "", as their owner gives none; None: there are no such rows.
      to_train: a model is to be trained on it, which needs train and val, each with all classes; else a test or val
        split of any classes will do.
    """

    name: str
    rows: tuple[Row, ...]
    class_names: tuple[str, ...]
    reader: MapReader
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    draw: SplitDraw | None = None
    to_train: bool = True


@dataclass(frozen=True)
class AssignedTables:
    """What tables say of the images of a list.

    Attributes:
      marks: path of a table to image to annotator to marks, for `MapReader`.
      problems: of the tables, and of entries that can't be told apart or belong to no image.
      remarks: what was guessed or left out.
    """

    marks: Mapping[str, Mapping[str, Mapping[str, Marks]]]
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def read_tables(
    folder: Path, rows: Sequence[Row], columns: Mapping[str, str], categories: Sequence[str]
) -> AssignedTables:
    """Reads the tables that map cells name, each once, and assigns their marks to the rows' images.

    `columns` and `categories` as of `annotations.read_table`; raises ConfigError for a column's meaning that is none.
    """
    check_columns(columns)
    tables: dict[str, Table] = {}
    problems: list[str] = []
    first = {path: row for row in reversed(rows) for _, path in split_map_cell(row.map) if is_table(path)}
    for path, row in reversed(first.items()):
        try:
            refuse_no_file(folder / check_below(path))
            tables[path] = read_table(folder / path, columns, categories)
        except (OSError, ValueError) as error:
            found = error.problems if isinstance(error, DataError) else [reason(folder / path, error)]
            problems += [f"{row.place}: map {path}: {each}" for each in found]
    assigned = assign_tables(tables, rows, columns, categories)
    broken = {path: {} for path in first if path not in tables}  # Once told, not again for every row.
    return AssignedTables({**assigned.marks, **broken}, (*problems, *assigned.problems), assigned.remarks)


def assign_tables(
    tables: Mapping[str, Table], rows: Sequence[Row], columns: Mapping[str, str], categories: Sequence[str]
) -> AssignedTables:
    """Gives each table's marks to the images of the rows that name it.

    The tables were read with these `columns` and `categories`; where none has them, that is told: of categories as a
    problem.
    """
    problems, remarks = check_chosen(tables, columns, categories)
    images: dict[str, dict[str, None]] = defaultdict(dict)
    for row in rows:
        for _, path in split_map_cell(row.map):
            images[path][row.image] = None
    marks = {}
    for path, table in tables.items():
        found = assign(table, list(images.get(path, ())), path)
        marks[path] = found.marks
        problems += found.problems
        remarks += found.remarks
    return AssignedTables(marks, tuple(problems), tuple(remarks))


def check_chosen(
    tables: Mapping[str, Table], columns: Mapping[str, str], categories: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Problems and remarks of the columns and categories that tables were read with."""
    known = frozenset(name for table in tables.values() for name in table.categories)
    problems = [
        f"data.maps.categories: no table has {name!r}; known are {', '.join(sorted(known)) or 'none'}"
        for name in categories
        if tables and name not in known
    ]
    remarks = []
    if columns and not any(table.renamed for table in tables.values()):
        what = f"{named(list(tables))}: their formats have columns of their own" if tables else "no map is a table"
        remarks.append(f"data.maps.columns makes no difference: {what}")
    if categories and not tables:
        remarks.append("data.maps.categories makes no difference: no map is a table")
    if len(known) > 1 and not categories:
        what = f"marks of {len(known)} categories count alike ({named(sorted(known))})"
        remarks.append(f"{what}; to choose, set data.maps.categories")
    return problems, remarks


def check_annotator(reader: MapReader, rows: Sequence[Row]) -> list[str]:
    """A problem where people's maps are to be those of one annotator (`combine`), and no row has a map of that name."""
    if reader.combine in HOW:
        return []
    known: dict[str, None] = {}
    for row in rows:
        if row.predicted:
            continue
        for place, (name, path) in enumerate(split_map_cell(row.map), 1):
            marks = reader.tables[path].get(row.image, {}) if path in reader.tables else {name or str(place): None}
            known |= {name: None} if name and len(marks) == 1 else dict.fromkeys(marks)
    if not known or reader.combine in known:
        return []
    hint = did_you_mean(reader.combine, known)
    what = f"no map is by {reader.combine!r}; known are {named(sorted(known))}, beside {' and '.join(HOW)}"
    return [f"data.maps.combine: {what}.{hint}"]


def reason(path: Path, error: Exception) -> str:
    """Why a file could not be read, in words that help."""
    archive = next((p for p in [path, *path.parents] if os.path.isfile(p)), None)  # a whole cell may be too long
    if archive is not None and suffix_of(archive.name) not in ARRAYS and zipfile.is_zipfile(archive):
        return f"{archive} is a zip archive; unpack it"
    return "no such file" if isinstance(error, FileNotFoundError) else str(error)


@dataclass(frozen=True)
class ListedSource(WithRecords):
    """One split of a listing; files are read when asked for."""

    rows: Sequence[Row]
    reader: MapReader
    channels: int
    records: Records

    def __getitem__(self, index: int) -> Example:
        row = self.rows[index]
        try:
            picture = decode_picture(self.reader.open(row.image), self.channels, self.reader.bits)
            size = (picture.height, picture.width)
            return Example(picture, self.reader.read(row, *size) if self.records.has_map[index] else None)
        except (OSError, ValueError) as error:
            path = self.reader.folder / row.image
            raise DataError([f"{path}: {error}; it was sound when the run started"]) from error


def listed_sources(listing: Listing, outcomes: Sequence[Outcome], channels: int) -> dict[str, ListedSource]:
    """A source per split that has rows; an outcome for each row."""
    return {
        split: ListedSource(rows, listing.reader, channels, listed_records(rows, found, listing.class_names))
        for split, rows, found in by_split(listing.rows, outcomes)
    }


def by_split(
    rows: Sequence[Row], outcomes: Sequence[Outcome]
) -> Iterator[tuple[str, Sequence[Row], Sequence[Outcome]]]:
    """Each split that has rows, with its rows and their outcomes."""
    for split in SPLITS:
        members = [pair for pair in zip(rows, outcomes, strict=True) if pair[0].split == split]
        if members:
            own, found = zip(*members, strict=True)
            yield split, own, found


def listed_records(rows: Sequence[Row], outcomes: Sequence[Outcome], class_names: Sequence[str]) -> Records:
    """The columns of some rows."""
    return Records(
        ids=tuple(row.image for row in rows),
        labels=np.array([class_names.index(row.label) for row in rows], np.int32),
        domains=tuple(row.domain for row in rows),
        groups=tuple(row.group for row in rows),
        has_map=np.array([outcome.map == USABLE for outcome in outcomes]),
        digests=tuple(outcome.digest for outcome in outcomes),
        predicted=np.array([row.predicted == "yes" for row in rows]),
        image_contents=tuple(outcome.image_content for outcome in outcomes),
        map_contents=tuple(outcome.map_content for outcome in outcomes),
    )
