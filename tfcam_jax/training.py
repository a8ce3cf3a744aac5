"""Training: from a config to a workdir with checkpoints, metrics and what the best checkpoint comes to."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from absl import logging

from .data.human_maps import check_maps, describe_maps
from .data.pipeline import WorkerError, prefetch_to_device
from .data.source import DataError, Dataset
from .devices.distributed import is_first, wait_for_all
from .evaluation import evaluate_best, evaluate_source, format_results, tabulate_scores
from .experiment import ConfigDict, Experiment, Recipe, build_experiment, keep_checks, open_dataset, resolve
from .inference import InitialState, describe_origin, describe_rows, initial_state
from .metrics.classification import BETTER, classification
from .metrics.scores import write_scores
from .run.checkpoints import Checkpoints
from .run.files import write_json
from .run.fingerprints import checksum_json
from .run.interruption import Interruption, StoppedError
from .run.metric_window import MetricWindow
from .run.metrics_log import START, MetricWriter, open_writer
from .run.progress import Progress, next_steps
from .run.workdir import CHECKS, check_workdir, hold_workdir, note_weights
from .steps import TrainState


def train(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Trains as the config says, or continues the run that the workdir holds, and evaluates the best checkpoint.

    A run that was cut off, whenever and however, goes on from its last sound checkpoint and comes, on the same devices,
    to the same bits in parameters, metrics and results as one that was not.

    Args:
      config: as `configs/default.py` gives it.
      workdir: folder of the run. Created only once config and data have proved sound.

    Returns:
      The metrics that `results.json` holds, see `evaluation.evaluate_best`.

    Raises:
      ConfigError, DataError, WeightsError, StateDictError: what can't be trained on or from, also a strategy that reads
        human maps where training has none; nothing was written.
      WorkdirError: the folder holds something else, or a run with another config, or another process trains in it.
      CheckpointError: a checkpoint can't be written, or is of another version of this project.
      NonFiniteError: the loss became NaN or infinite; the checkpoints are of steps before.
      WorkerError, DataError, MetricsError: a process died, a file vanished, a disk is full, in the middle of a run.
      StoppedError: after SIGTERM or SIGINT; the same command goes on from there.
    """
    return train_recipe(resolve(config), workdir)


def import_network(config: ConfigDict, workdir: str | Path) -> None:
    """Makes the run, of 0 epochs, of a network that was trained elsewhere; nothing if the workdir holds it already.

    It has what any run has: config, provenance, a checkpoint of step 0, `results.json`. The data need a test or a val
    split; thresholds need val.

    Args:
      config: as of `train`, with `model.weights` and `model.keep_head`; whatever it says of `epochs`, there are none.
      workdir: as of `train`.

    Raises:
      As `train`; ConfigError also where the weights or the head would be random.
    """
    config = config.copy_and_resolve_references()
    config.epochs = 0
    recipe = resolve(config, untrained=True)
    if check_workdir(Path(workdir), recipe.stored) and (Path(workdir) / "results.json").exists():
        return
    train_recipe(recipe, workdir)


