"""Attack detection as published tables have it: thresholds that the tested images themselves give, or a fixed one.

Both are kept apart from our own protocol, whose thresholds come from validation images: a threshold taken from the
bona fide presentations that are tested is one that nobody knows beforehand, and its errors are too small. It is what
tables of papers and competitions show, so it is needed to stand beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from .classification import attack_detection, ranking_metrics, threshold_at_false_positive_rate
from .tables import columns, decimal, percent, tabulate

# BPCERs whose thresholds are taken from the tested bona fide presentations.
BPCERS = (0.01, 0.05, 0.1)
# The decision of LivDet-Iris: a score in [0, 1] of at least this is an attack.
FIXED = 0.5
TITLE = (
    f"Published protocol. Thresholds: {FIXED:g}, and where BPCER is 1, 5 and 10 % on the tested bona fides themselves"
)
_POOLS = {"mean": np.mean, "max": np.max}


def published_protocol(
    labels: Int[np.ndarray, " n"], score: Float[np.ndarray, " n"], types: Sequence[str], groups: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Measures of images, and of groups (videos, subjects) where some have several images.

    Args:
      labels: 1 for an attack, 0 for a bona fide presentation.
      score: in [0, 1], higher for attacks.
      types: of attack, see `classification.attack_detection`.
      groups: whose score is the mean, or the largest, of those of its images; "" stands for itself. Images of one group
        that differ in label or type count as several groups.

    Returns:
      `images`, and with groups `group mean` and `group max`, each with `number`, `bona_fides` and `attacks`;
      `ranking_metrics` where both classes occur; `fixed` (`attack_detection` at 0.5); and `at_bpcer`, for each of
      `BPCERS` the same at the threshold that the tested bona fides give, and `threshold`; empty without any.
    """
    rows = np.arange(len(labels))
    keys = [
        (group or f"\0{row}", label, kind) for row, group, label, kind in zip(rows, groups, labels, types, strict=True)
    ]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    measures = {"images": _measure(labels, score, types)}
    if len(numbers) < len(labels):
        members = np.array([numbers[key] for key in keys])
        pooled = {
            name: [pool(score[members == number]) for number in range(len(numbers))] for name, pool in _POOLS.items()
        }
        of_groups = np.array([key[1] for key in numbers]), [key[2] for key in numbers]
        measures |= {f"group {name}": _measure(of_groups[0], np.array(p), of_groups[1]) for name, p in pooled.items()}
    return measures


def _measure(labels: np.ndarray, score: np.ndarray, types: Sequence[str]) -> dict[str, Any]:
    negative = score[labels == 0]
    at = lambda threshold: attack_detection(labels, score, types, threshold) | {"threshold": threshold}
    measures: dict[str, Any] = {"number": len(labels), "bona_fides": len(negative), "attacks": int((labels == 1).sum())}
    if len(np.unique(labels)) == 2:
        measures |= ranking_metrics(labels, score)
    thresholds = (
        {f"{rate:g}": threshold_at_false_positive_rate(negative, rate) for rate in BPCERS} if len(negative) else {}
    )
    return measures | {"fixed": at(FIXED), "at_bpcer": {rate: at(threshold) for rate, threshold in thresholds.items()}}


def format_published(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """A table with a row for each set and level, `measured` being `published_protocol` of each set."""
    absent = {"auroc": None, "eer": None, "at_bpcer": dict.fromkeys(f"{rate:g}" for rate in BPCERS)}
    items = [
        (name, absent | dict(measures) | {"level": level, "at_bpcer": absent["at_bpcer"] | measures["at_bpcer"]})
        for name, levels in measured.items()
        for level, measures in levels.items()
    ]
    fixed = {"bpcer": "BPCER %", "apcer_pooled": "APCER %", "apcer_max": "APCER max %"}
    shown = [
        *columns(str, {"level": "score of", "bona_fides": "bona fides", "attacks": "attacks"}),
        *columns(decimal, {"auroc": "AUROC"}),
        *columns(percent, {"eer": "EER %"} | {f"fixed/{key}": f"{head}" for key, head in fixed.items()}),
        *columns(lambda name: name or "-", {"fixed/worst_type": "worst type"}),
        *columns(percent, {f"at_bpcer/{rate:g}/apcer_pooled": f"APCER@{100 * rate:g}" for rate in BPCERS}),
        *columns(percent, {f"at_bpcer/{rate:g}/apcer_max": f"max@{100 * rate:g}" for rate in BPCERS}),
    ]
    return tabulate(TITLE, "set", items, shown).text()
