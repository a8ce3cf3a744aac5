"""How much memory there is, and what to say where it does not suffice."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from ..errors import UserError

_CGROUP = Path("/sys/fs/cgroup/memory.max")
_SHOWN = 200


class OutOfMemoryError(UserError, MemoryError):
    """What was asked for needs more memory than there is."""


def host_memory() -> int | None:
    """Bytes that this process can have at most: the machine's, or less by a limit. None where nothing says it."""
    limits: list[int] = []
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(ValueError, OSError):  # "max", or no such file
        limits.append(int(_CGROUP.read_text(encoding="ascii")))
    with contextlib.suppress(ImportError):  # Windows again
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        limits += [soft] if soft != resource.RLIM_INFINITY else []
    return min((limit for limit in limits if limit > 0), default=None)


def device_memory(devices: Sequence[Any]) -> int | None:
    """Bytes that JAX may take of the smallest of these devices; None of CPUs, whose memory is the host's."""
    stats = [device.memory_stats() for device in devices if device.platform != "cpu"]
    return min((each["bytes_limit"] for each in stats if each and "bytes_limit" in each), default=None)


def return_freed_memory() -> None:
    """Gives what this process has freed back to the system, where the C library (glibc) keeps it otherwise.

    XLA's compiler leaves hundreds of MB so, which the steps after it don't use.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library, which returns it by itself
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def explain_out_of_memory(remedy: str) -> Iterator[None]:
    """Raises OutOfMemoryError, with the remedy, where a device or the host has no memory left."""
    try:
        yield
    except OutOfMemoryError:
        raise
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        told = (str(error).splitlines() or [type(error).__name__])[0][:_SHOWN]
        raise OutOfMemoryError(f"there is not enough memory: {told or 'MemoryError'}. {remedy}") from error
