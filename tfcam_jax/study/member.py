"""One of the processes of a study. It imports little, so that it watches its parent before jax is there, in seconds."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from multiprocessing import connection, parent_process, process
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # of Linux: the signal that a process gets when its parent ends


def serve(pipe: connection.Connection, cores: list[int], held_megabytes: int, checks: Path) -> None:
    """What the process does: trains the runs that it is sent, until the pipe closes; it ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this one
    if sys.platform == "linux":  # at once, also in the middle of what lets no thread run
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_end_with_parent, args=(parent_process(),), daemon=True).start()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)  # before jax starts as many threads as it sees cores
    from .worker import ExperimentCache, answer  # jax

    cache = ExperimentCache(held_megabytes, checks)
    while True:
        try:
            run, workdir = pipe.recv()
        except EOFError:
            return
        answer(pipe, cache, run, workdir)


def _end_with_parent(parent: process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
