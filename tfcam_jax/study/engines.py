"""Where the jobs of a study go, by submitit: to a Slurm cluster, or to processes of this host to try that."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ..errors import ConfigError
from ..experiment import ConfigDict
from ..run.interruption import without_ctrl_c
from .member import Ending, Share
from .shares import choose_shares

FOLDER = "jobs"  # of the study: what submitit writes, and logs
_COMMANDS = ("sbatch", "srun", "squeue", "scancel")
# What the study sets itself; `signal` comes before a job's time is up, and who takes it up again is the study.
_OWN_OPTIONS = (
    *("partition", "time", "cpus-per-task", "gpus-per-node", "mem", "signal", "requeue", "no-requeue", "array"),
    *("output", "error", "open-mode", "job-name", "nodes", "ntasks", "ntasks-per-node", "wrap", "chdir", "wait"),
)
# States of Slurm in which a job comes to nothing more.
_ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED")
_ENDED += ("REVOKED", "TIMEOUT")
SECONDS_BETWEEN_QUERIES = 15.0  # to Slurm
_SECONDS_TO_SHOW = 30.0  # an answer, through a shared folder, of a job that has ended
_SLURM_ROUNDS_TO = 60.0  # seconds: so much before its time it may send a signal


@runtime_checkable
class Engine(Protocol):
    """Where jobs go.

    Attributes:
      most: jobs, waiting or at work, at once.
      accelerators: that each is given by it.
      patience: seconds in which the answer of a job that has ended is seen here.
    """

    most: int
    accelerators: int
    patience: float

    def submit(self, function: Callable[..., Ending], *arguments: Any) -> Any:
        """Hands in a job, as submitit has it."""
        ...

    def share(self, slot: int) -> Share:
        """What a job has to take for itself of its host; of the `most` at once it is number `slot`."""
        ...

    def ended(self, jobs: Mapping[str, Any]) -> dict[str, str]:
        """Of jobs by their ids those that come to nothing more, with a word for how; none where that isn't known."""
        ...

    def stop(self, jobs: Mapping[str, Any]) -> None:
        """Has jobs save their runs and end, and those that have not begun not begin."""
        ...

    def cancel(self, jobs: Mapping[str, Any]) -> None:
        """Ends jobs at once."""
        ...


def open_engine(config: ConfigDict, workdir: Path) -> Engine:
    """The engine that `compare.engine` names, for a study in a folder. Submits nothing.

    Raises ConfigError where submitit or Slurm is missing, or Slurm would refuse such a job.
    """
    settings = config.compare.cluster
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"config.compare.engine={config.compare.engine} needs the extra cluster: pip install -e '.[cluster]'."
        ) from error
    if config.compare.engine == "slurm" and config.compare.processes:
        raise ConfigError(
            "config.compare.processes is of this host alone: with engine slurm leave it 0, and say in "
            "config.compare.cluster.jobs how many runs train at once."
        )
    notice = config.grace_seconds + _SLURM_ROUNDS_TO
    if settings.minutes * 60 < 2 * notice:
        raise ConfigError(
            f"config.compare.cluster.minutes is {settings.minutes}, and {notice:g} s before that time is up a job "
            f"begins to save (config.grace_seconds and a minute): give {-(-2 * notice // 60):g} or more."
        )
    if "%" in str(workdir):
        raise ConfigError(f"--workdir is {workdir}: Slurm reads % in a path otherwise. Choose a name without it.")
    started = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"  # job ids may come again
    make = {"local": _Local, "slurm": _Slurm}[config.compare.engine]
    return make(config, workdir.absolute() / FOLDER / started, workdir.name, notice)


class _Local:
    """Jobs on this host, by submitit's local executor; each has the share that a process of a study has."""

    accelerators, patience = 0, 0.0

    def __init__(self, config: ConfigDict, folder: Path, name: str, notice: float):
        self._settings = {"timeout_min": config.compare.cluster.minutes, "signal_delay_s": round(notice)}
        self._folder = folder
        self._shares = choose_shares(config)
        self.most = config.compare.cluster.jobs or len(self._shares)

    def submit(self, function: Callable[..., Ending], *arguments: Any) -> Any:
        import submitit

        executor = submitit.LocalExecutor(self._folder)
        executor.update_parameters(**self._settings)
        return executor.submit(function, *arguments)

    def share(self, slot: int) -> Share:
        share = self._shares[slot % len(self._shares)]
        # submitit hides all GPUs from jobs of this kind.
        seen = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES")}
        return dataclasses.replace(share, environment={**seen, **share.environment})

    def ended(self, jobs: Mapping[str, Any]) -> dict[str, str]:
        return {name: job.state for name, job in jobs.items() if job.done()}

    def stop(self, jobs: Mapping[str, Any]) -> None:
        self._send(jobs, signal.SIGTERM)  # not `job.cancel`, which leaves a second to save

    def cancel(self, jobs: Mapping[str, Any]) -> None:
        self._send(jobs, signal.SIGKILL)  # of the process that started the one that trains, which ends with it

    def _send(self, jobs: Mapping[str, Any], number: int) -> None:
        for name, job in jobs.items():
            if not job.done():  # so the id is still its own
                os.kill(int(name), number)


