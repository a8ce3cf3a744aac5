"""Kills of a training process at chosen kinds of moments, and the proof that nothing of them is left in the result."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from stress.runs import hush
from tqdm import tqdm

from tfcam_jax import training as train
from tfcam_jax.experiment import build_experiment, resolve
from tfcam_jax.run.checkpoints import Checkpoints
from tfcam_jax.run.interruption import StoppedError

# What a process is at. It is "starting" (data, tracing, compiling) until its first step is done.
PHASES = ("starting", "step", "evaluation", "checkpoint", "end")

# How often each is aimed at. A process that is past its aim is killed at its end.
_AIMS = (3, 3, 3, 3, 1)

# The longest wait between the mark of a phase and the kill, seconds.
_DELAYS = {"starting": 2.0, "step": 0.02, "evaluation": 0.05, "checkpoint": 0.06, "end": 0.3}
# A process may take so long; more is a hang.
_LONGEST = 120.0
# One process in so many that are killed while they start has no compiled program to load, and takes longer.
_COLD = 6
_COLD_DELAY = 8.0
# One kill in so many is a SIGTERM.
_POLITE = 8


@dataclasses.dataclass
class Kills:
    """What came of the kills; `describe` explains each figure.

    Attributes:
      phases: kills by what the process was at.
    """

    kills: int = 0
    runs: int = 0
    exact: int = 0
    lost: int = 0
    damaged: int = 0
    hangs: int = 0
    wrong_exits: int = 0
    phases: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(PHASES, 0))
    notes: list[str] = dataclasses.field(default_factory=list)


def train_marked(config: ConfigDict, workdir: Path, phase: Any, log: Path, cold: bool) -> None:
    """What a killed process runs: training that says in shared memory what it is at. Exits as launch/train.py does."""
    hush(log)
    logging.set_verbosity(logging.WARNING)
    jax.config.update("jax_enable_compilation_cache", not cold)
    _mark(train, "evaluate_source", phase, "evaluation", "step")
    _mark(train, "evaluate_best", phase, "end", "end")
    _mark(train.MetricWindow, "add", phase, "step", "step")
    _mark(Checkpoints, "save", phase, "checkpoint", "checkpoint")
    try:
        train.train(config, workdir)
    except StoppedError as error:
        print(error, flush=True)
        os._exit(error.exit_code)


def _mark(owner: Any, name: str, phase: Any, before: str, after: str) -> None:
    function = getattr(owner, name)

    def marked(*arguments: Any, **options: Any) -> Any:
        phase.value = PHASES.index(before)
        result = function(*arguments, **options)
        phase.value = PHASES.index(after)
        return result

    setattr(owner, name, marked)


def kill_runs(config: ConfigDict, folder: Path, context: Any, count: int, rng: random.Random, until: float) -> Kills:
    """Trains once undisturbed; then kills and restarts runs until there were `count` kills, or `until` has passed.

    Args:
      config: of a short run.
      folder: for the workdirs and the processes' output.
      context: of `runs.start_server`.
      count: kills.
      rng: decides the moments.
      until: of `time.monotonic`.
    """
    log, found = folder / "kills.log", Kills()
    start = lambda workdir, cold: _start(context, config, workdir, log, cold)
    process, _ = start(folder / "whole", False)
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the undisturbed run failed; its output is in {log}")
    expected, state = _outcome(folder / "whole"), build_experiment(resolve(config)).random_state()
    whole = _arrays(folder / "whole", state)
    with tqdm(total=count, desc="kills", disable=None) as bar:
        while found.kills < count and time.monotonic() < until:
            workdir = folder / "killed"
            shutil.rmtree(workdir, ignore_errors=True)
            kills = _run_through(start, workdir, min(rng.randint(1, 6), count - found.kills), rng, found)
            _compare(workdir, expected, whole, state, kills, found)
            bar.update(len(kills))
    return found


def _start(context: Any, config: ConfigDict, workdir: Path, log: Path, cold: bool) -> tuple[Any, Any]:
    phase = context.Value("i", 0, lock=False)
    process = context.Process(target=train_marked, args=(config, workdir, phase, log, cold))
    process.start()
    return process, phase


def _run_through(
    start: Callable[[Path, bool], tuple[Any, Any]], workdir: Path, wanted: int, rng: random.Random, found: Kills
) -> list[str]:
    """One run from its beginning to its end, with some kills on its way; returns them."""
    kills: list[str] = []
    newest = -1
    while True:
        aim = rng.choices(PHASES, _AIMS)[0] if len(kills) < wanted else None
        cold = aim == "starting" and rng.randrange(_COLD) == 0
        process, phase = start(workdir, cold)
        if aim:
            delay = rng.uniform(0, _COLD_DELAY if cold else _DELAYS[aim])
            kill = _kill(process, phase, workdir, aim, delay, rng, found)
            kills += [kill] if kill else []
        process.join(_LONGEST)
        if process.exitcode is None:
            process.kill()
            process.join()
            found.hangs += 1
            found.notes.append(f"hang after {', '.join(kills)}")
            return kills
        now = max(
            (int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*") if path.name.isdigit()), default=-1
        )
        if now < newest:
            found.lost += 1
            found.notes.append(f"newest checkpoint {now}, was {newest}, after {', '.join(kills)}")
        newest = now
        if process.exitcode == 0:
            return kills
        if process.exitcode not in (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM):
            found.wrong_exits += 1
            found.notes.append(f"exit status {process.exitcode} after {', '.join(kills)}")
            return kills


def _kill(
    process: Any, phase: Any, workdir: Path, aim: str, delay: float, rng: random.Random, found: Kills
) -> str | None:
    """Waits for a phase and a little longer, and kills; None if the process was faster."""
    while process.is_alive() and PHASES[phase.value] != aim and PHASES[phase.value] != "end":
        time.sleep(0.0005)
    if aim in ("step", "evaluation", "checkpoint"):
        _wait_for_another(process, phase, aim, rng.randrange(3))
    time.sleep(delay)
    number = signal.SIGTERM if rng.randrange(_POLITE) == 0 else signal.SIGKILL
    if not process.is_alive():
        return None
    reached = PHASES[phase.value]
    os.kill(process.pid, number)
    process.join(_LONGEST)
    if process.exitcode == 0:
        return None
    if any((workdir / "checkpoints").glob("*tmp*")):
        reached = "checkpoint"
    found.kills += 1
    found.phases[reached] += 1
    return f"{number.name} at {reached}"


def _wait_for_another(process: Any, phase: Any, aim: str, times: int) -> None:
    """Lets the process leave the phase and come to it again."""
    for _ in range(times):
        for inside in (True, False):
            while process.is_alive() and (PHASES[phase.value] == aim) is inside and PHASES[phase.value] != "end":
                time.sleep(0.0005)


def _outcome(workdir: Path) -> dict[str, bytes]:
    return {name: (workdir / name).read_bytes() for name in ("metrics.jsonl", "results.json")}


def _arrays(workdir: Path, like: Any) -> dict[int, list[np.ndarray]]:
    """The arrays of all checkpoints that are kept."""
    with Checkpoints(workdir, read_only=True) as checkpoints:
        restore = lambda step: jax.tree.leaves(jax.device_get(checkpoints.restore(step, like)[0]))
        return {step: restore(step) for step in checkpoints.steps()}


def _compare(workdir: Path, expected: Any, whole: Any, like: Any, kills: list[str], found: Kills) -> None:
    """Whether a run's files and checkpoints are those of the undisturbed one, bit for bit."""
    found.runs += 1
    aside = workdir / "checkpoints.damaged"
    found.damaged += len(list(aside.iterdir())) if aside.exists() else 0
    try:
        outcome, arrays = _outcome(workdir), _arrays(workdir, like)
    except Exception as error:  # whatever a run leaves that did not end well
        found.notes.append(f"{type(error).__name__}: {error}, after {', '.join(kills)}")
        return
    wrong = [name for name, content in expected.items() if outcome[name] != content]
    # SIGTERM saves a step more, and that may be one of the latest two.
    polite = any(kill.startswith("SIGTERM") for kill in kills)
    if max(arrays) != max(whole) or (arrays.keys() != whole.keys() and not polite):
        wrong.append(f"checkpoints {sorted(arrays)} instead of {sorted(whole)}")
    both = arrays.keys() & whole.keys()
    if not all(np.array_equal(a, b) for step in both for a, b in zip(arrays[step], whole[step], strict=True)):
        wrong.append("parameters")
    if wrong:
        found.notes.append(f"{', '.join(wrong)} differ after {', '.join(kills)}")
    else:
        found.exact += len(kills)


def describe(kills: Kills) -> list[str]:
    """A line: what training was at when it was killed, and what else was counted."""
    phases = ", ".join(f"{phase} {number}" for phase, number in kills.phases.items())
    counted = f"{kills.runs} runs, {kills.lost} checkpoints lost, {kills.damaged} damaged"
    return [f"training was killed while {phases}; {counted}, {kills.wrong_exits} wrong exit statuses"]
