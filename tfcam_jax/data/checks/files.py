"""Opening every file of a listing, in threads; what an earlier start found of unchanged files is taken as it is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..decode import decode_image
from ..human_maps import agreement, combine
from ..listing import Listing, MapReader, Row, reason, split_map_cell
from .outcomes import ABSENT, CONSTANT, EMPTY, USABLE, Outcome

_MOST_THREADS = 8


def check_files(
    listing: Listing, known: Mapping[str, Outcome] | None = None, progress: bool = True, closely: bool = False
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
    bar = {"total": len(waiting), "desc": f"checking {listing.name}", "delay": 3, "disable": not progress}
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    with ThreadPoolExecutor(min(_MOST_THREADS, cores)) as executor:
        checked = executor.map(lambda i: check_row(listing.reader, listing.rows[i], closely), waiting)
        found |= zip(waiting, list(tqdm(checked, unit=" images", **bar)), strict=True)
    outcomes = [found[i] for i in range(len(keys))]
    sound = {key: outcome for key, outcome in zip(keys, outcomes, strict=True) if key and not outcome.problems}
    return outcomes, sound


def row_keys(listing: Listing) -> list[str]:
    """What each row's outcome depends on, as a digest: names, sizes and times of its files, and how maps are read.

    "" for a row that lacks a file.
    """
    reader = listing.reader
    options = (os.path.realpath(reader.folder), reader.combine, reader.sigma, reader.pixels_per_degree)
    stat = cache(lambda path: _size_and_time(os.path.join(reader.folder, path)))
    keys = []
    for row in listing.rows:
        names = [row.image, *(path for _, path in split_map_cell(row.map))]
        files = [(name, stat(name)) for name in names]
        known = all(status for _, status in files)
        keys.append(hashlib.sha256(repr((options, row.map, files)).encode()).hexdigest()[:32] if known else "")
    return keys


def _size_and_time(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # no such file; a name that no file can have
        return None
    return status.st_size, status.st_mtime_ns


def check_row(reader: MapReader, row: Row, closely: bool) -> Outcome:
    """Decodes a row's image and maps."""
    if not row.image:
        return Outcome((f"{row.place}: no image given; name a file or delete the row",))
    try:
        image = decode_image(reader.open(row.image), 3)
    except (OSError, ValueError) as error:
        return Outcome((f"{row.place}: image {_told(reader.folder, row, row.image, error)}",))
    digest = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
    seen = Outcome(digest=digest, size=image.shape[:2])
    if closely:
        from .near_duplicates import perceptual_hash, thumbnail  # with SciPy, which training has no need of here

        seen = replace(seen, hash=perceptual_hash(image), thumbnail=thumbnail(image))
    try:
        maps = reader.annotators(row, *seen.size)
    except (OSError, ValueError) as error:
        return replace(seen, problems=(f"{row.place}: map {_told(reader.folder, row, row.map, error)}",))
    height, width = seen.size
    for h, w in (saliency.shape for saliency in maps.values()):
        if abs(h * width - w * height) >= max(height, width):  # more than sides rounded to whole pixels
            remedy = "a map must cover the whole image; crop or export it again"
            what = f"map {row.map} is {w} x {h}, its image {row.image} {width} x {height}; {remedy}"
            return replace(seen, problems=(f"{row.place}: {what}",))
    seen = replace(seen, map=kind_of_map(combine(maps, reader.combine) if maps else None))
    return replace(seen, annotators=len(maps), agreement=agreement([*maps.values()])) if closely else seen


def kind_of_map(saliency: np.ndarray | None) -> str:
    """Absent, empty, constant or usable."""
    if saliency is None:
        return ABSENT
    if saliency.min() < saliency.max():
        return USABLE
    return CONSTANT if saliency.max() > 0 else EMPTY


def _told(folder: Path, row: Row, name: str, error: Exception) -> str:
    if str(error).startswith(name):
        return str(error)
    otherwise = "delete the row" if row.number else "take it out of the folder"
    if isinstance(error, FileNotFoundError):
        return f"{name} does not exist in {folder}; correct the path or {otherwise}"
    return f"{name}: {reason(folder / name, error)}; replace the file or {otherwise}"
