"""What of a run stays here when it is published: paths of this machine, names of images, commands, hosts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from flax import traverse_util

from ..run.workdir import PLACES

# Of `run.json`: what trained the model. Its command, host and processes are nobody's business.
_PROVENANCE = ("started", "commit", "python", "packages")


def without_paths(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A config with the file names alone of what are places of files on this machine, and the keys that it changed.

    These are the keys of `run.workdir.PLACES`, the weights that training began from where they are a file or folder
    here, and any other value that is an absolute path or begins in a home or parent folder; regular expressions are
    left alone.
    """
    flat = traverse_util.flatten_dict(dict(config), keep_empty_nodes=True, sep=".")
    public = {key: _public(key, value) for key, value in flat.items()}
    changed = [key for key, value in flat.items() if public[key] != value]
    return traverse_util.unflatten_dict(public, sep="."), changed


def _public(key: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_public(key, each) for each in value]
    if not isinstance(value, str) or key.endswith("_pattern"):
        return value
    local = key == "model.weights" and value and Path(value).expanduser().exists()
    return file_name(value) if local or key.endswith(PLACES) or _is_place(value) else value


def _is_place(value: str) -> bool:
    windows = PureWindowsPath(value)
    return Path(value).is_absolute() or bool(windows.drive) or value.startswith("~") or ".." in windows.parts


def file_name(place: str) -> str:
    """The last part of a path, of whatever system."""
    return re.split(r"[/\\]", place.rstrip("/\\"))[-1]


def public_evaluation(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What `evaluation.evaluate` gave, with the name alone of the manifest that it was of."""
    return {**evaluation, "data": file_name(evaluation["data"])}


def public_provenance(run: Mapping[str, Any]) -> dict[str, Any]:
    """What of `run.json` a reader of the model needs: when, by which commit and with which packages it was trained."""
    return {name: run.get(name) for name in _PROVENANCE}
