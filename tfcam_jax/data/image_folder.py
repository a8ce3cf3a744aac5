"""Folders of images without a list."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from .checks.files import check_files
from .listing import ListedSource, Listing, MapReader, Row
from .source import DataError, Records

UNLABELLED = -1


def walk_images(folder: Path) -> Iterator[str]:
    """Paths below the folder of all files with an image's suffix, sorted, with "/" on every system.

    A suffix is an image's if Pillow can open its kind, or if it is DICOM's. Hidden files and folders are left out.
    """
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN} | {".dcm"}
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in suffixes and not name.startswith("."):
                yield Path(root, name).relative_to(folder).as_posix()


def open_image_folder(folder: str | Path, channels: int, progress: bool = True) -> ListedSource:
    """Opens all images below a folder, as `walk_images` finds them; labels are -1.

    Raises:
      DataError: no such folder, no image in it, or files that can't be read (every one is named).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError([f"{folder}: no such folder; give one that holds images"])
    names = tuple(sorted(walk_images(folder)))
    if not names:
        raise DataError([f"{folder}: no image in it; give a folder with files such as .png, .jpg or .tif"])
    rows = tuple(Row(str(folder), 0, "", "", name) for name in names)
    outcomes, _ = check_files(Listing(folder.name, rows, (), MapReader(folder)), progress=progress)
    problems = [problem for outcome in outcomes for problem in outcome.problems]
    if problems:
        raise DataError(problems)
    empty, labels = ("",) * len(names), np.full(len(names), UNLABELLED, np.int32)
    records = Records(names, labels, empty, empty, np.zeros(len(names), bool))
    return ListedSource(rows, MapReader(folder), channels, records)
