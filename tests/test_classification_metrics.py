"""Figures of decisions and scores, against loops, scikit-learn and SciPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from tfcam_jax.metrics.classification import (
    attack_detection,
    binary_scores,
    classification,
    d_prime,
    equal_error,
    expected_calibration_error,
    probability_metrics,
    ranking_metrics,
    rates_at,
    threshold_at_false_positive_rate,
)
from tfcam_jax.metrics.intervals import (
    delong_interval,
    delong_variance,
    group_bootstrap,
    newcombe_interval,
    weighted_auroc,
)
from tfcam_jax.metrics.thresholds import SelectionError, choose_thresholds


def draw(seed=0, n=60, shift=1.0, ties=False):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    score = rng.normal(size=n) + shift * labels
    return labels, np.round(score, 0) if ties else score


def pairs(positive, negative):
    """Share of pairs in the right order, one by one."""
    return np.mean([[(p > q) + (p == q) / 2 for q in negative] for p in positive])


@pytest.mark.parametrize("ties", [False, True])
def test_delong_is_the_variance_of_its_definition(ties):
    labels, score = (column[15:] for column in draw(ties=ties))
    labels[:12] = 0  # of one class half as many
    positive, negative = score[labels == 1], score[labels == 0]
    above = [np.mean([(p > q) + (p == q) / 2 for q in negative]) for p in positive]
    below = [np.mean([(p > q) + (p == q) / 2 for p in positive]) for q in negative]
    area, variance = delong_variance(labels, score)
    assert area == pytest.approx(roc_auc_score(labels, score))
    expected = np.var(above, ddof=1) / len(above) + np.var(below, ddof=1) / len(below)
    assert variance == pytest.approx(expected, rel=1e-12)


def test_delong_interval_covers_the_true_area():
    """Of 300 samples from two normal distributions about 95 % of the intervals hold the area under their curve."""
    true_area = norm.cdf(1 / np.sqrt(2))
    inside = [low <= true_area <= high for low, high in (delong_interval(*draw(seed)) for seed in range(300))]
    assert 0.91 < np.mean(inside) < 0.985


def test_no_interval_without_spread():
    labels = np.array([0, 0, 1, 1])
    assert delong_interval(labels, np.array([0.0, 1, 2, 3])) is None
    assert delong_interval(np.array([0, 1, 1]), np.array([0.0, -1, 2])) is None
    # A resampling of such images only repeats the area.
    assert group_bootstrap(labels, np.array([0.0, 1, 2, 3]), np.ones(4), [""] * 4)["auroc"] is None


def test_newcombe_interval_covers_the_true_area_of_few_images():
    """Ten of each class; an area of 1, as most draws have, gets an interval too."""
    shift = 2.3262
    true_area, labels = norm.cdf(shift / np.sqrt(2)), np.repeat([0, 1], 10)
    inside = []
    for seed in range(400):
        score = np.random.default_rng(seed).normal(size=20) + shift * labels
        low, high = newcombe_interval(delong_variance(labels, score)[0], 10, 10)
        inside.append(low <= true_area <= high)
    assert 0.93 <= np.mean(inside) <= 1


def test_newcombe_interval_is_wide_for_few_and_mirrored():
    for area in (0.0, 0.3, 1.0):
        low, high = newcombe_interval(area, 4, 9)
        mirrored = newcombe_interval(1 - area, 4, 9)
        np.testing.assert_allclose(mirrored, (1 - high, 1 - low), atol=1e-9)
        many = newcombe_interval(area, 400, 900)
        assert 0 <= low <= many[0] <= area <= many[1] <= high <= 1 and high - low > 3 * (many[1] - many[0])
    labels, score = np.repeat([0, 1], 300), np.random.default_rng(0).normal(size=600)
    score += labels
    found = newcombe_interval(delong_variance(labels, score)[0], 300, 300)
    np.testing.assert_allclose(found, delong_interval(labels, score), atol=0.01)


@pytest.mark.parametrize("ties", [False, True])
def test_weighted_area_is_that_of_repeated_images(ties):
    labels, score = draw(ties=ties, n=30)
    weights = np.random.default_rng(1).integers(0, 4, (5, 30))
    areas = weighted_auroc(labels, score, weights.astype(float))
    for area, times in zip(areas, weights, strict=True):
        assert area == pytest.approx(roc_auc_score(np.repeat(labels, times), np.repeat(score, times)))


def test_bootstrap_of_copied_images_is_wide_only_by_groups():
    """Ten copies of each image add nothing: by groups the interval stays, by images it shrinks."""
    labels, score = draw(n=40)
    groups = [f"g{i}" for i in range(40)]
    correct = ((score > 0.5) == labels).astype(float)
    many = lambda x: np.repeat(x, 10)
    width = lambda bounds: bounds["auroc"][1] - bounds["auroc"][0]
    single = width(group_bootstrap(labels, score, correct, groups))
    grouped = width(group_bootstrap(many(labels), many(score), many(correct), list(many(groups))))
    alone = width(group_bootstrap(many(labels), many(score), many(correct), [""] * 400))
    assert grouped == pytest.approx(single, rel=0.15)
    assert alone < 0.5 * single


def test_bootstrap_interval_agrees_with_delong_for_single_images():
    labels, score = draw(n=200)
    correct = ((score > 0.5) == labels).astype(float)
    found = group_bootstrap(labels, score, correct, [""] * 200)
    np.testing.assert_allclose(found["auroc"], delong_interval(labels, score), atol=0.02)
    deviation = np.sqrt(correct.mean() * (1 - correct.mean()) / 200)
    np.testing.assert_allclose(found["accuracy"], correct.mean() + 1.96 * deviation * np.array([-1, 1]), atol=0.015)
    assert found == group_bootstrap(labels, score, correct, [""] * 200)
    assert found != group_bootstrap(labels, score, correct, [""] * 200, seed=1)


def test_equal_error_of_two_normal_distributions():
    labels, score = draw(n=40000, shift=2.0)
    rate, threshold = equal_error(labels, score)
    assert rate == pytest.approx(norm.cdf(-1), abs=0.005)
    assert threshold == pytest.approx(1.0, abs=0.03)
    assert d_prime(labels, score) == pytest.approx(2.0, abs=0.03)


@pytest.mark.parametrize(
    ("negative", "positive", "rate"),
    [([0, 1], [2, 3], 0.0), ([2, 3], [0, 1], 1.0), ([0, 2], [1, 3], 0.5), ([0, 0], [0, 0], 0.5)],
)
def test_equal_error_of_few_images(negative, positive, rate):
    labels, score = np.array([0, 0, 1, 1]), np.array([*negative, *positive], float)
    found, threshold = equal_error(labels, score)
    assert found == pytest.approx(rate)
    at = rates_at(labels, score, threshold)
    assert abs(at["fpr"] - (1 - at["tpr"])) == min(
        abs(np.mean(np.array(negative) >= t) - np.mean(np.array(positive) < t)) for t in [*score, np.inf]
    )


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=40), st.sampled_from([0.001, 0.01, 0.05, 0.1, 0.29, 0.5]))
def test_threshold_lets_through_as_many_as_it_may_and_no_more(scores, rate):
    scores = np.array(scores, float)
    threshold = threshold_at_false_positive_rate(scores, rate)
    passed = np.mean(scores >= threshold)
    assert passed <= rate + 1e-9
    below = scores[scores < threshold]
    assert not len(below) or np.mean(scores >= below.max()) > rate


def test_rates_and_balanced_accuracy_are_scikit_learns():
    labels, score = draw()
    at = rates_at(labels, score, 0.3)
    assert at["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, score >= 0.3))
    assert at["accuracy"] == pytest.approx(np.mean((score >= 0.3) == labels))
    assert rates_at(np.zeros(3, int), np.array([0.0, 1, 2]), 1.0) == {
        "tpr": None,
        "fpr": pytest.approx(2 / 3),
        "accuracy": pytest.approx(1 / 3),
        "balanced_accuracy": None,
    }


def test_calibration_error_by_bins():
    rng = np.random.default_rng(0)
    p = rng.uniform(0.5, 1, 500)
    labels = rng.integers(0, 2, 500)
    total = 0.0
    for i in range(15):
        rows = (p > i / 15) & (p <= (i + 1) / 15)
        if rows.any():
            total += rows.sum() / 500 * abs(p[rows].mean() - (labels[rows] == 1).mean())
    assert expected_calibration_error(labels, np.stack([1 - p, p], 1)) == pytest.approx(total)


@pytest.mark.parametrize("classes", [2, 3])
def test_probability_metrics(classes):
    rng = np.random.default_rng(2)
    labels, logits = np.arange(50) % classes, rng.normal(size=(50, classes)).astype(np.float32)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = probability_metrics(labels, logits)
    brier = ((p - np.eye(classes)[labels]) ** 2).sum(-1).mean()
    assert found["brier"] == pytest.approx(brier / 2 if classes == 2 else brier, rel=1e-5)
    recalls = [np.mean(p.argmax(-1)[labels == k] == k) for k in range(classes)]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert found["cross_entropy"] == pytest.approx(-np.log(p[np.arange(50), labels]).mean(), rel=1e-5)
    areas = [roc_auc_score(labels == k, p[:, k]) for k in range(classes)]
    assert found["auroc"] == pytest.approx(areas[1] if classes == 2 else np.mean(areas))


def test_predictions_of_a_class_that_does_not_occur_count_as_wrong():
    labels, logits = np.array([0, 0, 1, 1]), np.eye(3)[[0, 2, 1, 2]]
    assert probability_metrics(labels, logits)["balanced_accuracy"] == pytest.approx(0.5)
    assert classification(labels, logits)["auroc"] is None
    alone = probability_metrics(np.array([1, 1]), np.array([[0.0, 1], [1, 0]]))
    assert alone["balanced_accuracy"] == pytest.approx(0.5)


def test_shift_of_both_logits_changes_the_older_score_alone():
    rng = np.random.default_rng(0)
    labels, logits = np.arange(40) % 2, rng.normal(size=(40, 2))
    shifted = binary_scores(logits + rng.normal(size=(40, 1)) * 3)
    before = binary_scores(logits)
    np.testing.assert_allclose(shifted["margin"], before["margin"], atol=1e-12)
    np.testing.assert_allclose(before["sigmoid_logit_1"], 1 / (1 + np.exp(-logits[:, 1])))
    area = lambda scores: ranking_metrics(labels, scores)["auroc"]
    assert area(shifted["sigmoid_logit_1"]) != area(before["sigmoid_logit_1"])


def test_margin_ranks_where_the_probability_has_rounded_to_one():
    labels, logits = np.array([0, 1]), np.array([[0.0, 800.0], [0.0, 900.0]], np.float32)
    assert classification(labels, logits)["auroc"] == 1.0


def test_attack_detection_counts():
    """Two types of attack: one of two missed, three of four missed; one of four bona fide images alarms."""
    labels = np.array([1] * 6 + [0] * 4)
    types = ["print"] * 2 + ["lens"] * 4 + ["live"] * 4
    score = np.array([0.9, 0.1, 0.5, 0.4, 0.3, 0.2, 0.5, 0.1, 0.1, 0.1])
    assert attack_detection(labels, score, types, 0.5) == {
        "apcer": {"lens": 0.75, "print": 0.5},
        "apcer_max": 0.75,
        "worst_type": "lens",
        "apcer_pooled": pytest.approx(4 / 6),
        "bpcer": 0.25,
        "acer": 0.5,
    }
    no_attack = attack_detection(labels[6:], score[6:], types[6:], 0.5)
    assert (no_attack["apcer"], no_attack["acer"], no_attack["bpcer"]) == ({}, None, 0.25)


def test_attack_detection_is_the_complement_of_tpr_and_fpr():
    labels, score = draw()
    found, at = attack_detection(labels, score, ["x"] * 60, 0.2), rates_at(labels, score, 0.2)
    assert found["apcer_pooled"] == pytest.approx(1 - at["tpr"])
    assert found["bpcer"] == pytest.approx(at["fpr"])


def test_thresholds_come_from_validation_or_not_at_all():
    labels, score = draw()
    logits = np.stack([np.zeros(60), score], 1)
    chosen = choose_thresholds(["val"] * 60, labels, logits)
    assert chosen["margin"]["eer"] == equal_error(labels, score)[1]
    assert rates_at(labels, score, chosen["margin"]["fpr_0.1"])["fpr"] == pytest.approx(0.1)
    with pytest.raises(SelectionError, match="split test"):
        choose_thresholds(["val"] * 59 + ["test"], labels, logits)
    assert choose_thresholds(["val"] * 60, labels * 0, logits) == {}
    assert choose_thresholds(["val"] * 60, labels, np.zeros((60, 3))) == {}
