"""Damaged inputs: images, maps, manifests, configs and checkpoints with flipped bits or cut short, and what follows."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import random
import shutil
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict
from stress.runs import hush
from tqdm import tqdm

from tfcam_jax import training as train
from tfcam_jax.errors import UserError
from tfcam_jax.evaluation import evaluate

KINDS = ("image", "map", "manifest", "config", "checkpoint")
OUTCOMES = {
    "named": "stopped with an error that names the file",
    "same": "the same result, to the bit",
    "recovered": "a warning that names the checkpoint, and the same result from the one before",
    "replaced": "a warning that names the best checkpoint, and the result of the next best",
    "pixels": "other pixels: JPEG and NPY have no checksum, the file says something else now",
    "rows": "other rows: a CSV has no checksum, the manifest says something else now",
    "unnamed": "an error that does not name the file",
    "hang": "no end within a minute",
    "wrong": "another result without a word",
}
# Those that must not come.
FAILURES = ("unnamed", "hang", "wrong")

_LONGEST = 60.0


@dataclasses.dataclass(frozen=True)
class Case:
    """A damaged file and what is run on it.

    Attributes:
      kind: of KINDS.
      file: below the case's folder.
      how: the damage, in words.
      action: train (a new run), continue or evaluate.
    """

    kind: str
    file: str
    how: str
    action: str


def damage_inputs(
    config: ConfigDict, folder: Path, context: Any, count: int, rng: random.Random, until: float
) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Damages one file of a sound folder at a time and runs what reads it, in a process with a time limit.

    Args:
      config: of a short run on the data in `folder / "data"`.
      folder: for the copies and the processes' output.
      context: of `runs.start_server`.
      count: damaged files.
      rng: decides the damage.
      until: of `time.monotonic`.

    Returns:
      Counts by kind and outcome, and a line for each failure.
    """
    counts = {kind: dict.fromkeys(OUTCOMES, 0) for kind in KINDS}
    notes: list[str] = []
    worker = _Worker(context, config, folder)
    sound = worker.prepare()
    try:
        for number in tqdm(range(count), desc="damaged inputs", disable=None):
            if time.monotonic() > until:
                break
            case = _damage(folder, KINDS[number % len(KINDS)], rng)
            outcome, told = _judge(folder, case, sound, worker.run(case))
            counts[case.kind][outcome] += 1
            if outcome in FAILURES:
                notes.append(f"{outcome}: {case.action} on {case.file}, {case.how}: {told}")
    finally:
        worker.stop()
    return counts, notes


class _Worker:
    """A process that runs case after case; after a hang, another one."""

    def __init__(self, context: Any, config: ConfigDict, folder: Path):
        self._context, self._config, self._folder = context, config, folder
        self._start()

    def _start(self) -> None:
        self._connection, other = self._context.Pipe()
        self._process = self._context.Process(target=serve, args=(self._config, self._folder, other), daemon=True)
        self._process.start()
        other.close()

    def prepare(self) -> dict[str, Any]:
        """Makes the sound runs; returns their results by action."""
        self._connection.send(None)
        return self._connection.recv()

    def run(self, case: Case) -> dict[str, Any] | None:
        """What came of a case; None: nothing in time."""
        self._connection.send(case)
        if self._connection.poll(_LONGEST):
            try:
                return self._connection.recv()
            except EOFError:  # the process itself died
                answer = {"error": "the process died", "traceback": f"exit status {self._process.exitcode}"}
        else:
            answer = None
        self.stop()
        self._start()
        return answer

    def stop(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()


def serve(config: ConfigDict, folder: Path, connection: Connection) -> None:
    """What the process runs: reads cases, answers with results, warnings and errors."""
    hush(folder / "inputs.log")
    logging.set_verbosity(logging.WARNING)
    warnings: list[str] = []
    handler = logging.logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())
    logging.get_absl_logger().addHandler(handler)
    while True:
        case = connection.recv()
        if case is None:
            connection.send(_prepare(config, folder))
            continue
        warnings.clear()
        answer: dict[str, Any] = {}
        try:
            answer["result"] = _run(case.action, config, folder / "case")
        except Exception as error:  # all are answers
            answer["error"] = f"{type(error).__name__}: {error}"
            answer["traceback"] = "" if isinstance(error, UserError) else traceback.format_exc()
        connection.send(answer | {"warnings": list(warnings)})


