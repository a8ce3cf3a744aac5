"""Metrics as JSON lines and as TensorBoard events."""

from __future__ import annotations

import json
from pathlib import Path

from tensorboardX import SummaryWriter


class MetricWriter:
    """Appends scalars to `metrics.jsonl` and `tensorboard/` of a workdir; a context manager.

    Args:
      workdir: existing folder.
      after_step: the step that the run continues from. Lines of later steps, left by a run that was cut off after
        its last checkpoint, are dropped, so that no step is there twice.
    """

    def __init__(self, workdir: Path, after_step: int = 0):
        self._path = workdir / "metrics.jsonl"
        if self._path.exists():
            _drop_after(self._path, after_step)
        self._lines = self._path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=after_step + 1)

    def write(self, step: int, scalars: dict[str, float | int | None]) -> None:
        """Writes one line; a None (a figure that does not exist) is `null` there and left out of TensorBoard."""
        self._lines.write(json.dumps({"step": step, **scalars}) + "\n")
        for name, value in scalars.items():
            if value is not None:
                self._events.add_scalar(name, value, step)

    def flush(self) -> None:
        self._lines.flush()
        self._events.flush()

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._lines.close()
        self._events.close()


def _drop_after(path: Path, step: int) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    # A line without its end was being written when the run died.
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    partial = path.with_name(".metrics.jsonl.partial")
    partial.write_text("".join(kept), encoding="utf-8")
    partial.replace(path)
