"""The interface between data on disk and the input pipeline: splits with random access and their metadata."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from ..errors import UserError, visible
from .checks.outcomes import Outcomes

SPLITS = ("train", "val", "test")
# How folders and owners' lists call them, in small letters.
SPLIT_NAMES = {name: name for name in SPLITS} | {
    "training": "train",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "testing": "test",
}

# How many problems a DataError's message lists; `problems` holds them all.
_SHOWN = 20


def shorten(lines: Sequence[str], shown: int) -> list[str]:
    """The first lines, and how many there are beyond them."""
    return [*lines[:shown], *([f"... and {len(lines) - shown} more"] if len(lines) > shown else [])]


class DataError(UserError, ValueError):
    """What is wrong with a data set: every problem found, each with its place and a remedy.

    Attributes:
      problems: one line per problem, in the order of the files and rows.
      heading, remedy: what stands above and below them where they have one remedy together.
    """

    def __init__(self, problems: Sequence[str], heading: str = "", remedy: str = ""):
        self.problems, self.heading, self.remedy = list(problems), heading, remedy
        count, lines = len(self.problems), shorten([visible(problem) for problem in self.problems], _SHOWN)
        if heading:
            lines = [visible(heading), *(f"  {line}" for line in lines)]
        elif count != 1:
            lines = [f"{count} problems in the data:", *lines]
        super().__init__("\n".join([*lines, *([visible(remedy)] if remedy else [])]))

    def __reduce__(self):
        # Exceptions are pickled by their message; a worker process must hand over the list.
        return type(self), (self.problems, self.heading, self.remedy)


@dataclass(frozen=True)
class Example:
    """One decoded image at its stored size, and where people looked.

    Attributes:
      picture: 8 bits a channel, as many channels as the source was asked for: mode L or RGB. It stays Pillow's until
        it has its final size, as each way to an array and back copies it.
      saliency: human map, non-negative, 1 = the brightest that its file can hold. Its size may differ from the
        image's, its aspect ratio does not. None if nobody annotated the image.
    """

    picture: Image.Image
    saliency: Float[np.ndarray, "h w"] | None

    @classmethod
    def from_arrays(
        cls, image: UInt8[np.ndarray, "H W channels"], saliency: Float[np.ndarray, "h w"] | None
    ) -> Example:
        """An example whose image, of 1 or 3 channels, is an array."""
        return cls(to_picture(image), saliency)

    @property
    def image(self) -> UInt8[np.ndarray, "H W channels"]:
        """The picture's pixels."""
        return pixels(self.picture)


def to_picture(image: UInt8[np.ndarray, "H W channels"]) -> Image.Image:
    """An array of 1 or 3 channels as a picture of mode L or RGB."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def pixels(picture: Image.Image) -> UInt8[np.ndarray, "H W channels"]:
    """A picture of mode L or RGB as an array that has channels in both cases."""
    return np.asarray(picture).reshape(picture.height, picture.width, -1)


@dataclass(frozen=True)
class Records:
    """What is known of one split without decoding an image: columns of equal length, in the split's order.

    Attributes:
      ids: name of the example, stable over runs.
      labels: class index, int32.
      domains: where the example comes from (a generator, a hospital, an attack type); "" if unknown.
      groups: what must not be torn apart or counted twice (a patient, a tile); "" if unknown.
      has_map: True where there is a human map that says something: it exists and isn't constant.
      digests: equal for images with equal pixels; None if nobody looked.
      predicted: True where the map is a network's prediction and no person's; None: none is.
      image_contents: equal for equal image files, whatever they are decoded to; None if nobody looked.
      map_contents: the same of what annotators left, files or a table's marks; "" without any.
    """

    ids: tuple[str, ...]
    labels: Int[np.ndarray, " n"]
    domains: tuple[str, ...]
    groups: tuple[str, ...]
    has_map: Bool[np.ndarray, " n"]
    digests: tuple[str, ...] | None = None
    predicted: Bool[np.ndarray, " n"] | None = None
    image_contents: tuple[str, ...] | None = None
    map_contents: tuple[str, ...] | None = None

    def __post_init__(self):
        lengths = {name: len(column) for name, column in vars(self).items() if column is not None}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns of Records must be equally long; got {lengths}")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Sequence[int] | Int[np.ndarray, " m"]) -> Records:
        rows = [int(row) for row in rows]
        pick = lambda column: column[rows] if isinstance(column, np.ndarray) else tuple(column[row] for row in rows)
        columns: dict[str, Any] = {name: pick(column) for name, column in vars(self).items() if column is not None}
        return Records(**columns)


@runtime_checkable
class Source(Protocol):
    """One split, with random access. Safe to read from several threads, and pickles for worker processes."""

    @property
    def records(self) -> Records: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@dataclass(frozen=True)
class Dataset:
    """A data set with its splits: "train" and "val", and "test" where there is one; where nothing is trained, some.

    Attributes:
      name: for figures and tables.
      class_names: position = class index.
      splits: split name to source.
      skipped: a line for each row that was left out because its files could not be read.
      notes: what a user should know of how the files were taken: what was guessed, drawn or left out.
      drawn: splits were drawn from what is there, so that they are others as soon as an image comes or goes.
      checked: what was found of the files, for the next opening; see `checks.outcomes`. Empty where they are not the
        owner's own, but drawn or packed.
    """

    name: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Source]
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    drawn: bool = False
    checked: Outcomes = field(default_factory=dict)


class WithRecords:
    """A source that is as long as its records."""

    records: Records

    def __len__(self) -> int:
        return len(self.records)


class Subset(WithRecords):
    """Some rows of a source, in the order given."""

    def __init__(self, source: Source, rows: Sequence[int] | Int[np.ndarray, " m"]):
        self._source, self._rows = source, [int(row) for row in rows]
        self.records = source.records[self._rows]

    def __getitem__(self, index: int) -> Example:
        return self._source[self._rows[index]]


class Joined(WithRecords):
    """Several sources one after the other."""

    def __init__(self, sources: Sequence[Source]):
        self._rows = [(source, row) for source in sources for row in range(len(source))]
        columns: Any = zip(*(vars(source.records).values() for source in sources), strict=True)
        join = lambda parts: np.concatenate(parts) if isinstance(parts[0], np.ndarray) else sum(parts, ())
        joined: Any = (None if any(part is None for part in parts) else join(parts) for parts in columns)
        self.records = Records(*joined)

    def __getitem__(self, index: int) -> Example:
        source, row = self._rows[index]
        return source[row]


def choose_rows(records: Records, number: int) -> Int[np.ndarray, " m"]:
    """Rows spread evenly over the classes and over the split, those with a human map first; all if there are fewer."""
    by_class = []
    for label in np.unique(records.labels):
        rows = np.flatnonzero(records.labels == label)
        usable = rows[records.has_map[rows]] if records.has_map[rows].any() else rows
        spread = usable[np.linspace(0, len(usable) - 1, min(number, len(usable))).round().astype(int)]
        by_class.append(list(dict.fromkeys([*spread, *rows])))
    interleaved = [row for group in itertools.zip_longest(*by_class) for row in group if row is not None]
    return np.asarray(interleaved[:number])
