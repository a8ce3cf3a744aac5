"""Training: from a config to a workdir with checkpoints, metrics and what the best checkpoint comes to."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from .data.human_maps import check_maps, check_unmarked, describe_maps
from .data.kept_features import KeptFeatures
from .data.paths import local_path
from .data.pipeline import Batch, WorkerError, prefetch_to_device
from .devices.distributed import is_first, wait_for_all
from .devices.memory import explain_out_of_memory, return_freed_memory
from .evaluation import evaluate_best, evaluate_source, format_results, tabulate_scores
from .experiment import ConfigDict, Experiment, Recipe, build_experiment, keep_checks, open_dataset, resolve
from .inference import InitialState, describe_origin, initial_state, outputs_of
from .metrics.classification import BETTER, classification
from .metrics.scores import write_scores
from .run.checkpoints import Checkpoints
from .run.data_record import DataRecord, check_same_data, describe_dataset, keep_fingerprint, record_data
from .run.files import write_json
from .run.fingerprints import fingerprint_tree
from .run.interruption import Interruption, StoppedError
from .run.metric_window import MetricWindow
from .run.metrics_log import START, MetricWriter, open_writer
from .run.progress import Progress, next_steps
from .run.waiting import Waiting
from .run.workdir import CHECKS, check_workdir, hold_workdir, note_weights
from .steps import TrainState

_LESS_MEMORY = "Lower config.batch_size or config.data.image_size, raise config.accumulate_steps, or set "
_LESS_MEMORY += "config.model.rematerialize=True."


def train(config: ConfigDict, workdir: str | Path, accept_changed_data: bool = False) -> dict[str, Any]:
    """Trains as the config says, or continues the run that the workdir holds, and evaluates the best checkpoint.

    A run that was cut off, whenever and however, goes on from its last sound checkpoint and comes, on the same devices,
    to the same bits in parameters, metrics and results as one that was not.

    Args:
      config: as `configs/default.py` gives it.
      workdir: folder of the run. Created only once config and data have proved sound.
      accept_changed_data: go on with data that are not those that the run was started with; what differs is told.

    Returns:
      The metrics that `results.json` holds, see `evaluation.evaluate_best`.

    Raises:
      ConfigError, DataError, WeightsError, StateDictError: what can't be trained on or from, also a strategy that reads
        human maps where training has none; nothing was written. DataError also where a run would go on with other
        data than it was started with: names splits, what differs and the first images.
      WorkdirError: the folder holds something else, or a run with another config, or another process trains in it.
      CheckpointError: a checkpoint can't be written, or is of another version of this project.
      NonFiniteError: the loss became NaN or infinite; the checkpoints are of steps before.
      OutOfMemoryError: a batch does not fit; the folder is given back if it holds no checkpoint yet.
      WorkerError, DataError, MetricsError: a process died, a file vanished, a disk is full, in the middle of a run.
      StoppedError: after SIGTERM or SIGINT; the same command goes on from there.
    """
    workdir = local_path(workdir, "--workdir")
    return train_recipe(resolve(config), workdir, accept_changed_data=accept_changed_data)


def import_network(config: ConfigDict, workdir: str | Path, accept_changed_data: bool = False) -> None:
    """Makes the run, of 0 epochs, of a network that was trained elsewhere; nothing if the workdir holds it already.

    It has what any run has: config, provenance, a checkpoint of step 0, `results.json`. The data need a test or a val
    split; thresholds need val.

    Args:
      config: as of `train`, with `model.weights` and `model.keep_head`; whatever it says of `epochs`, there are none.
      workdir: as of `train`.
      accept_changed_data: as of `train`.

    Raises:
      As `train`; ConfigError also where the weights or the head would be random.
    """
    workdir = local_path(workdir, "--workdir")
    config = config.copy_and_resolve_references()
    asked, config.epochs = config.epochs, 0
    recipe = resolve(config, untrained=True)
    if check_workdir(workdir, recipe.stored) and (workdir / "results.json").exists():
        return
    if asked and is_first():
        told = f"config.epochs={asked}, strategy={recipe.strategy_name} and all that is for training play no part"
        logging.warning("The network is taken as it comes, and nothing is trained: %s.", told)
    train_recipe(recipe, workdir, accept_changed_data=accept_changed_data)


def train_recipe(
    recipe: Recipe,
    workdir: Path,
    experiment: Experiment | None = None,
    quiet: bool = False,
    accept_changed_data: bool = False,
) -> dict[str, Any]:
    """As `train`, of a config that is resolved, and an experiment that is built, already; `quiet`: prints nothing."""
    continued = check_workdir(workdir, recipe.stored)
    wait_for_all("checked the workdir")  # before the first process writes into it
    progress = Progress(recipe.strategy_name, recipe.epochs, recipe.alpha, recipe.select_by, quiet)
    progress.say(recipe.describe_cam())
    experiment = experiment or build_experiment(recipe, open_dataset(recipe, workdir / CHECKS, keep=True))
    if recipe.reads_maps and recipe.epochs:
        check_maps(experiment.dataset)
    if (recipe.reads_maps or recipe.unmarked_classes) and recipe.epochs:
        check_unmarked(experiment.dataset, recipe.unmarked_classes)
        progress.say("\n".join(describe_maps(experiment.dataset, recipe.unmarked_classes)))
    with explain_out_of_memory(_LESS_MEMORY):
        initial = None if continued else initial_state(experiment)  # before a folder is made: weights may not load
    if initial and initial.origin:
        progress.say(describe_origin(initial.origin, experiment.dataset.class_names))
    with (
        hold_workdir(workdir, recipe.stored),
        explain_out_of_memory(_LESS_MEMORY),
        Interruption(recipe.grace_seconds) as stop,
        Checkpoints(workdir) as checkpoints,
    ):
        keep_checks(workdir / CHECKS, experiment.dataset.checked)
        sets = experiment.eval_epoch
        experiment = dataclasses.replace(experiment, eval_epoch=lambda source: stop.watch(sets(source)))
        data = record_data(experiment.dataset)
        state, record = _start(experiment, checkpoints, initial, workdir, data, accept_changed_data)
        keep_fingerprint(workdir, data)
        step = int(state.step)
        if recipe.frozen and recipe.epochs:
            experiment = keep_features(experiment, state, progress)
        with open_writer(workdir, record["metrics"], step) as writer, progress:
            done = record["epoch"], record["batch"], len(record["pending"])
            run = _Run(experiment, checkpoints, writer, stop, progress)
            if recipe.epochs:
                progress.start(step, experiment.steps_per_epoch, *done)
            elif not checkpoints.steps():
                keep_imported(run, state)
            read = lambda epoch, first=0: experiment.train_epoch(epoch, first) if epoch < recipe.epochs else iter(())
            batches = read(record["epoch"], record["batch"])
            for epoch in range(record["epoch"], recipe.epochs):
                first, pending = (record["batch"], record["pending"]) if epoch == record["epoch"] else (0, [])
                state = train_one_epoch(run, state, epoch, first, pending, batches)
                batches = read(epoch + 1)  # its first batches are made while this epoch is validated
                validate(run, state, epoch)
        checkpoints.wait()
        if told := run.waiting.describe():
            progress.say(told)
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


def keep_features(experiment: Experiment, state: TrainState, progress: Progress) -> Experiment:
    """The experiment on features of the frozen part, computed once, where they can be kept; tells which it is.

    Both ways give the same but for rounding: otherwise each step runs the frozen part, as it is in evaluation.

    Raises:
      StoppedError: after a signal.
    """
    recipe, programs, dataset = experiment.recipe, experiment.on_features, experiment.dataset
    assert recipe.frozen and programs, "nothing is frozen"
    beginning = f"Trained from {recipe.train_from} on ({_share_trained(state.params, recipe.frozen_modules)})"
    if why_not := recipe.why_not_kept(dataset):
        progress.say(f"{beginning}; what comes before runs in each step: {why_not}.")
        return experiment
    frozen = [{name: tree[name] for name in tree if name in recipe.frozen_modules} for tree in state[1:3]]
    of_data = [(name, recipe.views[name], source.records.ids) for name, source in dataset.splits.items()]
    key = [fingerprint_tree(frozen), recipe.of_features, of_data]
    began = time.monotonic()
    views = experiment.keep(key, lambda: _compute_features(experiment, programs.features, state))
    mirrored = sum(len(each) for name, each in views.items() if recipe.views[name] == 2)
    told = f"of {sum(map(len, views.values())):,} images" + (f" and {mirrored:,} mirror images" if mirrored else "")
    spent = f"{recipe.bytes_kept(dataset) / 2**20:,.0f} MiB, {time.monotonic() - began:.1f} s"
    progress.say(f"{beginning}; what comes before was computed once, {told}, and is kept ({spent}).")
    splits = {name: KeptFeatures(source, views[name]) for name, source in dataset.splits.items()}
    steps = {"train_step": programs.train_step, "eval_step": programs.eval_step}
    return dataclasses.replace(experiment, dataset=dataclasses.replace(dataset, splits=splits), **steps)


def _compute_features(experiment: Experiment, features: Callable[..., Any], state: TrainState) -> dict[str, np.ndarray]:
    """[n, views, ...] of each split; an array that no other holds."""
    recipe = experiment.recipe
    of_mirrored = lambda batch: features(state.params, state.batch_stats, batch | {"image": batch["image"][:, :, ::-1]})
    found = {}
    for split, source in experiment.dataset.splits.items():
        also = (lambda _, batch: (of_mirrored(batch),)) if recipe.views[split] == 2 else (lambda _, batch: ())
        outputs = outputs_of(features, state, experiment.eval_epoch(source), also)
        found[split] = np.concatenate([np.stack([plain, *others], axis=1) for plain, others in outputs])
    return found


def _share_trained(params: Mapping[str, Any], frozen: Collection[str]) -> str:
    """How many of the parameters are trained."""
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    trained = count({name: tree for name, tree in params.items() if name not in frozen})
    return f"{trained:,} of {count(params):,} parameters"


@dataclasses.dataclass(frozen=True)
class _Run:
    """What the loop needs besides the state."""

    experiment: Experiment
    checkpoints: Checkpoints
    writer: MetricWriter
    stop: Interruption
    progress: Progress
    waiting: Waiting = dataclasses.field(default_factory=Waiting)

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
            **describe_dataset(self.experiment.dataset),
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
    experiment: Experiment,
    checkpoints: Checkpoints,
    initial: InitialState | None,
    workdir: Path,
    data: DataRecord,
    accept: bool,
) -> tuple[TrainState, dict[str, Any]]:
    """The state to go on from and the record that belongs to it; of weights that it begins from, `run.json` tells."""
    restored = None
    if initial is None and checkpoints.steps():
        remedy = "train on these in another --workdir"
        check_same_data(workdir, experiment.recipe.data.place, data, checkpoints.newest_record, accept, remedy)
        restored = checkpoints.restore_latest(experiment.abstract_state())
    if restored is None:
        state, origin = initial or initial_state(experiment)
        if origin and is_first():
            note_weights(workdir, origin)
        return state, {"epoch": 0, "batch": 0, "pending": [], "metrics": START}
    return restored


def train_one_epoch(
    run: _Run, state: TrainState, epoch: int, first_batch: int, pending: list[Any], host_batches: Iterator[Batch]
) -> TrainState:
    """Runs one epoch from its batch `first_batch` on; metrics are fetched every few steps, so that no device waits.

    `state` is donated; `pending` are metrics of the steps just before, in no line yet (`MetricWindow.as_json`), and
    `host_batches` what `Experiment.train_epoch` gives for the epoch.

    Raises:
      NonFiniteError: names the first step and term that is not finite, and its images.
      StoppedError: after a signal, once a checkpoint is written.
    """
    recipe, size = run.experiment.recipe, run.experiment.steps_per_epoch
    step = int(state.step)
    weights = {"loss_share": recipe.loss_share, "alpha_at": recipe.alpha_at(recipe.epochs * size)}
    window = MetricWindow(run.experiment.dataset.splits["train"].records.ids, step, pending, **weights)
    on_device = lambda batch: run.experiment.put_batch({k: v for k, v in batch.items() if k != "index"})
    batches = prefetch_to_device(host_batches, lambda batch: (on_device(batch), batch["index"]))
    run.waiting.resume()
    for number in range(first_batch + 1, size + 1):
        try:
            batch, rows = run.waiting.next(batches)
        except WorkerError as error:
            # A signal goes to worker processes too, and the first sign of it may be their end.
            if run.stop.requested(step):
                raise run.leave(state, step, epoch, number - 1, window) from error
            raise
        state, metrics = run.experiment.train_step(state, batch)
        if number == first_batch + 1:
            return_freed_memory()  # of compiling the step, or the evaluation before
        step += 1
        run.waiting.note(metrics.grad_norm)
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
    run.waiting.pause()
    run.writer.write_timing(step, {"time/waiting_for_data": run.waiting.share})
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