def train_recipe(
    recipe: Recipe, workdir: str | Path, experiment: Experiment | None = None, quiet: bool = False
) -> dict[str, Any]:
    """As `train`, of a config that is resolved, and an experiment that is built, already; `quiet`: prints nothing."""
    workdir = Path(workdir)
    continued = check_workdir(workdir, recipe.stored)
    wait_for_all("checked the workdir")  # before the first process writes into it
    progress = Progress(recipe.strategy_name, recipe.epochs, recipe.alpha, recipe.select_by, quiet)
    progress.say(recipe.describe_cam())
    experiment = experiment or build_experiment(recipe, open_dataset(recipe, workdir / CHECKS))
    if recipe.reads_maps and recipe.epochs:
        check_maps(experiment.dataset)
        progress.say("\n".join(describe_maps(experiment.dataset)))
    initial = None if continued else initial_state(experiment)  # before a folder is made: weights may not load
    if initial and initial.origin:
        progress.say(describe_origin(initial.origin, experiment.dataset.class_names))
    with (
        hold_workdir(workdir, recipe.stored),
        Interruption(recipe.grace_seconds) as stop,
        Checkpoints(workdir) as checkpoints,
    ):
        keep_checks(workdir / CHECKS, experiment.dataset.checked)
        sets = experiment.eval_epoch
        experiment = dataclasses.replace(experiment, eval_epoch=lambda source: stop.watch(sets(source)))
        state, record = _start(experiment, checkpoints, initial, workdir)
        step = int(state.step)
        with open_writer(workdir, record["metrics"], step) as writer, progress:
            done = record["epoch"], record["batch"], len(record["pending"])
            run = _Run(experiment, checkpoints, writer, stop, progress)
            if recipe.epochs:
                progress.start(step, experiment.steps_per_epoch, *done)
            elif not checkpoints.steps():
                keep_imported(run, state)
            for epoch in range(record["epoch"], recipe.epochs):
                first, pending = (record["batch"], record["pending"]) if epoch == record["epoch"] else (0, [])
                state = train_one_epoch(run, state, epoch, first, pending)
                validate(run, state, epoch)
        checkpoints.wait()
        try:
            results, scores = evaluate_best(experiment, checkpoints)
        except StoppedError as error:
            what = "training has ended" if recipe.epochs else "the network is imported"
            raise stop.stopped(f"{what}; the same command evaluates it.") from error
        if is_first():
            write_scores(workdir / "scores.csv", scores, experiment.dataset.class_names)
            write_json(workdir / "results.json", results)  # last: with it, the run is finished
    if recipe.epochs:
        progress.say(format_results(results, f"{recipe.strategy_name}: best checkpoint, epoch {results['epoch']}"))
        progress.say(next_steps(workdir))
    return results


@dataclasses.dataclass(frozen=True)
class _Run:
    """What the loop needs besides the state."""

    experiment: Experiment
    checkpoints: Checkpoints
    writer: MetricWriter
    stop: Interruption
    progress: Progress

    def save(
        self,
        state: TrainState,
        step: int,
        epoch: int,
        batch: int,
        window: MetricWindow | None = None,
        validation: dict[str, float | None] | None = None,
    ) -> bool:
        """Saves where training stands: `epoch` epochs and `batch` batches of the next one, and the metrics unwritten.

        The lines that the checkpoint counts on are on the disk before it. Returns whether it is the best by validation.
        """
        record = {
            "epoch": epoch,
            "batch": batch,
            "pending": window.as_json() if window else [],
            "figures": validation,
            "metrics": self.writer.sync(),
            "config": self.experiment.recipe.stored,
            **_describe_dataset(self.experiment.dataset),
        }
        select_by = self.experiment.recipe.select_by
        value = validation[select_by] if validation else None
        # The best checkpoint has the largest score, the later one of equals, as in the CYBORG recipe.
        score = None if value is None else BETTER[select_by] * value
        if not self.experiment.recipe.epochs:
            score = score or 0.0  # the only one is the best, validated or not
        return self.checkpoints.save(step, state, record, score)

    def leave(self, state: TrainState, step: int, epoch: int, batch: int, window: MetricWindow | None) -> StoppedError:
        """Saves a last checkpoint and returns the error to leave with."""
        if step not in self.checkpoints.steps():
            self.save(state, step, epoch, batch, window)
        self.checkpoints.wait()
        return self.stop.stopped(f"saved after step {step}; the same command goes on from there.")


def _start(
    experiment: Experiment, checkpoints: Checkpoints, initial: InitialState | None, workdir: Path
) -> tuple[TrainState, dict[str, Any]]:
    """The state to go on from and the record that belongs to it; of weights that it begins from, `run.json` tells."""
    restored = None if initial is not None else checkpoints.restore_latest(experiment.random_state())
    if restored is None:
        state, origin = initial or initial_state(experiment)
        if origin and is_first():
            note_weights(workdir, origin)
        return state, {"epoch": 0, "batch": 0, "pending": [], "metrics": START}
    data = experiment.recipe.data
    _check_dataset(data.options.get("manifest", data.source), restored[1], _describe_dataset(experiment.dataset))
    return restored


