"""Which file is read by which format: maps of one image by suffix, tables of many by suffix and, for JSON, content."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float

from ..decode import decode_map
from ..source import DataError
from . import coco, csv_table, json_table
from .arrays import decode_array
from .marks import Marks, Table, gather

# How a file that holds one image's map is decoded; what isn't here is left to Pillow.
MAPS: Mapping[str, Callable[[bytes], Float[np.ndarray, "h w"]]] = {".npy": decode_array}

# JSON of several makers: the first whose `fits` says yes to the content reads it.
JSON_FORMATS = (coco, json_table)


def read_json(path: Path) -> Table:
    """Reads a JSON of any of `JSON_FORMATS`; raises DataError with a line per problem, each with its entry."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError([f"{path}: not JSON ({error})"]) from error
    for kind in JSON_FORMATS:
        if kind.fits(content):
            return gather(path, kind.entries(content), kind.parse)
    raise DataError([f"{path}: must be {' or '.join(kind.WHAT for kind in JSON_FORMATS)}"])


TABLES: Mapping[str, Callable[[Path], Table]] = {".csv": csv_table.read, ".json": read_json}


def is_table(path: str) -> bool:
    """Whether a file of that name holds the marks of many images."""
    return PurePosixPath(path).suffix.lower() in TABLES


def read_table(path: Path) -> Table:
    """Reads a table of marks by its suffix.

    Raises:
      DataError: with one line per problem, each with its row or entry.
      OSError: no such file.
    """
    return TABLES[path.suffix.lower()](path)


def read_picture(encoded: bytes, suffix: str) -> Float[np.ndarray, "h w"]:
    """Decodes a map from the bytes of a picture or, with suffix ".npy", of a NumPy array.

    Raises:
      ValueError: neither, or broken.
    """
    return MAPS.get(suffix.lower(), decode_map)(encoded)


def find_marks(table: Table, image: str) -> Mapping[str, Marks]:
    """Marks of an image by annotator, found by its path, its file name or that without the suffix; empty if absent."""
    path = PurePosixPath(image)
    for name in (image, path.name, path.stem):
        if name in table:
            return table[name]
    return {}
