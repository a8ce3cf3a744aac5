"""Maps from gradients, for heads of any kind: against finite differences, and the maps of pooled linear heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfcam_jax import cams
from tfcam_jax.losses import difference_loss
from tfcam_jax.models import ModelOutput


def draw(classes, channels=5, seed=0):
    random = np.random.default_rng(seed)
    features = jnp.asarray(random.normal(size=(3, 4, 2, channels)), jnp.float32)
    kernel = jnp.asarray(random.normal(size=(channels, classes)), jnp.float32)
    bias = jnp.asarray(random.normal(size=classes), jnp.float32)
    return features, kernel, bias, jnp.arange(3) % classes


def attention_head(features, queries, kernel):
    """Pools by attention of one query, then a tanh: neither places nor channels enter linearly."""
    places = features.reshape(*features.shape[:-3], -1, features.shape[-1])
    weights = jax.nn.softmax(places @ queries, axis=-2)
    return jnp.tanh((weights * places).sum(-2)) @ kernel


@pytest.mark.parametrize("classes", [2, 3])
def test_behind_a_pooled_linear_head_they_are_the_class_maps(classes):
    features, kernel, bias, labels = draw(classes)
    head = lambda f: f.mean((1, 2)) @ kernel + bias[None]
    expected = cams.class_activation_maps(features, kernel)
    for k in range(classes):
        weights = jnp.broadcast_to(jax.nn.one_hot(k, classes), (3, classes))
        for per_place in (False, True):
            found = cams.gradient_class_activation_maps(head, features, weights, per_place=per_place)
            scale = features.shape[1] * features.shape[2] if per_place else 1
            np.testing.assert_allclose(found * scale, expected[..., k], atol=1e-5)
        relu = cams.gradient_class_activation_maps(head, features, weights, relu=True)
        np.testing.assert_allclose(relu, np.maximum(expected[..., k], 0), atol=1e-5)
    found = cams.gradient_true_false_maps(head, features, labels)
    for one, other in zip(found, cams.true_false_maps(features, kernel, labels, head(features)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    parts, exact = (
        cams.decompose_gradient_margin(head, features, labels),
        cams.decompose_margin(features, kernel, bias, labels),
    )
    for one, other in zip(parts, exact, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("per_place", [False, True])
def test_of_another_head_they_are_its_gradient_by_finite_differences(per_place):
    random = np.random.default_rng(1)
    features, queries, kernel = random.normal(size=(2, 3, 2, 4)), random.normal(size=(4, 1)), random.normal(size=(4, 3))
    weights = random.normal(size=(2, 3))
    with jax.enable_x64(True):
        arguments = [jnp.asarray(each) for each in (features, weights)]
        head = lambda f: attention_head(f, queries, kernel)
        found = jax.jit(lambda f, w: cams.gradient_class_activation_maps(head, f, w, per_place=per_place))(*arguments)
        score = lambda f: np.asarray((head(jnp.asarray(f)) * weights).sum(-1))
        gradient = np.zeros_like(features)
        for place in np.ndindex(features.shape[1:]):
            step = np.zeros_like(features)
            step[(slice(None), *place)] = 1e-6
            gradient[(slice(None), *place)] = (score(features + step) - score(features - step)) / 2e-6
    channel = gradient if per_place else gradient.sum((1, 2), keepdims=True)
    np.testing.assert_allclose(found, (features * channel).sum(-1), atol=1e-7)


def test_they_can_be_trained_through():
    """The gradient of a loss on a gradient's map, by the head's own parameters, is that of finite differences."""
    random = np.random.default_rng(2)
    features, queries, kernel = random.normal(size=(2, 3, 2, 4)), random.normal(size=(4, 1)), random.normal(size=(4, 2))
    human, labels = random.uniform(size=(2, 3, 2)), np.array([0, 1])
    with jax.enable_x64(True):

        def loss(queries):
            head = lambda f: attention_head(f, queries, kernel)
            true_map, false_map = cams.gradient_true_false_maps(head, jnp.asarray(features), jnp.asarray(labels))
            return difference_loss(true_map, false_map, jnp.asarray(human)).sum()

        found = jax.jit(jax.grad(loss))(jnp.asarray(queries))
        moved = lambda i, by: float(loss(jnp.asarray(queries + by * np.eye(4)[:, i : i + 1])))
        expected = [(moved(i, 1e-6) - moved(i, -1e-6)) / 2e-6 for i in range(4)]
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-6)
    assert np.abs(expected).max() > 1e-3


def test_the_margin_is_the_logits_own_and_the_remainder_is_told():
    features, kernel, _, labels = draw(3)
    head = lambda f: attention_head(f, jnp.ones((5, 1)), kernel)
    parts = cams.decompose_gradient_margin(head, features, labels)
    logits = np.asarray(head(features), np.float64)
    for i, label in enumerate(np.asarray(labels)):
        others = [k for k in range(3) if k != label]
        weights = np.exp(logits[i, others]) / np.exp(logits[i, others]).sum()
        np.testing.assert_allclose(parts.margin[i], logits[i, label] - weights @ logits[i, others], atol=1e-5)
    np.testing.assert_allclose(parts.difference.mean((1, 2)) + parts.bias_difference, parts.margin, atol=1e-5)


def test_examples_are_independent_and_leading_dimensions_free():
    features, kernel, _, labels = draw(2)
    head = lambda f: attention_head(f, jnp.ones((5, 1)), kernel)
    batched = cams.gradient_true_false_maps(head, features, labels)
    single = jax.vmap(lambda f, y: jnp.stack(cams.gradient_true_false_maps(head, f, y)))(features, labels)
    np.testing.assert_allclose(np.stack(batched, 1), single, atol=1e-6)
    nested = cams.gradient_true_false_maps(head, features[None], labels[None])
    np.testing.assert_allclose(nested, np.stack(batched)[:, None], atol=1e-6)


def test_weights_of_another_shape_are_refused():
    features, kernel, bias, _ = draw(2)
    with pytest.raises(ValueError, match=r"logits of shape \(3, 2\).*got \(3, 1\)"):
        cams.gradient_class_activation_maps(lambda f: f.mean((1, 2)) @ kernel + bias[None], features, jnp.ones((3, 1)))


def test_labels_and_logits_of_other_examples_are_refused():
    features, kernel, bias, labels = draw(2)
    head = lambda f: f.mean((1, 2)) @ kernel + bias[None]
    for function in (cams.gradient_true_false_maps, cams.decompose_gradient_margin, cams.grad_cam_difference):
        one = lambda f: head(f)[:, :1]
        with pytest.raises(ValueError, match=r"at least 2 classes; the head gives \(3, 1\).*two_columns"):
            function(one, features, labels)
    with pytest.raises(ValueError, match=r"need logits of shape \(3, 2\); got \(3, 3\)"):
        cams.gradient_true_false_maps(head, features, labels, jnp.ones((3, 3)))


def pooled_linear(kernel, bias, features):
    return features.mean((1, 2)) @ kernel + bias[None]


def test_a_model_output_gives_the_same_maps_by_its_head_as_by_its_kernel():
    features, kernel, bias, labels = draw(3)
    logits = pooled_linear(kernel, bias, features)
    by_kernel = ModelOutput(logits, features, kernel, bias)
    by_head = ModelOutput(logits, features, None, None, head=jax.tree_util.Partial(pooled_linear, kernel, bias))
    asked = (
        lambda output: output.true_false_maps(labels),
        lambda output: output.true_false_maps(labels, features=features[::-1]),
        lambda output: output.decompose_margin(labels),
        lambda output: output.class_map(1),
        lambda output: output.at(features[::-1]).logits,
    )
    for ask in asked:
        found = jax.tree.map(np.asarray, jax.jit(ask)(by_head))  # it crosses jit's border as any tree of arrays
        jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), found, ask(by_kernel))
    with pytest.raises(ValueError, match="kernel of its linear head, or the head itself"):
        ModelOutput(logits, features, None, None).true_false_maps(labels)
