"""Calls in a process of their own: with other settings of the environment, or to be measured from its start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


def call_afresh(module: str, call: str, environment: Mapping[str, str]) -> Any:
    """What `call`, an expression in the names of `module`, gives in a new process; JSON-able.

    `begin` is there too: `time.perf_counter()` before anything was imported.

    Raises:
      RuntimeError: the process failed; with the end of what it said.
    """
    code = f"import time; begin = time.perf_counter(); import json; from {module} import *; print(json.dumps({call}))"
    path = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{call} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])
