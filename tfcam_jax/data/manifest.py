"""Any folder of images with a CSV manifest: `split,label,image,map,domain,group`.

Everything is checked, every image decoded, before the data set is handed out: a run either starts with sound data or
stops with the full list of what to mend.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from absl import logging
from tqdm import tqdm

from .decode import check_channels, decode_image, decode_map
from .source import SPLITS, DataError, Dataset, Example, Records

REQUIRED_COLUMNS = ("split", "label", "image")
OPTIONAL_COLUMNS = ("map", "domain", "group")


@dataclass(frozen=True)
class Row:
    """One line of the manifest; `number` is its line in the file, the header being 1."""

    number: int
    split: str
    label: str
    image: str
    map: str
    domain: str
    group: str


@dataclass(frozen=True)
class Check:
    """What decoding a row's files showed. `digest` identifies the image's pixels, "" if it can't be read."""

    problems: tuple[str, ...]
    digest: str = ""
    usable_map: bool = False


@dataclass(frozen=True)
class ManifestSource:
    """One split of a manifest; files are read when asked for."""

    folder: Path
    images: tuple[str, ...]
    maps: tuple[str, ...]
    channels: int
    records: Records

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        path = self.folder / self.images[index]
        try:
            image = decode_image(path.read_bytes(), self.channels)
            if not self.records.has_map[index]:
                return Example(image, None)
            path = self.folder / self.maps[index]
            return Example(image, decode_map(path.read_bytes()))
        except (OSError, ValueError) as error:
            raise DataError([f"{path}: {error}; it was sound when the run started"]) from error


def open_manifest(manifest: str, *, labels: tuple[str, ...] = (), channels: int = 3, progress: bool = True) -> Dataset:
    """Opens and checks a manifest.

    Args:
      manifest: path of a UTF-8 CSV file with a header. Columns `split` (train, val, test), `label` and `image` are
        needed, `map`, `domain` and `group` may be empty or absent, others are ignored. Paths are relative to the
        manifest's folder.
      labels: class names in the order of their indices; empty takes those of the train split, sorted.
      channels: 3 for RGB, 1 for grey.
      progress: show a bar if checking takes more than a few seconds.

    Returns:
      The data set. A map that is constant counts as absent; how many is logged.

    Raises:
      DataError: with every problem found, each naming file, row and remedy.
    """
    check_channels(channels)
    if len(set(labels)) < len(labels):
        raise ValueError(f"labels names a class twice: {', '.join(labels)}")
    path = Path(manifest)
    rows = read_rows(path)
    class_names = tuple(labels) or tuple(sorted({row.label for row in rows if row.split == "train" and row.label}))
    problems = check_table(path, rows, class_names)
    checks = check_files(path, rows, progress)
    problems += [problem for check in checks for problem in check.problems]
    problems += check_leakage(path, rows, checks)
    if problems:
        raise DataError(problems)
    _log_maps(path, rows, checks)
    return Dataset(path.resolve().parent.name, class_names, _sources(path, rows, checks, class_names, channels))


