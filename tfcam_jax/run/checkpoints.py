"""Orbax checkpoints of a run, one folder per step: the latest two, to continue from, and the best two by validation.

checkpoints/<step>/state    the train state
checkpoints/<step>/record   JSON: where training stands, validation figures, fingerprints of the state
checkpoints.damaged/        what was found damaged when the run was continued
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, LatestN

from ..devices.distributed import is_first, wait_for_all
from ..errors import UserError
from .fingerprints import checksum_json, describe_leaves, fingerprint_tree

# Of the folder's layout and the record's keys. 1 kept the latest and the best in two folders, without fingerprints.
FORMAT = 2

_KEPT = 2
# Where old checkpoints go first: a kill in the middle of removing one must not leave half of it among the others.
_DELETED = ".deleted"


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that is absent, damaged or can't be written."""


class CheckpointVersionError(UserError, RuntimeError):
    """A sound checkpoint of another version of this project, or of another model than the one asked for."""


def tell_version(place: Path, number: Any) -> str:
    """What to say of a folder whose format's number is not `FORMAT`."""
    age = "an older" if isinstance(number, int) and number < FORMAT else "a newer"
    return (
        f"{place} was written by {age} version of this project (format {number}; this one reads {FORMAT}). Use that "
        "version, whose commit stands in run.json, or train again in another --workdir."
    )


