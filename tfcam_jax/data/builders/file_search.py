"""Files below a folder, found by paths that were written for another machine."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..unlisted import walk_images


@dataclass(frozen=True)
class Sought:
    """What became of a listed path.

    Attributes:
      path: below the folder: of the file, or of where it should be.
      how: the file is at its own path, or has the name that is listed alone ("listed"), has the end of its path
        ("tail"), its name only ("name"), or its name but for suffix or letter case ("spelling"); "" where there is
        none.
      looked: the places that hold no such file; empty where it was found.
      rivals: files that fit equally well.
    """

    path: str
    how: str = ""
    looked: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()


class FileSearch:
    """All images below a folder, by their names and by the ends of their paths; the folder is walked once.

    `without` are folders below it whose files are no images of the set, such as that of the maps.
    """

    def __init__(self, folder: Path, without: Sequence[str] = ()):
        outside = tuple(f"{name}/" for name in without if name)
        self._files = {path for path in walk_images(folder) if not path.startswith(outside)}
        self._named: dict[str, list[str]] = defaultdict(list)
        self._spelled: dict[str, list[str]] = defaultdict(list)
        self._ends: dict[str, dict[str, list[str]]] = {}
        for path in sorted(self._files):
            name = path.rpartition("/")[2]
            self._named[name].append(path)
            self._spelled[_stem(name)].append(path)

    def __len__(self) -> int:
        return len(self._files)

    def find(self, listed: str, folder: str = "", by_name: bool = True) -> Sought:
        """The file that a list means.

        Its own path below `folder` comes first, then the file with the longest end of the path, then one whose name
        differs in suffix or letter case. A file with the name alone in common is taken only with `by_name`, and if no
        other file has that name. Drive letters, leading slashes and ".." count for nothing.
        """
        parts = _parts(listed)
        if not parts:
            return Sought(listed, "", (listed or "no path",))
        own = "/".join([*_parts(folder), *parts])
        if own in self._files:
            return Sought(own, "listed")
        by_name = by_name or len(parts) == 1
        for how, files in (("tail", self._named.get(parts[-1], ())), ("spelling", self._spelled.get(_stem(own), ()))):
            near, length = self._nearest(parts, files, exact=how == "tail")
            near = [path for path in near if path.startswith(f"{folder}/")] or near if folder else near
            if length == 1 and not (by_name and len(files) == 1) and len(parts) > 1:
                continue
            if len(near) == 1:
                whole = "listed" if length == len(parts) == 1 else "name" if length == 1 else how
                return Sought(near[0], whole if how == "tail" else how)
            if near:
                return Sought(own, "", rivals=tuple(near))
        return Sought(own, "", _places(own, parts, by_name))

    def _nearest(self, parts: Sequence[str], files: Sequence[str], exact: bool) -> tuple[list[str], int]:
        """Those files that have most in common with the end of a path, and how many parts that is."""
        if len(files) <= 1:
            return list(files), max((_common(parts, path, exact) for path in files), default=0)
        key = files[0].rpartition("/")[2] if exact else f"\0{_stem(files[0])}"
        if key not in self._ends:
            ends = self._ends.setdefault(key, defaultdict(list))
            for path in files:
                for end in _ends(path.split("/"), exact):
                    ends[end].append(path)
        ends = list(_ends(parts, exact))
        for i, end in enumerate(ends):
            if end in self._ends[key]:
                return self._ends[key][end], len(ends) - i
        return [], 0


def _parts(path: str) -> list[str]:
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return parts[1:] if len(parts) > 1 and parts[0].endswith(":") else parts


def _stem(name: str) -> str:
    return PurePosixPath(name).stem.casefold()


def _ends(parts: Sequence[str], exact: bool) -> Iterator[str]:
    """The path, the path without its first folder, and so on to the name; its suffix and letter case only if exact."""
    if not exact:
        parts = [*(part.casefold() for part in parts[:-1]), _stem(parts[-1])]
    return ("/".join(parts[i:]) for i in range(len(parts)))


def _common(parts: Sequence[str], path: str, exact: bool) -> int:
    """How many parts the ends of both paths have in common."""
    common = set(_ends(parts, exact)) & set(_ends(path.split("/"), exact))
    return max((end.count("/") + 1 for end in common), default=0)


def _places(own: str, parts: Sequence[str], by_name: bool) -> tuple[str, str, str]:
    """The three places where a file was looked for."""
    stem = os.path.splitext(parts[-1])[0]
    if len(parts) == 1:
        return own, f"**/{parts[-1]}", f"**/{stem}.*"
    tail = "/".join(parts[-2:])
    return own, f"**/{tail}", f"**/{stem}.*" if by_name else f"**/{parts[-2]}/{stem}.*"
