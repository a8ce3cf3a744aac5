"""Each loss against its equation in NumPy; under jit, vmap and grad; on half precision; on degenerate maps."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import references
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from tfcam_jax import losses
from tfcam_jax.divergences import DIVERGENCES

# name: (the loss, its reference for one example, the kinds of its arguments)
LOSSES = {
    "contrast": (losses.contrast_loss, references.contrast, "map map saliency"),
    "energy": (losses.energy_loss, references.energy, "map saliency"),
    "outside": (losses.outside_loss, references.outside, "map saliency"),
    "entropy": (losses.entropy_loss, references.entropy, "map"),
    "hard_negative": (losses.hard_negative_loss, references.hard_negative, "map"),
    "input_gradient": (losses.input_gradient_loss, references.input_gradient, "image saliency"),
}
for distance in DIVERGENCES:
    for name, kinds in {
        "cyborg": "map saliency",
        "opposed": "map map saliency",
        "difference": "map map saliency",
        "sham": "map",
    }.items():
        LOSSES[f"{name}-{distance}"] = (
            partial(getattr(losses, f"{name}_loss"), divergence=DIVERGENCES[distance]),
            partial(getattr(references, name), d=getattr(references, distance)),
            kinds,
        )
JITTED = {name: jax.jit(function) for name, (function, _, _) in LOSSES.items()}

# Few shapes, so that few programs are compiled; the examples vary in what the maps hold.
SHAPES = [(2, 3, 4), (7, 5), (3, 1, 2, 2), (2, 1, 1), (4, 1, 3)]

over_losses = pytest.mark.parametrize("name", list(LOSSES))


def draw_arguments(rng, kinds, shape):
    """Random raw maps over six magnitudes, off zero, some constant; human maps, some all 0, all 1 or all 0.3."""

    def draw(kind):
        per_example = lambda low, high: rng.uniform(low, high, (*shape[:-2], 1, 1))
        if kind == "saliency":
            saliency = rng.random(shape) * (rng.random(shape) < 0.7)
            for value in (0, 1, 0.3):
                saliency = np.where(per_example(0, 1) < 0.1, value, saliency)
            return saliency.astype(np.float32)
        maps = 10 ** per_example(-3, 3) * (rng.normal(size=shape) + per_example(-4, 4))
        maps = np.where(per_example(0, 1) < 0.15, per_example(-2, 2), maps).astype(np.float32)
        return np.stack([maps, maps[..., ::-1], -maps], axis=-1) if kind == "image" else maps

    return [jnp.asarray(draw(kind)) for kind in kinds.split()]


def one_by_one(reference, arguments, shape):
    """The reference over all leading dimensions, in float64."""
    values = np.empty(shape[:-2])
    for index in np.ndindex(*shape[:-2]):
        values[index] = reference(*(np.asarray(argument[index], np.float64) for argument in arguments))
    return values


def summed(function):
    return lambda *arguments: function(*arguments).sum()


@over_losses
@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from(SHAPES))
def test_value_equals_the_equation(name, seed, shape):
    _, reference, kinds = LOSSES[name]
    arguments = draw_arguments(np.random.default_rng(seed), kinds, shape)
    value = JITTED[name](*arguments)
    assert value.shape == shape[:-2]
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, one_by_one(reference, arguments, shape), rtol=1e-4, atol=1e-5)


@over_losses
def test_eager_vmap_and_leading_dimensions_agree(name):
    function, _, kinds = LOSSES[name]
    arguments = draw_arguments(np.random.default_rng(1), kinds, (6, 3, 4))
    batched = JITTED[name](*arguments)
    for value in (
        function(*arguments),
        jax.vmap(function)(*arguments),
        function(*(a.reshape(2, 3, *a.shape[1:]) for a in arguments)).reshape(6),
    ):
        np.testing.assert_allclose(value, batched, rtol=1e-6, atol=1e-7)


@over_losses
def test_no_example_touches_another(name):
    """The gradient of the sum is each example's own gradient, and an example alone has the same value."""
    function, _, kinds = LOSSES[name]
    arguments = draw_arguments(np.random.default_rng(2), kinds, (3, 3, 4))
    gradient = jax.jit(jax.grad(summed(function)))
    whole = gradient(*arguments)
    for i in range(3):
        alone = gradient(*(a[i] for a in arguments))
        np.testing.assert_allclose(whole[i], alone, rtol=1e-5, atol=1e-7 + 1e-6 * np.abs(alone).max())


@over_losses
def test_gradients_by_finite_differences(name):
    """In float64, on maps without ties: no place but one is the minimum or the maximum, none is at a kink."""
    function, _, kinds = LOSSES[name]
    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        arguments = []
        for kind in kinds.split():
            levels = rng.permuted(np.tile((np.arange(12) + 0.5) / 12, (2, 1)), axis=-1).reshape(2, 3, 4)
            maps = {"saliency": levels, "map": 4 * levels - 1.9, "image": rng.normal(size=(2, 3, 4, 3))}[kind]
            arguments.append(jnp.asarray(maps, jnp.float64))
        by_maps = jax.jit(lambda *maps: function(*maps, *arguments[len(maps) :]))
        raw = tuple(a for a, kind in zip(arguments, kinds.split(), strict=True) if kind != "saliency")
        check_grads(by_maps, raw, order=1, modes=["fwd", "rev"], atol=1e-5, rtol=1e-5, eps=1e-6)
        assert function(*arguments).dtype == jnp.float64


