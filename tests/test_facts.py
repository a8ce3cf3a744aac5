"""The facts that the method rests on, on random features and heads. (The sixth, on alpha = 1, is a step's.)"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slow_params import slow_but

from tfcam_jax import cams, losses
from tfcam_jax.divergences import DIVERGENCES
from tfcam_jax.models import MODELS

seeds = st.integers(0, 2**32 - 1)
float32 = partial(jnp.asarray, dtype=jnp.float32)


def draw_head(seed, classes=2):
    """Features as after a ReLU, kernel, bias, labels and human maps of three examples."""
    rng = np.random.default_rng(seed)
    features = np.maximum(rng.normal(size=(3, 4, 5, 6)), 0) * rng.uniform(0.1, 3)
    kernel, bias = rng.normal(size=(6, classes)), rng.normal(size=classes)
    saliency = cams.normalize(float32(rng.random((3, 4, 5)) ** 3))
    return float32(features), float32(kernel), float32(bias), jnp.asarray(rng.integers(0, classes, 3)), saliency


def logits_of(features, kernel, bias):
    return features.mean((-3, -2)) @ kernel + bias[None]


@jax.jit
def true_false(features, kernel, labels):
    logits = logits_of(features, kernel, jnp.zeros(kernel.shape[-1]))
    return cams.split_true_false(cams.class_activation_maps(features, kernel), labels, logits)


def at_label(values, labels):
    return np.take_along_axis(np.asarray(values), np.asarray(labels)[:, None], axis=-1)[:, 0]


# 1. mean_hw(M_k) + b_k = z_k, and the mean of D is the margin less the biases' difference.


@given(seed=seeds, classes=st.integers(2, 5))
def test_fact_1_maps_decompose_the_logits(seed, classes):
    features, kernel, bias, _, _ = draw_head(seed, classes)
    maps = jax.jit(cams.class_activation_maps)(features, kernel)
    np.testing.assert_allclose(maps.mean((1, 2)) + bias[None], logits_of(features, kernel, bias), atol=1e-5)


@given(seed=seeds)
def test_fact_1_the_difference_decomposes_the_margin(seed):
    features, kernel, bias, labels, _ = draw_head(seed)
    logits = logits_of(features, kernel, bias)
    difference = cams.difference_salience(*true_false(features, kernel, labels))
    margin = at_label(logits, labels) - at_label(logits, 1 - labels)
    np.testing.assert_allclose(difference.mean((1, 2)), margin - np.asarray(bias[labels] - bias[1 - labels]), atol=1e-5)


@pytest.mark.parametrize("name", slow_but(["small_cnn", "resnet18"], "small_cnn"))  # all: test_backbones
def test_fact_1_on_every_model(name):
    """The features that a model returns are the ones it pools, in training mode and with a bias that is not 0."""
    model = MODELS[name](num_classes=2)
    images = jax.random.normal(jax.random.key(0), (3, 48, 40, 3))
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(1), images)
    variables["params"]["head"]["bias"] = jnp.array([0.7, -0.4])
    output, _ = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))(variables, images)
    labels = jnp.array([0, 1, 1])
    maps = cams.class_activation_maps(output.features, output.kernel)
    np.testing.assert_allclose(maps.mean((1, 2)) + output.bias[None], output.logits, atol=1e-5)
    difference = cams.difference_salience(*cams.split_true_false(maps, labels))
    margin = at_label(output.logits, labels) - at_label(output.logits, 1 - labels)
    np.testing.assert_allclose(difference.mean((1, 2)), margin - np.array([1.1, -1.1, -1.1]), atol=2e-5)


# 2. A vector added to every column of the kernel is seen by T, U, N(T), N(U); not by softmax, cross-entropy, D.


def cross_entropy(logits, labels):
    return -at_label(jax.nn.log_softmax(logits), labels)


@given(seed=seeds)
def test_fact_2_what_a_common_vector_changes_and_what_not(seed):
    features, kernel, bias, labels, saliency = draw_head(seed)
    moved = kernel + float32(np.random.default_rng(seed + 1).normal(size=(6, 1)))
    before, after = logits_of(features, kernel, bias), logits_of(features, moved, bias)
    np.testing.assert_allclose(jax.nn.softmax(before), jax.nn.softmax(after), atol=1e-5)
    np.testing.assert_allclose(cross_entropy(before, labels), cross_entropy(after, labels), rtol=1e-4, atol=1e-5)
    old, new = true_false(features, kernel, labels), true_false(features, moved, labels)
    scale = float(jnp.abs(old[0]).max() + jnp.abs(old[1]).max())
    np.testing.assert_allclose(cams.difference_salience(*old), cams.difference_salience(*new), atol=1e-6 * scale + 1e-5)
    for maps, moved_maps in zip(old, new, strict=True):
        assert np.abs(maps - moved_maps).max() > 1e-2
        assert np.abs(cams.normalize(maps) - cams.normalize(moved_maps)).max() > 1e-2
    for distance in DIVERGENCES.values():
        blind = losses.difference_loss(*old, saliency, distance), losses.difference_loss(*new, saliency, distance)
        np.testing.assert_allclose(*blind, rtol=1e-3, atol=1e-4)
    assert np.abs(losses.cyborg_loss(old[0], saliency) - losses.cyborg_loss(new[0], saliency)).max() > 1e-4


@given(seed=seeds, classes=st.integers(3, 5))
def test_fact_2_holds_for_more_classes(seed, classes):
    """The false classes' weights are a softmax, which a common vector leaves alone."""
    features, kernel, _, labels, _ = draw_head(seed, classes)
    moved = kernel + float32(np.random.default_rng(seed + 1).normal(size=(6, 1)))
    old, new = true_false(features, kernel, labels), true_false(features, moved, labels)
    np.testing.assert_allclose(cams.difference_salience(*old), cams.difference_salience(*new), atol=1e-4)
    assert np.abs(old[1] - new[1]).max() > 1e-2


