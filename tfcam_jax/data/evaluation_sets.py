"""Images that a trained model is applied to: one split of a manifest, a folder of unlabelled images, some of a split.

Unlike `open_manifest`, which opens what a run trains on, nothing here needs a train or a validation split.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image
from tqdm import tqdm

from .decode import decode_image, decode_picture
from .listing import RowsSource, check_files, rows_sources
from .manifest import list_manifest
from .source import DataError, Example, Records

UNLABELLED = -1


@dataclass(frozen=True)
class FolderSource:
    """Images of a folder without labels, domains or maps; files are read when asked for."""

    folder: Path
    channels: int
    records: Records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        path = self.folder / self.records.ids[index]
        try:
            return Example(decode_picture(path.read_bytes(), self.channels), None)
        except (OSError, ValueError) as error:
            raise DataError([f"{path}: {error}; it was sound when the run started"]) from error


def open_manifest_split(
    manifest: str | Path, split: str, class_names: tuple[str, ...], channels: int, progress: bool = True
) -> RowsSource:
    """Opens one split of a manifest for a model whose classes are fixed.

    Raises:
      DataError: no such manifest or split, labels that are none of the model's classes, files that can't be read;
        every problem found.
    """
    path = Path(manifest)
    listing = list_manifest(str(path), labels=class_names)
    rows = tuple(row for row in listing.rows if row.split == split)
    if not rows:
        raise DataError([f"{path}: no row has split {split!r}; name a split that the manifest has with --split"])
    wanted = f"the model knows {', '.join(map(repr, class_names))}"
    problems = [
        f"{path}, row {row.number}: label {row.label!r}, but {wanted}; rename it as in training or drop the row"
        for row in rows
        if row.label not in class_names
    ]
    if problems:
        raise DataError(problems)
    listing = dataclasses.replace(listing, rows=rows)
    checks = check_files(listing, progress)
    problems = [*listing.problems, *(problem for check in checks for problem in check.problems)]
    if problems:
        raise DataError(problems)
    return rows_sources(listing, checks, channels)[split]


def open_image_folder(folder: str | Path, channels: int, progress: bool = True) -> FolderSource:
    """Opens all images below a folder, in alphabetical order; labels are -1.

    A file is an image if Pillow knows its suffix. Hidden files and folders are left out.

    Raises:
      DataError: no such folder, no image in it, or files that can't be read (every one is named).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError([f"{folder}: no such folder; give one that holds images"])
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    names = sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not names:
        raise DataError([f"{folder}: no image in it; give a folder with files such as .png, .jpg or .tif"])
    problems = [problem for problem in _check_images(folder, names, progress) if problem]
    if problems:
        raise DataError(problems)
    empty = ("",) * len(names)
    labels = np.full(len(names), UNLABELLED, np.int32)
    return FolderSource(folder, channels, Records(tuple(names), labels, empty, empty, np.zeros(len(names), bool)))


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


def _check_images(folder: Path, names: list[str], progress: bool) -> list[str]:
    """A problem for each image that can't be decoded, "" for the others."""

    def check(name: str) -> str:
        try:
            decode_image((folder / name).read_bytes(), 3)
        except (OSError, ValueError) as error:
            return f"{folder / name}: {error}; replace the file or take it out of the folder"
        return ""

    bar = tqdm(total=len(names), desc=f"checking {folder}", unit=" images", delay=3, disable=not progress)
    problems = []
    with bar, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as executor:
        for problem in executor.map(check, names):
            problems.append(problem)
            bar.update()
    return problems
