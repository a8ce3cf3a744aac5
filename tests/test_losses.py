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

# name: (the loss, its reference for one example, its arguments)
LOSSES = {
    "contrast": (losses.contrast_loss, references.contrast, "true false saliency"),
    "energy": (losses.energy_loss, references.energy, "true saliency"),
    "outside": (losses.outside_loss, references.outside, "true saliency"),
    "entropy": (losses.entropy_loss, references.entropy, "true"),
    "hard_negative": (losses.hard_negative_loss, references.hard_negative, "false"),
    "input_gradient": (losses.input_gradient_loss, references.input_gradient, "image saliency"),
}
for distance in DIVERGENCES:
    for name, names in {
        "cyborg": "true saliency",
        "opposed": "true false saliency",
        "difference": "true false saliency",
        "sham": "true",
    }.items():
        LOSSES[f"{name}-{distance}"] = (
            partial(getattr(losses, f"{name}_loss"), divergence=DIVERGENCES[distance]),
            partial(getattr(references, name), d=getattr(references, distance)),
            names,
        )

# Few shapes, so that few programs are compiled; the examples vary in what the maps hold.
SHAPES = [(6, 3, 4), (7, 5), (2, 3, 1, 2), (2, 1, 1)]
# Distances differ behind N(x) only: for gradients one loss with both maps takes all of them.
DIFFERENTIATED = [name for name in LOSSES if "-" not in name or name.startswith("opposed") or name.endswith("-mse")]


def call(name, arguments):
    function, _, names = LOSSES[name]
    return function(*(arguments[key] for key in names.split()))


def every_loss(arguments):
    """All losses in one program, which compiles faster than one for each."""
    return {name: call(name, arguments) for name in LOSSES}


def every_gradient(arguments):
    return {name: jax.grad(lambda a, name=name: call(name, a).sum())(arguments) for name in DIFFERENTIATED}


jitted_losses = jax.jit(every_loss)
jitted_gradients = jax.jit(every_gradient)


def draw_arguments(rng, shape):
    """Random raw maps over six magnitudes, off zero, some constant; human maps, some all 0, all 1 or all 0.3."""
    per_example = lambda low, high: rng.uniform(low, high, (*shape[:-2], 1, 1))

    def raw_map():
        maps = 10 ** per_example(-3, 3) * (rng.normal(size=shape) + per_example(-4, 4))
        return np.where(per_example(0, 1) < 0.15, per_example(-2, 2), maps)

    saliency = rng.random(shape) * (rng.random(shape) < 0.7)
    for value in (0, 1, 0.3):
        saliency = np.where(per_example(0, 1) < 0.1, value, saliency)
    drawn = {"true": raw_map(), "false": raw_map(), "saliency": saliency}
    drawn["image"] = np.stack([raw_map() for _ in range(3)], axis=-1)
    return {key: jnp.asarray(value, jnp.float32) for key, value in drawn.items()}


def one_by_one(name, arguments, leading):
    """The reference over all leading dimensions, in float64."""
    _, reference, names = LOSSES[name]
    values = np.empty(leading)
    for index in np.ndindex(*leading):
        values[index] = reference(*(np.asarray(arguments[key][index], np.float64) for key in names.split()))
    return values


@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from(SHAPES))
def test_values_equal_the_equations(seed, shape):
    arguments = draw_arguments(np.random.default_rng(seed), shape)
    for name, value in jitted_losses(arguments).items():
        assert value.shape == shape[:-2], name
        assert value.dtype == jnp.float32, name
        expected = one_by_one(name, arguments, shape[:-2])
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5, err_msg=name)


def test_eager_vmap_and_leading_dimensions_agree():
    arguments = draw_arguments(np.random.default_rng(1), (6, 3, 4))
    batched = jitted_losses(arguments)
    folded = {key: value.reshape(2, 3, *value.shape[1:]) for key, value in arguments.items()}
    for values in (
        every_loss(arguments),
        jax.jit(jax.vmap(every_loss))(arguments),
        {name: value.reshape(6) for name, value in jitted_losses(folded).items()},
    ):
        for name, value in values.items():
            np.testing.assert_allclose(value, batched[name], rtol=2e-6, atol=1e-6, err_msg=name)


