"""What a process of a study does, of this host or as a job. It imports little: what it must do first, it does at once.

Its share of the host, cores and accelerators, is taken before jax is there.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing import connection, parent_process, process
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1  # of Linux: the signal that a process gets when its parent ends
# A file server holds the lock of a host that it has lost for a minute or two.
_SECONDS_FOR_A_LOCK = 180.0
# A host may remember for so long what a file on a network file system was.
_SECONDS_FOR_A_NAME = 90.0
_NO_ACCELERATOR = (
    "jax sees no accelerator on {host}, though its job asked for {number}: install jax for them (README), unset "
    "JAX_PLATFORMS, or set config.compare.cluster.gpus=0 to train on CPUs"
)


@dataclass(frozen=True)
class Share:
    """A process's part of its host.

    Attributes:
      cores: numbers of CPU cores; empty: as they are.
      environment: variables that it sets, None to remove one.
    """

    cores: tuple[int, ...] = ()
    environment: Mapping[str, str | None] = field(default_factory=dict)

    def take(self) -> None:
        """Makes this process keep to it. Before jax starts as many threads as it sees cores, and finds devices."""
        if self.cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self.cores)
        for name, value in self.environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@dataclass(frozen=True)
class Ending:
    """How a process left a run.

    Attributes:
      state: `done`; `failed`; `stopped` by a signal, saved; of a job also `held`: another process is at the run;
        `orphaned`: nobody is at the study; and, said by whoever misses its answer, `died`.
      text: of a failure the error in a line, its traceback below; else what is to be told.
      exit_code: that belongs to the signal.
    """

    state: str
    text: str = ""
    exit_code: int = 0


def serve(pipe: connection.Connection, share: Share, held_megabytes: int, checks: Path, told: frozenset[str]) -> None:
    """What a process of this host does: trains the runs that it is sent, until the pipe closes or its parent ends.

    Notes on the data that its parent has `told` are not told again.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this one
    _end_with_creator()
    threading.Thread(target=_end_with_parent, args=(parent_process(),), daemon=True).start()
    share.take()
    from .worker import ExperimentCache, attempt_and_send  # jax

    cache = ExperimentCache(held_megabytes, checks, told)
    while True:
        try:
            run, workdir = pipe.recv()
        except EOFError:
            return
        attempt_and_send(pipe, cache, run, workdir)


def train_as_job(
    run: Any, workdir: Path, held_megabytes: int, launcher: str, share: Share, accelerators: int
) -> Ending:
    """What a job does: trains one run, as a process of this host does, on whatever host it comes to.

    Args:
      run: which one, a `plan.Run`; the package itself is imported later.
      workdir: the study's folder, as all hosts see it.
      held_megabytes: as of `worker.ExperimentCache`.
      launcher: who holds the study's lock, by `outputs.describe_process`: without it, nobody waits for the run.
      share: of a host that nobody else divides.
      accelerators: how many the job was given; where jax has none of them, the run fails rather than train on a CPU.
    """
    # What announces the end of a job's time, or its preemption, saves the run; before there is one, it ends the job.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, lambda *_: signal.raise_signal(signal.SIGTERM))
    if os.environ.get("SUBMITIT_EXECUTOR") == "local":  # elsewhere the system sees to that
        _end_with_creator()
    share.take()
    import jax

    from ..run.workdir import CHECKS, find_holder
    from .worker import ExperimentCache, attempt

    end = time.monotonic() + _SECONDS_FOR_A_NAME
    while (holder := find_holder(workdir)) != launcher:
        if holder is None or time.monotonic() > end:
            return Ending("orphaned")
        time.sleep(1.0)
    if accelerators and jax.default_backend() == "cpu":
        return Ending("failed", _NO_ACCELERATOR.format(host=socket.gethostname(), number=accelerators))
    folder, end = workdir / run.entry.folder, time.monotonic() + _SECONDS_FOR_A_LOCK
    while holder := find_holder(folder):
        if time.monotonic() > end:
            return Ending("held", holder)
        time.sleep(1.0)
    if (folder / "results.json").is_file():  # of the one before, that was thought dead
        return Ending("done")
    return attempt(ExperimentCache(held_megabytes, workdir / CHECKS), run, workdir)


def _end_with_creator() -> None:
    if sys.platform == "linux":  # at once, also in the middle of what lets no thread run
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_with_parent(parent: process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
