"""Perturbations on images whose right answer is known, and the imputation against SciPy's direct solver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from scipy.sparse.linalg import spsolve
from scipy.stats import spearmanr

from tfcam_jax.metrics import faithfulness
from tfcam_jax.metrics.agreement import fooling_gap


def impute_directly(image, removed):
    """Each removed pixel is the mean of its neighbours (1/6 beside, 1/12 across), by a sparse direct solve."""
    height, width = removed.shape
    numbers = {place: i for i, place in enumerate(zip(*np.nonzero(removed), strict=True))}
    matrix, right = scipy.sparse.lil_matrix((len(numbers),) * 2), np.zeros((len(numbers), image.shape[-1]))
    for (i, j), row in numbers.items():
        for di, dj in ((a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)):
            place = (i + di, j + dj)
            if not (0 <= place[0] < height and 0 <= place[1] < width):
                continue
            weight = 1 / 12 if di and dj else 1 / 6
            matrix[row, row] += weight
            if place in numbers:
                matrix[row, numbers[place]] -= weight
            else:
                right[row] += weight * image[place]
    filled = image.copy()
    filled[tuple(np.array(list(numbers)).T)] = np.reshape(spsolve(matrix.tocsr(), right), right.shape)
    return filled


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(12, 12), (9, 13)])
def test_imputation_solves_the_linear_system(shape, share):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, *shape, 2)).astype(np.float32)
    removed = rng.uniform(size=(3, *shape)) < share
    removed[2, 1:-1, 1:-1] = True  # one large hole
    found = faithfulness.noisy_linear_imputation(
        jnp.asarray(images), jnp.asarray(removed), jax.random.key(0), noise=0.0
    )
    expected = [impute_directly(image.astype(np.float64), mask) for image, mask in zip(images, removed, strict=True)]
    np.testing.assert_allclose(found, expected, atol=2e-3)
    np.testing.assert_array_equal(np.asarray(found)[~removed], images[~removed])


def test_imputation_converges_on_large_images():
    """A linear ramp is its own solution inside; nearly all of 224 px are taken away in one piece."""
    ramp = np.broadcast_to(np.linspace(-1, 1, 224, dtype=np.float32)[None, None, :, None], (1, 224, 224, 1))
    removed = np.zeros((1, 224, 224), bool)
    removed[:, 3:-3, 3:-3] = True
    found = faithfulness.noisy_linear_imputation(jnp.asarray(ramp), jnp.asarray(removed), jax.random.key(0), noise=0.0)
    np.testing.assert_allclose(found, ramp, atol=1e-3)


def test_noise_falls_on_removed_pixels_alone():
    removed = np.zeros((1, 16, 16), bool)
    removed[:, 4:12, 4:12] = True
    ones, key = jnp.ones((1, 16, 16, 3)), jax.random.key(1)
    found = np.asarray(faithfulness.noisy_linear_imputation(ones, jnp.asarray(removed), key, noise=0.1))
    assert found[~removed].std() == 0
    assert found[removed].std() == pytest.approx(0.1, rel=0.2)
    assert found[removed].mean() == pytest.approx(1, abs=0.03)


def test_ranks_follow_the_enlarged_map():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(2, 3, 3)).astype(np.float32)
    ranks = np.asarray(faithfulness.pixel_ranks(jnp.asarray(maps), (12, 12)))
    for rank, salience in zip(ranks, maps, strict=True):
        assert sorted(rank.ravel()) == list(range(144))
        assert rank[salience.argmax() // 3 * 4 + 1, salience.argmax() % 3 * 4 + 1] < 20
    np.testing.assert_array_equal(faithfulness.pixel_ranks(jnp.zeros((1, 1, 1)), (2, 2))[0], [[0, 1], [2, 3]])


def test_deletion_and_insertion_change_the_named_share():
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, 32, 32, 3)) + 5, jnp.float32)
    ranks = faithfulness.pixel_ranks(jnp.asarray(rng.normal(size=(2, 4, 4)), jnp.float32), (32, 32))
    for share in (0.0, 0.25, 1.0):
        first = faithfulness.first_ranked(ranks, share)
        assert float(first.mean()) == share
        deleted = np.asarray(faithfulness.delete(images, first))
        assert (deleted == 0).mean() == share
        inserted = np.asarray(faithfulness.insert(images, first))
        np.testing.assert_array_equal(inserted[np.asarray(first)], np.asarray(images)[np.asarray(first)])
    blurred = np.asarray(faithfulness.insert(images, jnp.zeros((2, 32, 32), bool)))
    assert blurred.std() < 0.35 * np.asarray(images).std()
    np.testing.assert_allclose(blurred.mean((1, 2)), np.asarray(images).mean((1, 2)), atol=0.1)


def test_fooling_gap_is_zero_for_affine_maps_and_one_for_opposite_corners():
    rng = np.random.default_rng(0)
    true_map = jnp.asarray(rng.normal(size=(2, 4, 4)), jnp.float32)
    np.testing.assert_allclose(fooling_gap(true_map, -2 * true_map - 1), 0, atol=1e-6)
    noise = true_map + 1e-6 * true_map[::-1]
    n_t = true_map - true_map.min((1, 2), keepdims=True)
    n_t /= n_t.max((1, 2), keepdims=True)
    np.testing.assert_allclose(fooling_gap(true_map, noise), n_t.mean((1, 2)), rtol=1e-5)
    halves = jnp.tile(jnp.array([0.0, 0, 1, 1]), (4, 1))[None]
    np.testing.assert_allclose(fooling_gap(halves, 2 * halves), 1)
    n = lambda m: (m - m.min()) / (m.max() - m.min())
    expected = np.abs(n(true_map[0]) - n(true_map[0] - true_map[1])).mean()
    np.testing.assert_allclose(fooling_gap(true_map[0], true_map[1]), expected, rtol=1e-5)


def test_rank_correlation_is_scipys():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4, 5, 5)).astype(np.float32)
    b[0], b[3] = np.exp(a[0]), 1.0
    expected = [spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a[:3], b[:3], strict=True)]
    np.testing.assert_allclose(faithfulness.rank_correlation(jnp.asarray(a), jnp.asarray(b)), [*expected, 0], atol=1e-5)