def _run(action: str, config: ConfigDict, folder: Path) -> Any:
    config = ConfigDict(config)
    config.data.manifest = str(folder / "data/manifest.csv")
    if action == "evaluate":
        return evaluate(folder / "run", out=folder / "evaluation", faithfulness_images=0)
    if action == "train":
        config.epochs = 1
    return train.train(config, folder / ("new" if action == "train" else "run"))


def _prepare(config: ConfigDict, folder: Path) -> dict[str, Any]:
    """`sound/`: data and a run that was stopped in the last epoch; returns what the actions give on a copy of it."""
    shutil.rmtree(folder / "case", ignore_errors=True)
    shutil.copytree(folder / "data", folder / "case/data")
    add = train.MetricWindow.add

    def dies_in_the_last_epoch(window: Any, *arguments: Any) -> None:
        add(window, *arguments)
        if window._last_step == 5 * config.epochs - 1:
            raise KeyboardInterrupt

    train.MetricWindow.add = dies_in_the_last_epoch
    try:
        _run("continue", config, folder / "case")
    except KeyboardInterrupt:
        pass
    finally:
        train.MetricWindow.add = add
    shutil.copytree(folder / "case", folder / "sound")
    results = {}
    for action in ("train", "continue", "evaluate"):
        _restore(folder)
        results[action] = _run(action, config, folder / "case")
    return results


def _restore(folder: Path) -> None:
    shutil.rmtree(folder / "case", ignore_errors=True)
    shutil.copytree(folder / "sound", folder / "case")


def _damage(folder: Path, kind: str, rng: random.Random) -> Case:
    """Copies what is sound and damages one file of the copy."""
    _restore(folder)
    case = folder / "case"
    patterns = {
        "image": "data/images/*",
        "map": "data/maps/*",
        "manifest": "data/manifest.csv",
        "config": "run/config.json",
        "checkpoint": "run/checkpoints/**/*",
    }
    path = rng.choice(sorted(path for path in case.glob(patterns[kind]) if path.is_file()))
    content = bytearray(path.read_bytes())
    how = rng.choice(("bit", "bit", "bytes", "cut", "empty", "gone"))
    if how == "bit" and content:
        place = rng.randrange(8 * len(content))
        content[place // 8] ^= 1 << place % 8
        how = f"bit {place} flipped"
    elif how == "bytes" and content:
        place = rng.randrange(len(content))
        content[place : place + 4] = rng.randbytes(len(content[place : place + 4]))
        how = f"4 bytes from {place} overwritten"
    elif how == "cut" and content:
        place = rng.randrange(len(content))
        del content[place:]
        how = f"cut after {place} bytes"
    else:
        content.clear()
        how = "gone" if how == "gone" else "emptied"
    path.unlink()
    if how != "gone":
        path.write_bytes(content)
    actions = ("continue", "evaluate") if kind in ("config", "checkpoint") else ("train", "train", "continue")
    return Case(kind, str(path.relative_to(case)), how, rng.choice(actions))


def _judge(folder: Path, case: Case, sound: dict[str, Any], answer: dict[str, Any] | None) -> tuple[str, str]:
    """The outcome, and what was told."""
    if answer is None:
        return "hang", ""
    if "error" in answer:
        named = not answer["traceback"] and _names(case, answer["error"])
        return "named" if named else "unnamed", f"{answer['error']} {answer['traceback']}"
    warned = any("checkpoints" in line and "damaged" in line for line in answer["warnings"])
    # JSON, as results.json has it; a NaN would not equal itself.
    if json.dumps(answer["result"]) == json.dumps(sound[case.action]):
        return "recovered" if warned else "same", ""
    if case.kind == "checkpoint" and warned and case.action == "continue":
        return "replaced", ""
    before, after = folder / "sound" / case.file, folder / "case" / case.file
    if case.kind == "manifest" and _rows(before) != _rows(after):
        return "rows", ""
    if case.kind in ("image", "map") and before.suffix in (".jpg", ".npy"):
        return "pixels", ""
    return "wrong", f"warnings: {answer['warnings']}"


def _names(case: Case, message: str) -> bool:
    """Whether a message leads to the file: names it, or its checkpoint."""
    if case.kind == "checkpoint":
        return "/".join(Path(case.file).parts[1:3]) in message
    return Path(case.file).name in message


def _rows(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
