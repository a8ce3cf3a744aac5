"""Paths in lists: below the data folder, however they are written there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath


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
