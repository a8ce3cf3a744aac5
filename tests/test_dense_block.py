"""Dense blocks against layers one after the other, each of which concatenates what it reads."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_params import slow_but

from tfcam_jax.models import DenseNet
from tfcam_jax.models.dense_block import MOST_PADDED, Layer, group_layers, run_block, run_layers
from tfcam_jax.models.norm import Over

EPSILON, FIRST, GROWTH, INNER = 1e-2, 3, 2, 8


def make_layers(count: int, given: bool, seed: int = 0) -> list[Layer]:
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape))
    affine = lambda channels: (1 + 0.3 * normal(channels), 0.3 * normal(channels))
    statistics = lambda channels: (0.3 * normal(1, channels), jnp.exp(0.3 * normal(1, channels)))

    def layer(channels: int) -> Layer:
        kernels = (
            normal(1, 1, channels, INNER) / math.sqrt(channels),
            normal(3, 3, INNER, GROWTH) / math.sqrt(9 * INNER),
        )
        own = (statistics(channels), statistics(INNER)) if given else None
        return Layer(affine(channels), kernels[0], affine(INNER), kernels[1], own)

    return [layer(FIRST + i * GROWTH) for i in range(count)]


def normalize(x, affine, statistics, weights, groups):
    """By given statistics [1, channels], or by those of the counted rows of each group."""
    parts = []
    for rows, counted in zip(jnp.split(x, groups), jnp.split(weights, groups), strict=True):
        if statistics is None:
            by_row = counted[:, None, None, None]
            count = jnp.broadcast_to(by_row, rows.shape).sum((0, 1, 2))
            mean = (rows * by_row).sum((0, 1, 2)) / count
            var = (jnp.square(rows - mean.reshape(1, 1, 1, -1)) * by_row).sum((0, 1, 2)) / count
        else:
            mean, var = (each[0] for each in statistics)
        along = lambda values: values.reshape(1, 1, 1, -1)
        parts.append(along(affine[0] / jnp.sqrt(var + EPSILON)) * (rows - along(mean)) + along(affine[1]))
    return jnp.concatenate(parts)


def one_after_the_other(layers, x, weights, groups):
    convolve = partial(
        jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    inner = []
    for layer in layers:
        given = layer.given or (None, None)
        y = convolve(jnp.maximum(normalize(x, layer.norm1, given[0], weights, groups), 0), layer.kernel1)
        inner.append(y)
        y = convolve(jnp.maximum(normalize(y, layer.norm2, given[1], weights, groups), 0), layer.kernel2)
        x = jnp.concatenate([x, y], axis=-1)
    return x, inner


CASES = [  # layers, statistics given, rows that count, groups
    (5, False, (1, 1, 1, 1), 1),
    (5, True, (1, 1, 1, 1), 1),
    (7, False, (1, 1, 0, 1), 1),
    (1, False, (1, 1, 1, 0), 2),
    (5, False, (1, 0, 1, 1), 2),
    (2, True, (1, 1, 1, 0), 1),
]


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("count", "given", "counted", "groups"), slow_but(CASES, CASES[4], CASES[5]))
def test_a_block_its_statistics_and_its_gradients_are_those_of_one_layer_after_the_other(count, given, counted, groups):
    layers, rng = make_layers(count, given), np.random.default_rng(1)
    x, weights = jnp.asarray(rng.standard_normal((4, 5, 6, FIRST))), jnp.asarray(counted, jnp.float64)
    towards = jnp.asarray(rng.standard_normal((4, 5, 6, FIRST + count * GROWTH)))
    assert len(group_layers([FIRST + i * GROWTH for i in range(count)])) > (count > 2)

    actual, moments = run_block(Over(groups, None), EPSILON, layers, x, weights)
    expected, inner = one_after_the_other(layers, x, weights, groups)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)
    if given:
        np.testing.assert_allclose(run_layers(EPSILON, layers, x), expected, rtol=1e-9, atol=1e-9)
    assert (moments is None) == given
    if moments is not None:
        outside, inside = moments
        for i, part in enumerate(np.split(np.asarray(expected), groups)):
            real = part[np.split(np.asarray(counted), groups)[i] > 0]
            np.testing.assert_allclose(outside.mean[i], real.mean((0, 1, 2)), atol=1e-9)
            np.testing.assert_allclose(outside.var[i], real.var((0, 1, 2)), atol=1e-9)
            assert outside.count[i, 0] == inside.count[i, 0, 0] == real[..., 0].size
            for j, values in enumerate(inner):
                real = np.split(np.asarray(values), groups)[i][np.split(np.asarray(counted), groups)[i] > 0]
                np.testing.assert_allclose(inside.mean[i, j], real.mean((0, 1, 2)), atol=1e-9)
                np.testing.assert_allclose(inside.var[i, j], real.var((0, 1, 2)), atol=1e-9)

    def penalty(function):
        """A function of the block and of its gradients, as losses on input gradients are."""
        value = lambda layers, x: (jnp.sin(function(layers, x)) * towards).sum()
        squares = lambda tree: sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree))
        return value, lambda layers, x: squares(jax.grad(value, argnums=(0, 1))(layers, x))

    ours = penalty(lambda layers, x: run_block(Over(groups, None), EPSILON, layers, x, weights)[0])
    plain = penalty(lambda layers, x: one_after_the_other(layers, x, weights, groups)[0])
    for one, other in zip(ours, plain, strict=True):
        found, wanted = (jax.jit(jax.grad(f, argnums=(0, 1)))(layers, x) for f in (one, other))
        for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-8 * np.abs(theirs).max())


def test_inference_takes_no_statistics_of_the_batch():
    with pytest.raises(ValueError, match="given statistics"):
        run_layers(EPSILON, make_layers(1, given=False), jnp.zeros((1, 2, 2, FIRST)))


@pytest.mark.usefixtures("double")
def test_devices_that_share_a_batch_share_its_statistics_and_gradients():
    layers, rng = make_layers(3, False), np.random.default_rng(1)
    x, weights = jnp.asarray(rng.standard_normal((4, 5, 6, FIRST))), jnp.asarray([1.0, 1.0, 0.0, 1.0])

    def loss(over, layers, x, weights):
        return jnp.sin(run_block(over, EPSILON, layers, x, weights)[0]).sum()

    whole = jax.grad(loss, argnums=(1, 2))(Over(1, None), layers, x, weights)
    halves = x.reshape(2, 2, *x.shape[1:]), weights.reshape(2, 2)
    part = lambda layers, x, weights: jax.grad(loss, argnums=(1, 2))(Over(1, "batch"), layers, x, weights)
    of_layers, of_x = jax.pmap(part, "batch", in_axes=(None, 0, 0))(layers, *halves)
    for mine, theirs in zip(jax.tree.leaves(of_layers), jax.tree.leaves(whole[0]), strict=True):
        np.testing.assert_allclose(mine.sum(0), theirs, atol=1e-9)
    np.testing.assert_allclose(of_x.reshape(x.shape), whole[1], atol=1e-9)


@pytest.mark.parametrize("channels", [[5], [64, 96], [64 + 32 * i for i in range(6)], [3 + 2 * i for i in range(40)]])
def test_groups_hold_all_layers_in_order_and_pad_within_bounds(channels):
    groups = list(group_layers(channels))
    assert [read for group in groups for read in channels[group]] == channels
    assert len({len(channels[group]) for group in groups[:-1]}) <= 1
    padded = sum(max(channels[group]) * len(channels[group]) for group in groups)
    assert padded <= MOST_PADDED * sum(channels)


def test_densenet_121_has_ten_groups_in_place_of_58_layers():
    blocks = [(64, 6), (128, 12), (256, 24), (512, 16)]
    assert [len(list(group_layers([first + 32 * i for i in range(n)]))) for first, n in blocks] == [2, 3, 3, 2]


def test_running_statistics_of_a_layer_are_those_of_what_it_reads_and_of_its_inside():
    model = DenseNet(num_classes=2, depths=(3,), growth=4, epsilon=EPSILON, train_from="denseblock1")
    rng, images = np.random.default_rng(0), jnp.zeros((4, 48, 48, 3))
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.2, 1, leaf.shape), jnp.float32), like)
    x, mask = jnp.asarray(rng.standard_normal((4, 12, 12, 8)), jnp.float32), jnp.asarray([1.0, 1.0, 0.0, 1.0])
    _, updated = model.apply(variables, x, train=True, mask=mask, span="trained", mutable=["batch_stats"])
    names = [f"denseblock1_denselayer{i}" for i in (1, 2, 3)]
    of_norm = lambda each: (each["scale"], each["bias"])
    layers = [
        Layer(of_norm(own["norm1"]), own["conv1"]["kernel"], of_norm(own["norm2"]), own["conv2"]["kernel"], None)
        for own in (variables["params"][name] for name in names)
    ]
    channels, inner = one_after_the_other(layers, x, mask, groups=1)
    for i, name in enumerate(names):
        for norm, values in (("norm1", channels[..., : 8 + 4 * i]), ("norm2", inner[i])):
            before, after = variables["batch_stats"][name][norm], updated["batch_stats"][name][norm]
            new = np.asarray(values)[[0, 1, 3]]
            for statistic, found in (("mean", new.mean((0, 1, 2))), ("var", new.var((0, 1, 2), ddof=1))):
                expected = 0.9 * before[statistic] + 0.1 * found
                np.testing.assert_allclose(after[statistic], expected, rtol=1e-4, err_msg=f"{name} {norm} {statistic}")


def test_what_the_backward_pass_keeps_of_a_layer_are_its_own_channels():
    """Six layers more keep their channels five times, once for the block and four for the last norm, and nothing of
    what they read (3 x 504 channels) or of their inside (3 x 192)."""

    def kept(depth: int) -> int:
        model = DenseNet(num_classes=2, depths=(depth,), growth=8)
        images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
        variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)

        def pullback(variables, images):
            apply = lambda p: model.apply({**variables, "params": p}, images, train=True, mutable=["batch_stats"])[0]
            return jax.vjp(lambda p: apply(p).logits.sum(), variables["params"])[1]

        leaves = jax.tree.leaves(jax.eval_shape(pullback, variables, images))
        return sum(math.prod(leaf.shape) for leaf in leaves if leaf.shape[:1] == (2,) and leaf.ndim == 4)

    places, own = 2 * 16 * 16, 6 * 8
    assert 0 < kept(12) - kept(6) <= 5 * places * own
