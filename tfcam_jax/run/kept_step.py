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

from ..errors import WorkdirError
from ..steps import Batch, StepMetrics, TrainState
from ..terms import Total
from .files import write_bytes

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


def keep_trace(step: TrainStep, **decisive: Any) -> TrainStep:
    """The step, to be compiled like it, by way of a trace that is kept, or the step itself where none is to be kept.

    The first start goes the same way as later ones, so that all run one program, to the same bits. A file that can't be
    read is a warning, and so is one that can't be written; the step is then traced. Only on CPUs, where it was tried.

    Args:
      step: a train step of one device.
      **decisive: what decides it, beside this package's code and the shapes of its arguments; values that JSON knows.
    """
    folder = os.environ.get(FOLDER)
    if not folder or jax.default_backend() != "cpu":
        return step

    def call(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        leaves, structure = jax.tree.flatten(state)
        shape_of = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
        shapes = jax.tree.map(shape_of, leaves), jax.tree.map(shape_of, batch)
        file = step_file(Path(folder).expanduser(), shapes=str(shapes), **decisive)
        exported = _load(file) or _trace(step, structure, shapes, file)
        updated, metrics = exported.call(leaves, batch)
        return jax.tree.unflatten(structure, updated), _from_plain(metrics)

    return call


def step_file(folder: Path, **decisive: Any) -> Path:
    """Where the trace of a step is kept that is decided by these values, which JSON knows.

    The name is a hash of them and of whatever else decides a trace: this package's code, the versions of the libraries,
    the settings of JAX and XLA, the kind of device. So a file that is found is the right one.
    """
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
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()}{_SUFFIX}"


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


def _trace(step: TrainStep, structure: Any, shapes: tuple[list[Any], Any], file: Path) -> export.Exported:
    """The step for arguments of these shapes, the state's as the leaves of this structure, and the file written."""

    def flat(leaves: list[Any], batch: Batch) -> tuple[list[Any], dict[str, Any]]:
        updated, metrics = step(jax.tree.unflatten(structure, leaves), batch)
        return jax.tree.leaves(updated), _to_plain(metrics)

    exported = export.export(jax.jit(flat))(*shapes)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(file, bytes(exported.serialize()))
    except (OSError, WorkdirError) as error:
        logging.warning("The traced step can't be kept (%s); the next start traces it anew.", error)
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
    write_bytes(file, hashlib.sha256(serialized).digest() + serialized)
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
