"""Perturbations on images whose right answer is known, and the imputation against SciPy's direct solver."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from scipy.sparse.linalg import spsolve
from scipy.stats import spearmanr

from tfcam_jax.metrics import faithfulness
from tfcam_jax.metrics.agreement import fooling_gap
from tfcam_jax.metrics.faithfulness import ROAD_SHARES, SHARES, measure_faithfulness
from tfcam_jax.metrics.imputation import linear_imputation
from tfcam_jax.models.head import PooledLinearHead

impute = jax.jit(linear_imputation)


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
    found = impute(jnp.asarray(images), jnp.asarray(removed))
    expected = [impute_directly(image.astype(np.float64), mask) for image, mask in zip(images, removed, strict=True)]
    np.testing.assert_allclose(found, expected, atol=2e-4)
    np.testing.assert_array_equal(np.asarray(found)[~removed], images[~removed])
    # Whatever the others need: the first image beside two that are sound.
    alone = impute(jnp.asarray(images), jnp.asarray(removed & (np.arange(3) == 0)[:, None, None]))
    np.testing.assert_allclose(found[0], alone[0], atol=1e-6)


def test_imputation_converges_on_large_images():
    """A linear ramp is its own solution inside; nearly all of 224 px are taken away in one piece."""
    ramp = np.broadcast_to(np.linspace(-1, 1, 224, dtype=np.float32)[None, None, :, None], (1, 224, 224, 1))
    removed = np.zeros((1, 224, 224), bool)
    removed[:, 3:-3, 3:-3] = True
    found = impute(jnp.asarray(ramp), jnp.asarray(removed))
    np.testing.assert_allclose(found, ramp, atol=3e-4)
    assert (np.asarray(impute(jnp.asarray(ramp), jnp.ones((1, 224, 224), bool))) == 0).all()


def test_noise_falls_on_removed_pixels_alone():
    rng = np.random.default_rng(0)
    salience, noise = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((1, 4, 4), (1, 32, 32, 3)))
    versions = np.asarray(jax.jit(faithfulness._perturb)(jnp.ones((1, 32, 32, 3)), salience, noise))
    assert len(versions) == 2 * (len(SHARES) - 2) + 2 * len(ROAD_SHARES)
    for share, imputed in zip((*ROAD_SHARES, *ROAD_SHARES), versions[-2 * len(ROAD_SHARES) :], strict=True):
        changed = imputed != 1
        assert changed.mean() == pytest.approx(share, abs=0.01)
        np.testing.assert_allclose((imputed - 1)[changed], 0.01 * np.asarray(noise)[0][changed], atol=5e-5)


class CountingModel(nn.Module):
    """Patches of 4 px, a layer with tanh and the head; tells `count` how many images each run of it takes."""

    count: Any

    @nn.compact
    def __call__(self, images, train):
        jax.debug.callback(lambda: self.count(len(images)))
        patches = images.reshape(len(images), 4, 4, 4, 4, 3).mean((2, 4))
        features = jnp.tanh(nn.Dense(5)(patches))
        return PooledLinearHead(2)(features, features)


def curves_by_definition(image, label, kind, params):
    """The four curves of one image and map, a version at a time, in NumPy; and whatever noise ROAD has left out."""
    dense, head = params["Dense_0"], params["PooledLinearHead_0"]

    def look(image):
        features = np.tanh(image.reshape(4, 4, 4, 4, 3).mean((1, 3)) @ dense["kernel"] + dense["bias"])
        return features @ head["kernel"], features.mean((0, 1)) @ head["kernel"] + head["bias"]

    def probability(image):
        logits = look(image)[1]
        return 1 / (1 + np.exp(logits[1 - label] - logits[label]))

    maps = look(image)[0]
    salience = {"T": maps[..., label], "|U|": abs(maps[..., 1 - label]), "D": maps[..., label] - maps[..., 1 - label]}
    enlarged = jax.image.resize(jnp.asarray(salience[kind], jnp.float32), (16, 16), "linear", antialias=False)
    order, reverse = (np.argsort(sign * np.asarray(enlarged).ravel(), kind="stable") for sign in (-1, 1))
    blurred = np.asarray(faithfulness.insert(jnp.asarray(image[None], jnp.float32), jnp.zeros((1, 16, 16), bool)))[0]

    def chosen(share, order):
        mask = np.zeros(256, bool)
        mask[order[: round(share * 256)]] = True
        return mask.reshape(16, 16)

    return {
        "deletion": [probability(np.where(chosen(s, order)[..., None], 0, image)) for s in SHARES],
        "insertion": [probability(np.where(chosen(s, order)[..., None], image, blurred)) for s in SHARES],
        "road_most": [probability(impute_directly(image, chosen(s, order))) for s in ROAD_SHARES],
        "road_least": [probability(impute_directly(image, chosen(s, reverse))) for s in ROAD_SHARES],
    }


@pytest.mark.slow
def test_curves_are_those_of_their_definition_and_no_row_is_padding(monkeypatch):
    monkeypatch.setattr(faithfulness, "NOISE", 0.0)
    rng, rows = np.random.default_rng(0), []
    model = CountingModel(rows.append)
    variables = model.init(jax.random.key(1), jnp.zeros((1, 16, 16, 3)), train=False)
    images = rng.integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
    labels, index = np.array([0, 1, 1, 0, 0, 0, 0, 0], np.int32), np.array([0, 1, 2, -1, -1, -1, -1, -1], np.int32)
    batches = [{"image": images, "label": labels, "mask": (index >= 0).astype(np.float32), "index": index}]
    preprocess = lambda images: jnp.asarray(images, jnp.float32) / 64 - 2
    jax.effects_barrier()
    rows.clear()
    found = measure_faithfulness(model, variables, preprocess, 16, batches, 3)
    jax.effects_barrier()
    # Weights drawn by two keys, the empty image once; of each image itself, for both weights, and blurred; 26 an order.
    assert sorted(rows) == sorted([1, 1, 1] + 3 * [1, 1, 1, *4 * [26]])
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    for kind in ("T", "|U|", "D"):
        of_each = [curves_by_definition(images[i] / 64.0 - 2, labels[i], kind, params) for i in range(3)]
        for name, curve in found["maps"][kind]["curves"].items():
            np.testing.assert_allclose(curve, np.mean([each[name] for each in of_each], axis=0), atol=2e-5)


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
