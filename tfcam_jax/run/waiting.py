"""How much of training's time went by waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, TypeVar

Batch = TypeVar("Batch")


class Waiting:
    """Times training's steps, and how long they waited for their batches, without making anything wait itself.

    A wait counts while the devices have nothing to do: one that ended before the step that was under way did not delay
    training. Where that step ended meanwhile, the whole wait counts, so the share is at most what is told. The time
    before the first step, and its compilation, count for nothing.
    """

    def __init__(self):
        self.seconds = self.waited = 0.0
        self._step: Any = None  # a jax.Array
        self._since: float | None = None

    @property
    def share(self) -> float:
        """Of the time, that was waited; 0 of no time."""
        return self.waited / self.seconds if self.seconds else 0.0

    def next(self, batches: Iterator[Batch]) -> Batch:
        """The next of the batches."""
        began = time.monotonic()
        batch = next(batches)
        if self._step is not None and self._step.is_ready():
            self.waited += time.monotonic() - began
        return batch

    def note(self, of_step: Any) -> None:
        """Takes an array that a step, started just now, computes."""
        self._step = of_step
        self._since = time.monotonic() if self._since is None else self._since

    def pause(self) -> None:
        """Ends an epoch, once its steps are done: what comes before the next one, as validation, is no training."""
        if self._since is not None:
            self.seconds += time.monotonic() - self._since
        self._since = None

    def resume(self) -> None:
        """Begins one, before its first batch is asked for."""
        self._since = None if self._step is None else time.monotonic()

    def describe(self) -> str:
        """In a line; "" where nothing was timed."""
        if not self.seconds:
            return ""
        spent = f"at most {100 * self.share:.1f} % were spent waiting for data"
        return f"Of {self.seconds:.1f} s of training steps {spent}."
