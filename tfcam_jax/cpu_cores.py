"""The CPU cores that this process may use."""

from __future__ import annotations

import os


def available_cores() -> list[int]:
    """Numbers of the cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return sorted(affinity(0)) if affinity else list(range(os.cpu_count() or 1))
