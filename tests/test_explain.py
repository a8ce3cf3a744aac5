"""The pure functions of the tool: margins taken apart, regions, Grad-CAM of the difference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfcam_jax.cams import decompose_margin, grad_cam_difference
from tfcam_jax.report.summary import is_cosmetic, margin_regions


def draw(classes, seed=0, n=4, h=3, w=5, channels=6):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, h, w, channels)).astype(np.float32)
    kernel, bias = (rng.normal(size=size).astype(np.float32) for size in ((channels, classes), (classes,)))
    return [jnp.asarray(x) for x in (features, kernel, bias, np.arange(n) % classes)]


def test_mean_of_difference_and_bias_difference_are_the_margin():
    features, kernel, bias, labels = draw(2)
    parts = decompose_margin(features, kernel, bias, labels)
    for i, label in enumerate(np.asarray(labels)):
        z = np.asarray(features[i], np.float64).mean((0, 1)) @ np.asarray(kernel, np.float64) + np.asarray(bias)
        assert float(parts.margin[i]) == pytest.approx(z[label] - z[1 - label], abs=1e-5)
        assert float(parts.bias_difference[i]) == pytest.approx(float(bias[label] - bias[1 - label]), abs=1e-6)
        assert float(parts.difference[i].mean() + parts.bias_difference[i]) == pytest.approx(
            z[label] - z[1 - label], abs=1e-5
        )


def test_margin_of_three_classes_is_over_the_weighted_others():
    features, kernel, bias, labels = draw(3)
    parts = decompose_margin(features, kernel, bias, labels)
    z = np.asarray(features.mean((1, 2)) @ kernel + bias[None], np.float64)
    for i, label in enumerate(np.asarray(labels)):
        others = [k for k in range(3) if k != label]
        weights = np.exp(z[i, others]) / np.exp(z[i, others]).sum()
        assert float(parts.margin[i]) == pytest.approx(z[i, label] - weights @ z[i, others], abs=1e-5)
    np.testing.assert_allclose(parts.difference.mean((1, 2)) + parts.bias_difference, parts.margin, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
def test_grad_cam_of_a_pooled_linear_head_is_the_difference(classes):
    features, kernel, bias, labels = draw(classes)
    head = lambda features: features.mean((1, 2)) @ kernel + bias[None]
    found = jax.jit(lambda features, labels: grad_cam_difference(head, features, labels))(features, labels)
    np.testing.assert_allclose(found, decompose_margin(features, kernel, bias, labels).difference, atol=1e-5)


def test_grad_cam_of_another_head_weighs_channels_by_the_gradient():
    """Through a hidden layer the weights differ from image to image: by finite differences, in float64."""
    features, kernel, bias, labels = draw(2)
    hidden = np.random.default_rng(1).normal(size=(6, 6))
    head = lambda f, xp: xp.tanh(f.mean((1, 2)) @ hidden) @ np.asarray(kernel) + np.asarray(bias)[None]
    found = grad_cam_difference(lambda f: head(f, jnp), features, labels)
    exact = np.asarray(features, np.float64)
    for i, label in enumerate(np.asarray(labels)):
        margin = lambda f, i=i, label=label: np.dot(head(f, np)[i], [1, -1] if label == 0 else [-1, 1])
        weights = []
        for c in range(6):
            step = np.zeros_like(exact)
            step[..., c] = 1e-5  # every place at once: the sum of their gradients
            weights.append((margin(exact + step) - margin(exact - step)) / 2e-5)
        np.testing.assert_allclose(found[i], exact[i] @ weights, atol=1e-4)


@given(st.integers(0, 10**6), st.sampled_from([0.2, 0.5, 0.9, 1.0]))
def test_regions_and_rest_add_up_to_the_mean(seed, threshold):
    difference = np.random.default_rng(seed).normal(size=(6, 7)).astype(np.float32)
    regions, rest = margin_regions(difference, threshold)
    total = sum(region.contribution for region in regions) + rest
    assert total == pytest.approx(difference.mean(dtype=np.float64), abs=1e-12)
    assert (
        sum(region.places for region in regions) == (np.abs(difference) >= threshold * np.abs(difference).max()).sum()
    )


def test_regions_are_connected_and_of_one_sign():
    difference = np.array([[4.0, 3, 0, 0], [0, 0, 0, -4], [0, 0, 4, -4], [1, 0, 0, 0]])
    regions, rest = margin_regions(difference)
    assert [(region.contribution * 16, region.places, region.box) for region in regions] == [
        (-8, 2, (1, 3, 3, 4)),
        (7, 2, (0, 0, 1, 2)),
        (4, 1, (2, 2, 3, 3)),
    ]
    assert rest * 16 == 1
    assert margin_regions(np.zeros((3, 3))) == ([], 0.0)


def test_cosmetic_is_right_for_the_true_map_and_wrong_for_the_difference():
    true, difference = np.array([0.9, 0.9, 0.3, 0.5]), np.array([0.1, 0.3, 0.1, 0.24])
    assert is_cosmetic(true, difference).tolist() == [True, False, False, True]
