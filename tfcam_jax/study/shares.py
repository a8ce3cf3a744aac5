"""How many processes of this host train a study's runs, and which cores and accelerators each of them has."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..devices.accelerators import Accelerators, find_accelerators, show_only
from ..devices.compilation import available_cores
from ..experiment import ConfigDict
from .member import Share

# Where nobody says how many processes: more than this many copies of jax and of the data may not fit in memory.
_MOST_PROCESSES = 8
_PREALLOCATE, _FRACTION = "XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_MEM_FRACTION"
_JAX_FRACTION = 0.75  # of a GPU's memory, that a process takes at its start


def choose_shares(
    config: ConfigDict, found: Accelerators | None = None, environment: Mapping[str, str] = os.environ
) -> list[Share]:
    """A share of this host for each of the processes that are to train, at least one.

    One process for each core (8 at most) where there are no accelerators, one for each of several GPUs, else one alone;
    or as many as `compare.processes` says. With `parallel.devices` each has so many GPUs, with `parallel.mode` mesh or
    pmap all. More processes than there are GPUs to give share them, and their memory. Where there is one process, or
    nothing to divide, what it sees is left as it is.

    Args:
      config: of the study.
      found: what jax finds here; None: it is asked.
      environment: of this process.
    """
    found = found or find_accelerators()
    groups = _group(config, found)
    number = config.compare.processes or (len(groups) if found.count else min(len(available_cores()), _MOST_PROCESSES))
    shares = []
    for member in range(number):
        own: dict[str, str | None] = {}
        if found.count and number > 1:
            own.update(_own_memory(environment, together=-(-number // len(groups))))
            if len(groups) > 1:
                own.update(show_only(found, groups[member % len(groups)], environment))
        shares.append(Share(_cores_of(member, number), own))
    return shares


def leave_memory(shares: list[Share]) -> None:
    """Keeps this process, which only sees to the others, from taking the GPUs' memory; before it asks jax for any."""
    if shares[0].environment:
        os.environ.setdefault(_PREALLOCATE, "false")


def _group(config: ConfigDict, found: Accelerators) -> list[range]:
    """Numbers of the accelerators that runs get each: one group where they can't be divided, or a run wants all."""
    everything = config.parallel.devices is None and config.parallel.mode in ("mesh", "pmap")
    of_each = config.parallel.devices or 1
    if everything or not found.divisible or of_each > found.count:
        return [range(found.count)]
    return [range(first, first + of_each) for first in range(0, found.count - of_each + 1, of_each)]


def _own_memory(environment: Mapping[str, str], together: int) -> dict[str, str | None]:
    """What undoes `leave_memory` for a process, and divides the memory among those that share GPUs."""
    own: dict[str, str | None] = {_PREALLOCATE: environment.get(_PREALLOCATE)}
    if together > 1 and not {_PREALLOCATE, _FRACTION} & environment.keys():
        own[_FRACTION] = f"{_JAX_FRACTION / together:.3f}"
    return own


def _cores_of(member: int, processes: int) -> tuple[int, ...]:
    """The share of one of the processes in the cores that this one may use; all, if there are not enough to share."""
    cores = tuple(available_cores())
    return cores[member::processes] if processes <= len(cores) else cores
