"""The folder of one run: its config, its provenance, and the refusal to overwrite another run.

config.json     the config, enough to rebuild the run without its Python file
run.json        versions, commit, devices, command
metrics.jsonl   one JSON object a line
checkpoints/    latest and best
results.json    figures of the best checkpoint
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from .provenance import collect_provenance


class WorkdirError(RuntimeError):
    """A folder that can't serve as this run's."""


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never half of one."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 so that a reader sees the old file or the new one, never half of one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def check_workdir(workdir: Path, config: ConfigDict) -> bool:
    """Whether the folder holds this very run already. Touches nothing.

    Raises:
      WorkdirError: it holds a run with another config, or files that are no run.
    """
    path = workdir / "config.json"
    if not path.exists():
        if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
            raise WorkdirError(f"{workdir} exists and is not a run of this project. Choose another --workdir.")
        return False
    stored, wanted = _flatten(json.loads(path.read_text(encoding="utf-8"))), _flatten(_as_json(config))
    differences = [
        f"  {key}: {stored.get(key, '(absent)')!r} there, {wanted.get(key, '(absent)')!r} asked for"
        for key in sorted(stored.keys() | wanted.keys())
        if stored.get(key, "(absent)") != wanted.get(key, "(absent)")
    ]
    if differences:
        raise WorkdirError(
            f"{workdir} holds a run with another config:\n" + "\n".join(differences) + "\n"
            "Choose another --workdir, or repeat that run's settings to continue it."
        )
    return True


def create_workdir(workdir: Path, config: ConfigDict) -> None:
    """Makes the folder and writes config and provenance. `config.json` comes last: with it, the run exists."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "run.json", collect_provenance())
    write_json(workdir / "config.json", _as_json(config))


def load_config(workdir: Path) -> ConfigDict:
    """The config of a run, locked.

    Raises:
      WorkdirError: the folder holds no run, or its config can't be read.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise WorkdirError(f"{path} does not exist: {workdir} holds no run. Give the --workdir of a finished training.")
    try:
        return ConfigDict(json.loads(path.read_text(encoding="utf-8"))).lock()
    except ValueError as error:
        raise WorkdirError(f"{path} is damaged ({error}). Restore it, or train again in another --workdir.") from error


def _as_json(config: ConfigDict) -> dict[str, Any]:
    return json.loads(config.to_json())


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
