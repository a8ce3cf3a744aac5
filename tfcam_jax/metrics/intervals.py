"""95 % confidence intervals: DeLong's for the AUROC, Newcombe's for one of few images, a bootstrap over groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import scipy
from jaxtyping import Bool, Float, Int

LEVEL = 0.95
RESAMPLES = 1000
# With fewer groups of a class than this, resampling them shows too little of how they could have been.
FEW = 10
# Weights of this many images times resamples are held at a time (32 MB).
_CELLS = 4_000_000


def delong_variance(labels: Int[np.ndarray, " n"], score: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """AUROC and its variance (DeLong et al. 1988), by midranks in O(n log n) (Sun and Xu 2014).

    Ties count one half. Both classes need two images at least; else the variance is NaN.
    """
    from scipy.stats import rankdata  # a second that training's first step does not wait for

    positive, negative = score[labels == 1], score[labels == 0]
    m, n = len(positive), len(negative)
    ranks = rankdata(np.concatenate([positive, negative]))
    # For each positive the share of negatives below it, for each negative the share of positives above it.
    above = (ranks[:m] - rankdata(positive)) / n
    below = 1 - (ranks[m:] - rankdata(negative)) / m
    if min(m, n) < 2:
        return float(above.mean()), float("nan")
    return float(above.mean()), float(above.var(ddof=1) / m + below.var(ddof=1) / n)


def delong_interval(labels: Int[np.ndarray, " n"], score: Float[np.ndarray, " n"]) -> tuple[float, float] | None:
    """Interval of the AUROC, on the logit scale, which keeps it within [0, 1].

    Images count as independent: with groups, `group_bootstrap` is the honest one. None where there is no variance to
    estimate: fewer than two images of a class, or classes that the score parts completely.
    """
    area, variance = delong_variance(labels, score)
    if not variance > 0 or not 0 < area < 1:
        return None
    half = scipy.special.ndtri((1 + LEVEL) / 2) * np.sqrt(variance) / (area * (1 - area))
    shifted = lambda by: float(scipy.special.expit(scipy.special.logit(area) + by))
    return shifted(-half), shifted(half)


def newcombe_interval(area: float, positives: int, negatives: int) -> tuple[float, float]:
    """Interval of an AUROC that exists for any number of examples, also at 0 and 1 (Newcombe, 2006, method 5).

    All areas A from which the one found lies within 1.96 standard deviations, those that Hanley and McNeil's formula
    gives at A. `positives` and `negatives` (at least one each) are independent examples: groups, where there are any.
    """
    from scipy.optimize import root_scalar

    z, mean = float(scipy.special.ndtri((1 + LEVEL) / 2)), (positives + negatives) / 2

    def excess(a: float) -> float:
        shape = 1 + (mean - 1) * ((1 - a) / (2 - a) + a / (1 + a))
        return (area - a) ** 2 - z**2 * a * (1 - a) * shape / (positives * negatives)

    inside = min(max(area, 1e-9), 1 - 1e-9)  # where `excess` is negative; at 0 and 1 themselves it may be 0
    low = float(root_scalar(excess, bracket=(0, inside)).root) if area > 0 else 0.0
    high = float(root_scalar(excess, bracket=(inside, 1)).root) if area < 1 else 1.0
    return low, high


class Intervals(NamedTuple):
    """Those of one AUROC, see the functions of these names; `bootstrap` also of both accuracies."""

    delong: tuple[float, float] | None
    bootstrap: dict[str, tuple[float, float] | None]
    newcombe: tuple[float, float]


def auroc_intervals(
    labels: Int[np.ndarray, " n"],
    score: Float[np.ndarray, " n"],
    correct: Bool[np.ndarray, " n"],
    groups: Sequence[str],
) -> Intervals:
    """All intervals of a score of two classes, both of which occur; Newcombe's for as many examples as groups."""
    negatives, positives = groups_of_classes(labels, groups, 2)
    return Intervals(
        delong_interval(labels, score),
        group_bootstrap(labels, score, correct.astype(np.float64), groups),
        newcombe_interval(delong_variance(labels, score)[0], positives, negatives),
    )


