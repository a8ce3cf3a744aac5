"""Errors of presentation attack detection, after ISO/IEC 30107-3.

Class 1 is the attack, class 0 the bona fide presentation; an image is called an attack where its score is at least
the threshold. The type of an attack (the standard's presentation attack instrument species) is its domain.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


def attack_detection(
    labels: Int[np.ndarray, " n"], score: Float[np.ndarray, " n"], types: Sequence[str], threshold: float
) -> dict[str, float | str | dict[str, float] | None]:
    """APCER, BPCER and ACER at a threshold.

    Args:
      labels: 1 for attacks, 0 for bona fide presentations.
      score: higher for attacks.
      types: type of each attack; those of bona fide presentations are ignored.
      threshold: must come from other data than these.

    Returns:
      `apcer` of each type (share of its attacks called bona fide), `apcer_max` over types with `worst_type`,
      `apcer_pooled` over all attacks, `bpcer` (share of bona fide presentations called attacks) and
      `acer = (apcer_max + bpcer) / 2`, all in [0, 1]; None where a class is absent.
    """
    attacks, names = labels == 1, np.asarray(types, dtype=str)
    missed, alarms = score[attacks] < threshold, score[~attacks] >= threshold
    per_type = {str(name): float(missed[names[attacks] == name].mean()) for name in np.unique(names[attacks])}
    worst = max(per_type, key=per_type.__getitem__) if per_type else None
    bpcer = float(alarms.mean()) if len(alarms) else None
    return {
        "apcer": per_type,
        "apcer_max": per_type[worst] if worst is not None else None,
        "worst_type": worst,
        "apcer_pooled": float(missed.mean()) if len(missed) else None,
        "bpcer": bpcer,
        "acer": (per_type[worst] + bpcer) / 2 if worst is not None and bpcer is not None else None,
    }
