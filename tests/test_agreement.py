"""Agreement with human maps, against NumPy loops and SciPy, one map at a time."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import pearsonr

from tfcam_jax.metrics import agreement


@pytest.fixture(scope="module")
def maps():
    rng = np.random.default_rng(0)
    model = rng.normal(size=(6, 5, 7)).astype(np.float32)
    human = rng.uniform(size=(6, 5, 7)).astype(np.float32)
    human = (human - human.min((1, 2), keepdims=True)) / np.ptp(human, (1, 2), keepdims=True)
    model[1] = human[1] * 3 - 7  # an affine copy
    model[2] = -human[2]
    return model, human


def iou(m, s):
    places = sorted(np.ndindex(m.shape), key=lambda place: (-m[place], place))
    region = {place for place in places if s[place] >= 0.5}
    chosen = set(places[: len(region)])
    return len(chosen & region) / len(chosen | region)


def kl(m, s):
    p, q = s + 1e-6, (m - m.min()) / np.ptp(m) + 1e-6
    p, q = p / p.sum(), q / q.sum()
    return sum(a * np.log(a / b) for a, b in zip(p.flat, q.flat, strict=True))


REFERENCES = {
    "cc": lambda m, s: pearsonr(m.ravel(), s.ravel()).statistic,
    "kl": kl,
    "nss": lambda m, s: np.average((m - m.mean()) / m.std(), weights=s),
    "iou": iou,
    "energy": lambda m, s: (np.maximum(m, 0) * s).sum() / np.maximum(m, 0).sum() if (m > 0).any() else 0,
    "pointing": lambda m, s: float(s.flat[m.argmax()] >= 0.5),
}


@pytest.mark.parametrize("name", agreement.MEASURES)
def test_measure_is_its_definition(maps, name):
    found = agreement.MEASURES[name](*map(jnp.asarray, maps))
    expected = [REFERENCES[name](*pair) for pair in zip(*(x.astype(np.float64) for x in maps), strict=True)]
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-5)


def test_perfect_map_gets_the_best_of_every_measure(maps):
    human = jnp.asarray(maps[1])
    best = {name: np.asarray(measure(human, human)) for name, measure in agreement.MEASURES.items()}
    np.testing.assert_allclose(best["cc"], 1, atol=1e-6)
    np.testing.assert_allclose(best["kl"], 0, atol=1e-6)
    np.testing.assert_array_equal(best["iou"], 1)
    np.testing.assert_array_equal(best["pointing"], 1)


@pytest.mark.parametrize("value", [0.0, 0.3, -2.0])
def test_constant_map_points_nowhere(value):
    """Float32 noise around a constant is no map either; ties go by share or by reading order, never by NaN."""
    human = np.zeros((1, 4, 4), np.float32)
    human[0, 2:] = 1
    flat = np.full((1, 4, 4), value, np.float32)
    found = {
        name: float(measure(jnp.asarray(flat), jnp.asarray(human))[0]) for name, measure in agreement.MEASURES.items()
    }
    assert (found["cc"], found["nss"], found["iou"], found["pointing"]) == (0, 0, 0, 0.5)
    assert found["kl"] == pytest.approx(np.log(2), abs=1e-4)
    assert found["energy"] == pytest.approx(0.5 if value > 0 else 0)


@pytest.mark.slow
def test_measures_at_both_resolutions_leave_out_images_without_a_map():
    rng = np.random.default_rng(1)
    model = rng.normal(size=(3, 4, 4)).astype(np.float32)
    human = np.zeros((3, 16, 16), np.float32)
    human[0, :5, 3:9] = 0.4  # not normalised
    human[2, 8:, :8] = 1
    small = np.stack([h.reshape(4, 4, 4, 4).mean((1, 3)) / max(h.max(), 0.1) for h in human])
    usable = np.array([True, False, True])
    measure = lambda maps: agreement.measure_maps(
        {name: jnp.asarray(values) for name, values in maps.items()}, *map(jnp.asarray, (small, human, usable))
    )
    found = measure({"T": model, "D": -model})
    for resolution in ("map", "image"):
        for name in ("T", "D"):
            for values in found[resolution][name].values():
                np.testing.assert_array_equal(np.isnan(values), ~usable)
    assert float(found["image"]["T"]["cc"][2]) == pytest.approx(-float(found["image"]["D"]["cc"][2]), abs=1e-5)
    # At image resolution an enlarged map agrees better with a region that is a quarter of the image than by chance.
    assert float(measure({"T": small})["image"]["T"]["cc"][2]) > 0.9
    coarse, fine = (float(found[resolution]["T"]["cc"][0]) for resolution in ("map", "image"))
    assert coarse == pytest.approx(pearsonr(model[0].ravel(), small[0].ravel()).statistic, abs=1e-5)
    assert fine != pytest.approx(coarse, abs=1e-3)


def test_the_sign_inside_and_how_far_above_outside(maps):
    """By hand, on random maps; of two levels as the docstring says; of a constant map 0, of a negative one its sign."""
    model, human = (np.asarray(each, np.float64) for each in maps)
    found = agreement.above_outside(*map(jnp.asarray, maps))
    expected = [
        (np.average(m, weights=s) - np.average(m, weights=1 - s)) / m.std() for m, s in zip(model, human, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    signs = agreement.positive_inside(*map(jnp.asarray, maps))
    np.testing.assert_array_equal(signs, [np.average(m, weights=s) > 0 for m, s in zip(model, human, strict=True)])
    region = jnp.asarray(np.repeat([1.0, 0.0], [7, 28]).reshape(1, 5, 7), jnp.float32)
    assert float(agreement.above_outside(3 * region - 2, region)[0]) == pytest.approx(1 / (0.2 * 0.8) ** 0.5)
    assert float(agreement.above_outside(-region, region)[0]) == pytest.approx(-2.5)
    assert (agreement.above_outside(jnp.full((1, 5, 7), -4.0), region), agreement.positive_inside(-region, region)) == (
        0,
        0,
    )


def test_shared_variance_is_what_the_decision_never_sees():
    """0 of an antisymmetric head, 1 of equal maps but for a constant, else by the equation; no unit plays a part."""
    rng = np.random.default_rng(2)
    features, kernel = rng.gamma(1.0, size=(3, 5, 7, 6)), rng.normal(size=(6, 2))
    of = lambda kernel: [jnp.asarray(features @ kernel[:, k], jnp.float32) for k in (0, 1)]
    true_map, false_map = of(kernel)
    shared, own = ((features @ (kernel @ w) / 2).var((1, 2)) for w in ([1, 1], [1, -1]))
    np.testing.assert_allclose(agreement.shared_variance(true_map, false_map), shared / (shared + own), rtol=1e-4)
    for scale in (1e-12, 1e15):
        scaled = agreement.shared_variance(scale * true_map, scale * false_map)
        np.testing.assert_allclose(scaled, shared / (shared + own), rtol=1e-4)
    np.testing.assert_allclose(agreement.shared_variance(true_map, -true_map), 0, atol=1e-6)
    np.testing.assert_allclose(agreement.shared_variance(true_map, true_map + 3), 1, atol=1e-6)
    flat = jnp.full((2, 5, 7), 3.0)
    np.testing.assert_array_equal(agreement.shared_variance(flat, -flat), 0)
