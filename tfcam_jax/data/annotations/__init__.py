"""Human annotations in the forms people keep, told apart by their files' suffixes.

A map of one image is a picture or an NPY array (`decode`). A table holds many images' marks: `csv_table` has a row per
box, polygon or fixation, `json_table` the same as a list of objects, or COCO's, with run-length encodings (`rle`).
A new table is a module with `read(path)` and a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float

from ..decode import decode_array, decode_map
from . import csv_table, json_table
from .marks import Marks, Table

TABLES: Mapping[str, Callable[[Path], Table]] = {".csv": csv_table.read, ".json": json_table.read}


def is_table(path: str) -> bool:
    """Whether a file of that name holds the marks of many images."""
    return PurePosixPath(path).suffix.lower() in TABLES


def read_table(path: Path) -> Table:
    """Reads a table of marks. Raises DataError with a line per problem, each with its row or entry, and OSError."""
    return TABLES[path.suffix.lower()](path)


def read_picture(encoded: bytes, suffix: str) -> Float[np.ndarray, "h w"]:
    """Decodes a map from the bytes of a picture or, with suffix ".npy", of a NumPy array; ValueError if it is none."""
    return decode_array(encoded) if suffix.lower() == ".npy" else decode_map(encoded)


def find_marks(table: Table, image: str) -> Mapping[str, Marks]:
    """Marks of an image by annotator, under the name that `find_name` gives; empty if absent."""
    name = find_name(table, image)
    return {} if name is None else table[name]


def find_name(table: Table, image: str) -> str | None:
    """What a table calls an image: its path, as much of the path's end as is found, or the file name without suffix."""
    parts = image.split("/")
    names = (*("/".join(parts[i:]) for i in range(len(parts))), PurePosixPath(image).stem)
    return next((name for name in names if name in table), None)
