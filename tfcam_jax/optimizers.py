"""Optimisers and learning-rate schedules, by Optax, from plain values."""

from __future__ import annotations

import optax

from .errors import ConfigError, check_known

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("step", "cosine", "constant")


def make_schedule(
    name: str,
    learning_rate: float,
    *,
    steps_per_epoch: int,
    epochs: int,
    step_epochs: int | None = None,
    step_factor: float | None = None,
    warmup_epochs: float = 0.0,
) -> optax.Schedule:
    """Learning rate by step.

    Args:
      name: `step` multiplies by `step_factor` (0.1) every `step_epochs` (12) epochs, as in the CYBORG recipe; `cosine`
        falls to 0 at the end of the last epoch; `constant`.
      learning_rate: the peak.
      steps_per_epoch: optimiser steps in an epoch.
      epochs: length of the run.
      step_epochs: for `step` only, like `step_factor`; None for its default.
      step_factor: see `name`.
      warmup_epochs: linear rise from 0, before the schedule itself starts.

    Raises:
      ConfigError: an unknown name, or an option that this schedule does not have.
    """
    check_known("optimizer.schedule", name, SCHEDULES)
    warmup = round(warmup_epochs * steps_per_epoch)
    if name == "step":
        # Steps are int32: an interval beyond them never ends.
        interval = min((12 if step_epochs is None else step_epochs) * steps_per_epoch, 2**31 - 1)
        factor = 0.1 if step_factor is None else step_factor
        schedule = optax.exponential_decay(learning_rate, interval, factor, staircase=True)
    else:
        _refuse(f"schedule {name!r}", step_epochs=step_epochs, step_factor=step_factor)
        cosine = optax.cosine_decay_schedule(learning_rate, max(1, epochs * steps_per_epoch - warmup))
        schedule = cosine if name == "cosine" else optax.constant_schedule(learning_rate)
    if warmup == 0:
        return schedule
    return optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup), schedule], [warmup])


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    momentum: float | None = None,
    weight_decay: float = 1e-6,
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """An optimiser with weight decay on all parameters and optional clipping of the gradient.

    Args:
      name: `sgd` and `adam` add `weight_decay * parameter` to the gradient (L2, as PyTorch does and the CYBORG recipe
        uses); `adamw` decouples it.
      schedule: learning rate by step.
      momentum: for `sgd` only; None for its default, 0.9.
      weight_decay: 0 for none.
      clip_norm: largest global norm of the gradient; 0 for no clipping.

    Raises:
      ConfigError: an unknown name, or an option that this optimiser does not have.
    """
    check_known("optimizer.name", name, OPTIMIZERS)
    chain: list[optax.GradientTransformation] = [optax.clip_by_global_norm(clip_norm)] if clip_norm > 0 else []
    if name == "sgd":
        update = optax.sgd(schedule, momentum=0.9 if momentum is None else momentum)
    else:
        _refuse(f"optimizer {name!r}", momentum=momentum)
        update = optax.adam(schedule) if name == "adam" else optax.adamw(schedule, weight_decay=weight_decay)
    if name != "adamw":
        chain.append(optax.add_decayed_weights(weight_decay))
    return optax.chain(*chain, update)


def _refuse(owner: str, **options: float | int | None) -> None:
    for key, value in options.items():
        if value is not None:
            raise ConfigError(f"{owner} has no option {key!r} (set to {value!r}); leave it unset")
