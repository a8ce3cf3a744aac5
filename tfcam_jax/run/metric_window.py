"""The metrics of the steps since the last line of `metrics.jsonl`: kept on the device, looked at, summed up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ..errors import UserError
from ..steps import StepMetrics
from ..terms import Total

# Steps that run longer than this are looked at while the window is still open.
_SECONDS_UNSEEN = 2.0
# So many of the last steps are not waited for then: the device always has work.
_IN_FLIGHT = 2
_IMAGES_NAMED = 24


class NonFiniteError(UserError, FloatingPointError):
    """A loss or gradient that is not a number; the run can't go on."""


class MetricWindow:
    """Metrics of consecutive steps of an epoch.

    Args:
      ids: name of each training example, to name those of a step that went wrong.
      last_step: number of the step before the first that is added.
      entries: `as_json` of a window that was cut off after `last_step`.
      loss_share: the steps weigh their terms by `strategies.share_losses`.
      alpha_at: the weight of cross-entropy by the number of steps that are done, where lines are to tell it.
    """

    def __init__(
        self,
        ids: Sequence[str],
        last_step: int,
        entries: Sequence[dict[str, Any]] = (),
        loss_share: bool = False,
        alpha_at: Callable[[int], float] | None = None,
    ):
        self._ids = ids
        self._loss_share = loss_share
        self._alpha_at = alpha_at
        self._last_step = last_step
        self._metrics = [_from_json(entry) for entry in entries]
        self._rows: list[np.ndarray] = [np.zeros(0, int)] * len(entries)
        self._sound = len(entries)
        self._looked = time.monotonic()

    def __len__(self) -> int:
        return len(self._metrics)

    def add(self, metrics: StepMetrics, rows: np.ndarray) -> None:
        """Takes a step's metrics, still being computed, and the rows of its examples (-1: padding).

        Raises NonFiniteError if an earlier step had a NaN; slow steps are looked at every two seconds.
        """
        self._metrics.append(metrics)
        self._rows.append(rows)
        self._last_step += 1
        if time.monotonic() - self._looked > _SECONDS_UNSEEN:
            self._look(len(self) - _IN_FLIGHT)

    def _look(self, count: int) -> None:
        if count > self._sound:
            self._metrics[self._sound : count] = jax.device_get(self._metrics[self._sound : count])
        for i in range(self._sound, count):
            images = [self._ids[int(row)] for row in self._rows[i] if row >= 0]
            check_finite(self._metrics[i], self._last_step - len(self) + 1 + i, images)
        self._sound = max(count, self._sound)
        self._looked = time.monotonic()

    def as_json(self) -> list[dict[str, Any]]:
        """The metrics as exact floats, waiting for all steps. Raises NonFiniteError."""
        self._look(len(self))
        pair = lambda total: [float(total.sum), float(total.count)]
        return [
            {
                # A list: their order is that of the lines.
                "terms": [[name, *pair(total)] for name, total in metrics.terms.items()],
                "correct": pair(metrics.correct),
                "grad_norm": float(metrics.grad_norm),
                "term_norms": [[name, float(norm)] for name, norm in metrics.term_norms.items()],
            }
            for metrics in self._metrics
        ]

    def close(self) -> dict[str, float | None]:
        """The means over the window (see `summarize`, and `summarize_shares` and `summarize_weights` where they apply),
        waiting for all steps; empties it.

        Raises NonFiniteError.
        """
        self._look(len(self))
        scalars = summarize(self._metrics)
        if self._loss_share:
            scalars |= summarize_shares(self._metrics)
        if self._alpha_at:
            first = self._last_step - len(self)
            alphas = [self._alpha_at(step) for step in range(first, self._last_step)]
            scalars |= summarize_weights(self._metrics, alphas)
        self._metrics, self._rows, self._sound = [], [], 0
        return scalars


def _from_json(entry: dict[str, Any]) -> StepMetrics:
    """A step's metrics from `MetricWindow.as_json`; runs of before had no norms of terms."""
    terms = {name: Total(total, count) for name, total, count in entry["terms"]}
    return StepMetrics(terms, Total(*entry["correct"]), entry["grad_norm"], dict(entry.get("term_norms", ())))


def check_finite(metrics: StepMetrics, step: int, images: Sequence[str]) -> None:
    """Raises NonFiniteError of the first term that is NaN or infinite: step, term, images and what to try."""
    values = {f"term {name!r} of the loss": total.sum for name, total in metrics.terms.items()}
    values["norm of the gradient"] = metrics.grad_norm
    values |= {f"norm of the gradient of {name!r}": norm for name, norm in metrics.term_norms.items()}
    for name, value in values.items():
        if not math.isfinite(value):
            shown = ", ".join(images[:_IMAGES_NAMED]) + (", ..." if len(images) > _IMAGES_NAMED else "")
            raise NonFiniteError(
                f"step {step}: the {name} is {value}. The checkpoints are of steps before it. Try a lower "
                f"optimizer.learning_rate or a positive optimizer.clip_norm, and look at that step's images: {shown}"
            )


def summarize(metrics: Sequence[StepMetrics]) -> dict[str, float | None]:
    """Means over several steps: sums are added first and divided then."""
    scalars: dict[str, float | None] = {}
    for name in metrics[0].terms:
        total = sum(float(entry.terms[name].sum) for entry in metrics)
        count = sum(float(entry.terms[name].count) for entry in metrics)
        scalars[f"train/{name}"] = total / count if count else None
        scalars[f"train/{name}_examples"] = count
    correct = sum(float(entry.correct.sum) for entry in metrics)
    scalars["train/accuracy"] = correct / sum(float(entry.correct.count) for entry in metrics)
    scalars["train/grad_norm"] = sum(float(entry.grad_norm) for entry in metrics) / len(metrics)
    for name in metrics[0].term_norms:
        norms = [float(entry.term_norms[name]) for entry in metrics]
        scalars[f"train/grad_norm_{name}"] = sum(norms) / len(norms)
    return scalars


def summarize_shares(metrics: Sequence[StepMetrics]) -> dict[str, float | None]:
    """Means over steps, each counting once, of what those that share losses found (`strategies.share_losses`).

    `train/alpha` is the weight of cross-entropy, and `train/loss` the total. A term without any example is 0.
    """
    alphas, losses = [], []
    for means in map(_means, metrics):
        divisor = sum(means.values()) or 1.0
        alphas.append(means["cross_entropy"] / divisor)
        losses.append(sum(mean * mean for mean in means.values()) / divisor)
    return {"train/alpha": sum(alphas) / len(alphas), "train/loss": sum(losses) / len(losses)}


def summarize_weights(metrics: Sequence[StepMetrics], alphas: Sequence[float]) -> dict[str, float | None]:
    """The same of steps whose weights are known: cross-entropy by each step's `alpha`, all other terms by its rest."""
    total = lambda means, alpha: sum(
        (alpha if name == "cross_entropy" else 1 - alpha) * mean for name, mean in means.items()
    )
    losses = [total(_means(entry), alpha) for entry, alpha in zip(metrics, alphas, strict=True)]
    return {"train/alpha": sum(alphas) / len(alphas), "train/loss": sum(losses) / len(losses)}


def _means(metrics: StepMetrics) -> dict[str, float]:
    return {name: float(total.sum) / max(float(total.count), 1) for name, total in metrics.terms.items()}
