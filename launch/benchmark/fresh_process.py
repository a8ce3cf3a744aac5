"""Python processes of their own: with other settings of the environment, or to be measured from their start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


def start_python(code: str, environment: Mapping[str, str], **pipes: Any) -> subprocess.Popen[str]:
    """Starts a process that finds what this one can import and then runs `code`.

    Args:
      code: a program.
      environment: what changes of this process's.
      pipes: `stdin`, `stdout`, `stderr` of `subprocess.Popen`.
    """
    path = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, text=True, **pipes)


def call_afresh(module: str, call: str, environment: Mapping[str, str]) -> Any:
    """What `call`, an expression in the names of `module`, gives in a new process; JSON-able.

    `begin` is there too: `time.perf_counter()` before anything was imported.

    Raises:
      RuntimeError: the process failed; with the end of what it said.
    """
    code = f"import time; begin = time.perf_counter(); import json; from {module} import *; print(json.dumps({call}))"
    with start_python(code, environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        said, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{call} failed:\n{errors[-3000:]}")
    return json.loads(said.splitlines()[-1])
