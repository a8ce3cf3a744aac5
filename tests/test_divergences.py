"""Distances between maps against NumPy and SciPy, and where they are smallest."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import references
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from tfcam_jax.divergences import DIVERGENCES, bce, kl, pearson

JITTED = {name: jax.jit(function) for name, function in DIVERGENCES.items()}
jitted_gradient = {name: jax.jit(jax.grad(function)) for name, function in DIVERGENCES.items()}
over_divergences = pytest.mark.parametrize("name", list(DIVERGENCES))


def unit_maps(rng, shape):
    """In [0, 1] with exact zeros and ones, as min-max leaves them; a fifth of them constant."""
    maps = np.clip(rng.uniform(-0.2, 1.2, shape), 0, 1)
    return np.where(rng.random((*shape[:-2], 1, 1)) < 0.2, rng.choice([0, 1, 0.25]), maps).astype(np.float32)


@over_divergences
@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from([(3, 4), (4, 7, 7), (2, 2, 1, 1), (3, 1, 5)]))
def test_value_equals_the_equation(name, seed, shape):
    rng = np.random.default_rng(seed)
    maps, target = unit_maps(rng, shape), unit_maps(rng, shape)
    value = JITTED[name](jnp.asarray(maps), jnp.asarray(target))
    assert value.shape == shape[:-2]
    for index in np.ndindex(*shape[:-2]):
        expected = getattr(references, name)(maps[index].astype(np.float64), target[index].astype(np.float64))
        np.testing.assert_allclose(value[index], expected, rtol=1e-5, atol=2e-6)


@given(seed=st.integers(0, 2**32 - 1))
def test_kl_and_pearson_equal_scipy(seed):
    rng = np.random.default_rng(seed)
    maps, target = rng.uniform(0.1, 1, (2, 5, 4)).astype(np.float32)
    both = jnp.asarray(maps), jnp.asarray(target)
    assert JITTED["kl"](*both) == pytest.approx(scipy.stats.entropy(target.ravel(), maps.ravel()), abs=1e-5)
    expected = scipy.stats.pearsonr(maps.ravel().astype(float), target.ravel().astype(float)).statistic
    assert JITTED["pearson"](*both) == pytest.approx(1 - expected, abs=1e-5)


@over_divergences
def test_smallest_where_the_maps_are_equal(name):
    rng = np.random.default_rng(0)
    target = jnp.asarray(rng.random((1, 3, 4)), jnp.float32)
    least = DIVERGENCES[name](target, target)[0]
    others = jnp.asarray(np.clip(target + rng.normal(0, 0.1, (50, 3, 4)), 0, 1), jnp.float32)
    assert (DIVERGENCES[name](others, jnp.broadcast_to(target, others.shape)) > least).all()
    assert least == pytest.approx(0 if name != "bce" else scipy.stats.bernoulli(target[0]).entropy().mean(), abs=1e-6)
    np.testing.assert_allclose(jax.grad(lambda m: DIVERGENCES[name](m, target).sum())(target), 0, atol=1e-6)


@over_divergences
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(name, dtype):
    rng = np.random.default_rng(2)
    maps, target = (jnp.asarray(unit_maps(rng, (4, 3, 4)), dtype) for _ in range(2))
    value = DIVERGENCES[name](maps, target)
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, DIVERGENCES[name](maps.astype(jnp.float32), target.astype(jnp.float32)))


@over_divergences
@pytest.mark.parametrize("shape", [(4, 7, 1), (1, 7, 7), (7, 7), (4, 7, 7, 1), (1,), ()])
def test_shapes_that_only_broadcast_are_refused(name, shape):
    """With annotations checked or not: without, NumPy's rules would take all of these."""
    plain = getattr(DIVERGENCES[name], "__wrapped__", DIVERGENCES[name])
    for function in (DIVERGENCES[name], plain):
        with pytest.raises((jaxtyping.TypeCheckError, ValueError)):
            function(jnp.zeros((4, 7, 7)), jnp.zeros(shape))
    with pytest.raises(ValueError, match=r"no axis of channels"):
        plain(jnp.zeros((4, 7, 7, 1)), jnp.zeros((4, 7, 7, 1)))


