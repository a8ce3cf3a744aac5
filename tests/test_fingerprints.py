"""Fingerprints: any change of a word is seen, devices and sharding are not; against a NumPy reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tfcam_jax.run import fingerprints


def reference(array):
    """Python integers, element by element."""
    array = np.asarray(array)
    if array.dtype == bool:
        words = array.astype(np.uint8).ravel()
    else:
        words = array.ravel().view(f"u{min(array.dtype.itemsize, 4)}")
    total = 0
    for index, word in enumerate(words.tolist()):
        for factor in (0x7FEB352D, 0x846CA68B):
            index = (index ^ index >> 16) * factor % 2**32
        total += word * (index | 1)
    return total % 2**32


@pytest.mark.parametrize("dtype", ["float32", "int32", "uint8", "bfloat16", "bool", "float16", "uint32"])
@pytest.mark.parametrize("shape", [(), (5,), (3, 4, 2), (0,)])
def test_it_is_the_sum_of_words_times_odd_numbers(dtype, shape):
    array = jnp.asarray(np.random.default_rng(0).normal(0, 50, shape), jnp.dtype(dtype))
    assert int(fingerprints.fingerprint_array(array)) == reference(array)


@given(seed=st.integers(0, 2**32 - 1))
def test_a_flipped_bit_is_seen(seed):
    rng = np.random.default_rng(seed)
    array = rng.normal(size=(7, 9)).astype(np.float32)
    changed = array.copy()
    changed.view(np.uint32)[rng.integers(7), rng.integers(9)] ^= np.uint32(1 << int(rng.integers(32)))
    of = jax.jit(fingerprints.fingerprint_array)
    assert of(array) != of(changed)
    assert of(array) != of(rng.permutation(array.ravel()).reshape(7, 9))


def test_a_sign_of_zero_and_a_nan_are_words_like_others():
    one = {"a": jnp.zeros(3), "b": jnp.full(2, jnp.nan)}
    other = {"a": -jnp.zeros(3), "b": jnp.full(2, jnp.nan)}
    first, second = fingerprints.fingerprint_tree(one), fingerprints.fingerprint_tree(other)
    assert first["a"] != second["a"] and first["b"] == second["b"]


@pytest.mark.parametrize("spec", [("data", None), (None, "data"), (None, None)])
def test_devices_change_nothing(spec):
    tree = {"layer": {"kernel": jnp.asarray(np.random.default_rng(1).normal(size=(8, 6)), jnp.float32)}}
    mesh = Mesh(np.asarray(jax.devices()), "data")
    spread = jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*spec)))
    assert fingerprints.fingerprint_tree(spread) == fingerprints.fingerprint_tree(tree)
    assert list(fingerprints.fingerprint_tree(tree)) == ["layer/kernel"]
    assert fingerprints.describe_leaves(tree) == {"layer/kernel": [[8, 6], "float32"]}


def test_a_sharded_array_is_not_gathered():
    mesh = Mesh(np.asarray(jax.devices()), "data")
    array = jax.device_put(jnp.ones((8, 6)), NamedSharding(mesh, PartitionSpec("data")))
    program = jax.jit(fingerprints.fingerprint_array).lower(array).compile().as_text()
    assert "all-reduce" in program and "all-gather" not in program


def test_the_checksum_of_json_is_of_its_values():
    assert fingerprints.checksum_json({"a": 1, "b": [0.1]}) == fingerprints.checksum_json({"b": [0.1], "a": 1})
    assert fingerprints.checksum_json({"a": 1}) != fingerprints.checksum_json({"a": 2})
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprints.checksum_json([float("nan")])
