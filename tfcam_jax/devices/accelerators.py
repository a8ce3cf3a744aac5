"""The accelerators of this host, and how a process is given some of them, before jax starts in it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import ConfigError

# Of several the first is the one to set; on AMD's GPUs HIP heeds both, and numbers what ROCR_VISIBLE_DEVICES leaves.
_VARIABLES = {"cuda": ("CUDA_VISIBLE_DEVICES",), "rocm": ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")}
# The version, in several words and lines, says whose GPUs they are.
_COUNT = "import jax; d = jax.local_devices(); print(d[0].platform, len(d), *d[0].client.platform_version.split())"


@dataclass(frozen=True)
class Accelerators:
    """What jax finds on this host.

    Attributes:
      kind: `cuda`, `rocm`, another platform of jax's such as `tpu`, or `cpu` where there are none.
      count: how many a process as this one sees; 0 with `cpu`.
    """

    kind: str
    count: int

    @property
    def divisible(self) -> bool:
        """Whether processes can be given some of them each."""
        return self.kind in _VARIABLES and self.count > 1


def find_accelerators() -> Accelerators:
    """What jax finds here, asked in a process of its own, so that this one takes no memory of theirs.

    Where no plug-in of jax's for accelerators is installed, or jax is told to stay on the CPU, no process is started.
    Raises ConfigError where jax does not start.
    """
    if os.environ.get("JAX_PLATFORMS") == "cpu" or not _has_plugin():
        return Accelerators("cpu", 0)
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run([sys.executable, "-c", _COUNT], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise ConfigError(f"jax does not start on this host's devices: {reason}. JAX_PLATFORMS=cpu leaves them alone.")
    platform, count, version = done.stdout.splitlines()[-1].split(maxsplit=2)
    if platform == "cpu":
        return Accelerators("cpu", 0)
    kind = "rocm" if "rocm" in version.lower() else "cuda" if platform in ("gpu", "cuda") else platform
    return Accelerators(kind, int(count))


def show_only(found: Accelerators, numbers: range, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables with which a process sees only those accelerators of `found`, by their numbers there.

    Args:
      found: what is visible in `environment`, divisible.
      numbers: from 0 to `found.count - 1`.
      environment: of this process. A choice of the user's or the cluster's, by number, UUID or MIG name, is divided,
        never widened.
    """
    own = f"JAX_{found.kind.upper()}_VISIBLE_DEVICES"  # jax's own choice among those
    names = _VARIABLES[found.kind]
    variable = next((name for name in names if name in environment), names[0])
    listed = environment[variable].split(",") if variable in environment else [str(n) for n in range(found.count)]
    if own in environment and environment[own] != "all":
        variable, listed = own, environment[own].split(",")
    return {variable: ",".join(listed[number].strip() for number in numbers)}


def _has_plugin() -> bool:
    installed = any(importlib.util.find_spec(name) is not None for name in ("jax_plugins", "libtpu"))
    return installed or bool(importlib.metadata.entry_points(group="jax_plugins"))