def groups_of_classes(labels: Int[np.ndarray, " n"], groups: Sequence[str], classes: int) -> list[int]:
    """How many groups have an image of each class."""
    numbers = group_numbers(groups)
    return [len(np.unique(numbers[labels == label])) for label in range(classes)]


def group_numbers(groups: Sequence[str], ids: Sequence[str] | None = None) -> Int[np.ndarray, " n"]:
    """Numbers 0.. of the groups; an image with an empty name is a group of its own.

    `ids` name the image of each row, where one image may stand in several; else every row is an image.
    """
    images = range(len(groups)) if ids is None else ids
    names = [f"group {group}" if group else f"image {image}" for group, image in zip(groups, images, strict=True)]
    return np.unique(names, return_inverse=True)[1]


def group_bootstrap(
    labels: Int[np.ndarray, " n"],
    score: Float[np.ndarray, " n"],
    correct: Float[np.ndarray, " n"],
    groups: Sequence[str],
    seed: int = 0,
) -> dict[str, tuple[float, float] | None]:
    """Percentile intervals of `auroc`, `accuracy` and `balanced_accuracy` from whole groups drawn with replacement.

    Over those of `RESAMPLES` draws that hold both classes; None where fewer than half do, and for an AUROC of 0 or 1,
    which every draw repeats (`newcombe_interval` has one there). Labels are 0 or 1, scores higher for 1; `correct` is 1
    where the decision was right, else 0. Groups must not be torn apart (a patient, a tile); an image with an empty name
    stands for itself.
    """
    numbers = group_numbers(groups)
    count, of_class = int(numbers.max()) + 1, np.stack([labels == 1, labels != 1], axis=1).astype(np.float64)
    drawn = {"auroc": [], "accuracy": [], "balanced_accuracy": []}
    for times in draw_groups(count, count, RESAMPLES, seed, len(labels)):
        weights = times[:, numbers].astype(np.float64)
        totals, right = weights @ of_class, (weights * correct) @ of_class
        both = (totals > 0).all(1)
        drawn["auroc"].append(weighted_auroc(labels, score, weights[both]))
        drawn["accuracy"].append(right[both].sum(1) / totals[both].sum(1))
        drawn["balanced_accuracy"].append((right[both] / totals[both]).mean(1))
    bounds = {name: percentile_interval(np.concatenate(values), RESAMPLES) for name, values in drawn.items()}
    return bounds | ({"auroc": None} if bounds["auroc"] in ((0.0, 0.0), (1.0, 1.0)) else {})


def draw_groups(
    count: int, draws: int, resamples: int, seed: int, images: int
) -> Iterator[Int[np.ndarray, "portion count"]]:
    """How often each of `count` groups comes when `draws` are drawn with replacement, in portions of the resamples.

    A portion is so small that a weight for each of its resamples and `images` fits into 32 MB.
    """
    rng, at_once = np.random.default_rng(seed), max(1, _CELLS // max(count, images))
    for start in range(0, resamples, at_once):
        yield rng.multinomial(draws, np.full(count, 1 / count), size=min(at_once, resamples - start))


def weighted_auroc(
    labels: Int[np.ndarray, " n"], score: Float[np.ndarray, " n"], weights: Float[np.ndarray, "r n"]
) -> Float[np.ndarray, " r"]:
    """AUROC under each row of weights: share of the weight of (positive, negative) pairs in right order, ties half."""
    values, place = np.unique(score, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(values)))
    weights, is_positive = weights[:, order], (labels[order] == 1)[None, :]
    at_value = lambda w: np.add.reduceat(w, starts, axis=1)
    positive, negative = at_value(weights * is_positive), at_value(weights * ~is_positive)
    below = np.cumsum(negative, axis=1) - negative
    return (positive * (below + negative / 2)).sum(1) / (positive.sum(1) * negative.sum(1))


def percentile_interval(values: Float[np.ndarray, " r"], resamples: int) -> tuple[float, float] | None:
    """The middle 95 % of resampled values; None where fewer than half of the resamples gave one."""
    if len(values) < resamples / 2:
        return None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