def read_rows(path: Path) -> list[Row]:
    """Parses the CSV. Raises DataError if it is missing, not UTF-8, lacks a column, or has ragged rows."""
    if not path.is_file():
        raise DataError([f"{path}: no such manifest; give the path of a CSV file ({_columns_wanted()})"])
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header = [name.strip() for name in reader.fieldnames or ()]
            _check_header(path, header)
            reader.fieldnames = header
            lines = [(reader.line_num, cells) for cells in reader]
    except UnicodeDecodeError as error:
        raise DataError([f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"]) from error
    except csv.Error as error:
        raise DataError([f"{path}, row {reader.reader.line_num}: not CSV ({error}); mend the quotes"]) from error
    ragged = [number for number, cells in lines if None in cells or None in cells.values()]
    if ragged:
        wanted = f"as many cells as the header has columns ({len(header)}); quote cells that hold a comma"
        raise DataError([f"{path}, row {number}: must have {wanted}" for number in ragged])
    cell = lambda cells, column: cells.get(column, "").strip()
    return [
        Row(number, *(cell(cells, name) for name in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS))) for number, cells in lines
    ]


def check_table(path: Path, rows: Sequence[Row], class_names: Sequence[str]) -> list[str]:
    """Problems that show without opening an image: names of splits, labels, and what each split holds."""
    problems = []
    for row in rows:
        place = f"{path}, row {row.number}"
        if row.split not in SPLITS:
            problems.append(f"{place}: unknown split {row.split!r}; use one of {', '.join(SPLITS)}")
        if not row.label:
            problems.append(f"{place}: no label given; name one or delete the row")
        elif class_names and row.label not in class_names:
            known = f"none of {', '.join(class_names)}"
            problems.append(f"{place}: label {row.label!r} is {known}; {_mend(row.label, class_names)}")
    return problems + _check_splits(path, rows, class_names)


def _check_splits(path: Path, rows: Sequence[Row], class_names: Sequence[str]) -> list[str]:
    problems = []
    for split in SPLITS:
        found = {row.label for row in rows if row.split == split}
        if not found and split != "test":
            problems.append(f"{path}: no row has split {split}; training needs train and val")
        if split == "train" and found:
            never = [name for name in class_names if name not in found]
            problems += [f"{path}: label {name!r} never occurs in split train; add rows or drop it" for name in never]
        if len(found) == 1:
            problems.append(f"{path}: split {split} holds only class {found.pop()!r}; add rows of another class")
    return problems


def check_files(path: Path, rows: Sequence[Row], progress: bool) -> list[Check]:
    """Decodes every image and map, in threads; one `Check` per row."""
    bar = tqdm(total=len(rows), desc=f"checking {path}", unit=" images", delay=3, disable=not progress)
    with bar, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as executor:
        checks = []
        for check in executor.map(lambda row: _check_row(path, row), rows):
            checks.append(check)
            bar.update()
    return checks


def _check_row(path: Path, row: Row) -> Check:
    problems: list[str] = []
    image = _read(path, row, "image", lambda encoded: decode_image(encoded, 3), problems)
    if image is None:
        return Check(tuple(problems))
    digest = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
    if not row.map:
        return Check((), digest)
    saliency = _read(path, row, "map", decode_map, problems)
    if saliency is None:
        return Check(tuple(problems), digest)
    if not _same_aspect(image.shape[:2], saliency.shape):
        size = lambda array: f"{array.shape[1]} x {array.shape[0]}"
        remedy = "a map must cover the whole image; crop or export it again"
        problem = (
            f"{_place(path, row)}: map {row.map} is {size(saliency)}, its image {row.image} {size(image)}; {remedy}"
        )
        return Check((problem,), digest)
    return Check((), digest, bool(saliency.min() < saliency.max()))


def _read(path: Path, row: Row, column: str, decode, problems: list[str]) -> np.ndarray | None:
    name = getattr(row, column)
    place = f"{_place(path, row)}: {column} {name}"
    if not name:
        problems.append(f"{_place(path, row)}: no {column} given; name a file or delete the row")
        return None
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        problems.append(f"{place} leaves the manifest's folder; give a path below it")
        return None
    try:
        return decode((path.parent / name).read_bytes())
    except FileNotFoundError:
        problems.append(f"{place} does not exist in {path.parent}; mend the path or delete the row")
    except (OSError, ValueError) as error:
        problems.append(f"{place}: {error}; replace the file or delete the row")
    return None


def _same_aspect(image: tuple[int, int], saliency: tuple[int, int]) -> bool:
    """Equal but for the rounding of the map's sides to whole pixels."""
    return abs(saliency[0] * image[1] - saliency[1] * image[0]) < max(image)


def check_leakage(path: Path, rows: Sequence[Row], checks: Sequence[Check]) -> list[str]:
    """Images (by path or by pixels) and groups that stand in two splits, images that have two labels."""
    named = [(row.image, row) for row in rows if row.image]
    pixels = [(check.digest, row) for row, check in zip(rows, checks, strict=True) if check.digest]
    grouped = [(row.group, row) for row in rows if row.group]
    problems = []
    for first, other in _conflicts([*named, *pixels], "split"):
        what = f"image {other.image} is also in split {first.split} (row {first.number}: {first.image})"
        problems.append(f"{_place(path, other)}: {what}; keep it in one split only")
    for first, other in _conflicts([*named, *pixels], "label"):
        what = f"image {other.image} has label {other.label!r} here and {first.label!r} in row {first.number}"
        problems.append(f"{_place(path, other)}: {what}; keep one of them")
    for first, other in _conflicts(grouped, "split"):
        what = f"group {other.group} is also in split {first.split} (row {first.number})"
        problems.append(f"{_place(path, other)}: {what}; keep a group in one split")
    return problems


def _conflicts(keyed: Sequence[tuple[str, Row]], column: str) -> list[tuple[Row, Row]]:
    """Pairs of a row with the first row of the same key where `column` differs; each row once, in file order."""
    first: dict[str, Row] = {}
    pairs: dict[int, tuple[Row, Row]] = {}
    for key, row in keyed:
        before = first.setdefault(key, row)
        if getattr(before, column) != getattr(row, column):
            pairs.setdefault(row.number, (before, row))
    return [pairs[number] for number in sorted(pairs)]


def _sources(path: Path, rows: Sequence[Row], checks: Sequence[Check], class_names, channels: int):
    members = defaultdict(list)
    for row, check in zip(rows, checks, strict=True):
        members[row.split].append((row, check))
    sources = {}
    for split in SPLITS:
        if split in members:
            split_rows, split_checks = zip(*members[split], strict=True)
            records = Records(
                ids=tuple(row.image for row in split_rows),
                labels=np.array([class_names.index(row.label) for row in split_rows], np.int32),
                domains=tuple(row.domain for row in split_rows),
                groups=tuple(row.group for row in split_rows),
                has_map=np.array([check.usable_map for check in split_checks]),
            )
            maps = tuple(row.map for row in split_rows)
            sources[split] = ManifestSource(path.parent, records.ids, maps, channels, records)
    return sources


def _log_maps(path: Path, rows: Sequence[Row], checks: Sequence[Check]) -> None:
    for split in SPLITS:
        members = [(row, check) for row, check in zip(rows, checks, strict=True) if row.split == split]
        given = sum(bool(row.map) for row, _ in members)
        usable = sum(check.usable_map for _, check in members)
        logging.info("%s: %s has %d images, %d with a human map", path, split, len(members), usable)
        if given > usable:
            logging.warning(
                "%s: %d maps of %s are empty or constant; they count as absent", path, given - usable, split
            )


def _check_header(path: Path, header: Sequence[str]) -> None:
    missing = [name for name in REQUIRED_COLUMNS if name not in header]
    if missing:
        found = f"found {', '.join(header)}" if header else "the file is empty"
        raise DataError([f"{path}, row 1: no column {', '.join(missing)}; {found}; {_columns_wanted()}"])


def _columns_wanted() -> str:
    return f"needed columns: {', '.join(REQUIRED_COLUMNS)}; optional: {', '.join(OPTIONAL_COLUMNS)}"


def _mend(label: str, class_names: Sequence[str]) -> str:
    close = difflib.get_close_matches(label, class_names, 1)
    return f"did you mean {close[0]}?" if close else "mend it, or give the full list of labels"


def _place(path: Path, row: Row) -> str:
    return f"{path}, row {row.number}"
