"""Fingerprints of arrays and of JSON: whether what is read back is, bit for bit, what was written."""

from __future__ import annotations

import json
import zlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped, UInt32

# Of the hash that spreads an element's index over 32 bits (the "lowbias32" constants).
_MIX = (0x7FEB352D, 0x846CA68B)


def fingerprint_array(array: Shaped[Array, "*shape"]) -> UInt32[Array, ""]:
    """A sum modulo 2^32 of the array's 32-bit words, each times an odd number that its index decides.

    Integer sums come out the same in any order, so the value depends on neither devices nor sharding. As the factors
    are odd, any change of a single word changes it; other changes, permutations among them, go unseen once in 2^32.
    Booleans and types of 8 and 16 bits become a word each, those of 64 bits two.
    """
    if array.dtype != jnp.bool_:
        array = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * min(array.dtype.itemsize, 4)}"))
    words = array.astype(jnp.uint32)
    index = jnp.zeros(words.shape, jnp.uint32)
    # Indices by axis rather than of the flat array: a sharded array need not be gathered.
    for axis, size in enumerate(words.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    for factor in _MIX:
        index = (index ^ (index >> 16)) * jnp.uint32(factor)
    return (words * (index | 1)).sum(dtype=jnp.uint32)


_fingerprint_leaves = jax.jit(lambda leaves: [fingerprint_array(leaf) for leaf in leaves])


def describe_leaves(tree: Any) -> dict[str, list[Any]]:
    """Path of each leaf to `[shape, dtype]`, JSON-able; abstract arrays will do."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): [list(x.shape), str(x.dtype)] for p, x in leaves}


def fingerprint_tree(tree: Any) -> dict[str, int]:
    """Path of each leaf, an array of any sharding, to its `fingerprint_array`; in one program, which is waited for."""
    values = jax.device_get(_fingerprint_leaves(jax.tree.leaves(tree)))
    return {name: int(value) for name, value in zip(describe_leaves(tree), values, strict=True)}


def checksum_json(value: Any) -> int:
    """CRC-32 of a JSON-able value, whatever the order of its keys and the spaces of its file."""
    return zlib.crc32(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())
