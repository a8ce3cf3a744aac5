"""SIGTERM and SIGINT: finish the step, save, leave; a second signal ends the process at once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils

from ..errors import UserError

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Exit status of a process that was asked to stop: 128 + the signal's number, as shells have it.
_BASE = 128

T = TypeVar("T")


class StoppedError(UserError):
    """The run was asked to stop, and did; the exit code is 143 after SIGTERM, 130 after SIGINT."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class Interruption:
    """Catches the first signal while it is a context manager; in the main thread only, elsewhere it does nothing.

    A signal that the process ignores stays ignored. Under jax.distributed, whose own service catches SIGTERM, all
    processes agree on the step to stop after.

    Args:
      grace_seconds: after so long the process ends, saved or not, also where a step or a disk hangs.
    """

    def __init__(self, grace_seconds: float):
        self._grace_seconds = grace_seconds
        self._signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._catch) for number in heard}
        return self

    def __exit__(self, *exception: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self, step: int) -> bool:
        """Whether the run is to stop after this step; every process of a run has to ask after every step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self._signal = signal.SIGTERM
        return self._signal is not None

    def watch(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches, for work that changes nothing and can be done again.

        Raises StoppedError before the next batch, once there was a signal. (Not from the handler: it would come up in
        the middle of any library, and some catch everything.)
        """
        for batch in batches:
            if self._signal is not None:
                raise self.stopped("in the middle of an evaluation.")
            yield batch

    def stopped(self, outcome: str) -> StoppedError:
        """The error to leave with; `outcome` says where the run stands."""
        assert self._signal is not None, "nobody asked to stop"
        return StoppedError(f"stopped by {self._signal.name}: {outcome}", _BASE + self._signal)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self._signal = caught = signal.Signals(number)
        # A second one ends the process, also out of compiled code. Not one of several that a parent ends: a signal to
        # all of them comes twice, by itself and from the parent.
        alone = multiprocessing.parent_process() is None
        for other in self._before:
            signal.signal(other, signal.SIG_DFL if alone else signal.SIG_IGN)
        self._timer = threading.Timer(self._grace_seconds, self._give_up, [caught])
        self._timer.daemon = True
        self._timer.start()
        if alone:  # Not by `print`: the signal may have come in the middle of one.
            os.write(2, f"\n{caught.name}: finishing the step and saving; once more ends at once\n".encode())

    def _give_up(self, caught: signal.Signals) -> None:
        os.write(2, f"error: nothing more was saved within {self._grace_seconds:g} s of the signal\n".encode())
        sys.stderr.flush()
        os._exit(_BASE + caught)


@contextlib.contextmanager
def without_ctrl_c() -> Iterator[None]:
    """Keeps Ctrl-C, which reaches all processes of a terminal, from one that starts here, from its beginning on."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
