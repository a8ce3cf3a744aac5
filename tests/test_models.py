"""The contract that every model of the table keeps, and BatchNorm against PyTorch's arithmetic in NumPy."""

import re
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from slow_params import slow_but

from tfcam_jax import cams
from tfcam_jax.models import MODELS, OUTPUT_STRIDES, ModelOutput, PooledLinearHead, cam_size
from tfcam_jax.models.head import dropout_factors
from tfcam_jax.models.norm import BatchNorm
from tfcam_jax.models.resolution import describe_cam

AXIS = "devices"
# The whole table is in test_backbones.py, at sizes that compile fast.
over_models = pytest.mark.parametrize("name", ["small_cnn", "resnet18"])
as_float32 = partial(jnp.asarray, dtype=jnp.float32)


@cache
def some_variables(name, classes):
    """Random parameters, biases and running statistics: no ones or zeros behind which a slip could hide."""
    shapes = jax.eval_shape(
        partial(MODELS[name](num_classes=classes).init, train=False), jax.random.key(0), jnp.zeros((1, 64, 64, 3))
    )
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        key = path[-1].key
        if len(leaf.shape) > 1:
            return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape)
        return rng.uniform(0.5, 1.5, leaf.shape) if key in ("scale", "var") else rng.normal(0, 0.3, leaf.shape)

    return jax.tree.map(as_float32, jax.tree_util.tree_map_with_path(draw, shapes))


def some_images(seed, count, height, width):
    return as_float32(np.random.default_rng(seed).normal(size=(count, height, width, 3)))


@over_models
@pytest.mark.parametrize(
    ("size", "classes", "dtype"),
    slow_but(
        [((64, 64), 2, jnp.float32), ((97, 75), 3, jnp.float32), ((80, 101), 2, jnp.bfloat16)],
        ((97, 75), 3, jnp.float32),
    ),
)
def test_map_means_plus_bias_are_the_logits(name, size, classes, dtype):
    """The contract, at odd sizes too; float32 comes out although the backbone may compute in bfloat16."""
    model = MODELS[name](num_classes=classes, dtype=dtype)
    output = jax.jit(partial(model.apply, train=False))(some_variables(name, classes), some_images(1, 2, *size))
    assert isinstance(output, ModelOutput)
    assert {leaf.dtype for leaf in jax.tree.leaves(output)} == {jnp.dtype(jnp.float32)}
    assert output.logits.shape == (2, classes)
    assert output.kernel.shape == (output.features.shape[-1], classes)
    assert min(output.features.shape[1:3]) > 1
    maps = cams.class_activation_maps(output.features, output.kernel)
    np.testing.assert_allclose(maps.mean((1, 2)) + output.bias[None], output.logits, atol=1e-5, rtol=1e-5)
    assert np.ptp(output.logits, axis=0).max() > 1e-3  # it looks at the image
    assert (output.features >= 0).all() and (output.features > 0).any()  # after the last ReLU


@over_models
def test_half_precision_computes_in_half_precision(name):
    model = MODELS[name](num_classes=2, dtype=jnp.bfloat16)
    text = str(jax.make_jaxpr(partial(model.apply, train=False))(some_variables(name, 2), some_images(1, 1, 64, 64)))
    convolutions = [line for line in text.splitlines() if "= conv_general_dilated" in line]
    assert convolutions and all(":bf16[" in line.split("=")[0] for line in convolutions)


@pytest.mark.slow
@over_models
def test_two_devices_with_padding_equal_one_device_without(name):
    """Logits of real rows and running statistics: batches of 3 and 2 real rows, the sixth row is rubbish."""
    images, variables = some_images(2, 5, 64, 48), some_variables(name, 2)
    model = MODELS[name](num_classes=2)
    alone, alone_stats = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))(variables, images)

    shared = MODELS[name](num_classes=2, axis_name=AXIS)
    step = lambda images, mask: shared.apply(variables, images, train=True, mask=mask, mutable=["batch_stats"])
    padded = jnp.concatenate([images, 1e3 * some_images(3, 1, 64, 48)]).reshape(2, 3, 64, 48, 3)
    both, both_stats = jax.pmap(step, axis_name=AXIS)(padded, jnp.array([[1.0, 1, 1], [1, 1, 0]]))
    np.testing.assert_allclose(both.logits.reshape(6, 2)[:5], alone.logits, atol=1e-4, rtol=1e-4)
    for device in range(2):
        jax.tree.map(
            lambda got, want, device=device: np.testing.assert_allclose(got[device], want, atol=1e-4, rtol=1e-4),
            both_stats,
            alone_stats,
        )


