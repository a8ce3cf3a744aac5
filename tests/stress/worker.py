"""A process that runs case after case on a folder: what came of each, and the memory that it took."""

from __future__ import annotations

import dataclasses
import shutil
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict
from stress.runs import hush

from tfcam_jax import training as train
from tfcam_jax.errors import ConfigError, UserError
from tfcam_jax.evaluation import evaluate

_LONGEST = 120.0  # a network is compiled, maybe beside other work
ACTIONS = ("train", "continue", "evaluate")


@dataclasses.dataclass(frozen=True)
class Case:
    """What is odd about a folder, and what is run on it.

    Attributes:
      kind: of trial, a row of the table.
      file: below the case's folder; or the key of a config.
      how: the damage, or the value, in words.
      action: train (a new run), continue, evaluate, or weights (a new run that begins from `file`).
      value: of the config's key; None: of none.
    """

    kind: str
    file: str
    how: str
    action: str
    value: Any = None


class Worker:
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
    """What the process runs: reads cases, answers with results, warnings, errors and the most memory it had (MiB)."""
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
        Path("/proc/self/clear_refs").write_text("5")  # the most memory is counted anew
        answer: dict[str, Any] = {}
        try:
            answer["result"] = _run(case, config, folder / "case")
        except Exception as error:  # all are answers
            answer["error"] = f"{type(error).__name__}: {error}"
            answer["traceback"] = "" if isinstance(error, UserError) else traceback.format_exc()
        connection.send(answer | {"warnings": list(warnings), "peak": _peak()})


def _peak() -> float:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024


def _run(case: Case, config: ConfigDict, folder: Path) -> Any:
    config = config.copy_and_resolve_references()
    config.data.manifest = str(folder / "data/manifest.csv")
    if case.action == "evaluate":
        return evaluate(folder / "run", out=folder / "evaluation", faithfulness_images=0)
    if case.action == "continue":
        return train.train(config, folder / "run")
    config.epochs = 1
    if case.action == "weights":
        config.model.name, config.data.image_size = "mobilenet_v2", 64
        config.model.weights = str(folder / case.file)
    if case.value is not None:
        try:
            config.update_from_flattened_dict({case.file: case.value})
        except (TypeError, ValueError) as error:
            raise ConfigError(f"config.{case.file} is {case.value!r}: {error}") from error
    return train.train(config, folder / "new")


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
        _run(_case("continue"), config, folder / "case")
    except KeyboardInterrupt:
        pass
    finally:
        train.MetricWindow.add = add
    shutil.copytree(folder / "case", folder / "sound")
    results = {}
    for action in ACTIONS:
        restore(folder)
        results[action] = _run(_case(action), config, folder / "case")
    return results


def _case(action: str) -> Case:
    return Case("sound", "", "", action)


def restore(folder: Path) -> None:
    """Makes the case's folder a copy of the sound one, as old as that."""
    shutil.rmtree(folder / "case", ignore_errors=True)
    shutil.copytree(folder / "sound", folder / "case")