def test_no_example_touches_another():
    """Other examples beside it change neither an example's value nor its gradient."""
    arguments, others = (draw_arguments(np.random.default_rng(seed), (6, 3, 4)) for seed in (2, 3))
    mixed = {key: others[key].at[1].set(value[1]) for key, value in arguments.items()}
    for function in (jitted_losses, jitted_gradients):
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b[1]), function(arguments), function(mixed))


def test_gradients_equal_finite_differences():
    """In float64, on maps without ties: one place is the minimum, one the maximum, none is at a kink."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        levels = lambda: rng.permuted(np.tile((np.arange(12) + 0.5) / 12, (2, 1)), axis=-1).reshape(2, 3, 4)
        saliency = jnp.asarray(levels())
        raw = {"true": 4 * levels() - 1.9, "false": 3 * levels() ** 2 - 1, "image": rng.normal(size=(2, 3, 4, 3))}
        raw = jax.tree.map(jnp.asarray, raw)
        function = jax.jit(lambda maps: {name: call(name, maps | {"saliency": saliency}) for name in DIFFERENTIATED})
        check_grads(function, (raw,), order=1, modes=["fwd", "rev"], atol=1e-6, rtol=1e-6, eps=1e-6)
        assert all(value.dtype == jnp.float64 for value in function(raw).values())


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(dtype):
    """The same figures, to the bit, as on the upcast arrays; the gradient comes back in the input's dtype."""
    half = {key: value.astype(dtype) for key, value in draw_arguments(np.random.default_rng(4), (3, 3, 4)).items()}
    full = every_loss({key: value.astype(jnp.float32) for key, value in half.items()})
    for name, value in every_loss(half).items():
        assert value.dtype == jnp.float32, name
        np.testing.assert_array_equal(value, full[name], err_msg=name)
    assert {gradient.dtype for gradient in jax.tree.leaves(jax.eval_shape(every_gradient, half))} == {jnp.dtype(dtype)}


def degenerate_arguments(shape):
    """Every combination of odd raw maps with odd human maps, as one batch."""
    ramp = np.linspace(-1, 2, shape[0] * shape[1]).reshape(shape)
    maps = [np.zeros(shape), np.full(shape, 3.7), np.full(shape, -1e6), ramp, -ramp]
    maps = np.stack(maps + [scale * ramp for scale in (1e-30, 1e-20, 1e-12, 1e6)])
    saliency = np.stack([np.zeros(shape), np.ones(shape), np.full(shape, 0.4), (ramp + 1) / 3])
    i, j, k = np.indices([len(maps), len(maps), len(saliency)]).reshape(3, -1)
    arguments = {"true": maps[i], "false": maps[j], "saliency": saliency[k], "image": np.stack([maps[i]] * 3, -1)}
    return {key: jnp.asarray(value, jnp.float32) for key, value in arguments.items()}


@pytest.mark.parametrize("shape", [(3, 4), (1, 1), (1, 5)])
def test_degenerate_maps_give_finite_values_and_gradients(shape):
    arguments = degenerate_arguments(shape)
    values, gradients = jitted_losses(arguments), jitted_gradients(arguments)
    level = {key: np.ptp(arguments[key], axis=(1, 2)) == 0 for key in ("true", "false")}
    for name in LOSSES:
        assert np.isfinite(values[name]).all(), name
    for name in DIFFERENTIATED:
        for key in ("true", "false", "image"):
            assert np.isfinite(gradients[name][key]).all(), (name, key)
        # A constant map has no min-max form. The three losses left out take the raw map, `difference` takes T - U.
        for key in level:
            if name.split("-")[0] not in ("energy", "outside", "hard_negative", "difference"):
                assert (np.asarray(gradients[name][key])[level[key]] == 0).all(), (name, key)


def test_constant_difference_of_varying_maps_gives_no_gradient():
    arguments = draw_arguments(np.random.default_rng(5), (6, 3, 4))
    arguments["true"] = jnp.round(arguments["true"])  # whole numbers, so that the difference is exactly 1
    arguments["false"] = arguments["true"] - 1
    gradient = jitted_gradients(arguments)["difference-mse"]
    np.testing.assert_array_equal(gradient["true"], 0)
    np.testing.assert_array_equal(gradient["false"], 0)


