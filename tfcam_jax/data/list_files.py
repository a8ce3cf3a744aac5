"""List files without a header, as the CYBORG work uses them: `split,class,path`; and folders of images."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".dcm"})


@dataclass(frozen=True)
class Line:
    """One line of a list: its number in the file, and its cells, stripped."""

    number: int
    cells: tuple[str, ...]


def read_list(path: Path, lengths: Iterable[int], wanted: str) -> tuple[list[Line], list[str]]:
    """Reads a list file (UTF-8, with or without a BOM, any line end, quoted commas).

    Args:
      path: of the file.
      lengths: numbers of cells that a line may have.
      wanted: what a line holds, for the message.

    Returns:
      The lines, empty ones left out, and a problem for each that has another number of cells.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            lines = [Line(reader.line_num, tuple(cell.strip() for cell in cells)) for cells in reader if any(cells)]
    except FileNotFoundError:
        return [], [f"{path}: no such list; a line of it holds {wanted}"]
    except UnicodeDecodeError as error:
        return [], [f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"]
    except csv.Error as error:
        return [], [f"{path}, row {reader.line_num}: not CSV ({error}); mend the quotes"]
    lengths = tuple(lengths)
    wrong = [f"{path}, row {line.number}: {len(line.cells)} cells; must hold {wanted}" for line in lines
             if len(line.cells) not in lengths]  # fmt: skip
    return [line for line in lines if len(line.cells) in lengths], wrong


def walk_images(folder: Path) -> Iterator[str]:
    """Paths below the folder of all files with an image's suffix, sorted, with "/" on every system."""
    for root, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith("."):
                yield Path(root, name).relative_to(folder).as_posix()


def share_of(name: str) -> float:
    """A number in [0, 1) that depends on the name alone: for splits that stay as they are when a set grows."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def split_by_share(name: str, val: float = 0.1, test: float = 0.2) -> str:
    """train, val or test, by `share_of` the name (of a patient, where one is known)."""
    share = share_of(name)
    return "test" if share < test else "val" if share < test + val else "train"


def group_of(path: str, pattern: str) -> str:
    """What the first group of a regular expression matches in a path; "" without a pattern or a match."""
    found = re.search(pattern, path) if pattern else None
    return found[1] if found else ""
