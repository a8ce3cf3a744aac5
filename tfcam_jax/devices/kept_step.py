"""A train step that is traced once: what tracing gives is kept on the disk, and a later start reads it.

Tracing a deep network takes seconds of Python at each start, before the compiled program can even be looked up in
JAX's own cache. What is kept is the program as JAX hands it to the compiler (`jax.export`), no machine code.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax import export

from ..steps import Batch, StepMetrics, TrainState
from ..terms import Total

# The folder that they are kept in; the launch scripts set it. Without it nothing is kept: whoever calls this package
# from Python may have changed what is traced without changing a file.
FOLDER = "TFCAM_JAX_STEPS_DIR"

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]

_PACKAGE = Path(__file__).parents[1]
_SUFFIX = ".step"
_DIGEST = hashlib.sha256().digest_size  # of the rest of the file, at its beginning
_MOST_FILES = 200
# Everything that has a part in tracing.
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "einops", "numpy", "jaxtyping")
# Of JAX's settings, those that have none.
_NOT_TRACED = ("cache", "log", "coordination", "profiler")


def step_file(**decisive: Any) -> Path | None:
    """Where the trace of a step is kept that is decided by these values, which JSON knows; None: nowhere.

    The name is a hash of them and of whatever else decides a trace: this package's code, the versions of the libraries,
    the settings of JAX and XLA, the kind of device. So a file that is found is the right one. Only for CPUs, where it
    was tried.
    """
    folder = os.environ.get(FOLDER)
    if not folder or jax.default_backend() != "cpu":
        return None
    settings = {name: repr(value) for name, value in jax.config.values.items() if not _is_apart(name)}
    everything = {
        "step": decisive,
        "code": _code(),
        "libraries": {name: metadata.version(name) for name in _LIBRARIES},
        "python": platform.python_version(),
        "settings": settings,
        "flags": os.environ.get("XLA_FLAGS", ""),
        "devices": [device.device_kind for device in jax.devices()],
    }
    text = json.dumps(everything, sort_keys=True, default=str)
    return Path(folder).expanduser() / f"{hashlib.sha256(text.encode()).hexdigest()}{_SUFFIX}"


def _is_apart(setting: str) -> bool:
    return any(word in setting for word in _NOT_TRACED)


@functools.cache
def _code() -> str:
    """A hash of this package's code."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(_PACKAGE)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def keep_step(step: TrainStep, file: Path, **compiling: Any) -> TrainStep:
    """The step by `trace_step`, once it is called, for the shapes that it is called with first."""
    found: list[TrainStep] = []

    def call(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        if not found:
            shape_of = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
            shapes = jax.tree.map(shape_of, state), jax.tree.map(shape_of, batch)
            found.append(trace_step(step, shapes[0], shapes[1], file, **compiling))
        return found[0](state, batch)

    return call


def trace_step(step: TrainStep, state: Any, batch: Any, file: Path, **compiling: Any) -> Any:
    """The step under `jax.jit`, its state donated, by way of the trace that a file keeps.

    The first start goes the same way, so that both run one program, to the same bits. A file that can't be read is a
    warning, and so is one that can't be written; the step is then traced.

    Args:
      step: a train step of one device.
      state: shapes and dtypes of its first argument.
      batch: of its second.
      file: of `step_file`; a hash of the shapes joins its name.
      **compiling: of `jax.jit`.
    """
    shapes = str([(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves((state, batch))])
    file = file.with_stem(f"{file.stem}-{hashlib.sha256(shapes.encode()).hexdigest()[:8]}")
    return jax.jit(_through(_load(file) or _trace(step, state, batch, file)), **compiling, donate_argnums=0)


def _through(exported: export.Exported) -> TrainStep:
    def call(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        leaves, structure = jax.tree.flatten(state)
        updated, metrics = exported.call(leaves, batch)
        return jax.tree.unflatten(structure, updated), _from_plain(metrics)

    return call


def _trace(step: TrainStep, state: Any, batch: Any, file: Path) -> export.Exported:
    """The step for arguments of these shapes, and the file written."""
    leaves, structure = jax.tree.flatten(state)

    def flat(leaves: list[Any], batch: Batch) -> tuple[list[Any], dict[str, Any]]:
        updated, metrics = step(jax.tree.unflatten(structure, leaves), batch)
        return jax.tree.leaves(updated), _to_plain(metrics)

    exported = export.export(jax.jit(flat))(leaves, batch)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(file, bytes(exported.serialize()))
    except OSError as error:
        logging.warning("The traced step can't be kept in %s (%s); the next start traces it anew.", file, error)
    return exported


def _load(file: Path) -> export.Exported | None:
    """None where there is none, or one that is damaged, which is told."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        logging.warning("The traced step in %s can't be read (%s): it is traced anew.", file, error)
        return None
    digest, serialized = content[:_DIGEST], content[_DIGEST:]
    # JAX notices few damages, and some only as it compiles.
    if digest != hashlib.sha256(serialized).digest():
        logging.warning("The traced step in %s is damaged: it is traced anew.", file)
        return None
    with contextlib.suppress(OSError):  # of a folder that is read alone, or another process took it away meanwhile
        os.utime(file)  # the oldest are taken away first
    return export.deserialize(bytearray(serialized))


def _write(file: Path, serialized: bytes) -> None:
    """Whole or not at all, and takes away the files that were not used for longest, half-written ones among them."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        partial.write_bytes(hashlib.sha256(serialized).digest() + serialized)
        partial.replace(file)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    kept = [(path, _last_used(path)) for path in file.parent.iterdir() if _SUFFIX in path.name]
    for path, _ in sorted(kept, key=lambda each: each[1])[:-_MOST_FILES]:
        path.unlink(missing_ok=True)


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # taken away by another process
        return 0.0


def _to_plain(metrics: StepMetrics) -> dict[str, Any]:
    """In the containers that `jax.export` knows."""
    terms = {name: tuple(total) for name, total in metrics.terms.items()}
    plain = {"terms": terms, "correct": tuple(metrics.correct), "term_norms": dict(metrics.term_norms)}
    return {**metrics._asdict(), **plain}


def _from_plain(plain: Mapping[str, Any]) -> StepMetrics:
    terms = {name: Total(*total) for name, total in plain["terms"].items()}
    return StepMetrics(**{**plain, "terms": terms, "correct": Total(*plain["correct"])})
