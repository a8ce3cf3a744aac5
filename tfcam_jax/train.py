"""Training: from a config to a workdir with checkpoints, metrics and the figures of the best checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from .checkpoints import Checkpoints
from .data.pipeline import prefetch_to_device
from .evaluate import evaluate_best, evaluate_source, format_results
from .experiment import Experiment, build_experiment
from .scores import write_scores
from .steps import StepMetrics, TrainState
from .trained import describe_dataset
from .workdir import check_workdir, create_workdir, write_json
from .writers import MetricWriter

# Selection on the cross-entropy looks for the smallest; on the others for the largest.
_SIGN = {"accuracy": 1, "auroc": 1, "cross_entropy": -1}


class NonFiniteError(FloatingPointError):
    """A loss or gradient that is not a number; the run can't go on."""


def train(
    config: ConfigDict, workdir: str | Path, experiment: Experiment | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Trains as the config says, or continues the run that the workdir holds, and evaluates the best checkpoint.

    Args:
      config: as `configs/default.py` gives it.
      workdir: folder of the run. Created only once config and data have proved sound.
      experiment: what `build_experiment` gives for this config, where it is built already.
      quiet: no bar and no table.

    Returns:
      The figures that `results.json` holds, see `evaluate.evaluate_best`.

    Raises:
      WorkdirError: the folder holds something else, or a run with another config.
      ConfigError, DataError, WeightsError, StateDictError: what can't be trained on or from; nothing was written.
      NonFiniteError: the loss became NaN or infinite; the checkpoint of the epoch before is left.
    """
    workdir = Path(workdir)
    continued = check_workdir(workdir, config)
    experiment = experiment or build_experiment(config)
    state = None if continued else experiment.initial_state()  # before a folder is made: weights may not load
    create_workdir(workdir, config)
    with Checkpoints(workdir) as checkpoints:
        restored = checkpoints.restore("latest", experiment.random_state()) if continued else None
        state, record = restored or (state or experiment.initial_state(), {"epoch": 0, "best": None})
        bar = _progress(config, experiment, state, quiet)
        with MetricWriter(workdir, after_step=int(state.step)) as writer, bar:
            for epoch in range(record["epoch"], config.epochs):
                state = train_one_epoch(experiment, state, epoch, config.log_every_steps, writer, bar)
                figures = evaluate_source(experiment, state, experiment.dataset.splits["val"]).classification()
                record = {"epoch": epoch + 1, "best": record["best"], **describe_dataset(experiment.dataset)}
                if _is_better(figures, record["best"], config.evaluation.select_by):
                    record["best"] = figures
                    checkpoints.save("best", epoch + 1, state, record)
                checkpoints.save("latest", epoch + 1, state, record)
                writer.write(int(state.step), {"epoch": epoch + 1} | {f"val/{k}": v for k, v in figures.items()})
                writer.flush()
        results, scores = evaluate_best(experiment, checkpoints)
    write_scores(workdir / "scores.csv", scores, experiment.dataset.class_names)
    write_json(workdir / "results.json", results)  # last: with it, the run is finished
    if not quiet:
        tqdm.write(format_results(results, title=f"{config.strategy}: best checkpoint, epoch {results['epoch']}"))
    return results


def train_one_epoch(
    experiment: Experiment, state: TrainState, epoch: int, log_every: int, writer: MetricWriter, bar: tqdm
) -> TrainState:
    """Runs one epoch; metrics are fetched every `log_every` steps, so that the device need not wait for the host.

    Raises:
      NonFiniteError: names the first step and term that is not finite.
    """
    pending: list[StepMetrics] = []
    first = int(state.step)
    host_batches = ({k: v for k, v in batch.items() if k != "index"} for batch in experiment.train_epoch(epoch))
    for i, batch in enumerate(prefetch_to_device(host_batches, experiment.put_batch), start=1):
        state, metrics = experiment.train_step(state, batch)
        pending.append(metrics)
        if len(pending) == log_every or i == experiment.steps_per_epoch:
            fetched = jax.device_get(pending)
            check_finite(fetched, first + i - len(pending) + 1)
            scalars = summarize(fetched)
            writer.write(first + i, scalars)
            bar.update(len(pending))
            bar.set_postfix(epoch=epoch + 1, loss=f"{scalars['train/cross_entropy']:.3f}")
            pending = []
    return state


def check_finite(metrics: list[StepMetrics], first_step: int) -> None:
    """Looks for the first step and term that is NaN or infinite.

    Raises:
      NonFiniteError: with the step, the term and what to try.
    """
    for step, entry in enumerate(metrics, start=first_step):
        values = {f"term {name!r} of the loss": total.sum for name, total in entry.terms.items()}
        values["norm of the gradient"] = entry.grad_norm
        for name, value in values.items():
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"step {step}: the {name} is {value}. The last checkpoint is of the epoch before. Try a lower "
                    "optimizer.learning_rate or a positive optimizer.clip_norm, and look at the images of that step."
                )


def summarize(metrics: list[StepMetrics]) -> dict[str, float | None]:
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
    return scalars


def _is_better(figures: dict[str, float | None], best: dict[str, float | None] | None, select_by: str) -> bool:
    """As in the CYBORG recipe, the later of two equal ones is the better."""
    return best is None or _SIGN[select_by] * figures[select_by] >= _SIGN[select_by] * best[select_by]


def _progress(config: ConfigDict, experiment: Experiment, state: TrainState, quiet: bool) -> tqdm:
    return tqdm(
        total=config.epochs * experiment.steps_per_epoch,
        initial=int(state.step),
        desc=config.strategy,
        unit="step",
        disable=quiet or None,
        dynamic_ncols=True,
    )
