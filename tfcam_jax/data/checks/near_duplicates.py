"""Images that look alike: a perceptual hash, and all pairs with like hashes without comparing every pair."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image
from scipy import fft

from ..source import to_picture

_COMPARED = 128
_SIDE, _KEPT = 32, 8
# Hashes of 64 bits that differ in no more than this are candidates: one of five parts of 12 or 13 bits must then agree.
MAX_DISTANCE = 4
_PARTS = ((0, 13), (13, 13), (26, 13), (39, 13), (52, 12))
# Candidates count as alike if their thumbnails correlate so highly: films of two chests, or two faces cropped alike,
# can share a hash, and re-encoding, resizing or a change of brightness leaves the correlation above this.
MIN_CORRELATION = 0.97


def perceptual_hash(image: UInt8[np.ndarray, "H W channels"]) -> int:
    """64 bits that survive resizing, re-encoding and changes of brightness or contrast.

    The signs, about their median, of the lowest 8 x 8 frequencies (but the mean) of a 32 x 32 grey version (the usual
    DCT hash). 0 for a constant image.
    """
    spectrum = np.asarray(fft.dctn(_grey(image, _SIDE).astype(np.float64), norm="ortho"))
    spectrum = spectrum[: _KEPT + 1, : _KEPT + 1].ravel()[1:65]
    if np.abs(spectrum).max() < 1e-6:
        return 0
    return int(np.packbits(spectrum > np.median(spectrum)).view(">u8")[0])


def thumbnail(image: UInt8[np.ndarray, "H W channels"]) -> UInt8[np.ndarray, "16 16"]:
    """A 16 x 16 grey version."""
    return _grey(image, 16)


def alike_pairs(
    hashes: Sequence[int], thumbnails: Sequence[np.ndarray], digests: Sequence[str]
) -> Int[np.ndarray, "pairs 2"]:
    """Pairs of rows whose images look alike without being equal, first < second, in order.

    Costs about n log n: only images that share a part of the hash are compared, and where many share one, each with
    the next 128 in hash order only.
    """
    values = np.asarray(hashes, np.uint64)
    found = set()
    for start, bits in _PARTS:
        part = (values >> np.uint64(start)) & np.uint64((1 << bits) - 1)
        order = np.lexsort((values, part))
        largest = np.bincount(part.astype(np.int64)).max(initial=0)
        for step in range(1, min(int(largest), _COMPARED + 1)):
            one, other = order[:-step], order[step:]
            distance = np.bitwise_count(values[one] ^ values[other])
            for i, j in np.stack([one, other], -1)[(part[one] == part[other]) & (distance <= MAX_DISTANCE)]:
                found.add((min(i, j), max(i, j)))
    pairs = [(i, j) for i, j in sorted(found) if digests[i] != digests[j] and _correlate(thumbnails[i], thumbnails[j])]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _correlate(one: np.ndarray, other: np.ndarray) -> bool:
    a, b = (x.astype(np.float64).ravel() - x.mean() for x in (one, other))
    norms = np.sqrt((a @ a) * (b @ b))
    return bool(norms == 0 or a @ b > MIN_CORRELATION * norms)


def _grey(image: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(to_picture(image).convert("L").resize((side, side), Image.Resampling.BILINEAR, reducing_gap=3.0))
