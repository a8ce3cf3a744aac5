"""The runs of a study, in this process or in several: what two runs share is opened, decoded and compiled once."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import connection, get_context, parent_process, process
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..data.human_maps import process_maps
from ..data.in_memory import bytes_in_memory, keep_in_memory
from ..data.source import Dataset
from ..devices.compilation import available_cores
from ..experiment import Experiment, Recipe, build_experiment, open_source, resolve
from ..run.interruption import StoppedError
from ..run.workdir import CHECKS
from ..training import train_recipe
from .plan import Run


class ExperimentCache:
    """Builds the experiments of a study's runs.

    What the last run had is kept and nothing older, so that memory is bounded; in a plan, runs that share much are
    neighbours. Data sets whose decoded images take no more than `held_megabytes` are kept decoded. `checks` is the
    study's file that tells which files were found sound before; without one every file is looked at.
    """

    def __init__(self, held_megabytes: int, checks: Path | None = None):
        self._held_megabytes = held_megabytes
        self._checks = checks
        self._kept: dict[str, tuple[Any, Any]] = {}

    def train(self, run: Run, workdir: Path) -> None:
        """Trains one run in its folder, or continues it."""
        recipe = resolve(run.config)
        train_recipe(recipe, workdir / run.entry.folder, self.experiment(recipe), quiet=True)

    def experiment(self, recipe: Recipe) -> Experiment:
        """What `build_experiment` builds of a run's recipe."""
        dataset = self.dataset(recipe)
        steps = -(-len(dataset.splits["train"]) // recipe.batch_size)
        stored, data = recipe.stored, recipe.stored["data"]
        of_step = {name: data[name] for name in ("channels", "image_size", "mean", "std")}
        key = [{k: v for k, v in stored.items() if k not in ("seed", "data")}, of_step, len(dataset.class_names), steps]
        programs = self._keep("programs", key, lambda: build_experiment(recipe, dataset))
        return build_experiment(recipe, dataset, programs)

    def source(self, recipe: Recipe) -> Dataset:
        """The data as their owner splits them, with the maps as they are."""
        key = (recipe.data.source, dict(recipe.data.options), recipe.data.channels)
        return self._keep("source", key, lambda: open_source(recipe, self._checks))

    def dataset(self, recipe: Recipe) -> Dataset:
        """What `open_dataset` opens, its decoded images kept in memory if they fit."""
        plain = dataclasses.replace(recipe.data, placebo="none", seed=0)
        arrange = lambda: self._hold(plain.arrange(self.source(recipe)), recipe, ("val", "test"))
        sizes = (recipe.image_size, recipe.resize_through, recipe.map_size)
        arranged = self._keep("arranged", (plain, sizes[:2]), arrange)
        placebo = recipe.data.placebo
        of_seed = recipe.seed if placebo == "other_image" else None
        # Blur and threshold are applied by then.
        controlled = lambda: process_maps(arranged, blur=0.0, threshold=0.0, placebo=placebo, seed=recipe.seed)
        held = () if recipe.augment.crop or recipe.map_size else ("train",)
        key = (plain, placebo, of_seed, recipe.augment, sizes)
        return self._keep("dataset", key, lambda: self._hold(controlled(), recipe, held))

    def _hold(self, dataset: Dataset, recipe: Recipe, splits: tuple[str, ...]) -> Dataset:
        size = recipe.image_size
        fits = bytes_in_memory(dataset, size, recipe.data.channels) <= self._held_megabytes * 2**20
        # Grain's own processes would each have to decode everything all the same; stages start from the stored size.
        kept = fits and not recipe.num_workers and not recipe.resize_through
        return keep_in_memory(dataset, splits, size) if kept else dataset

    def _keep(self, kind: str, key: Any, make: Callable[[], Any]) -> Any:
        if kind not in self._kept or self._kept[kind][0] != key:
            self._kept.pop(kind, None)  # before the new one is made: there need not be room for both
            self._kept[kind] = (key, make())
        return self._kept[kind][1]


def train_here(cache: ExperimentCache, runs: Sequence[Run], workdir: Path, bar: tqdm) -> dict[str, str]:
    """Trains the runs one after the other; returns the error of each that failed, its traceback below, by folder."""
    failures = {}
    for run in runs:
        if failure := _try(cache, run, workdir):
            failures[run.entry.folder] = failure
        _advance(bar, run, failure)
    return failures


def train_in_processes(
    runs: Sequence[Run], workdir: Path, processes: int, held_megabytes: int, bar: tqdm
) -> dict[str, str]:
    """The same in several processes; each takes the next run when it has done one.

    Each has its share of the CPU's cores where the system lets it choose. A process that dies loses its run alone.
    """
    waiting, failures = list(reversed(runs)), {}
    numbers = range(min(processes, len(runs)))
    members = [_Member(_cores_of(number, processes), held_megabytes, workdir / CHECKS) for number in numbers]
    try:
        for member in members:
            member.start(waiting.pop(), workdir)
        while busy := [(member, member.run) for member in members if member.run]:
            ready = connection.wait([member.pipe for member, _ in busy])
            for member, run in ((member, run) for member, run in busy if member.pipe in ready):
                if failure := member.finish():
                    failures[run.entry.folder] = failure
                _advance(bar, run, failure)
                if waiting:
                    member.start(waiting.pop(), workdir)
    except KeyboardInterrupt as error:
        raise StoppedError("stopped by SIGINT: the same command goes on.", 128 + signal.SIGINT) from error
    finally:
        for member in members:
            member.end()
    return failures


def _advance(bar: tqdm, run: Run, failure: str) -> None:
    """Counts a run that ended: on the bar, or without a terminal, where none is shown, in a line of its own."""
    if bar.disable:
        bar.n += 1
        print(f"{bar.n} of {bar.total} runs: {run.entry.folder} {'failed' if failure else 'done'}", file=sys.stderr)
    bar.update()


class _Member:
    """One of the processes, and the run that it is at."""

    def __init__(self, cores: list[int], held_megabytes: int, checks: Path):
        self._arguments = (cores, held_megabytes, checks)
        self.run: Run | None = None
        self._launch()

    def start(self, run: Run, workdir: Path) -> None:
        self.run = run
        self.pipe.send((run, workdir))

    def finish(self) -> str:
        """The failure of the run that ended, "" if it went well; replaces the process if it died.

        Raises:
          StoppedError: a signal reached the process; it was not for one run alone.
        """
        self.run = None
        try:
            answer = self.pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            failure = f"its process ended with exit code {self._process.exitcode} (-9: killed, as for want of memory)"
            self._launch()
            return failure
        if isinstance(answer, tuple):
            raise StoppedError(*answer)
        return answer

    def end(self) -> None:
        if self.run:
            self._process.terminate()
        self.pipe.close()
        self._process.join()

    def _launch(self) -> None:
        # Not forked: jax has threads that a fork would lose.
        context = get_context("spawn")
        self.pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, *self._arguments))
        self._process.start()
        other.close()


