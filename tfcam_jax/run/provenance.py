"""What a run was made with: versions, commit, devices, command."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import jax

from ..models.lookup import describe_source

PACKAGES = ("tfcam_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")
# Beginnings of the names by which a processor lists instructions that work on several numbers at once.
VECTOR_INSTRUCTIONS = ("avx", "fma", "amx", "asimd", "sve")
CPU_INFO = Path("/proc/cpuinfo")


def collect_provenance(model_name: str = "") -> dict[str, Any]:
    """JSON-able record of the software and hardware of this process, and of a network that others wrote."""
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "folder": os.getcwd(),  # that relative paths of the config are seen from
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "vector_instructions": vector_instructions(),
        "devices": [str(device.device_kind) for device in jax.devices()],
        "processes": jax.process_count(),
        "network": describe_source(model_name),  # None: one of ours
        # None: it runs without being installed.
        "packages": {name: next((one.version for one in distributions(name=name)), None) for name in PACKAGES},
    }


def processor() -> str:
    """The model of the host's processor, as far as the system tells."""
    return _cpu_info("model name") or platform.processor() or platform.machine()


def vector_instructions() -> list[str]:
    """The instructions that decide in which order a CPU sums: with others, the same run rounds otherwise.

    Sorted names as the system lists them (`avx2`, `avx512f`, `fma`, `sve`); empty where it lists none.
    """
    listed = (_cpu_info("flags") or _cpu_info("Features")).split()
    return sorted({name for name in listed if name.startswith(VECTOR_INSTRUCTIONS)})


def _cpu_info(key: str) -> str:
    """The first value of a key; empty where there is none, as on other systems than Linux."""
    if not CPU_INFO.exists():
        return ""
    with CPU_INFO.open() as lines:  # up to the key alone: every core has a block, and each takes the system time
        pairs = (line.partition(":") for line in lines)
        return next((value.strip() for name, _, value in pairs if name.strip() == key), "")


def _commit() -> str | None:
    """Commit of the source tree, with "-dirty" where tracked files differ; None outside a git checkout."""
    root = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "-C", root, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None  # installed as a package, or git is not there: there is no commit to name
    return described.stdout.strip()
