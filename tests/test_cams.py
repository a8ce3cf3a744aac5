"""CAMs, their split into true and false, min-max normalisation: against NumPy, and what they refuse."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import references
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from tfcam_jax import cams

LEADING = [(), (3,), (2, 2)]
seeds = st.integers(0, 2**32 - 1)


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def split_by_hand(maps, label, logits):
    """True map and false map of one example, in float64."""
    others = [k for k in range(maps.shape[-1]) if k != label]
    weights = softmax(logits[others]) if len(others) > 1 else [1.0]
    return maps[..., label], sum(weight * maps[..., k] for weight, k in zip(weights, others, strict=True))


@given(seed=seeds, leading=st.sampled_from(LEADING), size=st.sampled_from([(1, 1), (4, 3)]), k=st.integers(2, 12))
def test_class_activation_maps_equal_loops(seed, leading, size, k):
    rng = np.random.default_rng(seed)
    features, kernel = rng.normal(size=(*leading, *size, 6)), rng.normal(size=(6, k))
    maps = jax.jit(cams.class_activation_maps)(jnp.asarray(features, jnp.float32), jnp.asarray(kernel, jnp.float32))
    expected = np.zeros((*leading, *size, k))
    for c in range(6):
        for j in range(k):
            expected[..., j] += features[..., c] * kernel[c, j]
    assert maps.dtype == jnp.float32
    np.testing.assert_allclose(maps, expected, atol=1e-5)


@given(seed=seeds, leading=st.sampled_from(LEADING), k=st.integers(2, 5), scale=st.sampled_from([0.1, 3, 100]))
def test_split_equals_loops(seed, leading, k, scale):
    """K = 2: the other class's map, to the bit. K > 2: the softmax mixture, extreme logits included."""
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(*leading, 2, 3, k)).astype(np.float32)
    labels = rng.integers(0, k, leading)
    logits = (scale * rng.normal(size=(*leading, k))).astype(np.float32)
    split = jax.jit(cams.split_true_false)(jnp.asarray(maps), jnp.asarray(labels), jnp.asarray(logits))
    for index in np.ndindex(*leading):
        expected = split_by_hand(maps[index].astype(np.float64), labels[index], logits[index].astype(np.float64))
        for got, want in zip(split, expected, strict=True):
            np.testing.assert_allclose(got[index], want, atol=0 if k == 2 else 1e-5)
    np.testing.assert_array_equal(split[0], np.take_along_axis(maps, labels[..., None, None, None], -1)[..., 0])


def test_two_classes_need_no_logits():
    maps = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 2)), jnp.float32)
    true_map, false_map = cams.split_true_false(maps, jnp.array([0, 1]))
    np.testing.assert_array_equal(true_map, jnp.stack([maps[0, ..., 0], maps[1, ..., 1]]))
    np.testing.assert_array_equal(false_map, jnp.stack([maps[0, ..., 1], maps[1, ..., 0]]))


