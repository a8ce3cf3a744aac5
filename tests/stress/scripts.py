"""The launch scripts as a user calls them, in processes forked off one that has imported all, or in fresh ones."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import resource
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stress.runs import REPO

LAUNCH = REPO / "launch"
_LONGEST = 90.0


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a process is held to.

    Attributes:
      file_bytes: no file can become longer, as on a disk that is full.
      no_rights: without the rights by which root writes where permissions forbid it.
      patches: (module, name, value), set before the script runs, so that small data do.
    """

    file_bytes: int | None = None
    no_rights: bool = False
    patches: tuple[tuple[str, str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a script ended.

    Attributes:
      status: exit status, negative of a signal; None: it had to be killed, as there was no end in time.
      text: what it printed.
      peak: MiB that it had resident at most; 0 where it was killed.
    """

    status: int | None
    text: str
    peak: float

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.text


class Script:
    """A running script, `arguments` as on the command line."""

    def __init__(self, context: Any, name: str, arguments: Sequence[str], limits: Limits | None = None) -> None:
        self._peak, self._printed = context.Value("d", 0.0, lock=False), []
        # Not a file: that could not grow either where the disk is full.
        output, theirs = context.Pipe(duplex=False)
        self.process = context.Process(
            target=_serve, args=(name, list(arguments), theirs, self._peak, limits or Limits()), daemon=False
        )
        self.process.start()
        theirs.close()
        self._reader = threading.Thread(target=self._read, args=(output,), daemon=True)
        self._reader.start()

    def _read(self, output: Any) -> None:
        while piece := os.read(output.fileno(), 65536):
            self._printed.append(piece)
        output.close()

    def signal(self, number: int) -> None:
        """Sends a signal, if it is still there."""
        if self.process.is_alive():
            os.kill(self.process.pid, number)

    def wait(self, seconds: float = _LONGEST) -> Ended:
        """Waits for its end; kills it after so long."""
        self.process.join(seconds)
        status = self.process.exitcode
        if status is None:
            self.process.kill()
            self.process.join()
        self._reader.join(5)
        return Ended(status, b"".join(self._printed).decode(errors="replace"), self._peak.value)


def _serve(name: str, arguments: list[str], output: Any, peak: Any, limits: Limits) -> None:
    """What the process runs: the script under its own name, as `python launch/NAME.py` does."""
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if limits.file_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_bytes, limits.file_bytes))
    for module, attribute, value in limits.patches:
        setattr(sys.modules[module], attribute, value)
    if limits.no_rights:
        _give_up_rights()
    sys.path.insert(0, str(LAUNCH))
    sys.argv = [str(LAUNCH / f"{name}.py"), *arguments]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        sys.stdout.flush()
        peak.value = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _give_up_rights() -> None:
    """Empties the process's sets of capabilities, see capset(2): root is the owner of its files then, and no more."""
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, nothing):
        raise OSError(ctypes.get_errno(), "capset")


class Fresh:
    """The same as `Script` as a program of its own, with the processes that it starts; for scripts that start some."""

    def __init__(self, name: str, arguments: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, LAUNCH / f"{name}.py", *arguments],
                stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=os.environ | environment,
                start_new_session=True,
            )  # fmt: skip

    def signal(self, number: int) -> None:
        """Sends a signal to the process and those that it started, as a terminal does."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def wait(self, seconds: float = _LONGEST) -> Ended:
        """Waits for its end; kills all of them after so long."""
        try:
            status: int | None = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            status = None
        return Ended(status, self._log.read_text(errors="replace"), 0.0)

    def left(self, seconds: float) -> bool:
        """Whether a process that it started is still there so long after its end."""
        return not wait_until(lambda: not _group_lives(self.process.pid), seconds)


def _group_lives(group: int) -> bool:
    """Whether a process of the group runs; one that is dead and waits for the system to look at it does not."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, own = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has just ended
            continue
        if int(own) == group and state != "Z":
            return True
    return False


def wait_until(holds: Callable[[], bool], seconds: float) -> bool:
    """Whether it holds, at last after so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if holds():
            return True
        time.sleep(0.002)
    return holds()
