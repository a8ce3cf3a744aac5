"""COCO's run-length encodings of masks.

Our own, as pycocotools' C code returns uninitialised memory where runs stop short of the mask, and allocates whatever
size a file claims.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool

from ..bounds import LARGEST_PIXELS

_MOST_DIGITS = 6  # of 5 bits, of a run


def decode_rle(mask: Mapping[str, Any]) -> Bool[np.ndarray, "h w"]:
    """The mask of an encoding; raises ValueError as `read_runs`."""
    height, width, runs = read_runs(mask)
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(width, height).T


def read_runs(mask: Mapping[str, Any]) -> tuple[int, int, list[int]]:
    """Height, width and runs of an encoding, uncompressed (a list of runs) or compressed (a string).

    Runs go down the columns and alternate between outside and inside, beginning outside. In the compressed form each
    run is a number of 5-bit digits, lowest first, in characters from "0" on; from the fourth on, a run is given as its
    difference to the one before the last (cocodataset/cocoapi, maskApi.c). Raises ValueError: not such a mapping, runs
    that don't fill the mask, or more pixels than any image has.
    """
    try:
        height, width = (int(side) for side in mask["size"])
        counts = mask["counts"]
        listed = None if isinstance(counts, str | bytes) else [int(count) for count in counts]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError('an RLE must be {"size": [height, width], "counts": runs}') from error
    if height * width > LARGEST_PIXELS:
        raise ValueError(f"an RLE of {width} x {height} pixels is too large to open safely; scale it down")
    runs = _decompress(counts) if listed is None else listed
    if min(height, width) < 1 or min(runs, default=0) < 0 or sum(runs) != height * width:
        raise ValueError(f"an RLE's runs must fill its {width} x {height} pixels; they give {sum(runs)}")
    return height, width, runs


def _decompress(counts: str | bytes) -> list[int]:
    digits = [character - 48 for character in (counts.encode() if isinstance(counts, str) else counts)]
    runs: list[int] = []
    number = place = 0
    for digit in digits:
        if not 0 <= digit < 64:
            raise ValueError(f"a compressed RLE holds {chr(digit + 48)!r}, which stands for no digit")
        number |= (digit & 31) << (5 * place)
        place += 1
        if place > _MOST_DIGITS:
            raise ValueError("a compressed RLE holds a run that is longer than any mask")
        if digit & 32:  # More digits follow.
            continue
        if digit & 16:  # The sign bit of the highest digit.
            number -= 1 << (5 * place)
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number = place = 0
    if place:
        raise ValueError("a compressed RLE ends in the middle of a run")
    return runs


def encode_rle(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """A mask's encoding, its runs uncompressed."""
    flat = np.asarray(mask, bool).T.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(edges, prepend=0, append=flat.size).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat.size and flat[0] else runs}


def encode_part(part: Bool[np.ndarray, "h w"], left: int, top: int, width: float, height: float) -> dict[str, Any]:
    """The encoding of a mask of `width` x `height` pixels from a part of it.

    What the part has beyond the mask is cut off. Raises ValueError for a mask of no size or of more pixels than any
    image has.
    """
    width, height = int(width), int(height)
    if not (min(width, height) > 0 and width * height <= LARGEST_PIXELS):
        raise ValueError(f"a mask of {width} x {height} pixels can't be drawn; correct its size")
    whole = np.zeros((height, width), bool)
    rows, columns = slice(max(top, 0), top + part.shape[0]), slice(max(left, 0), left + part.shape[1])
    place = whole[rows, columns]
    place |= part[max(-top, 0) :, max(-left, 0) :][: place.shape[0], : place.shape[1]]
    return encode_rle(whole)
