"""The runs of a study as jobs, one for each run.

A job does what a process of this host does (`member`), on whatever host it comes to. All that the hosts share is the
study's folder. The command that launches them holds the study's lock, gives a run to one job at a time, and takes up
again those that die; the lock of the run's own folder keeps a second process from it all the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import logging
from tqdm import tqdm

from ..data.outputs import describe_process
from ..errors import UserError
from ..run.interruption import Interruption, without_ctrl_c
from .engines import FOLDER, SECONDS_BETWEEN_QUERIES, Engine, changed_environment, in_a_line
from .member import Ending, train_as_job
from .plan import Run
from .worker import advance

_SECONDS_BETWEEN_LOOKS = 1.0  # at the folder of answers
_SECONDS_TO_CANCEL = 30.0
_MOST_REFUSALS = 40  # by Slurm in a row, a query apart, of what it took before
_MOST_AT_A_TIME = 8  # that are handed in before looking around
_LINES_OF_LOG = 15


class ClusterError(UserError, RuntimeError):
    """Jobs that can't be had, or hosts that do not see the same folder."""


@dataclasses.dataclass
class _Attempt:
    """A run, and the job that it is given to.

    Attributes:
      step: of the newest checkpoint when it was last handed in, -1 without any.
      vain: jobs in a row that brought no newer one.
      ended: when its job was first seen to have ended, and the word for it.
    """

    run: Run
    step: int = -1
    vain: int = 0
    job: Any = None
    slot: int = 0
    ended: tuple[float, str] | None = None


def train_in_jobs(
    engine: Engine, runs: Sequence[Run], workdir: Path, restarts: int, held_megabytes: int, bar: tqdm
) -> dict[str, str]:
    """Trains the runs in jobs, one each; returns the error of each that failed, by folder.

    A job that is killed, preempted or out of time, or whose host is lost, is handed in once more, and its run goes on
    from its last checkpoint; after more than `restarts` in a row that brought no new checkpoint the run has failed. A
    run that fails by itself is not repeated.

    Raises:
      StoppedError: after SIGTERM or SIGINT, once each job has saved its run; a second signal ends this process at once.
      ClusterError: the first job is refused, or later ones for long; a host does not see this one's locks. No job is
        left then.
    """
    queue = _Queue(engine, runs, workdir, restarts, held_megabytes, bar)
    grace = runs[0].config.grace_seconds if runs else 0.0
    with Interruption(grace + 2 * _SECONDS_TO_CANCEL) as stop:
        try:
            while queue.unfinished:
                queue.fill()
                time.sleep(_SECONDS_BETWEEN_LOOKS)
                if stop.requested(0):
                    queue.stop(grace + _SECONDS_TO_CANCEL)
                    raise stop.stopped("what was trained is saved; the same command goes on.")
                queue.collect()
        finally:
            engine.cancel(queue.jobs())
    if not queue.failures:
        shutil.rmtree(workdir / FOLDER, ignore_errors=True)  # logs
    return queue.failures


