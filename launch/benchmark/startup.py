"""How long a fresh process takes to its first train step, stage by stage."""

from __future__ import annotations

import importlib
import time
from typing import Any

import jax
import numpy as np

from launch.benchmark.cases import (
    Case,
    abstract_batch,
    abstract_state,
    build_model,
    compile_step,
    device_batch,
    optimizer,
    train_step,
)
from launch.benchmark.fresh_process import call_afresh
from tfcam_jax import steps
from tfcam_jax.models.initialization import initialize
from tfcam_jax.run.garbage import collect_rarely
from tfcam_jax.run.kept_step import FOLDER, keep_trace

STAGES = ("import", "initialize", "trace", "compile", "first step")


def measure_jax(case: Case, cache_dir: str, strategy: str = "opposed") -> dict[str, float]:
    """Seconds by stage of a process that uses the caches in `cache_dir`."""
    environment = {"JAX_COMPILATION_CACHE_DIR": cache_dir, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3"}
    environment[FOLDER] = cache_dir
    return call_afresh(__name__, f"jax_stages(begin, {tuple(case)!r}, {strategy!r})", environment)


def measure_torch(case: Case) -> dict[str, float]:
    """The same of a process that takes a plain step in PyTorch; it traces and compiles nothing."""
    return call_afresh(__name__, f"torch_stages({tuple(case)!r})", {})


def jax_stages(begin: float, fields: tuple[Any, ...], strategy: str) -> dict[str, float]:
    """Runs in the measured process: to a train step as `launch/train.py` gets there, but for reading data.

    Args:
      begin: `time.perf_counter()` before anything was imported.
      fields: of the case.
      strategy: of the step.
    """
    collect_rarely()
    importlib.import_module("tfcam_jax.training")
    times = [begin, time.perf_counter()]
    clock = lambda: times.append(time.perf_counter())
    case = Case(*fields)
    variables = initialize(build_model(case), jax.random.key(0), case.image_size)
    jax.block_until_ready(variables)
    clock()
    shapes = abstract_state(case), abstract_batch(case)
    kept = keep_trace(train_step(case, strategy), case=case, strategy=strategy)
    lowered = jax.jit(kept, donate_argnums=0).lower(*shapes)
    clock()
    compiled = compile_step(lowered)
    clock()
    state = steps.create_train_state(variables, optimizer())
    jax.block_until_ready(compiled(state, device_batch(case)))
    clock()
    return dict(zip(STAGES, np.diff(times).tolist(), strict=True))


def torch_stages(fields: tuple[Any, ...]) -> dict[str, float]:
    """Runs in the measured process; what this package imports for itself is not counted."""
    torch_work = importlib.import_module("launch.benchmark.torch_work")
    times = [time.perf_counter()]
    torch_work.import_torch()
    times.append(time.perf_counter())
    step = torch_work.cross_entropy_step(Case(*fields))
    times.append(time.perf_counter())
    step()
    times.append(time.perf_counter())
    return dict(zip(("import", "initialize", "first step"), np.diff(times).tolist(), strict=True))