def test_fact_2_the_true_class_loss_is_fooled_through_the_mean_column_alone():
    """Descent on one vector common to all columns: `cyborg` falls, while margins and `difference` stay."""
    features, kernel, bias, labels, saliency = draw_head(7)
    # One channel holds the human map, so that a head can show it.
    features = features.at[..., 0].set(saliency)

    def loss(common, name):
        true_map, false_map = true_false(features, kernel + common[:, None], labels)
        both = {
            "cyborg": losses.cyborg_loss(true_map, saliency),
            "difference": losses.difference_loss(true_map, false_map, saliency),
        }
        return both[name].mean()

    gradient, start = jax.jit(jax.grad(loss), static_argnums=1), jnp.zeros(6)
    np.testing.assert_allclose(gradient(start, "difference"), 0, atol=1e-6)
    common = start
    for _ in range(300):
        common -= 2.0 * gradient(common, "cyborg")
    assert loss(common, "cyborg") < 0.2 * loss(start, "cyborg")
    assert loss(common, "difference") == pytest.approx(float(loss(start, "difference")), abs=1e-5)
    margin = lambda kernel: jnp.diff(logits_of(features, kernel, bias))
    np.testing.assert_allclose(margin(kernel + common[:, None]), margin(kernel), atol=1e-5)


# 3. Where W_mean F is constant, N(U) = 1 - N(T), and the opposed loss is the true-class loss.


