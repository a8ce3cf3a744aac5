"""Metrics of a classifier's decisions and scores over a set of images, in NumPy and scikit-learn.

Of two classes, the one with index 1 is the positive (the attack, the finding). A higher score speaks for it, and an
image is called positive where its score is at least the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy  # its parts load when they are first used, after training's first step
from jaxtyping import Float, Int

CALIBRATION_BINS = 15
# Of the metrics of `classification`: 1 where the largest is the best, -1 where the smallest is.
BETTER = {"accuracy": 1, "auroc": 1, "cross_entropy": -1}


def classification(labels: Int[np.ndarray, " n"], logits: Float[np.ndarray, "n classes"]) -> dict[str, float | None]:
    """Cross-entropy (nats), accuracy and AUROC.

    AUROC is that of the last class's probability for two classes, the unweighted mean over one class against the
    rest for more; None where a class has no example.
    """
    from sklearn.metrics import roc_auc_score  # 1.4 s that training's first step does not wait for

    log_p = scipy.special.log_softmax(np.asarray(logits, np.float64), axis=-1)
    auroc, classes = None, log_p.shape[-1]
    if len(np.unique(labels)) >= classes:
        p = np.exp(log_p)
        # The margin of two classes orders as the probability does, without its rounding to exactly 1.
        score = log_p[:, 1] - log_p[:, 0] if classes == 2 else p / p.sum(-1, keepdims=True)
        auroc = float(roc_auc_score(labels, score, multi_class="ovr"))
    return {
        "cross_entropy": float(-log_p[np.arange(len(labels)), labels].mean()),
        "accuracy": float((log_p.argmax(-1) == labels).mean()),
        "auroc": auroc,
    }


def probability_metrics(
    labels: Int[np.ndarray, " n"], logits: Float[np.ndarray, "n classes"]
) -> dict[str, float | None]:
    """`classification`, and what else the softmax probabilities say without a threshold.

    Also `balanced_accuracy` (mean recall of the classes that occur), `ece` (expected calibration error) and `brier`
    (scikit-learn's: mean squared error of p_1 for two classes, summed over the classes for more).
    """
    from sklearn.metrics import brier_score_loss, recall_score

    log_p = scipy.special.log_softmax(np.asarray(logits, np.float64), axis=-1)
    p, classes = np.exp(log_p), logits.shape[-1]
    proba = p[:, 1] if classes == 2 else p / p.sum(-1, keepdims=True)
    options: dict[str, Any] = {"pos_label": 1} if classes == 2 else {"labels": range(classes)}
    return {
        **classification(labels, logits),
        # scikit-learn's balanced accuracy warns of a predicted class that no label has.
        "balanced_accuracy": float(recall_score(labels, p.argmax(-1), labels=np.unique(labels), average="macro")),
        "ece": expected_calibration_error(labels, p),
        "brier": float(brier_score_loss(labels, proba, **options)),
    }


def expected_calibration_error(labels: Int[np.ndarray, " n"], probabilities: Float[np.ndarray, "n classes"]) -> float:
    """Gap between confidence and accuracy, in [0, 1] (Guo et al., ICML 2017).

    Confidence is the largest probability; 15 bins of equal width on [0, 1], weighted by their number of images. A
    bin holds its upper edge.
    """
    confidence, correct = probabilities.max(-1), probabilities.argmax(-1) == labels
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(labels))


def binary_scores(logits: Float[np.ndarray, "n 2"]) -> dict[str, Float[np.ndarray, " n"]]:
    """The two scores of the protocol, float64.

    `margin`, z_1 - z_0, orders as the softmax probability does without rounding to exactly 1; `sigmoid_logit_1` is the
    score of the CYBORG scripts, which a shift common to both logits changes.
    """
    logits = np.asarray(logits, np.float64)
    return {"margin": logits[:, 1] - logits[:, 0], "sigmoid_logit_1": scipy.special.expit(logits[:, 1])}


def ranking_metrics(labels: Int[np.ndarray, " n"], score: Float[np.ndarray, " n"]) -> dict[str, float | None]:
    """What a score says without a threshold: AUROC, average precision, EER (on this set's own ROC curve), d'.

    Both classes must occur.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    return {
        "auroc": float(roc_auc_score(labels, score)),
        "average_precision": float(average_precision_score(labels, score)),
        "eer": equal_error(labels, score)[0],
        "d_prime": d_prime(labels, score),
    }


def d_prime(labels: Int[np.ndarray, " n"], score: Float[np.ndarray, " n"]) -> float | None:
    """Distance of the classes' mean scores in units of their root mean variance; None without any spread."""
    negative, positive = score[labels == 0], score[labels == 1]
    spread = np.sqrt((positive.var() + negative.var()) / 2)
    return float((positive.mean() - negative.mean()) / spread) if spread > 0 else None


def equal_error(labels: Int[np.ndarray, " n"], score: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Equal error rate, where the ROC curve, drawn with straight lines, meets FPR = 1 - TPR; and a threshold for it.

    The threshold is the one of the set with the smallest gap between both errors, halfway to the next lower score, so
    that new scores near it may fall to either side.
    """
    from sklearn.metrics import roc_curve

    fpr, tpr, thresholds = roc_curve(labels, score, drop_intermediate=False)
    gap = fpr - (1 - tpr)
    after = int(np.argmax(gap >= 0))  # the first point beyond the crossing; the curve starts with gap -1
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    rate = fpr[after - 1] + share * (fpr[after] - fpr[after - 1])
    nearest = int(np.argmin(np.abs(gap)))
    if nearest == 0:  # its threshold is infinite
        return float(rate), float(np.nextafter(score.max(), np.inf))
    lower = thresholds[nearest + 1] if nearest + 1 < len(thresholds) else thresholds[nearest]
    return float(rate), float((thresholds[nearest] + lower) / 2)


def threshold_at_false_positive_rate(negative_scores: Float[np.ndarray, " n"], rate: float) -> float:
    """Smallest threshold at which no more than `rate` (0 to 1) of the negatives are called positive.

    Tied scores fall on one side together, so the rate reached can be lower. For fewer than 1 / rate negatives none
    is let through.
    """
    descending = np.sort(np.asarray(negative_scores, np.float64))[::-1]
    # The small addend undoes the rounding of products such as 0.29 * 100.
    allowed = int(np.floor(rate * len(descending) + 1e-9))
    return float(np.nextafter(descending[allowed], np.inf)) if allowed < len(descending) else -np.inf


def rates_at(
    labels: Int[np.ndarray, " n"], score: Float[np.ndarray, " n"], threshold: float
) -> dict[str, float | None]:
    """`tpr`, `fpr`, `accuracy` and `balanced_accuracy` at a threshold; None for a rate of a class that is absent."""
    called = score >= threshold
    rate = lambda rows: float(called[rows].mean()) if rows.any() else None
    tpr, fpr = rate(labels == 1), rate(labels == 0)
    return {
        "tpr": tpr,
        "fpr": fpr,
        "accuracy": float((called == (labels == 1)).mean()),
        "balanced_accuracy": None if tpr is None or fpr is None else (tpr + 1 - fpr) / 2,
    }


def attack_detection(
    labels: Int[np.ndarray, " n"], score: Float[np.ndarray, " n"], types: Sequence[str], threshold: float
) -> dict[str, float | str | dict[str, float] | None]:
    """Errors of presentation attack detection at a threshold from other data than these, after ISO/IEC 30107-3.

    Class 1 is the attack, class 0 the bona fide presentation. `types` are the standard's presentation attack instrument
    species, here the domains; those of bona fide presentations are ignored.

    Returns:
      `apcer` of each type (share of its attacks called bona fide), `apcer_max` over types with `worst_type`,
      `apcer_pooled` over all attacks, `bpcer` (share of bona fide presentations called attacks) and
      `acer = (apcer_max + bpcer) / 2`, all in [0, 1]; None where a class is absent.
    """
    attacks, names = labels == 1, np.asarray(types, dtype=str)
    missed, alarms = score[attacks] < threshold, score[~attacks] >= threshold
    per_type = {str(name): float(missed[names[attacks] == name].mean()) for name in np.unique(names[attacks])}
    worst = max(per_type, key=per_type.__getitem__, default=None)
    apcer_max = None if worst is None else per_type[worst]
    bpcer = float(alarms.mean()) if len(alarms) else None
    return {
        "apcer": per_type,
        "apcer_max": apcer_max,
        "worst_type": worst,
        "apcer_pooled": float(missed.mean()) if len(missed) else None,
        "bpcer": bpcer,
        "acer": None if apcer_max is None or bpcer is None else (apcer_max + bpcer) / 2,
    }