@over_models
def test_evaluation_leaves_statistics_and_ignores_the_batch(name):
    model, variables, images = MODELS[name](num_classes=2), some_variables(name, 2), some_images(4, 2, 64, 64)
    apply = jax.jit(partial(model.apply, train=False, mutable=["batch_stats"]))
    output, after = apply(variables, images)
    jax.tree.map(np.testing.assert_array_equal, after["batch_stats"], variables["batch_stats"])
    other, _ = apply(variables, images.at[1].set(0))
    np.testing.assert_array_equal(output.logits[0], other.logits[0])


@over_models
def test_images_without_a_batch_are_refused(name):
    with pytest.raises(ValueError, match="takes images of shape"):
        MODELS[name](num_classes=2).apply(some_variables(name, 2), jnp.zeros((64, 64, 3)), train=False)


def test_head_pools_in_float32():
    """A mean over 4096 places is wrong in the second digit in bfloat16; and the kernel starts random, the bias at 0."""
    features = jnp.asarray(np.random.default_rng(5).random((2, 64, 64, 3)), jnp.bfloat16)
    output, variables = PooledLinearHead(num_classes=4).init_with_output(jax.random.key(0), features, features)
    exact = np.asarray(features, np.float64).mean((1, 2)) @ np.asarray(variables["params"]["kernel"], np.float64)
    np.testing.assert_allclose(output.logits, exact, atol=1e-5)
    np.testing.assert_array_equal(output.bias, 0)
    np.testing.assert_array_equal(output.features, features.astype(jnp.float32))


def test_a_head_may_start_as_pytorchs_linear_layer():
    """Kernel and bias uniform within 1 / sqrt(channels), which 64 and 40,000 values tell from other distributions."""
    features = jnp.zeros((1, 1, 1, 625))
    head = PooledLinearHead(num_classes=64, head_init="pytorch").init(jax.random.key(3), features, features)["params"]
    for values in map(np.ravel, (head["kernel"], head["bias"])):
        assert stats.kstest(values, stats.uniform(-1 / 25, 2 / 25).cdf).pvalue > 0.01
    assert np.unique(head["bias"]).size == 64 and not np.isin(head["bias"], head["kernel"]).any()


def test_dropout_is_each_examples_own_and_scales_what_it_keeps():
    """By its number alone, wherever the example stands; 3000 channels tell 0.3 from other rates."""
    draw = jnp.asarray([5, 4_000_000_000, 5, 6], jnp.uint32)
    factors = np.asarray(dropout_factors(draw, 0.3, 3000))
    assert set(np.unique(factors)) == {0, np.float32(1 / 0.7)}
    np.testing.assert_allclose((factors == 0).mean(1), 0.3, atol=0.03)
    np.testing.assert_array_equal(factors[0], factors[2])
    np.testing.assert_array_equal(factors[[3, 1]], dropout_factors(draw[jnp.array([3, 1])], 0.3, 3000))
    different = (factors[0] != factors[1:]).mean(1)
    np.testing.assert_allclose(different, [0.42, 0, 0.42], atol=0.04)


@pytest.mark.slow
def test_dropout_thins_what_is_pooled_in_training_alone():
    """Logits are those of the thinned means; the maps' features and evaluation know nothing of it."""
    plain, thinned = MODELS["small_cnn"](num_classes=2), MODELS["small_cnn"](num_classes=2, dropout=0.5)
    variables, images, draw = some_variables("small_cnn", 2), some_images(6, 3, 16, 16), jnp.arange(3, dtype=jnp.uint32)
    train = dict(train=True, mutable=["batch_stats"])
    (output, _), (reference, _) = (
        thinned.apply(variables, images, draw=draw, **train),
        plain.apply(variables, images, **train),
    )
    np.testing.assert_array_equal(output.features, reference.features)
    pooled = output.features.mean((1, 2)) * dropout_factors(draw, 0.5, 128)
    np.testing.assert_allclose(output.logits, pooled @ output.kernel + output.bias[None], atol=1e-5)
    assert (np.abs(output.logits - reference.logits) > 1e-3).all()
    evaluated = [model.apply(variables, images, train=False).logits for model in (plain, thinned)]
    np.testing.assert_array_equal(*evaluated)
    with pytest.raises(ValueError, match="needs a number for each example"):
        thinned.apply(variables, images, **train)


# BatchNorm