@given(seed=seeds, offset=st.floats(-3, 3, width=32))
def test_fact_3_an_antisymmetric_head_makes_opposed_the_true_class_loss(seed, offset):
    features, kernel, _, labels, saliency = draw_head(seed)
    features = features.at[..., -1].set(1)  # a constant channel, which both classes may use
    kernel = jnp.stack([kernel[:, 0], -kernel[:, 0]], axis=-1).at[-1].set(offset)
    true_map, false_map = true_false(features, kernel, labels)
    np.testing.assert_allclose(cams.normalize(false_map), 1 - cams.normalize(true_map), atol=1e-5)
    for name in ("mse", "l1", "bce", "pearson"):
        opposed = losses.opposed_loss(true_map, false_map, saliency, DIVERGENCES[name])
        np.testing.assert_allclose(
            opposed, losses.cyborg_loss(true_map, saliency, DIVERGENCES[name]), rtol=2e-3, atol=1e-5
        )


def test_fact_3_fails_without_its_premise():
    features, kernel, _, labels, saliency = draw_head(8)
    true_map, false_map = true_false(features, kernel, labels)
    opposed = losses.opposed_loss(true_map, false_map, saliency)
    assert (np.abs(opposed - losses.cyborg_loss(true_map, saliency)) > 1e-3).all()


# 4. Zero opposed loss implies zero difference loss, not the other way round.


@given(seed=seeds)
def test_fact_4_zero_opposed_implies_zero_difference(seed):
    rng = np.random.default_rng(seed)
    saliency = cams.normalize(float32(rng.random((3, 4, 5))))
    affine = lambda m: float32(rng.uniform(0.1, 4, (3, 1, 1))) * m + float32(rng.uniform(-3, 3, (3, 1, 1)))
    true_map, false_map = affine(saliency), affine(1 - saliency)
    for name in ("mse", "l1", "pearson", "kl"):
        opposed = losses.opposed_loss(true_map, false_map, saliency, DIVERGENCES[name])
        np.testing.assert_allclose(opposed, 0, atol=2e-5)
        np.testing.assert_allclose(
            losses.difference_loss(true_map, false_map, saliency, DIVERGENCES[name]), 0, atol=2e-5
        )
    common = float32(5 * rng.random((3, 4, 5)))
    np.testing.assert_allclose(losses.difference_loss(true_map + common, false_map + common, saliency), 0, atol=2e-5)
    assert (losses.opposed_loss(true_map + common, false_map + common, saliency) > 1e-3).all()


# 5. N of a constant map is 0 with gradient 0, and constant is what float32 cannot tell from it.


@given(seed=seeds, magnitude=st.sampled_from([1e-3, 1, 1e4, 1e8]))
def test_fact_5_rounding_noise_of_the_maps_sum_counts_as_constant(seed, magnitude):
    """Channels that vary over places but sum to a constant: the map varies by float32 rounding only."""
    rng = np.random.default_rng(seed)
    channels = 256
    shares = rng.dirichlet(np.ones(channels), size=(2, 7, 7))
    features, kernel = float32(magnitude * shares), float32(np.full((channels, 2), 0.3))
    maps = jnp.moveaxis(cams.class_activation_maps(features, kernel), -1, 1)
    assert cams.is_constant(maps).all()
    np.testing.assert_array_equal(cams.normalize(maps), 0)
    target = float32(rng.random((2, 7, 7)))
    loss = lambda features: losses.cyborg_loss(cams.class_activation_maps(features, kernel)[..., 0], target).sum()
    np.testing.assert_array_equal(jax.grad(loss)(features), 0)


@pytest.mark.parametrize("offset", [0.0, 1.0, -1e3, 1e6, 1e30])
def test_fact_5_constant_maps_have_value_and_gradient_zero(offset):
    maps = jnp.full((2, 4, 5), offset)
    pulled = lambda m: (cams.normalize(m) * jnp.arange(20.0).reshape(1, 4, 5)).sum()
    value, gradient = jax.jit(jax.value_and_grad(pulled))(maps)
    assert cams.is_constant(maps).all()
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("magnitude", [1e-6, 1, 1e6])
def test_fact_5_a_faint_but_real_map_is_not_constant(magnitude):
    """A range of 1e-4 of the offset is a thousand units in the last place: it says something."""
    ramp = jnp.linspace(0, 1, 20).reshape(4, 5)
    maps = magnitude * (1 + 1e-4 * ramp)
    assert not cams.is_constant(maps)
    np.testing.assert_allclose(cams.normalize(maps), ramp, atol=2e-3)


