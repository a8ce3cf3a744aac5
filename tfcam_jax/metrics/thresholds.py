"""Thresholds on a score, chosen on validation images and on no others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from ..errors import UserError
from .classification import binary_scores, equal_error, threshold_at_false_positive_rate

# False positive rates (BPCER in attack detection) at which thresholds are set.
FALSE_POSITIVE_RATES = (0.001, 0.01, 0.05, 0.1)
# How a table calls each threshold.
NAMES = {"eer": "EER"} | {f"fpr_{rate:g}": f"FPR {100 * rate:g} %" for rate in FALSE_POSITIVE_RATES}


class SelectionError(UserError, ValueError):
    """A threshold or a checkpoint would be picked on data that serve to test it."""


def choose_thresholds(
    splits: Sequence[str], labels: Int[np.ndarray, " n"], logits: Float[np.ndarray, "n classes"]
) -> dict[str, dict[str, float]]:
    """Thresholds of the scores of `binary_scores`, at the equal error rate and at fixed false positive rates.

    Each image has its split, its label (0 or 1) and the logits of both classes.

    Returns:
      `{score: {"eer": t, "fpr_0.001": t, ...}}`; empty for other than two classes and where a class is absent.

    Raises:
      SelectionError: an image is not of the validation split.
    """
    others = sorted(set(splits) - {"val"})
    if others:
        raise SelectionError(
            f"thresholds can't be chosen on split {', '.join(others)}: figures at a threshold that was picked on the "
            "data it is tested on are too good. Choose them on validation images."
        )
    if logits.shape[-1] != 2 or len(np.unique(labels)) < 2:
        return {}
    return {
        name: {"eer": equal_error(labels, score)[1]}
        | {f"fpr_{rate:g}": threshold_at_false_positive_rate(score[labels == 0], rate) for rate in FALSE_POSITIVE_RATES}
        for name, score in binary_scores(logits).items()
    }
