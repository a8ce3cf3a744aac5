"""Several processes, on one host or many, that train or evaluate together, by `jax.distributed`."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from ..errors import UserError

# In what gloo, NCCL and jax's coordination service say when a process is gone.
_LOST_CONNECTION = ("gloo", "nccl", "coordination service", "heartbeat", "connection closed", "connection reset")
# Of waiting for the others, before that is said.
_SECONDS_SILENT = 15.0


class DistributedError(UserError, RuntimeError):
    """Processes that can't find one another."""


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_seconds: int = 10,
) -> bool:
    """Joins the other processes of a run, before anything else asks jax for devices; whether there are others.

    Args:
      coordinator_address: `host:port` of process 0, as the others reach it.
      num_processes: of all hosts; 1 stays alone, whatever the cluster says.
      process_id: this one's number, from 0. Of these three, what is None is found where SLURM, Open MPI or a TPU pod
        started several processes; elsewhere, without any of the three, the process stays alone.
      heartbeat_seconds: a process that has not been heard of for so long counts as dead, and all others end.

    Raises:
      DistributedError: some of the three are missing or don't fit together. Where the others don't come within five
        minutes, jax ends the process.
    """
    given = {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    alone = not started_by_cluster(os.environ)
    if num_processes == 1 or (len(missing) == 3 and alone):
        return False
    if missing and alone:
        named = ", ".join(missing)
        raise DistributedError(f"no cluster was found here to ask for the rest: give {named} too, or none of them.")
    if process_id is not None and num_processes is not None and not 0 <= process_id < num_processes:
        raise DistributedError(
            f"--process_id is {process_id}; of {num_processes} processes the last is number {num_processes - 1}."
        )
    whom = f"process 0 at {coordinator_address}" if coordinator_address else "the others that the cluster names"
    waiting = f"waiting for {whom} and for all processes to come; without them this one ends"
    still_waiting = threading.Timer(_SECONDS_SILENT, print, [waiting], {"file": sys.stderr, "flush": True})
    still_waiting.daemon = True
    still_waiting.start()
    try:
        jax.distributed.initialize(**given, heartbeat_timeout_seconds=heartbeat_seconds)
    except (RuntimeError, ValueError) as error:
        raise DistributedError(f"the processes of this run did not find one another: {error}") from error
    finally:
        still_waiting.cancel()
    return jax.process_count() > 1


def started_by_cluster(environment: Mapping[str, str]) -> bool:
    """Whether SLURM, Open MPI or a TPU pod started this process as one of several. Asks no network."""
    if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return True
    # Outside `srun`, in a batch script or a login shell, there is no step that this process is a task of.
    if "SLURM_STEP_NODELIST" in environment and "SLURM_PROCID" in environment:
        return int(environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))) > 1
    if "TPU_WORKER_HOSTNAMES" in environment:
        return "," in environment["TPU_WORKER_HOSTNAMES"]
    # On a Cloud TPU machine jax asks the machine's own metadata server how many hosts there are.
    chips = any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    return chips and importlib.util.find_spec("libtpu") is not None and "TPU_SKIP_MDS_QUERY" not in environment


def is_first() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return jax.process_index() == 0


def wait_for_all(place: str) -> None:
    """Returns once every process has come here; at once where there is one. `place` names it in error messages."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(place)


def end_with_others(main: Callable[[], None]) -> None:
    """Calls `main`; if it fails in one of several processes, that process ends at once and the others with it.

    A normal exit would first wait minutes for the others, which wait for this one in the middle of a step.
    """
    try:
        main()
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        status = _tell(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _tell(error: BaseException) -> int:
    """Prints what went wrong here, and whether it may be the fault of another process; returns the exit status."""
    here, status = f"process {jax.process_index()} of {jax.process_count()}", 1
    if not isinstance(error, SystemExit):
        traceback.print_exception(error)
    elif isinstance(error.code, int | None):
        status = error.code or 0  # whoever exits so has told why
    else:
        print(f"{here}: {error.code}", file=sys.stderr)
    causes = f"{error} {error.__context__}".lower()
    if status and any(word in causes for word in _LOST_CONNECTION):
        print(f"{here} lost its connection: another process ended first. Its output has the cause.", file=sys.stderr)
    return status