@pytest.mark.parametrize("k", [2, 4])
def test_split_under_vmap_and_on_half_precision(k):
    rng = np.random.default_rng(1)
    maps = jnp.asarray(rng.normal(size=(5, 2, 3, k)), jnp.bfloat16)
    labels, logits = jnp.asarray(rng.integers(0, k, 5)), jnp.asarray(rng.normal(size=(5, k)), jnp.bfloat16)
    batched = cams.split_true_false(maps, labels, logits)
    upcast = cams.split_true_false(maps.astype(jnp.float32), labels, logits.astype(jnp.float32))
    mapped = jax.vmap(cams.split_true_false)(maps, labels, logits)
    for got, full, single in zip(batched, upcast, mapped, strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_array_equal(got, full)
        np.testing.assert_allclose(single, full, atol=1e-6)


def test_no_gradient_flows_through_the_weights_of_the_false_classes():
    rng = np.random.default_rng(2)
    maps, logits = jnp.asarray(rng.normal(size=(3, 2, 2, 4))), jnp.asarray(rng.normal(size=(3, 4)))
    labels = jnp.array([0, 3, 1])

    def false_square(maps, logits):
        return jnp.square(cams.split_true_false(maps, labels, logits)[1]).sum()

    by_maps, by_logits = jax.grad(false_square, (0, 1))(maps, logits)
    np.testing.assert_array_equal(by_logits, 0)
    assert (np.abs(by_maps).max((1, 2)) > 0).sum() == 9  # all but the true class's map
    np.testing.assert_array_equal(
        np.take_along_axis(np.asarray(by_maps), np.array([0, 3, 1])[:, None, None, None], -1), 0
    )


def test_split_refuses_one_class_and_missing_logits():
    labels = jnp.zeros(2, int)
    with pytest.raises(ValueError, match=r"at least 2 classes.*\(2, 3, 4, 1\)"):
        cams.split_true_false(jnp.zeros((2, 3, 4, 1)), labels)
    with pytest.raises(ValueError, match=r"needs logits.*2 false classes.*\(2, 3, 4, 3\)"):
        cams.split_true_false(jnp.zeros((2, 3, 4, 3)), labels)


def test_a_label_out_of_range_gives_a_true_map_of_zeros():
    true_map, _ = cams.split_true_false(jnp.ones((1, 2, 2, 2)), jnp.array([2]))
    np.testing.assert_array_equal(true_map, 0)


def raw_maps(rng, shape):
    """Over twenty magnitudes and far off zero; half of the examples are constant but for rounding."""
    leading = (*shape[:-2], 1, 1)
    offset, spread = rng.uniform(-3, 3, leading), 10 ** rng.uniform(-3, 3, leading)
    spread = np.where(rng.random(leading) < 0.5, 0, spread)
    noise = 1 + 1e-6 * (rng.random(shape) - 0.5)  # eight units in the last place of a float32
    return (10 ** rng.uniform(-10, 10, leading) * (offset * noise + spread * rng.random(shape))).astype(np.float32)


@given(seed=seeds, leading=st.sampled_from(LEADING), size=st.sampled_from([(1, 1), (1, 6), (5, 4)]))
def test_normalize_and_is_constant_equal_loops(seed, leading, size):
    maps = raw_maps(np.random.default_rng(seed), (*leading, *size))
    normal, constant = jax.jit(lambda m: (cams.normalize(m), cams.is_constant(m)))(jnp.asarray(maps))
    assert normal.dtype == jnp.float32
    for index in np.ndindex(*leading):
        m = maps[index].astype(np.float64)
        assert constant[index] == references.constant(m)
        np.testing.assert_allclose(normal[index], references.minmax(m), rtol=1e-6, atol=1e-6)


@given(seed=seeds)
def test_normalize_ignores_offset_and_positive_scale(seed):
    rng = np.random.default_rng(seed)
    maps = jnp.asarray(rng.normal(size=(4, 3, 4)), jnp.float32)
    scale, offset = float(rng.uniform(0.5, 5)), float(rng.uniform(-5, 5))
    np.testing.assert_allclose(cams.normalize(scale * maps + offset), cams.normalize(maps), atol=1e-5)
    np.testing.assert_allclose(cams.normalize(-maps), 1 - cams.normalize(maps), atol=1e-6)


def test_gradient_of_normalize_flows_through_minimum_and_maximum():
    with jax.enable_x64(True):
        maps = jnp.asarray(np.random.default_rng(3).permutation(12).reshape(1, 3, 4) ** 1.5)
        check_grads(jax.jit(cams.normalize), (maps,), order=1, modes=["fwd", "rev"], atol=1e-6, rtol=1e-6)
        total = lambda m: jnp.square(cams.normalize(m)).sum()
        gradient = jax.jit(jax.grad(total))(maps)
        assert gradient.ravel()[maps.argmin()] < 0
        assert abs(gradient.sum()) < 1e-9  # an offset changes nothing


def test_nan_is_not_taken_for_constant():
    maps = jnp.ones((1, 2, 2)).at[0, 0, 0].set(jnp.nan)
    assert not cams.is_constant(maps)[0]
    assert np.isnan(cams.normalize(maps)).any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(dtype):
    rng = np.random.default_rng(4)
    half = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    features, kernel, maps, other = half(2, 3, 4, 8), half(8, 3), half(2, 3, 4), half(2, 3, 4)
    for function, arguments in (
        (cams.class_activation_maps, (features, kernel)),
        (cams.difference_salience, (maps, other)),
        (cams.normalize, (maps,)),
    ):
        value = function(*arguments)
        assert value.dtype == jnp.float32
        np.testing.assert_array_equal(value, function(*(a.astype(jnp.float32) for a in arguments)))


def test_wrong_shapes_and_dtypes_are_refused():
    with pytest.raises(jaxtyping.TypeCheckError):
        cams.class_activation_maps(jnp.zeros((2, 3, 4, 8)), jnp.zeros((7, 2)))
    with pytest.raises(jaxtyping.TypeCheckError):
        cams.split_true_false(jnp.zeros((2, 3, 4, 2)), jnp.zeros(3, int))
    with pytest.raises(jaxtyping.TypeCheckError):
        cams.split_true_false(jnp.zeros((2, 3, 4, 2)), jnp.zeros(2))
    with pytest.raises(jaxtyping.TypeCheckError):
        cams.difference_salience(jnp.zeros((2, 3, 4)), jnp.zeros((2, 4, 3)))
    with pytest.raises(jaxtyping.TypeCheckError):
        cams.normalize(jnp.zeros(4))