def _describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """What a checkpoint has to know of its data, JSON-able.

    `class_names`; `domains` of training, None without it; `rows`, a checksum of each split's names, labels and which of
    them have a map; `pixels`, one of its images' digests where the source knows them.
    """
    trained_on = dataset.splits.get("train")
    return {
        "class_names": list(dataset.class_names),
        "domains": sorted(set(trained_on.records.domains)) if trained_on is not None else None,
        "rows": describe_rows(dataset),
        "pixels": {name: checksum_json(split.records.digests) for name, split in dataset.splits.items()},
    }


def _check_dataset(name: str, then: dict[str, Any], now: dict[str, Any]) -> None:
    """DataError for other rows than those trained on; a warning for other pixels, which another JPEG decoder makes."""
    differing = [key for key in ("class_names", "domains", "rows") if then[key] != now[key]]
    if differing:
        problem = f"{name}: the data are not those that the run was started with ({' and '.join(differing)} differ)."
        raise DataError([f"{problem} Restore them, or train on these in another --workdir."])
    if then["pixels"] != now["pixels"]:
        logging.warning("%s: images were changed, or are decoded otherwise, since the run was started.", name)


def train_one_epoch(run: _Run, state: TrainState, epoch: int, first_batch: int, pending: list[Any]) -> TrainState:
    """Runs one epoch from its batch `first_batch` on; metrics are fetched every few steps, so that no device waits.

    `state` is donated; `pending` are metrics of the steps just before, in no line yet (`MetricWindow.as_json`).

    Raises:
      NonFiniteError: names the first step and term that is not finite, and its images.
      StoppedError: after a signal, once a checkpoint is written.
    """
    recipe, size = run.experiment.recipe, run.experiment.steps_per_epoch
    step = int(state.step)
    window = MetricWindow(run.experiment.dataset.splits["train"].records.ids, step, pending, recipe.loss_share)
    on_device = lambda batch: run.experiment.put_batch({k: v for k, v in batch.items() if k != "index"})
    host_batches = run.experiment.train_epoch(epoch, first_batch)
    batches = prefetch_to_device(host_batches, lambda batch: (on_device(batch), batch["index"]))
    for number in range(first_batch + 1, size + 1):
        try:
            batch, rows = next(batches)
        except WorkerError as error:
            # A signal goes to worker processes too, and the first sign of it may be their end.
            if run.stop.requested(step):
                raise run.leave(state, step, epoch, number - 1, window) from error
            raise
        state, metrics = run.experiment.train_step(state, batch)
        step += 1
        window.add(metrics, rows)
        run.checkpoints.check()
        if len(window) == recipe.log_every_steps or number == size:
            scalars = window.close()
            run.writer.write(step, scalars)
            run.progress.advance(step, epoch + 1, scalars)
        if run.stop.requested(step):
            raise run.leave(state, step, epoch, number, window)
        if number < size and recipe.checkpoint_every_steps and step % recipe.checkpoint_every_steps == 0:
            run.save(state, step, epoch, number, window)
    return state


def validate(run: _Run, state: TrainState, epoch: int) -> None:
    """Validates after an epoch, writes the line and then the checkpoint; after a signal StoppedError instead."""
    step, size = int(state.step), run.experiment.steps_per_epoch
    try:
        output = evaluate_source(run.experiment, state, run.experiment.dataset.splits["val"])
    except StoppedError as error:
        raise run.leave(state, step, epoch, size, None) from error
    validation = classification(output.labels, output.logits)
    run.writer.write(step, {"epoch": epoch + 1} | {f"val/{k}": v for k, v in validation.items()})
    if step in run.checkpoints.steps():
        run.checkpoints.delete(step)  # of a run that was stopped while it validated; the one before is still there
    best = run.save(state, step, epoch + 1, 0, validation=validation)
    run.progress.end_epoch(epoch + 1, step, validation, best)


def keep_imported(run: _Run, state: TrainState) -> None:
    """Saves a network as it came as the checkpoint of step 0, the best one; validated where there is a val split."""
    source, validation = run.experiment.dataset.splits.get("val"), None
    if source is not None:
        logits = evaluate_source(run.experiment, state, source).logits
        scores = tabulate_scores(source.records, "val", logits, None)  # refuses logits that are not finite
        validation = classification(scores.labels, scores.logits)
    run.save(state, 0, 0, 0, validation=validation)