def normalise_by_hand(x, scale, bias, mean, var, momentum, epsilon, train):
    """torch.nn.BatchNorm2d's arithmetic: biased variance to normalise with, unbiased in the running one."""
    axes = tuple(range(x.ndim - 1))
    used_mean, used_var = mean, var
    if train:
        count = x[..., 0].size
        used_mean, used_var = x.mean(axes), x.var(axes)
        mean = momentum * mean + (1 - momentum) * used_mean
        var = momentum * var + (1 - momentum) * used_var * count / (count - 1)
    return (x - used_mean) / np.sqrt(used_var + epsilon) * scale + bias, mean, var


def norm_variables(rng, channels):
    draw = lambda low, high: as_float32(rng.uniform(low, high, channels))
    params = {"scale": draw(-2, 2), "bias": draw(-1, 1)}
    return {"params": params, "batch_stats": {"mean": draw(-1, 1), "var": draw(0.2, 3)}}


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(2, 3), (4, 3, 5, 3), (1, 2, 2, 3)]),
    setting=st.sampled_from([(0.9, 1e-5), (0.5, 1e-3)]),
    train=st.booleans(),
)
def test_batch_norm_equals_pytorch_over_two_steps(seed, shape, setting, train):
    rng = np.random.default_rng(seed)
    momentum, epsilon = setting
    variables = norm_variables(rng, 3)
    apply = partial(BatchNorm(momentum, epsilon).apply, train=train, mutable=["batch_stats"])
    mean, var = (np.asarray(variables["batch_stats"][key], np.float64) for key in ("mean", "var"))
    scale, bias = (np.asarray(variables["params"][key], np.float64) for key in ("scale", "bias"))
    for _ in range(2):
        x = (rng.normal(size=shape) * rng.uniform(0.1, 5) + rng.uniform(-3, 3)).astype(np.float32)
        y, updated = apply(variables, jnp.asarray(x))
        expected, mean, var = normalise_by_hand(x.astype(np.float64), scale, bias, mean, var, momentum, epsilon, train)
        variables = variables | updated
        np.testing.assert_allclose(y, expected, atol=1e-3)
        np.testing.assert_allclose(variables["batch_stats"]["mean"], mean, atol=1e-5)
        np.testing.assert_allclose(variables["batch_stats"]["var"], var, rtol=1e-4, atol=1e-5)


def test_batch_norm_starts_at_mean_zero_and_variance_one():
    x = as_float32(np.random.default_rng(6).normal(5, 3, (4, 2, 2, 3)))
    variables = BatchNorm().init(jax.random.key(0), x, train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], jnp.zeros(3))
    np.testing.assert_array_equal(variables["batch_stats"]["var"], jnp.ones(3))
    np.testing.assert_array_equal(variables["params"]["scale"], jnp.ones(3))
    np.testing.assert_array_equal(variables["params"]["bias"], jnp.zeros(3))


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_mask_hides_padding(train):
    """Output of real rows, statistics and gradients are those of the batch without the padded rows."""
    rng = np.random.default_rng(7)
    variables, x = norm_variables(rng, 3), as_float32(rng.normal(size=(4, 3, 2, 3)))
    padded, mask = jnp.concatenate([x[:2], 1e4 * x[:1], x[2:], 1e4 * x[:2]]), jnp.array([1.0, 1, 0, 1, 1, 0, 0])
    real = np.array([0, 1, 3, 4])
    norm = BatchNorm()

    def loss(x, mask, keep):
        y, updated = norm.apply(variables, x, train=train, mask=mask, mutable=["batch_stats"])
        return (y[keep] ** 3).sum(), (y[keep], updated)

    (_, want), gradient = jax.value_and_grad(loss, has_aux=True)(x, None, np.arange(4))
    (_, got), padded_gradient = jax.value_and_grad(loss, has_aux=True)(padded, mask, real)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), got, want)
    np.testing.assert_allclose(padded_gradient[real], gradient, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(np.delete(np.asarray(padded_gradient), real, axis=0), 0)


def test_batch_norm_frozen_uses_and_keeps_the_running_statistics():
    rng = np.random.default_rng(8)
    variables, x = norm_variables(rng, 3), as_float32(rng.normal(2, 3, (4, 3, 2, 3)))
    frozen, updated = BatchNorm(frozen=True).apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(frozen, BatchNorm().apply(variables, x, train=False))
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], variables["batch_stats"])


