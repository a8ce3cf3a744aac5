"""The runs of a study, in this process or in several: what two runs share is opened, decoded and compiled once."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any

from absl import logging
from tqdm import tqdm

from ..data.checks.outcomes import Outcome
from ..data.human_maps import process_maps
from ..data.in_memory import bytes_in_memory, keep_in_memory
from ..data.kept_features import keep_maps
from ..data.source import Dataset
from ..experiment import Experiment, Recipe, build_experiment, named_notes, open_source, resolve
from ..run.data_record import DataRecord, record_data
from ..run.interruption import Interruption, StoppedError, without_ctrl_c
from ..run.workdir import CHECKS
from ..training import train_recipe
from .member import Ending, Share, serve
from .plan import Run

_SECONDS_BETWEEN_LOOKS = 0.1  # for a signal
_SECONDS_TO_ANSWER = 2.0  # of processes that have used up their own time to save


class ExperimentCache:
    """Builds the experiments of a study's runs.

    What the last run had is kept and nothing older, so that memory is bounded; in a plan, runs that share much are
    neighbours. Data sets whose decoded images take no more than `held_megabytes` are kept decoded. `checks` is the
    study's file that tells which files were found sound before; without one every file is looked at. Notes on the data
    that are among `told` are not logged again.
    """

    def __init__(self, held_megabytes: int, checks: Path | None = None, told: Collection[str] = ()):
        self._held_megabytes = held_megabytes
        self._checks = checks
        self._kept: dict[str, tuple[Any, Any]] = {}
        self.told = set(told)
        self.checked: dict[str, Outcome] = {}  # of all data that were opened

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
        of_recipe = {k: v for k, v in stored.items() if k not in ("seed", "data")}
        key = [of_recipe, of_step, tuple(dataset.class_names), steps]
        programs = self._keep("programs", key, lambda: build_experiment(recipe, dataset))
        if recipe.frozen:
            self._tell_why_not_kept(recipe, dataset)
        # The frozen part's features have a name of their own: arms and seeds share them.
        return build_experiment(recipe, dataset, programs, functools.partial(self._keep, "features"))

    def _tell_why_not_kept(self, recipe: Recipe, dataset: Dataset) -> None:
        """Once for each reason, as runs of a study say nothing themselves."""
        why_not = recipe.why_not_kept(dataset)
        if why_not and why_not not in self.told:
            self.told.add(why_not)
            logging.warning("What comes before model.train_from=%s runs in each step: %s.", recipe.train_from, why_not)

    def source(self, recipe: Recipe) -> Dataset:
        """The data as their owner splits them, with the maps as they are."""
        kept = recipe.cache_folder, recipe.cache_megabytes, recipe.cache_folder and recipe.kept_decoded
        key = (recipe.data.source, dict(recipe.data.options), recipe.data.channels, kept)
        return self._keep("source", key, lambda: self._open(recipe))

    def _open(self, recipe: Recipe) -> Dataset:
        dataset = open_source(recipe, self._checks, keep=True, told=self.told)
        self.told.update(named_notes(dataset))
        self.checked |= dataset.checked
        return dataset

    def data_record(self, recipe: Recipe) -> DataRecord:
        """What a run of the recipe keeps of its data; a placebo in place of the maps makes no difference."""
        plain = dataclasses.replace(recipe.data, placebo="none", seed=0)
        return self._keep("record", plain, lambda: record_data(plain.arrange(self.source(recipe))))

    def dataset(self, recipe: Recipe) -> Dataset:
        """What `open_dataset` opens, its decoded images kept in memory if they fit."""
        plain = dataclasses.replace(recipe.data, placebo="none", seed=0)
        arrange = lambda: self._hold(plain.arrange(self.source(recipe)), recipe, ("val", "test"))
        sizes = (recipe.image_size, recipe.resize_through, recipe.map_size)
        of_frozen = recipe.frozen and (recipe.frozen, recipe.needs_images)
        arranged = self._keep("arranged", (plain, sizes[:2], of_frozen), arrange)
        placebo = recipe.data.placebo
        of_seed = recipe.seed if placebo == "other_image" else None
        # Blur and threshold are applied by then.
        controlled = lambda: process_maps(arranged, blur=0.0, threshold=0.0, placebo=placebo, seed=recipe.seed)
        held = () if recipe.augment.crop or recipe.map_size else ("train",)
        key = (plain, placebo, of_seed, recipe.augment, sizes, of_frozen)
        return self._keep("dataset", key, lambda: self._hold(controlled(), recipe, held))

    def _hold(self, dataset: Dataset, recipe: Recipe, splits: tuple[str, ...]) -> Dataset:
        size = recipe.image_size
        if recipe.frozen and not recipe.why_not_kept(dataset):  # images are looked at once, for their features
            return keep_maps(dataset, splits)
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
        ending = attempt(cache, run, workdir)
        if ending.state == "stopped":
            raise StoppedError(ending.text, ending.exit_code)
        if ending.text:
            failures[run.entry.folder] = ending.text
        advance(bar, run, ending.text)
    return failures


def train_in_processes(
    runs: Sequence[Run],
    workdir: Path,
    shares: Sequence[Share],
    held_megabytes: int,
    bar: tqdm,
    told: Collection[str] = (),
) -> dict[str, str]:
    """The same in several processes, one for each share of the host; each takes the next run when it has done one.

    A process that dies loses its run alone. `told` has the notes on the data that this process has logged.

    Raises:
      StoppedError: after SIGTERM or SIGINT, once each process has saved its run; a second signal ends all at once.
    """
    waiting, failures, stopping = list(reversed(runs)), {}, False
    members: list[_Member] = []
    with Interruption(runs[0].config.grace_seconds + _SECONDS_TO_ANSWER) as stop:
        try:
            for share in shares[: len(runs)]:
                members.append(_Member(share, held_megabytes, workdir / CHECKS, told))
                members[-1].start(waiting.pop(), workdir)
            while busy := [(member, member.run) for member in members if member.run]:
                ready = connection.wait([member.pipe for member, _ in busy], _SECONDS_BETWEEN_LOOKS)
                if stop.requested(0) and not stopping:
                    stopping = True
                    for member, _ in busy:
                        member.stop()
                for member, run in ((member, run) for member, run in busy if member.pipe in ready):
                    failure = member.finish(stopping)
                    if stopping:
                        continue
                    if failure:
                        failures[run.entry.folder] = failure
                    advance(bar, run, failure)
                    if waiting:
                        member.start(waiting.pop(), workdir)
            if stopping:
                raise stop.stopped("what was trained is saved; the same command goes on.")
        finally:
            for member in members:
                member.end()
    return failures


def advance(bar: tqdm, run: Run, failure: str) -> None:
    """Counts a run that ended: on the bar, or without a terminal, where none is shown, in a line of its own."""
    if bar.disable:
        bar.n += 1
        print(f"{bar.n} of {bar.total} runs: {run.entry.folder} {'failed' if failure else 'done'}", file=sys.stderr)
    bar.update()


class _Member:
    """One of the processes, and the run that it is at."""

    def __init__(self, share: Share, held_megabytes: int, checks: Path, told: Collection[str]):
        self._arguments = (share, held_megabytes, checks, frozenset(told))
        self.run: Run | None = None
        self._launch()

    def start(self, run: Run, workdir: Path) -> None:
        self.run = run
        self.pipe.send((run, workdir))

    def stop(self) -> None:
        """Has the process finish its step and save; it then answers, or dies where there is nothing to save yet."""
        self._process.terminate()

    def finish(self, stopping: bool = False) -> str:
        """The failure of the run that ended, "" if it went well; replaces the process if it died.

        Raises:
          StoppedError: a signal reached the process, though all are not `stopping`; it was not for one run alone.
        """
        self.run = None
        try:
            ending: Ending = self.pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            if stopping:
                return ""
            failure = f"its process ended with exit code {self._process.exitcode} (-9: killed, as for want of memory)"
            self._launch()
            return failure
        if ending.state != "stopped":
            return ending.text
        if stopping:
            return ""
        raise StoppedError(ending.text, ending.exit_code)

    def end(self) -> None:
        if self.run:
            self._process.terminate()
        self.pipe.close()
        self._process.join()

    def _launch(self) -> None:
        # Not forked: jax has threads that a fork would lose.
        context = get_context("spawn")
        self.pipe, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other, *self._arguments))
        with without_ctrl_c():
            self._process.start()
        other.close()


def attempt_and_send(pipe: connection.Connection, cache: ExperimentCache, run: Run, workdir: Path) -> None:
    """Trains a run and sends how it ended."""
    ending = attempt(cache, run, workdir)
    with contextlib.suppress(BrokenPipeError):  # the parent ended this process, and reads no more
        pipe.send(ending)


def attempt(cache: ExperimentCache, run: Run, workdir: Path) -> Ending:
    """Trains a run, or continues it: `done`, `failed` or `stopped`. Whatever fails, other runs can go on."""
    try:
        cache.train(run, workdir)
    except StoppedError as error:
        return Ending("stopped", str(error), error.exit_code)
    except Exception as error:  # whatever it is, the other runs go on, and the end tells of it
        message = " ".join(str(error).split())
        return Ending("failed", f"{type(error).__name__}: {message}\n{traceback.format_exc()}")
    return Ending("done")