@over_divergences
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_an_example_that_is_not_finite_is_nan_and_leaves_the_gradient_of_others_alone(name, odd):
    rng = np.random.default_rng(3)
    maps, target = (jnp.asarray(rng.random((3, 4, 4)), jnp.float32) for _ in range(2))
    mask = jnp.array([True, False, True])
    masked = jax.jit(jax.grad(lambda m, t: jnp.where(mask, DIVERGENCES[name](m, t), 0).sum(), argnums=(0, 1)))
    expected = masked(maps, target)
    assert np.abs(expected[0][0]).max() > 0
    for m, t in ((maps.at[1, 0, 2].set(odd), target), (maps, target.at[1, 3, 3].set(odd))):
        np.testing.assert_array_equal(np.isnan(DIVERGENCES[name](m, t)), ~mask)
        jax.tree.map(np.testing.assert_array_equal, masked(m, t), expected)


@pytest.mark.parametrize("name", ["kl", "pearson"])
@given(seed=st.integers(0, 2**32 - 1), exponent=st.floats(-36, 38.5))
def test_a_common_factor_changes_nothing_over_all_of_float32(name, seed, exponent):
    """Against float64 at every magnitude; the gradient by a map is that at magnitude 1, over the factor."""
    rng = np.random.default_rng(seed)
    maps, target = rng.uniform(0.05, 1, (2, 3, 4)).astype(np.float32)
    function, gradient = JITTED[name], jitted_gradient[name]
    expected = getattr(references, name)(maps.astype(np.float64), target.astype(np.float64))
    factor = np.float32(10**exponent)
    for m, t in ((factor * maps, target), (maps, factor * target), (factor * maps, factor * target)):
        np.testing.assert_allclose(function(jnp.asarray(m), jnp.asarray(t)), expected, rtol=1e-4, atol=2e-6)
    found = np.asarray(gradient(jnp.asarray(factor * maps), jnp.asarray(target)), np.float64) * float(factor)
    wanted = gradient(jnp.asarray(maps), jnp.asarray(target))
    tiny = np.finfo(np.float32).tiny * float(factor)  # a gradient below float32's range is 0
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max() + tiny)


def test_bce_is_the_same_for_both_complements():
    """To the digit, although 1 - 1e-6 is not a float32: so `opposed` equals `cyborg` on an antisymmetric head."""
    maps, target = jnp.array([[0.0, 1.0], [0.25, 1.0]]), jnp.array([[1.0, 0.0], [0.5, 1.0]])
    value = float(bce(maps, target))
    assert value == pytest.approx(float(bce(1 - maps, 1 - target)), rel=1e-6)
    assert value == pytest.approx((-2 * np.log(1e-6) - np.log(0.25 * 0.75) / 2 - np.log(1 - 1e-6)) / 4, rel=1e-6)


def test_bce_has_no_gradient_beyond_its_clip():
    gradient = jax.grad(lambda m: bce(m, jnp.array([[1.0, 0.0, 0.5]])))(jnp.array([[0.0, 1.0, 0.5]]))
    np.testing.assert_array_equal(gradient, 0)


def test_kl_takes_an_empty_map_for_uniform():
    target = jnp.array([[0.1, 0.4], [0.4, 0.1]])
    expected = np.log(4) - scipy.stats.entropy(np.ravel(target))
    assert kl(jnp.zeros((2, 2)), target) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("scale", [1, 1e-6, 1e-12, 1e-16])
def test_pearson_of_faint_maps(scale):
    """Two faint maps correlate as strong ones do, though the product of their squares is below float32's range."""
    maps = np.random.default_rng(1).random((2, 3, 4))
    x, y = (scale * jnp.asarray(maps, jnp.float32))[:, None]
    value, gradient = jax.value_and_grad(lambda x: pearson(x, y).sum())(x)
    assert value == pytest.approx(1 - np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1], abs=1e-4)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_pearson_with_a_constant_map_is_one_without_gradient():
    ramp, flat = jnp.linspace(0, 1, 6).reshape(2, 3), jnp.full((2, 3), 0.7)
    for maps, target in ((flat, ramp), (ramp, flat), (flat, flat)):
        value, gradient = jax.value_and_grad(pearson)(maps, target)
        assert value == 1
        np.testing.assert_array_equal(gradient, 0)