def test_fact_5_in_a_batch_a_constant_map_leaves_the_others_alone():
    maps = jnp.stack([jnp.ones((4, 5)), jnp.linspace(0, 1, 20).reshape(4, 5)])
    saliency = jnp.broadcast_to(jnp.eye(4, 5), maps.shape)
    loss = lambda m, s: losses.cyborg_loss(m, s).sum()
    gradient = jax.grad(loss)(maps, saliency)
    np.testing.assert_array_equal(gradient[0], 0)
    np.testing.assert_allclose(gradient[1], jax.grad(loss)(maps[1], saliency[1]), atol=1e-7)
    assert np.abs(gradient[1]).max() > 0


def test_fact_5_the_gradient_grows_as_one_over_the_range():
    ramp, saliency = jnp.linspace(0, 1, 20).reshape(4, 5), jnp.eye(4, 5)
    largest = lambda scale: float(jnp.abs(jax.grad(lambda m: losses.cyborg_loss(m, saliency))(scale * ramp)).max())
    assert largest(1e-3) == pytest.approx(1e3 * largest(1.0), rel=1e-4)


def test_rounding_of_two_equal_maps_is_no_difference():
    """Fact 5 for D: with three equal columns T and U differ by rounding alone, however D looks by itself."""
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.gamma(1.0, size=(64, 7, 7, 33)), jnp.float32)
    kernel = jnp.asarray(np.repeat(rng.normal(size=(33, 1)), 3, axis=1), jnp.float32)
    saliency, labels = jnp.asarray(rng.uniform(size=(64, 7, 7)), jnp.float32), jnp.arange(64) % 3
    logits = jnp.asarray(rng.normal(size=(64, 3)), jnp.float32)

    def maps(features):
        return cams.split_true_false(cams.class_activation_maps(features, kernel), labels, logits)

    true_map, false_map = maps(features)
    difference = cams.difference_salience(true_map, false_map)
    assert not cams.is_constant(difference).all(), "the test needs a D of rounding noise that looks like a map"
    assert cams.is_constant(difference, cams.largest_magnitude(true_map, false_map)).all()
    gradient = jax.grad(lambda features: losses.difference_loss(*maps(features), saliency).sum())(features)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("k", [2, 4])
def test_difference_and_finer_cam_are_equal_for_two_classes_alone(k):
    """Finer-CAM as its equation has it, by differentiation: the CAM of the weighted mean of `z_y - z_j`."""
    rng = np.random.default_rng(k)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    features, kernel, labels = draw(3, 4, 5, 6), 2 * draw(6, k), jnp.array([0, 1, k - 1])
    others = jnp.asarray([[j for j in range(k) if j != y] for y in labels])

    def margin(features, logits_of_weights=None):
        logits = features.mean((1, 2)) @ kernel
        weights = jax.nn.softmax(logits if logits_of_weights is None else logits_of_weights)
        pick = lambda values, columns: jnp.take_along_axis(values, columns, axis=1)
        gaps = pick(logits, labels[:, None]) - pick(logits, others)
        return ((pick(weights, others) * gaps).sum(1) / pick(weights, others).sum(1)).sum()

    def cam(function, *arguments):
        weights = jax.grad(function)(features, *arguments).mean((1, 2))
        return 20 * jnp.einsum("bhwc,bc->bhw", features, weights)

    logits = features.mean((1, 2)) @ kernel
    difference = cams.difference_salience(*cams.true_false_maps(features, kernel, labels, logits))
    np.testing.assert_allclose(difference, cam(margin, logits), atol=1e-5)  # weights held constant
    far = np.abs(difference - cam(margin)).max()
    assert far < 1e-5 if k == 2 else far > 0.1
