"""A process for each contestant, so that no library's threads or memory disturb another's."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from launch.benchmark.cases import Case, random_variables
from launch.benchmark.fresh_process import start_python


class Worker:
    """A process that builds one contestant, then works whenever it is asked to.

    Attributes:
      loss: terms of the first step's loss; None for maps.
    """

    def __init__(self, name: str, case: Case, weights: str = "reference") -> None:
        """Starts the process of a contestant, a key of the tables of `jax_work` and `torch_work`, and waits for it.

        Args:
          name: the contestant.
          case: what it works on.
          weights: for JAX: `reference` are those of PyTorch's network, `random` needs no PyTorch.
        """
        code = f"from {__name__} import *; serve({name!r}, Case(*{tuple(case)!r}), {weights!r})"
        shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # others are on the same card
        self._process = start_python(code, shared, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._name = name
        try:
            self.loss: dict[str, float] | None = self._answer()
        except BaseException:
            self.close()
            raise

    def work(self) -> float:
        """Seconds that one unit of work took."""
        return self._ask("work")

    def memory(self) -> dict[str, Any]:
        """MB: `before` the network was built, the `peak` since the last question, and the `device`'s peak.

        `compiler` is JAX's own account of a train step (`cases.memory_account`), empty for anything else.
        """
        return self._ask("memory")

    def _ask(self, question: str) -> Any:
        self._process.stdin.write(f"{question}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise RuntimeError(f"the process of {self._name!r} ended with exit status {status}; its error is above")
        return json.loads(line)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.terminate()
        self._process.wait()


@contextlib.contextmanager
def start_workers(
    names: Sequence[str], case: Case, at_once: int, weights: str = "reference"
) -> Iterator[dict[str, Worker]]:
    """Workers of several contestants, by name, which end with the context.

    Args:
      names: the contestants.
      case: what all work on.
      at_once: how many build at the same time.
      weights: as of `Worker`.

    Raises:
      RuntimeError: one failed; the others are ended.
    """
    with ThreadPoolExecutor(at_once) as pool:
        building = {name: pool.submit(Worker, name, case, weights) for name in names}
    with contextlib.ExitStack() as stack:
        for each in building.values():
            if each.exception() is None:
                stack.enter_context(each.result())
        yield {name: each.result() for name, each in building.items()}


def serve(name: str, case: Case, weights: str) -> None:
    """A worker's process: builds, works once and answers with the loss, then answers each line it is sent."""
    # Libraries may print; only answers go where the other process listens.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    say = lambda answer: print(json.dumps(answer), file=answers, flush=True)
    work, synchronize, device_peak, before = _build(name, case, weights)
    say(work())
    work()
    reset_peak()
    for line in sys.stdin:
        if line.strip() == "memory":
            device = device_peak()
            compiler = getattr(work, "account", {})
            say({"before": before, "peak": peak_megabytes(), "device": device and device / 2**20, "compiler": compiler})
            reset_peak()
        else:
            start = time.perf_counter()
            work()
            synchronize()
            say(time.perf_counter() - start)


def _build(name: str, case: Case, weights: str) -> tuple[Any, Any, Any, float]:
    """The contestant's work, how to wait for its device, that device's peak, and MB before it was built."""
    if name.startswith("jax"):
        from launch.benchmark import jax_work

        before = resident_megabytes()
        variables = jax_work.reference_variables(case) if weights == "reference" else random_variables(case)
        table = jax_work.STEPS | {f"{key} maps": value for key, value in jax_work.MAPS.items()}
        return table[name](case, variables), lambda: None, jax_work.device_peak_bytes, before
    from launch.benchmark import torch_work

    torch_work.import_torch()
    before = resident_megabytes()
    table = torch_work.STEPS | {f"{key} maps": value for key, value in torch_work.MAPS.items()}
    return table[name](case), torch_work.synchronize, torch_work.device_peak_bytes, before


def resident_megabytes() -> float:
    return _status("VmRSS") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak_megabytes() -> float:
    """Peak of this process's memory: since `reset_peak` on Linux, elsewhere since its start."""
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def reset_peak() -> None:
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")  # resets the high-water mark, see proc(5)


def _status(field: str) -> float | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024