def test_batch_norm_over_two_devices_equals_one():
    """Outputs, statistics and gradients, with different counts of real rows; without axis_name they differ."""
    rng = np.random.default_rng(9)
    variables, x = norm_variables(rng, 3), as_float32(rng.normal(size=(2, 3, 4, 4, 3)) * [[[[[1.0]]]], [[[[3.0]]]]])
    mask = jnp.array([[1.0, 1, 1], [1, 0, 0]])

    def run(norm, params, x, mask):
        y, updated = norm.apply(variables | {"params": params}, x, train=True, mask=mask, mutable=["batch_stats"])
        return (y**3 * mask[:, None, None, None]).sum(), (y, updated)

    def differentiate(norm):
        return jax.value_and_grad(partial(run, norm), has_aux=True)

    (_, (y, stats)), gradient = differentiate(BatchNorm())(variables["params"], x.reshape(6, 4, 4, 3), mask.reshape(6))
    mapped = lambda name: jax.pmap(differentiate(BatchNorm(axis_name=name)), axis_name=AXIS, in_axes=(None, 0, 0))
    (_, (both_y, both_stats)), both_gradient = mapped(AXIS)(variables["params"], x, mask)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    close(both_y.reshape(6, 4, 4, 3), y)
    jax.tree.map(lambda got, want: (close(got[0], want), close(got[1], want)), both_stats, stats)
    jax.tree.map(lambda got, want: close(got.sum(0), want), both_gradient, gradient)
    (_, (local_y, _)), _ = mapped(None)(variables["params"], x, mask)
    assert np.abs(local_y.reshape(6, 4, 4, 3) - y).max() > 0.1


def test_batch_norm_by_groups_is_each_group_by_itself():
    """Outputs are those of each half alone; running statistics are their mean, by the number of examples that count."""
    rng = np.random.default_rng(12)
    variables, x = norm_variables(rng, 3), as_float32(rng.normal(1, 2, (8, 2, 2, 3)))
    mask = jnp.array([1.0, 1, 1, 1, 1, 0, 0, 1])
    apply = lambda norm, x, mask: norm.apply(variables, x, train=True, mask=mask, mutable=["batch_stats"])
    y, updated = apply(BatchNorm(groups=2), x, mask)
    halves = [apply(BatchNorm(), x[rows], mask[rows]) for rows in (slice(0, 4), slice(4, 8))]
    np.testing.assert_allclose(y, np.concatenate([half[0] for half in halves]), atol=1e-5)
    mean = lambda a, b: (4 * a + 2 * b) / 6
    expected = jax.tree.map(mean, *(half[1]["batch_stats"] for half in halves))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), updated["batch_stats"], expected)
    assert np.abs(y - apply(BatchNorm(), x, mask)[0]).max() > 0.01


def test_batch_norm_by_devices_is_by_groups():
    """Under pmap each device is a group, and all of them keep the same running statistics."""
    rng = np.random.default_rng(13)
    variables, x = norm_variables(rng, 3), as_float32(rng.normal(1, 2, (6, 2, 2, 3)))
    mask = jnp.array([1.0, 1, 1, 0, 1, 0])
    apply = lambda norm, x, mask: norm.apply(variables, x, train=True, mask=mask, mutable=["batch_stats"])
    y, updated = apply(BatchNorm(groups=2), x, mask)
    mapped = jax.pmap(partial(apply, BatchNorm(groups=2, axis_name=AXIS)), axis_name=AXIS)
    both_y, both_updated = mapped(x.reshape(2, 3, 2, 2, 3), mask.reshape(2, 3))
    np.testing.assert_allclose(both_y.reshape(y.shape), y, atol=1e-5)
    for device in (0, 1):
        close = lambda both, one, device=device: np.testing.assert_allclose(both[device], one, atol=1e-5)
        jax.tree.map(close, both_updated, updated)


@pytest.mark.parametrize("groups", [1, 2])
def test_batch_norm_without_examples_keeps_its_statistics(groups):
    """A batch of padding changes nothing; a group of padding does not count."""
    rng = np.random.default_rng(14)
    variables, x = norm_variables(rng, 3), as_float32(rng.normal(size=(4, 2, 2, 3)))
    apply = lambda norm, x, mask: norm.apply(variables, x, train=True, mask=mask, mutable=["batch_stats"])
    y, updated = apply(BatchNorm(groups=groups), x, jnp.zeros(4))
    assert np.isfinite(y).all()
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], variables["batch_stats"])
    _, updated = apply(BatchNorm(groups=2), x, jnp.array([1.0, 1, 0, 0]))
    _, alone = apply(BatchNorm(), x[:2], jnp.ones(2))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), updated, alone)