def test_energy_without_positive_attribution_is_one_without_gradient():
    maps, saliency = -jnp.ones((1, 3, 4)), jnp.ones((1, 3, 4))
    value, gradient = jax.value_and_grad(lambda m: losses.energy_loss(m, saliency).sum())(maps)
    assert value == 1
    np.testing.assert_array_equal(gradient, 0)


def test_contrast_weighs_both_regions_alike():
    """However small the human map: alike everywhere costs 1/2, apart everywhere costs 1/2, as people drew costs 0."""
    saliency = np.zeros((3, 4), np.float32)
    saliency[1, 2] = 1
    # N(T) - N(U) is 1 at the place people looked at, 0 elsewhere.
    true_map = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    true_map[1, 2] = 1
    false_map = np.where(saliency == 1, 0, true_map)
    loss = lambda *maps: float(losses.contrast_loss(*map(jnp.asarray, maps)))
    assert loss(true_map, false_map, saliency) == pytest.approx(0)
    assert loss(true_map, true_map, saliency) == pytest.approx(0.5)
    assert loss(saliency, 1 - saliency, saliency) == pytest.approx(0.5)


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_wrong_shape_is_refused(name):
    function, _, names = LOSSES[name]
    shapes = {"true": (2, 3, 4), "false": (2, 3, 4), "saliency": (2, 2, 4), "image": (2, 3, 4, 3)}
    arguments = [jnp.zeros(shapes[key]) for key in names.split()]
    if "saliency" not in names:
        arguments = [jnp.zeros(4)]
    with pytest.raises(jaxtyping.TypeCheckError):
        function(*arguments)


def test_a_masked_example_that_is_not_finite_leaves_the_gradient_of_others_alone():
    """Every loss, NaN in every argument in turn: the example's value says so, and no gradient does."""
    arguments = draw_arguments(np.random.default_rng(6), (3, 3, 4))
    mask = jnp.array([True, False, True])

    @jax.jit
    def both(arguments):
        masked = lambda a, name: jnp.where(mask, call(name, a), 0).sum()
        return every_loss(arguments), {name: jax.grad(masked)(arguments, name) for name in DIFFERENTIATED}

    _, expected = both(arguments)
    for key, value in arguments.items():
        values, gradients = both(arguments | {key: value.at[1, 2, 1].set(np.nan)})
        for name in DIFFERENTIATED:
            names = LOSSES[name][2]
            assert not (key in names.split() and np.isfinite(values[name][1])), (name, key)
            for other in set(names.split()) - {"saliency"}:
                got, want = (np.delete(each[name][other], 1, 0) for each in (gradients, expected))
                np.testing.assert_array_equal(got, want, err_msg=f"{name} {key} {other}")
                assert np.isfinite(gradients[name][other][1]).all(), (name, key, other)


def test_a_saliency_in_0_to_255_is_refused_where_it_can_be_seen():
    maps, saliency = jnp.ones((2, 3, 4)), jnp.full((2, 3, 4), 200.0)
    for _, (function, _, names) in LOSSES.items():
        if names.endswith("saliency") and "image" not in names:
            with pytest.raises(ValueError, match=r"saliency lies in \[200, 200\]; a loss takes \[0, 1\]"):
                function(*[maps] * (len(names.split()) - 1), saliency)
    assert np.isfinite(jax.jit(losses.cyborg_loss)(maps, saliency)).all()  # there values can't be seen


def test_masked_mean_is_the_mean_of_what_is_marked_whatever_the_rest_holds():
    values, mask = jnp.array([[1.0, jnp.nan], [jnp.inf, 4.0]]), jnp.array([[True, False], [False, True]])
    value, gradient = jax.value_and_grad(losses.masked_mean)(values, mask)
    assert value == 2.5 and value.dtype == jnp.float32
    np.testing.assert_array_equal(gradient, [[0.5, 0], [0, 0.5]])
    value, gradient = jax.value_and_grad(losses.masked_mean)(values, jnp.zeros_like(mask))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)
