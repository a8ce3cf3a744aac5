"""Which file is read by which format, by its suffix: maps of one image, and tables of many images' marks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float

from ..decode import decode_array, decode_map
from . import csv_table, json_table
from .marks import Marks, Table

# How a file that holds one image's map is decoded; what isn't here is left to Pillow.
MAPS: Mapping[str, Callable[[bytes], Float[np.ndarray, "h w"]]] = {".npy": decode_array}
TABLES: Mapping[str, Callable[[Path], Table]] = {".csv": csv_table.read, ".json": json_table.read}


def is_table(path: str) -> bool:
    """Whether a file of that name holds the marks of many images."""
    return PurePosixPath(path).suffix.lower() in TABLES


def read_table(path: Path) -> Table:
    """Reads a table of marks. Raises DataError with a line per problem, each with its row or entry, and OSError."""
    return TABLES[path.suffix.lower()](path)


def read_picture(encoded: bytes, suffix: str) -> Float[np.ndarray, "h w"]:
    """Decodes a map from the bytes of a picture or, with suffix ".npy", of a NumPy array; ValueError if it is none."""
    return MAPS.get(suffix.lower(), decode_map)(encoded)


def find_marks(table: Table, image: str) -> Mapping[str, Marks]:
    """Marks of an image by annotator, found by its path, its file name or that without the suffix; empty if absent."""
    path = PurePosixPath(image)
    return next((table[name] for name in (image, path.name, path.stem) if name in table), {})
