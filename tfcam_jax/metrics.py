"""Figures over a set of predictions, in NumPy and scikit-learn."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import log_softmax
from sklearn.metrics import roc_auc_score

from .cams import is_constant


def classification(labels: Int[np.ndarray, " n"], logits: Float[np.ndarray, "n classes"]) -> dict[str, float | None]:
    """Cross-entropy (nats), accuracy and AUROC.

    AUROC is that of the last class's probability for two classes, the unweighted mean over one class against the
    rest for more; None where a class has no example.
    """
    log_p = log_softmax(np.asarray(logits, np.float64), axis=-1)
    return {
        "cross_entropy": float(-log_p[np.arange(len(labels)), labels].mean()),
        "accuracy": float((log_p.argmax(-1) == labels).mean()),
        "auroc": _auroc(labels, log_p),
    }


def _auroc(labels: np.ndarray, log_p: np.ndarray) -> float | None:
    classes = log_p.shape[-1]
    if len(np.unique(labels)) < classes:
        return None
    if classes == 2:
        # The margin orders as the probability does, without its rounding to exactly 1.
        return float(roc_auc_score(labels, log_p[:, 1] - log_p[:, 0]))
    return float(roc_auc_score(labels, np.exp(log_p), multi_class="ovr"))


def map_correlation(
    maps: Float[np.ndarray, "n h w"], saliency: Float[np.ndarray, "n h w"], usable: Bool[np.ndarray, " n"]
) -> float | None:
    """Mean Pearson correlation of model maps with human maps over the usable ones, in [-1, 1].

    A constant model map correlates with nothing and counts as 0. None where no human map is usable.
    """
    if not usable.any():
        return None
    x, y = (np.asarray(a[usable], np.float64).reshape(usable.sum(), -1) for a in (maps, saliency))
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    varies = ~np.asarray(is_constant(jnp.asarray(maps[usable])))
    return float(np.divide((x * y).sum(1), norms, out=np.zeros_like(norms), where=varies).mean())