def test_batch_norm_refuses_groups_that_do_not_fit():
    x = jnp.zeros((4, 2, 2, 3))
    variables = norm_variables(np.random.default_rng(15), 3)
    with pytest.raises(ValueError, match="4 examples does not fall into 3 equal groups"):
        BatchNorm(groups=3).apply(variables, x, train=True, mutable=["batch_stats"])
    norm = BatchNorm(groups=3, axis_name=AXIS)
    with pytest.raises(ValueError, match="3 groups over 2 devices"):
        jax.pmap(lambda x: norm.apply(variables, x, train=True, mutable=["batch_stats"]), axis_name=AXIS)(
            x[None].repeat(2, 0)
        )


@pytest.mark.parametrize(("mean", "tolerance"), [(0, 1e-5), (10, 2e-4), (100, 2e-2)])
def test_batch_norm_far_from_zero(mean, tolerance):
    """E[x^2] - E[x]^2 in float32 loses digits with (mean / deviation)^2; what convolutions give stays below 10."""
    x = as_float32(np.random.default_rng(10).normal(mean, 1, (16, 14, 14, 8)))
    y, _ = BatchNorm().init_with_output(jax.random.key(0), x, train=True)
    exact, _, _ = normalise_by_hand(np.asarray(x, np.float64), 1, 0, 0, 1, 0.9, 1e-5, train=True)
    np.testing.assert_allclose(y, exact, atol=tolerance)


def test_batch_norm_on_a_constant_channel_and_a_single_value_is_finite():
    for x in (jnp.full((4, 2, 2, 3), 7.0), jnp.full((1, 3), 7.0)):
        norm, variables = BatchNorm(), norm_variables(np.random.default_rng(11), 3)
        value = lambda x, norm=norm, v=variables: norm.apply(v, x, train=True, mutable=["batch_stats"])
        y, updated = value(x)
        gradient = jax.grad(lambda x, value=value: value(x)[0].sum())(x)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((y, updated, gradient)))


def test_batch_norm_keeps_half_precision_and_computes_in_float32():
    x = jnp.asarray(np.random.default_rng(12).normal(3, 1, (8, 6, 6, 3)), jnp.bfloat16)
    variables = norm_variables(np.random.default_rng(13), 3)
    norm = partial(BatchNorm().apply, variables, train=True, mutable=["batch_stats"])
    (half, half_stats), (full, full_stats) = norm(x), norm(x.astype(jnp.float32))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, full.astype(jnp.bfloat16))
    jax.tree.map(np.testing.assert_array_equal, half_stats, full_stats)


def test_batch_norm_agrees_with_flax_but_for_the_running_variance():
    x = as_float32(np.random.default_rng(14).normal(1, 2, (3, 2, 2, 4)))
    ours = BatchNorm(momentum=0.9).init_with_output(jax.random.key(0), x, train=True)[0]
    theirs = nn.BatchNorm(use_running_average=False, momentum=0.9).init_with_output(jax.random.key(0), x)[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@over_models
@pytest.mark.parametrize("image_size", slow_but([32, 64, 100, 224, 300], 100))
def test_a_cam_is_described_and_what_would_make_it_finer_does(name, image_size):
    settings = [{"output_stride": stride} for stride in OUTPUT_STRIDES] if name == "resnet18" else [{}]
    for fields in settings:
        side = cam_size(MODELS[name](num_classes=2, **fields), image_size)[0]
        text = describe_cam(name, image_size, side, **fields)
        assert text.startswith(f"CAM {side}x{side}, ") and ("coarse" in text) == (2 <= side < 4)
        assert f"{side * side} places" in text or side == 1
        suggested = re.findall(r"--config\.\w+\.(image_size|name|output_stride)=(\w+) \((about )?(\d+)x", text)
        assert ("small_cnn" in text) == (name != "small_cnn" and image_size < 224 and side < -(-image_size // 8))
        assert ("output_stride" in text) == (fields.get("output_stride", 8) > 8)
        for key, value, about, places in suggested:
            other, size = (value if key == "name" else name), (int(value) if key == "image_size" else image_size)
            then = {} if key == "name" else {**fields, key: int(value)} if key == "output_stride" else fields
            there = cam_size(MODELS[other](num_classes=2, **then), size)[0]
            assert there > side and abs(there - int(places)) <= (1 if about else 0)
        assert suggested