def _serve(pipe: connection.Connection, cores: list[int], held_megabytes: int, checks: Path) -> None:
    """What a process does: trains the runs that it is sent, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this one
    threading.Thread(target=_end_with_parent, args=(parent_process(),), daemon=True).start()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)  # before jax starts as many threads as it sees cores
    cache = ExperimentCache(held_megabytes, checks)
    while True:
        try:
            run, workdir = pipe.recv()
        except EOFError:
            return
        answer(pipe, cache, run, workdir)


def answer(pipe: connection.Connection, cache: ExperimentCache, run: Run, workdir: Path) -> None:
    """Trains a run and sends its failure, "" if it went well; message and exit code if a signal stopped it."""
    try:
        outcome: str | tuple[str, int] = _try(cache, run, workdir)
    except StoppedError as error:
        outcome = (str(error), error.exit_code)
    with contextlib.suppress(BrokenPipeError):  # the parent ended this process, and reads no more
        pipe.send(outcome)


def _end_with_parent(parent: process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _cores_of(member: int, processes: int) -> list[int]:
    """The share of one of the processes in the cores that this one may use; all, if there are not enough to share."""
    cores = available_cores()
    return cores[member::processes] if processes <= len(cores) else cores


def _try(cache: ExperimentCache, run: Run, workdir: Path) -> str:
    """Trains a run; if it failed the error in a line and its traceback, else ""; a signal is not caught."""
    try:
        cache.train(run, workdir)
    except StoppedError:
        raise
    except Exception as error:  # whatever it is, the other runs go on, and the end tells of it
        message = " ".join(str(error).split())
        return f"{type(error).__name__}: {message}\n{traceback.format_exc()}"
    return ""
