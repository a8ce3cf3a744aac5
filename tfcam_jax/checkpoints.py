"""Orbax checkpoints of a run: the latest epoch, to continue from, and the best by validation, to evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp


class CheckpointError(RuntimeError):
    """A checkpoint that is absent or can't be read."""


class Checkpoints:
    """The `checkpoints/latest` and `checkpoints/best` of a workdir; a context manager.

    Saving returns before the files are written; leaving the context waits for them. Each checkpoint is a state and
    a small JSON-able record (epoch, validation figures).
    """

    def __init__(self, workdir: Path):
        self._folder = workdir.resolve() / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=1, create=True)
        self._managers = {
            name: ocp.CheckpointManager(self._folder / name, options=options) for name in ("latest", "best")
        }

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        for manager in self._managers.values():
            manager.wait_until_finished()
            manager.close()

    def save(self, name: str, epoch: int, state: Any, record: dict[str, Any]) -> None:
        """Saves `state` as "latest" or "best"; the one before goes once this one is complete.

        Raises:
          CheckpointError: there is a checkpoint of this epoch already.
        """
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))
        if not self._managers[name].save(epoch, args=arguments):
            raise CheckpointError(f"{self._folder / name} holds a checkpoint of epoch {epoch} or later already")

    def restore(self, name: str, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """Restores "latest" or "best".

        Args:
          name: which.
          like: a state of the same tree, shapes, dtypes and shardings; abstract arrays will do.

        Returns:
          `(state, record)`, or None where nothing was saved.

        Raises:
          CheckpointError: the files don't fit `like` or are damaged.
        """
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restored = self._restore(name, state=ocp.args.StandardRestore(target), record=ocp.args.JsonRestore())
        return restored and (restored.state, restored.record)

    def record(self, name: str) -> dict[str, Any] | None:
        """The record of "latest" or "best" without its state, which it may take to know how to restore that.

        Raises:
          CheckpointError: it is damaged.
        """
        restored = self._restore(name, record=ocp.args.JsonRestore())
        return restored and restored.record

    def _restore(self, name: str, **arguments: Any) -> Any:
        manager = self._managers[name]
        manager.wait_until_finished()
        epoch = manager.latest_step()
        if epoch is None:
            return None
        try:
            return manager.restore(epoch, args=ocp.args.Composite(**arguments))
        except Exception as error:  # Orbax raises what TensorStore, JSON or the file system raised
            raise CheckpointError(
                f"{self._folder / name / str(epoch)} can't be restored: it is damaged, or written by another version. "
                f"({type(error).__name__}: {error})"
            ) from error