class Checkpoints:
    """The `checkpoints` of a workdir; a context manager.

    Saving returns before the files are written; leaving the context waits for them. A checkpoint that is not complete
    does not count, and an older one goes only once its successor is complete. What is read is proved to be what was
    written: CheckpointError of a damaged checkpoint, CheckpointVersionError of one of another version or model.

    Args:
      workdir: folder of the run.
      read_only: for readers beside a run that may be going on.
    """

    def __init__(self, workdir: Path, read_only: bool = False):
        self.folder = workdir.resolve() / "checkpoints"
        if any((self.folder / name).is_dir() for name in ("latest", "best")):
            raise CheckpointVersionError(tell_version(self.folder, 1))
        self._scores: dict[int, float] = {}
        self._writes = not read_only and is_first()
        self._remove("*.orbax-checkpoint-tmp*")  # what a kill left
        options = ocp.CheckpointManagerOptions(
            create=not read_only,  # Orbax's own `read_only` warns of itself, and leaves out no more than this
            todelete_subdir=None if read_only else _DELETED,
            preservation_policy=AnyPreservationPolicy([LatestN(_KEPT), _KeepBest(self._scores)]),
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        try:
            self.wait()
        except CheckpointError:
            if kind is None:  # else the error under way is the first cause; Orbax has logged this one
                raise
        finally:
            try:
                self._remove(f"{_DELETED}/*")
                if self._writes and (self.folder / _DELETED).is_dir():
                    (self.folder / _DELETED).rmdir()
                self._manager.close()
            except Exception as error:  # as in `wait`, which has told it
                logging.warning("closing %s: %s", self.folder, error)

    def _remove(self, pattern: str) -> None:
        """Removes folders, in the one process that does."""
        for path in list(self.folder.glob(pattern)) if self._writes else ():
            shutil.rmtree(path)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def path(self, step: int) -> Path:
        """The folder of a checkpoint."""
        return self.folder / str(step)

    def save(self, step: int, state: Any, record: dict[str, Any], score: float | None = None) -> bool:
        """Starts to save: takes the state, a pytree of arrays, off the device and leaves the rest to a thread.

        `record` is JSON-able; `score`, of the validation, is larger for the better, None where there was none. Returns
        whether it is the best so far, the later of two equal ones. Raises CheckpointError if there is one of this step
        or a later one already, or the one before could not be written.
        """
        self._remove(f"{_DELETED}/*")
        prints = fingerprint_tree(state)
        leaves = {name: [*what, prints[name]] for name, what in describe_leaves(state).items()}
        record = {**record, "format": FORMAT, "step": step, "score": score, "leaves": leaves}
        record = json.loads(json.dumps({**record, "crc32": checksum_json(record)}, allow_nan=False))
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))
        if score is not None:
            self._scores[step] = score
        if not self._told(lambda: self._manager.save(step, args=arguments)):
            raise CheckpointError(f"{self.folder} holds a checkpoint of step {step} or later already")
        return score is not None and score == max(self._scores.values())

    def check(self) -> None:
        """Raises CheckpointError if a save in the background has failed; does not wait."""
        self._told(self._manager.check_for_errors)

    def wait(self) -> None:
        """Waits for saves in the background. Raises CheckpointError if one has failed."""
        self._told(self._manager.wait_until_finished)
        self.check()

    def _told(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:  # Orbax raises what TensorStore or the file system raised
            sound = [step for step in self.steps() if self.path(step).is_dir()]
            kept = f"The checkpoint of step {sound[-1]} is complete" if sound else "There is none before it"
            raise CheckpointError(
                f"a checkpoint could not be written to {self.folder}: {_first_line(error)}. {kept}. Mend the cause "
                "(a full disk, a lost mount), then give the same command again."
            ) from error

    def delete(self, step: int) -> None:
        """Removes a checkpoint that is to be written anew."""
        self._manager.delete(step)

    def record(self, step: int) -> dict[str, Any]:
        """The record of a checkpoint."""
        record = self._restore(step, "record", record=ocp.args.JsonRestore()).record
        if not isinstance(record, dict) or not {"crc32", "format"} <= record.keys():
            raise self._damaged(step, "record", "keys are missing")
        if checksum_json({key: value for key, value in record.items() if key != "crc32"}) != record["crc32"]:
            raise self._damaged(step, "record", "its checksum is wrong")
        if record["format"] != FORMAT:
            raise CheckpointVersionError(tell_version(self.path(step), record["format"]))
        if record["step"] != step:
            raise self._damaged(step, "record", f"it is of step {record['step']}")
        return record

    def newest_record(self) -> dict[str, Any] | None:
        """The record of the newest checkpoint whose record is sound; None without one."""
        for step in reversed(self.steps()):
            with contextlib.suppress(CheckpointError):  # of a damaged one restoring tells
                return self.record(step)
        return None

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """A checkpoint's state and record; `like` is such a state, with the shardings wanted, abstract or not."""
        record = self.record(step)
        wanted, stored = describe_leaves(like), {name: what[:2] for name, what in record["leaves"].items()}
        if wanted != stored:
            names = sorted(name for name in wanted.keys() | stored.keys() if wanted.get(name) != stored.get(name))
            raise CheckpointVersionError(
                f"{self.path(step)} holds another model or optimiser than this config and version make: {names[0]} is "
                f"{stored.get(names[0], 'absent')} there, {wanted.get(names[0], 'absent')} here"
                f" ({len(names)} differences). Use the version whose commit stands in run.json."
            )
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        state = self._restore(step, "state", state=ocp.args.StandardRestore(target)).state
        wrong = [name for name, value in fingerprint_tree(state).items() if value != record["leaves"][name][2]]
        if wrong:
            raise self._damaged(step, "state", f"{wrong[0]} does not have the fingerprint that it was written with")
        return state, record

    def restore_latest(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest sound checkpoint, to continue from; None if there is none.

        Damaged ones are moved to `checkpoints.damaged`, with a warning: training writes their steps anew. All that are
        kept are read once, so that a damaged best one is known now.
        """
        found, faults = None, {}
        for step in reversed(self.steps()):
            try:
                state, record = self.restore(step, like)
            except CheckpointError as error:
                faults[step] = error
                continue
            found = found or (state, record)
            if record["score"] is not None:
                self._scores[step] = record["score"]
        if faults:
            self._set_aside(faults, found and found[1]["step"])
        return found

    def best(self) -> int | None:
        """The step of the best checkpoint by validation, the later of two equal ones; None if none was validated."""
        best = _best(map(self.record, self.steps()))
        return None if best is None else best["step"]

    def restore_best(self, like: Callable[[dict[str, Any]], Any]) -> tuple[Any, dict[str, Any]] | None:
        """The best checkpoint by validation; None if none was validated. `like` gives of a record what `restore` takes.

        Raises CheckpointError if it is damaged; the message says which sound one is left.
        """
        self.wait()
        try:
            step = self.best()
            return None if step is None else self.restore(step, like(self.record(step)))
        except CheckpointError as error:
            if not all(self.path(step).is_dir() for step in self.steps()):
                self._manager.reload()  # a training that goes on beside has put a newer one in its place
                return self.restore_best(like)
            raise CheckpointError(f"{error} {self._remedy(like)}") from error

    def _remedy(self, like: Callable[[dict[str, Any]], Any]) -> str:
        """What to do about a damaged best checkpoint."""
        sound: list[dict[str, Any]] = []
        for step in self.steps():
            with contextlib.suppress(CheckpointError):
                sound.append(self.restore(step, like(self.record(step)))[1])
        best = _best(sound)
        if best is None:
            return "No other validated checkpoint is sound: restore the folder from a copy, or train again."
        return (
            "Restore the folder from a copy, or continue the training with launch/train.py, which sets damaged ones "
            f"aside: the best sound one is of step {best['step']} (epoch {best['epoch']})."
        )

    def _restore(self, step: int, part: str, **arguments: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**arguments))
        except Exception as error:  # Orbax raises what TensorStore, JSON or the file system raised
            raise self._damaged(step, part, f"{type(error).__name__}: {_first_line(error)}") from error

    def _damaged(self, step: int, part: str, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.path(step) / part} is damaged: {reason}.")

    def _set_aside(self, faults: dict[int, CheckpointError], restored: int | None) -> None:
        aside = self.folder.with_name("checkpoints.damaged")
        for step, error in faults.items():
            if restored is None:
                outcome = "No sound one is left: training starts from its beginning"
            elif restored < step:
                outcome = f"Training continues from the checkpoint of step {restored} and comes to the same result"
            else:
                outcome = "If it was the best one, the next best takes its place"
            logging.warning("%s %s. The folder was moved to %s.", error, outcome, aside)
            if is_first():
                aside.mkdir(exist_ok=True)
                number = len(list(aside.glob(f"{step}.*")))
                shutil.move(self.path(step), aside / f"{step}.{number}")
        wait_for_all("set damaged checkpoints aside")
        self._manager.reload()


class _KeepBest:
    """Preservation policy: the best two by score, the later of two equal ones."""

    def __init__(self, scores: dict[int, float]):
        self._scores = scores

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """See `orbax.checkpoint.checkpoint_managers.PreservationPolicy`."""
        validated = [info.step for info in checkpoints if info.step in self._scores]
        best = sorted(validated, key=lambda step: (self._scores[step], step))[-_KEPT:]
        return [info.step in best for info in checkpoints]


def _best(records: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The record of the largest score, the later of two equal ones; None if none has one."""
    validated = [record for record in records if record["score"] is not None]
    return max(validated, key=lambda record: (record["score"], record["step"]), default=None)


def _first_line(error: Exception) -> str:
    """A message's first line; of a long one the beginning and the end, where TensorStore tells the cause."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return line if len(line) < 300 else f"{line[:140]} ... {line[-140:]}"
