"""Files that a reader sees whole or not at all, and JSON that is read back with a remedy."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

from ..errors import WorkdirError


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` of indented JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes so that a reader sees the old file or the new one, never half of one, even after a power cut.

    Raises WorkdirError if the disk is full, or the like.
    """
    # No two processes have the same, also where each believes to be number 7 of its own container.
    partial = path.with_name(f".{path.name}.{os.getpid()}{secrets.token_hex(4)}")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise WorkdirError(f"{path} can't be written: {error.strerror}. The old file, if any, is left.") from error


def read_json(path: Path, remedy: str = "train again in another --workdir") -> dict[str, Any]:
    """Reads a JSON object. Raises WorkdirError if it is damaged, which says to restore it, or else the remedy."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError) as error:
        raise WorkdirError(f"{path} is damaged ({error}). Restore it from a copy, or {remedy}.") from error
    return value
