"""Tests between arms against SciPy, brute force, and their level in simulations."""

import itertools

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from tfcam_jax.study import paired_tests
from tfcam_jax.study.paired_tests import (
    exchange_contributions,
    holm,
    paired_effect_size,
    share_won,
    sign_flip_test,
    t_interval,
)


@pytest.mark.parametrize("units", [2, 5, 9])
def test_sign_flips_agree_with_scipy(units):
    values = np.random.default_rng(units).normal(0.3, 1, units)
    reference = stats.permutation_test((values,), np.sum, permutation_type="samples", n_resamples=np.inf)
    found = sign_flip_test(values)
    assert found.exact
    assert found.p == pytest.approx(reference.pvalue)


def test_ties_between_permutations_count_in_spite_of_rounding():
    """0.1 + 0.2 - 0.3 is not 0 in floating point; the sum of 0.3 and its flips must count as equal."""
    values = np.array([0.1, 0.2, -0.3, 0.1 + 0.2])
    wholes = np.array([1, 2, -3, 3])
    signs = np.array(list(itertools.product((-1, 1), repeat=4)))
    assert sign_flip_test(values).p == (np.abs(signs @ wholes) >= abs(wholes.sum())).mean()


def test_smallest_p_value_is_the_one_of_contributions_all_alike():
    for units in (1, 2, 6, paired_tests.ENUMERATED):
        found = sign_flip_test(np.ones(units))
        assert found.p == found.smallest == min(1, 2 / 2**units)
    found = sign_flip_test(np.ones(60))
    assert found.p == found.smallest and not found.exact


def test_nothing_to_flip_proves_nothing():
    for values in (np.zeros(0), np.zeros(5), np.zeros(40)):
        assert sign_flip_test(values).p == 1


def test_drawn_signs_agree_with_all_signs(monkeypatch):
    values = np.random.default_rng(0).normal(0.4, 1, 12)
    exact = sign_flip_test(values)
    monkeypatch.setattr(paired_tests, "ENUMERATED", 4)
    monkeypatch.setattr(paired_tests, "_CELLS", 12 * 3001)  # several portions, the last one smaller
    drawn = sign_flip_test(values, seed=1)
    assert not drawn.exact
    assert drawn.p == pytest.approx(exact.p, abs=4 * np.sqrt(exact.p / paired_tests.SAMPLED))
    assert sign_flip_test(values, seed=1) == drawn != sign_flip_test(values, seed=2)


@pytest.mark.parametrize("rounded", [False, True])
def test_contributions_are_what_an_exchange_changes(rounded):
    """Against AUROCs of ranks that were really exchanged, with and without ties."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 30)
    score, other = labels + rng.normal(size=30), 40 * labels + 100 * rng.normal(size=30) - 7
    if rounded:
        score, other = score.round(), (other / 50).round()
    contributions = exchange_contributions(labels, score, other)
    assert contributions.sum() == pytest.approx(roc_auc_score(labels, score) - roc_auc_score(labels, other))
    ranks, others = stats.rankdata(score), stats.rankdata(other)
    for _ in range(5):
        flip = rng.integers(0, 2, 30).astype(bool)
        exchanged = np.where(flip, others, ranks), np.where(flip, ranks, others)
        change = roc_auc_score(labels, exchanged[0]) - roc_auc_score(labels, exchanged[1])
        assert np.where(flip, -contributions, contributions).sum() == pytest.approx(change)


def test_contributions_know_no_scale():
    rng = np.random.default_rng(4)
    labels, score, other = rng.integers(0, 2, 50), rng.normal(size=50), rng.normal(size=50)
    stretched = exchange_contributions(labels, np.exp(score), 3 * other + 100)
    np.testing.assert_allclose(stretched, exchange_contributions(labels, score, other), rtol=0, atol=1e-15)
    assert not exchange_contributions(labels, score, score).any()


def test_level_of_the_test_over_seeds():
    """Of true null hypotheses with symmetric differences, normal or with heavy tails, 5 % are rejected."""
    rng = np.random.default_rng(5)
    for draw in (lambda: rng.normal(size=8), lambda: rng.standard_t(2, size=8)):
        rejected = np.mean([sign_flip_test(draw()).p <= 0.05 for _ in range(1500)])
        assert rejected == pytest.approx(0.05, abs=0.018)  # three deviations and the grain of 1/128


def test_level_and_power_of_the_test_over_groups():
    """Two arms of equal merit but unlike scales on grouped images: 5 % rejected; images as units would reject more."""
    rng = np.random.default_rng(6)
    counts = {"groups": 0, "images": 0, "better": 0}
    for _ in range(400):
        members = np.repeat(np.arange(12), 6)
        labels = members % 2  # the members of a group share their label, as images of a patient do
        merit = lambda strength, m=members, y=labels: (
            strength * y + 1.5 * rng.normal(size=12)[m] + 0.7 * rng.normal(size=72)
        )
        first, second, better = merit(1.0), np.exp(merit(1.0) / 2), merit(6.0)
        contributions = exchange_contributions(labels, first, second)
        counts["groups"] += sign_flip_test(np.bincount(members, contributions)).p <= 0.05
        # The normal approximation of the same test with every image as a unit of its own.
        counts["images"] += abs(contributions.sum()) >= 1.96 * np.sqrt((contributions**2).sum())
        unlike = exchange_contributions(labels, better, second)
        counts["better"] += sign_flip_test(np.bincount(members, unlike)).p <= 0.05
    assert counts["groups"] / 400 == pytest.approx(0.05, abs=0.034)  # three deviations
    assert counts["images"] / 400 > 0.12
    assert counts["better"] / 400 > 0.5


def test_holm_by_hand():
    assert holm([]) == []
    assert holm([0.03]) == [0.03]
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.001, 0.6, 0.9]) == pytest.approx([1.0, 0.004, 1.0, 1.0])


def test_holm_rejects_as_its_definition_does():
    """Step down: reject while the k-th smallest is at most 0.05 / (m - k)."""
    rng = np.random.default_rng(7)
    for _ in range(50):
        p = rng.uniform(0, 0.1, 6) ** 1.5
        rejected = set()
        for k, index in enumerate(np.argsort(p)):
            if p[index] > 0.05 / (6 - k):
                break
            rejected.add(int(index))
        assert {i for i, corrected in enumerate(holm(p.tolist())) if corrected <= 0.05} == rejected


def test_t_interval_agrees_with_scipy():
    values = np.random.default_rng(8).normal(size=7)
    reference = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert t_interval(values, 0.9) == pytest.approx((reference.low, reference.high))
    assert t_interval(values[:1]) is None


def test_effect_size_is_unbiased():
    """Mean over many draws against the true effect; without the correction it would be 1.25 times as large."""
    rng = np.random.default_rng(9)
    found = np.mean([paired_effect_size(rng.normal(0.8, 1, 5)) for _ in range(6000)])
    assert found == pytest.approx(0.8, abs=0.03)


def test_effect_size_and_share_of_degenerate_pairs():
    assert paired_effect_size(np.array([0.1, 0.2])) is None
    assert paired_effect_size(np.zeros(5)) is None
    assert paired_effect_size(0.3 + np.array([1e-17, 0, 2e-17])) is None
    assert share_won(np.array([0.1, -0.2, 0.0, 0.3])) == 0.625
    assert share_won(np.zeros(4)) == 0.5
