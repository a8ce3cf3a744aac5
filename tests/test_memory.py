"""What is freed goes back to the system."""

import ctypes
import sys
from pathlib import Path

import numpy as np
import pytest

from tfcam_jax.devices.memory import return_freed_memory

STATUS = Path("/proc/self/status")


def resident_megabytes():
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("VmRSS")) / 1024


@pytest.mark.skipif(
    not STATUS.exists() or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library is not glibc"
)
def test_freed_memory_goes_back_to_the_system():
    """128 MB in pieces too small to be mapped each by itself, below one that stays."""
    pieces = [np.ones(2**13) for _ in range(2**11)]
    kept = pieces.pop()
    del pieces
    before = resident_megabytes()
    return_freed_memory()
    assert resident_megabytes() < before - 64
    assert kept.all()


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys.modules["tfcam_jax.devices.memory"].ctypes, "CDLL", lambda name: object())
    return_freed_memory()