class _Slurm:
    """Jobs of a Slurm cluster, by submitit; asks `squeue` alone how they are: not every cluster keeps accounts."""

    patience = _SECONDS_TO_SHOW

    def __init__(self, config: ConfigDict, folder: Path, name: str, notice: float):
        settings = config.compare.cluster
        if missing := [command for command in _COMMANDS if shutil.which(command) is None]:
            raise ConfigError(
                f"config.compare.engine=slurm: {', '.join(missing)} not found. Give the command on a host of the "
                "cluster from which jobs are submitted."
            )
        self._folder, self._notice, self._name = folder, notice, name
        self._cores = settings.cpus
        self._options = _slurm_options(settings)
        self.accelerators = settings.gpus
        self.most = settings.jobs or sys.maxsize
        self._known: dict[str, str] | None = None  # states by id, as of the last query
        self._asked, self._pause = float("-inf"), SECONDS_BETWEEN_QUERIES
        self._check()

    def submit(self, function: Callable[..., Ending], *arguments: Any) -> Any:
        import submitit

        executor = submitit.SlurmExecutor(self._folder)
        executor.update_parameters(
            job_name=self._name,
            signal_delay_s=round(self._notice),
            srun_args=[f"--cpus-per-task={self._cores}"],  # which srun does not take over from sbatch
            additional_parameters=self._options,
        )
        with _outside_of_a_job():
            return executor.submit(function, *arguments)

    def share(self, slot: int) -> Share:
        return Share()

    def ended(self, jobs: Mapping[str, Any]) -> dict[str, str]:
        if time.monotonic() - self._asked > self._pause:
            self._asked = time.monotonic()
            done = _call("squeue", "--me", "--states=all", "--noheader", "--format=%i %T")
            lines = [line.split() for line in done.stdout.splitlines()] if done.returncode == 0 else None
            self._known = None if lines is None else {line[0]: line[1] for line in lines if len(line) == 2}
        if self._known is None:
            return {}
        states = {name: self._known.get(name, "gone") for name, job in jobs.items()}
        return {name: state for name, state in states.items() if state in _ENDED or state == "gone"}

    def stop(self, jobs: Mapping[str, Any]) -> None:
        self._asked, self._pause = float("-inf"), 1.0
        _call("scancel", "--state=PENDING", *jobs)
        _call("scancel", "--signal=TERM", *jobs)  # to what trains; Slurm itself would not wait as long

    def cancel(self, jobs: Mapping[str, Any]) -> None:
        if jobs:
            _call("scancel", *jobs)

    def _check(self) -> None:
        """Asks Slurm whether it would take such a job."""
        flags = [f"--{name}" if value is True else f"--{name}={value}" for name, value in self._options.items()]
        with _outside_of_a_job():
            done = _call("sbatch", "--test-only", *flags, "--wrap=true")
        if done.returncode:
            raise ConfigError(
                f"Slurm would not take a job of this study: {in_a_line(done.stderr)}. Look at config.compare.cluster, "
                f"which asks for {' '.join(flags)}."
            )


def _slurm_options(settings: ConfigDict) -> dict[str, Any]:
    """Options of sbatch, by their long names."""
    chosen = {
        "partition": settings.partition,
        "gpus-per-node": settings.gpus,
        "mem": settings.memory_gb and f"{settings.memory_gb}G",
    }
    options = {name: value for name, value in chosen.items() if value}
    options |= {"time": settings.minutes, "cpus-per-task": settings.cpus, "no-requeue": True}
    for option in settings.options:
        name, given, value = option.removeprefix("--").partition("=")
        if not name or not name.replace("-", "").isalnum() or (given and not value):
            raise ConfigError(
                f"config.compare.cluster.options has {option!r}; each is a long option of sbatch: 'account=mine'."
            )
        if name in _OWN_OPTIONS or name in options:
            raise ConfigError(
                f"config.compare.cluster.options has {option!r}, which the study sets itself, from keys of "
                "config.compare.cluster where there is one; or it is given twice."
            )
        options[name] = value if given else True
    return options


@contextlib.contextmanager
def _outside_of_a_job() -> Iterator[None]:
    """Hides what Slurm says of the job that this process may be part of: those that it submits would be like it."""
    inside = "SLURM_JOB_ID" in os.environ
    of_it = [name for name in os.environ if name.startswith(("SLURM_", "SRUN_", "SUBMITIT_")) and name != "SLURM_CONF"]
    with changed_environment(**dict.fromkeys(of_it if inside else [])):
        yield


@contextlib.contextmanager
def changed_environment(**values: str | None) -> Iterator[None]:
    """Environment variables with other values for a while; None: without."""
    before = {name: os.environ[name] for name in values if name in os.environ}
    Share(environment=values).take()
    try:
        yield
    finally:
        Share(environment={**dict.fromkeys(values), **before}).take()


def _call(*command: str) -> subprocess.CompletedProcess[str]:
    """Runs one of Slurm's commands; Ctrl-C, which reaches all processes of a terminal, leaves it alone."""
    with without_ctrl_c():
        return subprocess.run(command, capture_output=True, text=True, check=False)


def in_a_line(text: str) -> str:
    return "; ".join(line.strip() for line in text.strip().splitlines()) or "it says nothing"
