"""Metrics as JSON lines and as TensorBoard events."""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import message_factory

# Of TensorBoard the formats alone: what else it has would look for TensorFlow.
from tensorboard.compat.proto import event_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from ..devices.distributed import is_first
from ..errors import UserError

# Where a metrics file stood: its length in bytes and the CRC-32 of them.
Position = dict[str, int]

START: Position = {"bytes": 0, "crc32": 0}

_Event = message_factory.GetMessageClass(event_pb2.DESCRIPTOR.message_types_by_name["Event"])


class MetricsError(UserError, RuntimeError):
    """Metrics that can't be written, or are not those that a checkpoint counts on."""


class MetricWriter:
    """Appends scalars to `metrics.jsonl` and `tensorboard/` of a workdir; a context manager.

    Args:
      workdir: existing folder.
      position: what `sync` returned when the checkpoint was saved that the run continues from. Whatever was written
        later, by a run that was cut off after it, is dropped, so that no line is there twice and none is half.
      step: of that checkpoint; TensorBoard leaves out what an earlier run wrote of later steps.

    Raises:
      MetricsError: the file is not the one that `position` was taken of.
    """

    def __init__(self, workdir: Path, position: Position = START, step: int = 0):
        self._path = workdir / "metrics.jsonl"
        _check_lines(self._path, position)
        self._position = dict(position)
        # Unbuffered: what `write` could not write is not tried again when the file is closed.
        self._lines = self._told(lambda: self._path.open("ab", buffering=0))
        self._told(lambda: self._lines.truncate(position["bytes"]))
        # Not TensorBoard's own writer: it writes from a thread, where a full disk would end the thread alone.
        events = workdir / "tensorboard" / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"
        events.parent.mkdir(exist_ok=True)
        self._events = RecordWriter(self._told(lambda: events.open("wb")))
        self._add(file_version="brain.Event:2")
        self._add(step=step + 1, session_log={"status": "START"})

    def write(self, step: int, scalars: dict[str, float | int | None]) -> None:
        """Writes one line; a None (a figure that does not exist) is `null` there and left out of TensorBoard.

        Raises MetricsError if the disk is full, or the like.
        """
        line = (json.dumps({"step": step, **scalars}) + "\n").encode()
        rest = line
        while rest:  # a disk that fills up takes a part first, and raises then
            rest = rest[self._told(lambda part=rest: self._lines.write(part)) :]
        self._position["bytes"] += len(line)
        self._position["crc32"] = zlib.crc32(line, self._position["crc32"])
        self.write_timing(step, scalars)

    def write_timing(self, step: int, scalars: Mapping[str, float | int | None]) -> None:
        """Writes for TensorBoard alone: the lines of `metrics.jsonl` are the same however long anything took."""
        for name, value in scalars.items():
            if value is not None:
                self._add(step=step, summary={"value": [{"tag": name, "simple_value": value}]})

    def sync(self) -> Position:
        """Waits until all is on the disk, and says where the lines end: a checkpoint saved now counts on them."""
        self._told(lambda: os.fsync(self._lines.fileno()))
        self._told(self._events.flush)
        return dict(self._position)

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        self._lines.close()
        try:
            self._told(self._events.close)
        except MetricsError:
            if kind is None:  # else the error under way is the first cause
                raise

    def _add(self, **fields: Any) -> None:
        event = _Event(wall_time=time.time(), **fields).SerializeToString()
        self._told(lambda: self._events.write(event))

    def _told(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except OSError as error:
            raise MetricsError(
                f"{error.filename or self._path.parent}: metrics can't be written ({error.strerror}). Mend the cause, "
                "then give the same command again: it continues from the last checkpoint."
            ) from error


class _SilentWriter(MetricWriter):
    """For the processes of a run that are not the first: takes the same, and writes nothing."""

    def __init__(self, position: Position):
        self._position = position

    def write(self, step: int, scalars: dict[str, float | int | None]) -> None:
        pass

    def write_timing(self, step: int, scalars: Mapping[str, float | int | None]) -> None:
        pass

    def sync(self) -> Position:
        return dict(self._position)  # when the run was started; only the first process's is stored

    def __exit__(self, *exception: object) -> None:
        pass


def open_writer(workdir: Path, position: Position, step: int) -> MetricWriter:
    """The writer of this process, as `MetricWriter`; one that writes nothing in all but a run's first process."""
    return MetricWriter(workdir, position, step) if is_first() else _SilentWriter(position)


def _check_lines(path: Path, position: Position) -> None:
    found = path.read_bytes()[: position["bytes"]] if path.exists() else b""
    if len(found) < position["bytes"] or zlib.crc32(found) != position["crc32"]:
        state = "is missing" if not path.exists() else "was cut or changed"
        raise MetricsError(
            f"{path} {state}: the checkpoint counts on the {position['bytes']} bytes that it held then. Restore the "
            "file from a copy, or train again in another --workdir."
        )
