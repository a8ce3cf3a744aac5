"""Each loss against its equation in NumPy; under jit, vmap and grad; on half precision; on degenerate maps."""

import inspect
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
from slow_params import slow_but

from tfcam_jax import losses
from tfcam_jax.cams import largest_magnitude
from tfcam_jax.divergences import DIVERGENCES

# name: (the loss, its reference for one example, its arguments)
LOSSES = {
    "contrast": (losses.contrast_loss, references.contrast, "true false saliency"),
    "energy": (losses.energy_loss, references.energy, "true saliency"),
    "outside": (losses.outside_loss, references.outside, "true saliency"),
    "entropy": (losses.entropy_loss, references.entropy, "true"),
    "hard_negative": (losses.hard_negative_loss, references.hard_negative, "false"),
    "unsigned_energy": (losses.unsigned_energy_loss, references.unsigned_energy, "true false saliency"),
    "against": (losses.against_loss, references.against, "true false saliency"),
    "order": (losses.order_loss, references.order, "true saliency"),
    "uneven": (losses.uneven_loss, references.uneven, "true false"),
    "input_gradient": (losses.input_gradient_loss, references.input_gradient, "image saliency"),
}
FEW_DISTANCES = ("mse", "pearson")  # for what is put together from losses that all distances are tried with
for distance in DIVERGENCES:
    for name, names in {
        "cyborg": "true saliency",
        "opposed": "true false saliency",
        "difference": "true false saliency",
        "sham": "true",
        "consistency": "true false other_true other_false",
        **(dict.fromkeys(("aligned", "place_and_sign"), "true false saliency") if distance in FEW_DISTANCES else {}),
    }.items():
        LOSSES[f"{name}-{distance}"] = (
            partial(getattr(losses, f"{name}_loss"), divergence=DIVERGENCES[distance]),
            partial(getattr(references, name), d=getattr(references, distance)),
            names,
        )

# Few shapes, so that few programs are compiled; the examples vary in what the maps hold.
SHAPES = [(6, 3, 4), (2, 3, 1, 2), (2, 1, 1)]
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
    drawn |= {"other_true": raw_map(), "other_false": raw_map()}
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


@pytest.mark.slow
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
    """In float64, on maps without ties: one place is the minimum, one the maximum, none is at a kink.

    What divides by a peak that is a constant for the gradient is multiplied by it again.
    """
    powers, sums = {"against": 1, "uneven": 2}, ("place_and_sign-mse",)  # the latter of two that are looked at
    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        levels = lambda: rng.permuted(np.tile((np.arange(12) + 0.5) / 12, (2, 1)), axis=-1).reshape(2, 3, 4)
        saliency = jnp.asarray(levels())
        raw = {"true": 4 * levels() - 1.9, "false": 3 * levels() ** 2 - 1, "image": rng.normal(size=(2, 3, 4, 3))}
        raw |= {"other_true": 2 * levels() - 0.6, "other_false": levels() ** 3 - 0.2}
        raw = jax.tree.map(jnp.asarray, raw)
        peak = lambda maps, name: largest_magnitude(maps["true"] - maps["false"]) ** powers.get(name, 0)
        value = lambda maps, name: call(name, maps | {"saliency": saliency}) * peak(maps, name)
        function = jax.jit(lambda maps: {name: value(maps, name) for name in DIFFERENTIATED if name not in sums})
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
    arguments |= {"other_true": maps[j], "other_false": maps[(i + 1) % len(maps)]}
    return {key: jnp.asarray(value, jnp.float32) for key, value in arguments.items()}


@pytest.mark.parametrize(("height", "width"), slow_but([(3, 4), (1, 1), (1, 5)], (3, 4)))
def test_degenerate_maps_give_finite_values_and_gradients(height, width):
    arguments = degenerate_arguments((height, width))
    values, gradients = jitted_losses(arguments), jitted_gradients(arguments)
    level = {key: np.ptp(arguments[key], axis=(1, 2)) == 0 for key in ("true", "false")}
    for name in LOSSES:
        assert np.isfinite(values[name]).all(), name
    for name in DIFFERENTIATED:
        for key in ("true", "false", "other_true", "other_false", "image"):
            assert np.isfinite(gradients[name][key]).all(), (name, key)
        # A constant map has no min-max form. Of those left out three take the raw map, the others T - U.
        of_raw_maps = ("energy", "outside", "hard_negative")
        of_difference = ("difference", "unsigned_energy", "against", "place_and_sign", "uneven", "consistency")
        for key in level:
            if name.split("-")[0] not in (*of_raw_maps, *of_difference):
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


def loss_and_gradient(loss, maps, *rest):
    return jax.value_and_grad(lambda m: loss(m, *rest).sum())(jnp.asarray(maps, jnp.float32))


