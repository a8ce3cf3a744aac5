"""Paths: those that a user gives, and those in lists, below the data folder, however they are written there."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ..errors import ConfigError

# `gs://`, `s3://`, `file://`; pathlib makes one slash of two. A single letter is a drive.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")

_LONGEST_PATH, _LONGEST_NAME = 4096, 255  # bytes, of Linux and most of its file systems


def local_path(value: str | Path, what: str) -> Path:
    """A path that a user gave as `what`, with `~` as the home folder, where a shell left it.

    Raises ConfigError for an empty one, the address of a bucket, a name that isn't UTF-8 (which neither JSON nor a page
    can hold) or is too long for a file, and `~` where there is no home folder.
    """
    text = os.fspath(value)
    if not text.strip():
        raise ConfigError(f"{what} is empty: give a path, or leave it out.")
    if _SCHEME.match(text):
        scheme = text.partition(":")[0]
        remedy = "mount it (gcsfuse, s3fs, rclone mount) and give the folder, or copy it here"
        raise ConfigError(
            f"{what} is {text}: {scheme}:// is not read or written, only folders of this machine; {remedy}."
        )
    if shown := not_utf8(text):
        raise ConfigError(f"{what} is {shown}, a name that is not UTF-8: rename it.")
    if len(text.encode()) > _LONGEST_PATH or any(len(part.encode()) > _LONGEST_NAME for part in text.split("/")):
        raise ConfigError(f"{what} is {text[:80]}..., a name that is too long for a file.")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{what} is {text}, and there is no such home folder: give the whole path.") from error


def not_utf8(name: str) -> str:
    """A name that no UTF-8 stands for, as it can be shown; "" for any other. Such bytes are surrogates in Python."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return name.encode("utf-8", "backslashreplace").decode()
    return ""


def split_map_cell(cell: str) -> list[tuple[str, str]]:
    """Annotator's name ("" if not given) and path of each part of a map cell; "=a=1.png" is the file a=1.png."""
    parts = [part.strip() for part in cell.split("|") if part.strip()]
    return [(name.strip(), path.strip()) if path else ("", name) for name, _, path in (p.partition("=") for p in parts)]


def join_map_cell(parts: Sequence[tuple[str, str]]) -> str:
    """The cell that `split_map_cell` reads as these annotators and paths; raises ValueError where there is none."""
    cell = "|".join(f"{name}={path}" if name or "=" in path else path for name, path in parts)
    if split_map_cell(cell) != list(parts):
        raise ValueError(f"{cell!r} can't stand in a manifest; rename what holds a '|', or a space at its end")
    return cell


def check_below(path: str) -> str:
    """The path itself; raises ValueError if it leaves the folder that it is relative to."""
    first, *others = path.replace("\\", "/").split("/")
    if (not first and path) or ":" in first or ".." in (first, *others):
        raise ValueError(f"{path} leaves the data folder; move the file into it, or give its path below it")
    return path


def relative_path(folder: Path, path: str) -> str:
    """A path as written in a list, as one below the folder with "/" between its parts; itself where it is not below.

    Absolute paths may be those of the folder or of what it is a link to. "\\" separates, as Windows writes it, unless a
    file of that very name exists.
    """
    if "\\" in path and not os.path.lexists(folder / path):
        path = path.replace("\\", "/")
    if not os.path.isabs(path):
        return PurePosixPath(path).as_posix() if path else path
    for root in (os.path.abspath(folder), os.path.realpath(folder)):
        for own in (os.path.normpath(path), os.path.realpath(path)):
            if own != root and os.path.commonpath([own, root]) == root:
                return PurePosixPath(Path(own).relative_to(root)).as_posix()
    return path


def relative_cell(folder: Path, cell: str) -> str:
    """A map cell whose paths are as `relative_path` gives them.

    A part with "=" that is the path of a file as it stands is that file, not one of an annotator.
    """
    parts = []
    for part in (part.strip() for part in cell.split("|")):
        if "=" in part and os.path.isfile(folder / relative_path(folder, part)):
            parts.append(f"={relative_path(folder, part)}")
        else:
            *name, path = part.split("=", 1)
            parts.append("=".join([*name, relative_path(folder, path.strip())]))
    return "|".join(parts)
