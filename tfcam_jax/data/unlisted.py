"""Images without a list: those below a folder, and those that a caller hands over as arrays or paths."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from absl import logging

from .bounds import refuse_no_file
from .checks.inspection import check_files, judge_files, log_remarks
from .decode import decode_picture, image_suffixes
from .listing import ListedSource, Listing, MapReader, Row
from .manifest import is_manifest
from .maps_by_name import MAP_NAMES, find_beside
from .source import DataError, Example, Records, WithRecords, shorten, to_picture

UNLABELLED = -1
_SHOWN = 3  # names of files that are no images


def walk_images(folder: Path) -> Iterator[str]:
    """Paths below the folder of all images, sorted, with "/" on every system; hidden files and folders are left out.

    A file is an image if Pillow can open its suffix's kind or if that is DICOM's, and under any other name, or without
    a suffix, if it begins as DICOM does.
    """
    suffixes = image_suffixes()
    for path in walk_files(folder):
        hidden = PurePosixPath(path).name.startswith(".")
        if not hidden and (PurePosixPath(path).suffix.lower() in suffixes or _is_dicom(Path(folder, path))):
            yield path


def walk_files(folder: Path) -> Iterator[str]:
    """Paths below the folder of all files, also hidden ones, with "/" on every system; sorted within each folder.

    Hidden folders are left out.
    """
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name).relative_to(folder).as_posix() for name in sorted(names))


def _is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does; the index of a DICOM disk, DICOMDIR, does too and holds no image."""
    if path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def open_image_folder(
    folder: str | Path, channels: int, bits: int | None = None, progress: bool = True
) -> ListedSource:
    """Opens all images below a folder, as `walk_images` finds them; labels are -1.

    Maps of other images of the folder, by their names (`maps_by_name.find_beside`), and files that are no images are
    left out and counted in the log; manifests, which are the project's own, are not told of.

    `bits` as in `decode.decode_picture`. Raises DataError: no such folder, no image in it, or files that can't be read
    (every one is named).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError([f"{folder}: no such folder; give one that holds images"])
    found_names = sorted(walk_images(folder))
    if not found_names:
        raise DataError([f"{folder}: no image in it; give a folder with files such as .png, .jpg, .tif or DICOM"])
    images, beside = find_beside(found_names, MAP_NAMES)
    # Also a map that may be that of several images. What has no suffix of images is among the others: DICOM.
    maps = sorted({*found_names} - {*images, *beside.orphans, *beside.others})
    names = sorted({*found_names} - {*maps})
    if told := _left_out(folder, found_names, maps):
        logging.warning("%s: %s", folder, told)
    rows = tuple(Row(str(folder), 0, "", "", name) for name in names)
    listing = Listing(folder.name, rows, (), MapReader(folder, bits=bits))
    outcomes, _ = check_files(listing, progress=progress)
    found = judge_files(listing, outcomes)
    if found.problems:
        raise DataError(found.problems)
    log_remarks(str(folder), found.remarks)
    looked = {"digests": "digest", "image_contents": "image_content", "map_contents": "map_content"}
    columns = {name: tuple(getattr(outcome, key) for outcome in outcomes) for name, key in looked.items()}
    return ListedSource(rows, listing.reader, channels, replace(_bare_records(names), **columns))


def _left_out(folder: Path, images: Sequence[str], maps: Sequence[str]) -> str:
    """What of a folder is not opened, in one line; "" if nothing."""
    seen = {path for path in walk_files(folder) if not PurePosixPath(path).name.startswith(".")}
    others = sorted(path for path in seen - {*images} if not is_manifest(folder / path))
    names = lambda paths: ", ".join(shorten(paths, _SHOWN))
    told = []
    if others:
        what = "file is no image and was" if len(others) == 1 else "files are no images and were"
        told.append(f"{len(others)} {what} left out: {names(others)}")
    if maps:
        what = "is a map of another image" if len(maps) == 1 else "are maps of other images"
        told.append(f"{len(maps)} {what} by name and left out (rename what is none): {names(maps)}")
    return "; ".join(told)


@dataclass(frozen=True)
class GivenImages(WithRecords):
    """Arrays or paths, decoded to `channels` when asked for; `bits` as in `decode.decode_picture`."""

    images: Sequence[np.ndarray | Path]
    channels: int
    records: Records
    bits: int | None = None

    def __getitem__(self, index: int) -> Example:
        image = self.images[index]
        if isinstance(image, np.ndarray):
            return Example(to_picture(image).convert("L" if self.channels == 1 else "RGB"), None)
        try:
            refuse_no_file(image)
            return Example(decode_picture(image.read_bytes(), self.channels, self.bits), None)
        except (OSError, ValueError) as error:
            raise DataError([f"{image}: {error}; give the path of an image that can be read"]) from error


def open_images(
    images: np.ndarray | Sequence[str | Path] | str | Path,
    channels: int,
    labels: np.ndarray | Sequence | None,
    num_classes: int,
    bits: int | None = None,
) -> GivenImages:
    """Checks what was handed over, but for the content of files, and makes a source of it, or raises DataError.

    Args:
      images: uint8 [n, H, W, channels] with 1 or 3 channels; or paths of files; or one path.
      channels: that the source gives: grey becomes RGB and the other way round.
      labels: class index of each image; None: unlabelled.
      num_classes: labels are below it.
      bits: in use in images of 16, see `decode.decode_picture`.
    """
    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape[1:3]:
            what = f"{images.dtype} of shape {images.shape}"
            raise DataError([f"images must be uint8 [n, H, W, 1 or 3], 0 to 255; got {what}"])
        given = list(images)
        names = [f"image {number}" for number in range(len(given))]
    else:
        paths: list[Any] = [images]
        if isinstance(images, Iterable) and not isinstance(images, str | Path):
            paths = list(images)
        if not all(isinstance(path, str | Path) for path in paths):
            what = f"{type(images).__name__}; np.asarray or np.stack makes one array of several"
            raise DataError([f"images must be one NumPy array or paths of image files; got {what}"])
        given = [Path(path) for path in paths]
        names = [str(path) for path in given]
        if missing := [path for path in given if not path.is_file()]:
            raise DataError([f"{path}: {'a folder' if path.is_dir() else 'no such file'}" for path in missing])
    if not given:
        raise DataError(["there are no images"])
    if labels is None:
        return GivenImages(given, channels, _bare_records(names), bits)
    known = np.asarray(labels)
    if known.shape != (len(names),) or not np.issubdtype(known.dtype, np.integer):
        what = f"{known.dtype} {known.shape}"
        raise DataError([f"labels must be {len(names)} class indices, one for each image; got {what}"])
    if not ((known >= 0) & (known < num_classes)).all():
        raise DataError([f"labels must lie in 0..{num_classes - 1}; got {known.min()} to {known.max()}"])
    return GivenImages(given, channels, _bare_records(names, known), bits)


def _bare_records(names: Sequence[str], labels: np.ndarray | None = None) -> Records:
    count = len(names)
    labels = np.full(count, UNLABELLED) if labels is None else labels
    return Records(tuple(names), labels.astype(np.int32), ("",) * count, ("",) * count, np.zeros(count, bool))
