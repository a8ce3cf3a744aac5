"""What the owners' layouts have in common: lists, paths below a folder, maps found by name, splits by a hash."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from ..annotations.marks import Table
from ..listing import Row


@dataclass
class Found:
    """What an owner's files hold: rows, problems of the lists, and tables of marks by their paths."""

    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)

    def add_maps(self, maps: Mapping[str, list[str]], folder: str, images: str, split: str = "") -> None:
        """Gives rows, of one split or all, the maps (`index_maps`) of their path below `images`, else of its file name.

        Several are several annotators'. A map that is also another image's, as both have one file name, is a problem.
        """
        first: dict[str, Row] = {}
        for number, row in enumerate(self.rows):
            path = PurePosixPath(row.image).relative_to(images)
            found = maps.get((path.parent / path.stem).as_posix()) or maps.get(path.stem) or []
            if not found or split not in ("", row.split):
                continue
            self.rows[number] = row = replace(row, map="|".join(below(folder, name) for name in found))
            other = first.setdefault(row.map, row)
            if other.image != row.image:
                what = f"map {row.map} would also be that of {other.image} ({other.place})"
                self.problems.append(f"{row.place}: {what}; put maps under the images' paths")


def find_lists(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """Files below the folder that fit any of the glob patterns, sorted."""
    return sorted({path for pattern in patterns for path in folder.glob(pattern)})


def below(folder: str, path: str) -> str:
    """A path relative to a folder whose own name may be ""; a leading slash, as owners write it, is ignored."""
    path = path.lstrip("/")
    return f"{folder}/{path}" if folder else path


def group_of(path: str, pattern: str) -> str:
    """What the first group of a regular expression matches in a path; "" without a pattern or a match."""
    found = re.search(pattern, path) if pattern else None
    return (found[1] or "") if found else ""


def split_by_share(name: str, val: float = 0.1, test: float = 0.2) -> str:
    """train, val or test by a number that depends on the name (of a patient, where one is known) alone.

    A split stays as it is when a set grows.
    """
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return "test" if share < test else "val" if share < test + val else "train"


def index_maps(folder: Path) -> Mapping[str, list[str]]:
    """Paths of all files below a folder, under the path and under the file name, both without the suffix."""
    maps = defaultdict(list)
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        name = path.relative_to(folder)
        for key in {name.with_suffix("").as_posix(), name.stem}:
            maps[key].append(name.as_posix())
    return maps
