"""Tests and effect sizes for two arms that share seeds and test images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import gammaln
from scipy.stats import rankdata
from scipy.stats import t as student

# All signs are enumerated up to this many units, i.e. 16,384 permutations.
ENUMERATED = 14
SAMPLED = 20_000
# Signs held at a time, times units.
_CELLS = 8_000_000
# Two sums closer than this, relative to the largest that is possible, are equal: they differ by rounding.
_ROUNDING = 1e-9


class SignFlip(NamedTuple):
    """Result of `sign_flip_test`."""

    p: float  # two-sided, in (0, 1]
    smallest: float  # the smallest p that so many units can give: 0.002 with ten, 0.5 with two, 1 with one
    exact: bool  # every permutation was enumerated, not drawn


def sign_flip_test(contributions: Float[np.ndarray, " units"], seed: int = 0) -> SignFlip:
    """Permutation test that the sum of the contributions is zero: each unit's sign is flipped or not.

    The null hypothesis is that exchanging the two arms in any unit changes nothing, so every contribution might as well
    have had the other sign. Exact, whatever the distribution: the p-value is below x in no more than a share x of such
    cases. It generalises over what the units (seeds, groups of images) are a sample of. p = 1 where none contributes.

    For more than `ENUMERATED` units, `SAMPLED` permutations are drawn with `seed`; the identity counts as one more of
    them, which keeps the test exact.
    """
    units, total = len(contributions), abs(float(contributions.sum()))
    floor = total - _ROUNDING * float(np.abs(contributions).sum())
    # A flip takes a contribution away twice.
    reach = lambda flipped: np.abs(contributions.sum() - 2 * (flipped @ contributions)) >= floor
    if units <= ENUMERATED:
        flipped = (np.arange(2**units)[:, None] >> np.arange(units)) & 1
        return SignFlip(float(reach(flipped).mean()), min(1.0, 2.0 ** (1 - units)), True)
    rng, extreme = np.random.default_rng(seed), 0
    at_once = max(1, _CELLS // units)
    for start in range(0, SAMPLED, at_once):
        size = min(at_once, SAMPLED - start)
        bits = np.unpackbits(rng.integers(0, 256, (size, -(-units // 8)), np.uint8), axis=1, count=units)
        extreme += int(reach(bits.astype(np.float64)).sum())
    return SignFlip((1 + extreme) / (1 + SAMPLED), 1 / (1 + SAMPLED), False)


def exchange_contributions(
    labels: Int[np.ndarray, " n"], score: Float[np.ndarray, " n"], other: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """What each image contributes to AUROC(score) - AUROC(other), for a test that exchanges both scores of an image.

    Both scores become ranks first, which changes neither AUROC and makes them exchangeable (Bandos, Rockette and Gur,
    "A permutation test sensitive to differences in areas for comparing ROC curves from a paired design", 2005).
    Exchanging the ranks of some images then flips exactly the signs of their contributions: in the sum over pairs of a
    positive and a negative, the terms that are quadratic in the signs cancel. So the permutation test is
    `sign_flip_test` on sums over groups, without an AUROC for each permutation.

    Labels are 0 or 1, and both must occur; scores are higher for 1. The contributions add up to the difference.
    """
    ranks = np.stack([rankdata(score), rankdata(other)])
    positive, negative = ranks[:, labels == 1], ranks[:, labels == 0]
    contributions = np.empty(len(labels))
    for own, others, sign, rows in ((positive, negative, 1, labels == 1), (negative, positive, -1, labels == 0)):
        among = np.sort(others.ravel())
        counts = np.searchsorted(among, own, "left") + np.searchsorted(among, own, "right")  # ties half
        shares_below = sign * counts / (2 * len(among))
        contributions[rows] = (shares_below[0] - shares_below[1]) / own.shape[1]
    return contributions


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values after Holm's correction (1979), in the order given: the family-wise error stays at its level."""
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values, np.float64)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1) if len(order) else steps
    return corrected.tolist()


def t_interval(values: Float[np.ndarray, " n"], level: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    half = student.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def paired_effect_size(differences: Float[np.ndarray, " n"]) -> float | None:
    """Mean of paired differences in units of their deviation, with Hedges' correction for few pairs (exact form).

    None for fewer than three pairs, where the correction leaves nothing, or where all differences are equal up to
    rounding.
    """
    if len(differences) < 3:
        return None
    spread, degrees = differences.std(ddof=1), len(differences) - 1
    if spread <= _ROUNDING * np.abs(differences).max():
        return None
    correction = np.exp(gammaln(degrees / 2) - gammaln((degrees - 1) / 2)) / np.sqrt(degrees / 2)
    return float(correction * differences.mean() / spread)


def share_won(differences: Float[np.ndarray, " n"]) -> float:
    """Share of pairs with a positive difference, in [0, 1]; a tie counts half."""
    return float(((differences > 0) + (differences == 0) / 2).mean())