class _Queue:
    """The runs that wait for a job, those that have one, and those that failed."""

    def __init__(
        self, engine: Engine, runs: Sequence[Run], workdir: Path, restarts: int, held_megabytes: int, bar: tqdm
    ):
        self._engine, self._workdir, self._restarts, self._bar = engine, workdir.absolute(), restarts, bar
        self._held_megabytes = held_megabytes
        self._waiting = deque(_Attempt(run, self._newest_step(run)) for run in runs)
        self._at_work: dict[str, _Attempt] = {}
        self._refused, self._next_try, self._accepted = 0, 0.0, False
        self.failures: dict[str, str] = {}

    @property
    def unfinished(self) -> bool:
        return bool(self._waiting or self._at_work)

    def jobs(self) -> dict[str, Any]:
        """Those at work or waiting in the cluster, by their ids."""
        return {name: attempt.job for name, attempt in self._at_work.items()}

    def fill(self) -> None:
        """Hands in jobs, up to as many as may be at once; a few at a time, as a signal is heard between."""
        for _ in range(_MOST_AT_A_TIME):
            if not self._waiting or len(self._at_work) >= self._engine.most or time.monotonic() < self._next_try:
                return
            attempt = self._waiting[0]
            used = {each.slot for each in self._at_work.values()}
            attempt.slot = next(slot for slot in range(len(used) + 1) if slot not in used)
            if (job := self._submit(attempt)) is None:
                return
            self._waiting.popleft()
            attempt.job, attempt.ended = job, None
            self._at_work[job.job_id] = attempt

    def _submit(self, attempt: _Attempt) -> Any:
        """The job; None where it is refused now, though others were taken before, as over a limit of their number."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        share, given = self._engine.share(attempt.slot), self._engine.accelerators
        arguments = (attempt.run, self._workdir, self._held_megabytes, describe_process(), share, given)
        try:
            with without_ctrl_c(), _importable():
                job = self._engine.submit(train_as_job, *arguments)
        except (FailedJobError, FailedSubmissionError) as error:
            self._refused += 1
            if not self._accepted or (self._refused > _MOST_REFUSALS and not self._at_work):
                raise ClusterError(f"Slurm refuses the study's jobs: {in_a_line(str(error))}") from error
            if self._refused == 1:
                logging.warning("Slurm refuses a job for now, it is tried again: %s", in_a_line(str(error)))
            self._next_try = time.monotonic() + SECONDS_BETWEEN_QUERIES
            return None
        self._refused, self._accepted = 0, True
        return job

    def collect(self) -> None:
        """Takes what the jobs have answered; those that ended without an answer, or before their run, wait again."""
        for name, (attempt, ending) in self._endings(self._engine.patience).items():
            del self._at_work[name]
            run = attempt.run.entry.folder
            if ending.state == "orphaned":
                raise ClusterError(
                    f"a job does not see the lock that this process holds on {self._workdir}: there locks do not reach "
                    "other hosts (NFS mounted with nolock or local_lock, Lustre with localflock or without flock), and "
                    "two hosts could train the same run. Choose a --workdir on another file system."
                )
            if ending.state in ("done", "failed"):
                if ending.text:
                    self.failures[run] = ending.text
                advance(self._bar, attempt.run, ending.text)
                continue
            self._take_up(name, attempt, ending)

    def stop(self, seconds: float) -> None:
        """Has all jobs save and end, and waits for that so long."""
        self._engine.stop(self.jobs())
        end = time.monotonic() + seconds
        while self._at_work and time.monotonic() < end:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            for name in self._endings(patience=0.0):
                del self._at_work[name]

    def _endings(self, patience: float) -> dict[str, tuple[_Attempt, Ending]]:
        """What jobs have answered; for one that ended without, so many seconds ago or longer, that it died."""
        found = {}
        for folder in {attempt.job.paths.folder for attempt in self._at_work.values()}:
            os.listdir(folder)  # has a network file system look for what is new in it
        ended = self._engine.ended(self.jobs())
        for name, attempt in self._at_work.items():
            if attempt.job.paths.result_pickle.exists():
                found[name] = attempt, _read_answer(attempt.job)
            elif name not in ended:
                attempt.ended = None
            else:
                attempt.ended = attempt.ended or (time.monotonic(), ended[name])
                if time.monotonic() - attempt.ended[0] >= patience:
                    found[name] = attempt, Ending("died", attempt.ended[1])
        return found

    def _take_up(self, name: str, attempt: _Attempt, ending: Ending) -> None:
        """Lets a run wait for another job, or gives it up."""
        self._engine.cancel({name: attempt.job})  # should it not be as dead as it seems
        run, step = attempt.run.entry.folder, self._newest_step(attempt.run)
        attempt.vain = 0 if step > attempt.step else attempt.vain + 1
        attempt.step = step
        told = {
            "died": f"its job {name} ended without an answer ({ending.text.lower()})",
            "stopped": f"its job {name} was {ending.text}",
            "held": f"its job {name} found another process at it ({ending.text})",
        }[ending.state]
        if attempt.vain > self._restarts:
            failure = f"{told}, and so did {attempt.vain} in a row without a new checkpoint. {_read_log(attempt.job)}"
            self.failures[run] = failure
            advance(self._bar, attempt.run, failure)
            return
        goes_on = f"from step {step}" if step >= 0 else "from its beginning"
        logging.warning("%s: %s; it is handed in once more, and goes on %s.", run, " ".join(told.split()), goes_on)
        self._waiting.appendleft(attempt)

    def _newest_step(self, run: Run) -> int:
        checkpoints = self._workdir / run.entry.folder / "checkpoints"
        names = os.listdir(checkpoints) if checkpoints.is_dir() else []
        return max((int(name) for name in names if name.isdigit()), default=-1)


def _read_answer(job: Any) -> Ending:
    """What `member.train_as_job` returned; where it was not even begun, as without this package there, a failure."""
    from submitit.core.utils import UncompletedJobError

    try:
        return job.result()
    except UncompletedJobError as error:
        lines = str(error).strip().splitlines()
        reason = next((line for line in reversed(lines) if "Error" in line and ":" in line), lines[0])
        return Ending("failed", f"its job {job.job_id} could not begin: {reason}\n{error}")
    finally:
        job.paths.result_pickle.unlink(missing_ok=True)  # ids of jobs on this host may come again


def _read_log(job: Any) -> str:
    """Where a job's log is, and the end of it."""
    path = job.paths.stderr
    text = path.read_text(encoding="utf-8", errors="backslashreplace").strip() if path.is_file() else ""
    return f"Its log is {path}:\n" + "\n".join(text.splitlines()[-_LINES_OF_LOG:])


@contextlib.contextmanager
def _importable() -> Iterator[None]:
    """Lets processes that start here import what this one can, as those of `multiprocessing` do."""
    with changed_environment(PYTHONPATH=os.pathsep.join(dict.fromkeys(path or os.getcwd() for path in sys.path))):
        yield