def test_the_unsigned_energy_takes_either_sign_and_the_sign_loss_the_right_one():
    """D all inside S, positive or negative: one cannot tell them apart, the other gives 0 and 1, and a way out."""
    saliency = jnp.asarray(np.kron([[1, 0], [0, 0]], np.ones((2, 2))), jnp.float32)
    zero = jnp.zeros((4, 4))
    unsigned = lambda sign: float(losses.unsigned_energy_loss(sign * saliency, zero, saliency))
    assert unsigned(1) == unsigned(-1) == 0
    value, gradient = loss_and_gradient(losses.against_loss, saliency, zero, saliency)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)
    value, gradient = loss_and_gradient(losses.against_loss, -saliency, zero, saliency)
    assert value == 1
    np.testing.assert_allclose(gradient, -saliency / 4)  # each place that is negative is lifted alike


def test_place_and_sign_is_cyborg_where_the_sign_is_right():
    arguments = draw_arguments(np.random.default_rng(7), (6, 3, 4))
    true_map, saliency = arguments["true"], arguments["saliency"]
    below = true_map - 1 - jnp.abs(arguments["false"])  # D is positive everywhere
    right = losses.place_and_sign_loss(true_map, below, saliency)
    np.testing.assert_array_equal(right, losses.cyborg_loss(true_map, saliency))
    wrong = losses.place_and_sign_loss(true_map, 2 * true_map - below, saliency)  # D is negative everywhere
    assert (np.asarray(wrong - right)[np.asarray(saliency).any((1, 2))] > 0).all()


def test_order_asks_for_the_order_alone():
    """Zero for any map whose places inside lie above those outside by the margin, however much evidence is outside."""
    rng = np.random.default_rng(8)
    saliency = jnp.asarray(rng.permuted(np.repeat([0.0, 1.0], [20, 10])).reshape(5, 6), jnp.float32)
    outside = jnp.asarray(rng.uniform(0, 4, (5, 6)), jnp.float32)
    inside = jnp.asarray(rng.uniform(6, 9, (5, 6)), jnp.float32)
    ordered = jnp.where(saliency == 1, inside, outside)
    for maps in (ordered, 100 + 1e-3 * ordered, saliency):
        value, gradient = loss_and_gradient(losses.order_loss, maps, saliency)
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)
        assert losses.cyborg_loss(ordered, saliency) > 0.02 < losses.energy_loss(ordered, saliency)
    # One place outside above all others: pulled down, however far above it is; and the places inside are pulled up.
    highest = jnp.unravel_index(jnp.argmin(saliency), saliency.shape)
    for above in (10.0, 14.0):
        value, gradient = loss_and_gradient(losses.order_loss, ordered.at[highest].set(above), saliency)
        assert value > 0 < gradient[highest] and (gradient[saliency == 1] < 0).all()
    noise = jnp.asarray(rng.normal(size=(64, 5, 6)), jnp.float32)
    assert 0.7 < losses.order_loss(noise, jnp.broadcast_to(saliency, noise.shape)).mean() < 1


def test_uneven_leaves_the_margin_alone():
    """The gradient sums to 0 over places, so that D's mean stays; a flat D of any size and sign is 0."""
    arguments = draw_arguments(np.random.default_rng(9), (6, 3, 4))
    _, gradient = loss_and_gradient(losses.uneven_loss, arguments["true"], arguments["false"])
    assert np.abs(gradient).max((1, 2)).min() > 0
    scale = np.abs(np.asarray(gradient)).max((1, 2))
    np.testing.assert_allclose(gradient.sum((1, 2)) / scale, 0, atol=1e-5)
    for level in (-7.0, 0.0, 1e-3):
        np.testing.assert_array_equal(losses.uneven_loss(jnp.full((2, 3, 4), level), jnp.zeros((2, 3, 4))), 0)


def test_consistency_asks_that_d_is_alike_whatever_both_views_share():
    """A factor, an offset and a map added to T and U of one view change nothing; the other sign is as far as can be."""
    rng = np.random.default_rng(8)
    true_map, false_map, added = (jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32) for _ in range(3))
    alike = losses.consistency_loss(true_map, false_map, 3 * true_map + added + 5, 3 * false_map + added)
    np.testing.assert_allclose(alike, 0, atol=1e-9)
    pearson = partial(losses.consistency_loss, divergence=DIVERGENCES["pearson"])
    np.testing.assert_allclose(pearson(true_map, false_map, false_map, true_map), 2, rtol=1e-5)
    np.testing.assert_allclose(
        pearson(true_map, false_map, added, false_map), pearson(added, false_map, true_map, false_map)
    )
    unchecked = inspect.unwrap(losses.consistency_loss)
    with pytest.raises(ValueError, match="shape"):
        unchecked(true_map, false_map, true_map[..., :1], false_map[..., :1])


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
    shapes |= {"other_true": (2, 3, 4), "other_false": (2, 3, 1)}
    arguments = [jnp.zeros(shapes[key]) for key in names.split()]
    if "saliency" not in names and "other" not in names:
        arguments = [jnp.zeros(4)] * len(arguments)
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
