"""A map as a NumPy array."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import Float


def decode_array(encoded: bytes) -> Float[np.ndarray, "h w"]:
    """Decodes a map from the bytes of an NPY file.

    Arrays are [h, w] or [h, w, 1], finite and non-negative. Booleans and integers up to 1 are taken as they are, larger
    integers are divided by their type's largest value, floats beyond 1 by their own largest.

    Raises:
      ValueError: no such array.
    """
    try:
        array = np.load(io.BytesIO(encoded), allow_pickle=False)
    except Exception as error:  # NumPy raises whatever it stumbles over.
        raise ValueError(f"not a NumPy array ({error})") from error
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 or not array.size or array.dtype.kind not in "buif":
        raise ValueError(f"a map must be [h, w] numbers; got shape {array.shape}, {array.dtype}")
    values = array.astype(np.float32)
    if not (np.isfinite(values).all() and values.min() >= 0):
        raise ValueError("a map must be finite and non-negative")
    if values.max() > 1:
        values /= np.iinfo(array.dtype).max if array.dtype.kind in "ui" else values.max()
    return values