@over_losses
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(name, dtype):
    """The same figures, to the bit, as on the upcast arrays; the gradient comes back in the input's dtype."""
    function, _, kinds = LOSSES[name]
    half = [a.astype(dtype) for a in draw_arguments(np.random.default_rng(4), kinds, (3, 3, 4))]
    value, full = function(*half), function(*(a.astype(jnp.float32) for a in half))
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, full)
    assert jax.grad(summed(function))(*half).dtype == dtype


def degenerate_arguments(kinds, shape):
    """Every combination of odd raw maps with odd human maps, as one batch."""
    ramp = np.linspace(-1, 2, shape[0] * shape[1]).reshape(shape)
    odd_maps = [np.zeros(shape), np.full(shape, 3.7), np.full(shape, -1e6), 1e-30 * ramp, 1e-20 * ramp, 1e-12 * ramp]
    odd_maps += [ramp, 1e6 * ramp, -ramp]
    odd_saliency = [np.zeros(shape), np.ones(shape), np.full(shape, 0.4), (ramp + 1) / 3]
    choices = {"map": odd_maps, "saliency": odd_saliency, "image": [np.stack([m] * 3, axis=-1) for m in odd_maps]}
    sets = [np.stack(choices[kind]).astype(np.float32) for kind in kinds.split()]
    index = np.indices([len(chosen) for chosen in sets]).reshape(len(sets), -1)
    return [jnp.asarray(chosen[i]) for chosen, i in zip(sets, index, strict=True)]


@over_losses
@pytest.mark.parametrize("shape", [(3, 4), (1, 1), (1, 5), (5, 1)])
def test_degenerate_maps_give_finite_values_and_gradients(name, shape):
    function, _, kinds = LOSSES[name]
    arguments = degenerate_arguments(kinds, shape)
    maps = [i for i, kind in enumerate(kinds.split()) if kind != "saliency"]
    value, gradients = jax.jit(lambda *a: (function(*a), jax.grad(summed(function), maps)(*a)))(*arguments)
    assert np.isfinite(value).all()
    for i, gradient in zip(maps, gradients, strict=True):
        assert np.isfinite(gradient).all()
        if name not in ("energy", "outside", "hard_negative", "input_gradient"):  # these take the raw map
            level = np.ptp(arguments[i], axis=(1, 2)) == 0
            if not name.startswith("difference"):  # its map is T - U
                assert (np.asarray(gradient)[level] == 0).all()


@pytest.mark.parametrize("name", [name for name in LOSSES if name.startswith("difference")])
def test_constant_difference_of_varying_maps_gives_no_gradient(name):
    function = LOSSES[name][0]
    true_map = jnp.asarray(np.random.default_rng(5).normal(size=(2, 3, 4)), jnp.float32)
    saliency = jnp.abs(true_map) / 4
    gradients = jax.grad(summed(function), (0, 1))(true_map, true_map - 1, saliency)
    np.testing.assert_array_equal(gradients, 0)


def test_energy_without_positive_attribution_is_one_without_gradient():
    maps, saliency = -jnp.ones((1, 3, 4)), jnp.ones((1, 3, 4))
    value, gradient = jax.value_and_grad(summed(losses.energy_loss))(maps, saliency)
    assert value == 1
    np.testing.assert_array_equal(gradient, 0)


def test_contrast_weighs_both_regions_alike():
    """However small the human map: maps that nowhere differ cost 1/2, maps that differ by 1 everywhere cost 1/2."""
    ramp = jnp.linspace(0, 1, 12).reshape(3, 4)
    saliency = jnp.zeros((3, 4)).at[1, 2].set(1)
    assert losses.contrast_loss(ramp, ramp, saliency) == pytest.approx(0.5)
    assert losses.contrast_loss(saliency, 1 - saliency, saliency) == pytest.approx(0.5)
    # N(T) - N(U) is 1 where people looked and 0 elsewhere.
    background = jnp.where(saliency == 1, 0, ramp.at[0, 0].set(1).at[0, 1].set(0))
    assert losses.contrast_loss(jnp.maximum(background, saliency), background, saliency) == pytest.approx(0)


@over_losses
def test_a_wrong_shape_is_refused(name):
    function, _, kinds = LOSSES[name]
    arguments = draw_arguments(np.random.default_rng(6), kinds, (2, 3, 4))
    arguments[-1] = arguments[-1][0, 0] if kinds == "map" else arguments[-1][:, :2]
    with pytest.raises(jaxtyping.TypeCheckError):
        function(*arguments)
