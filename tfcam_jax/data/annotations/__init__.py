"""Human annotations in the forms people keep.

A map of one image is a picture or an array (`map_files`). A table holds marks, of one image or many, in a tool's format
or in people's own columns; formats are told apart by what a file contains. A new one is a module with a `Format` and a
line here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..source import DataError
from . import (
    coco,
    createml,
    csv_table,
    cvat,
    headerless,
    json_table,
    label_studio,
    labelme,
    radiology,
    supervisely,
    via,
    voc,
    yolo,
)
from .columns import check_columns
from .table import Format, Table, read_format
from .text import read_json, read_separated, read_text, read_xml

_JSON = (".json", ".jsonl", ".ndjson")
_XML = (".xml",)
_SEPARATED = (".csv", ".tsv", ".txt")

# The first that recognises a file reads it; people's own columns and keys come last.
JSON_FORMATS = (
    *(coco.FORMAT, labelme.FORMAT, supervisely.FORMAT, via.FORMAT, label_studio.FORMAT, label_studio.MIN),
    *(createml.FORMAT, coco.CHEXLOCALIZE),
)
XML_FORMATS = (cvat.FORMAT, voc.FORMAT)
CSV_FORMATS = (
    *(label_studio.CSV, via.CSV, headerless.MAKESENSE, headerless.MAKESENSE_POINTS, headerless.RETINANET),
    *(radiology.NIH, radiology.RSNA, radiology.REFLACX, radiology.ELLIPSES, radiology.EGD, radiology.SIIM),
    radiology.OPEN_IMAGES,
)


def is_table(path: str) -> bool:
    """Whether a file of that name holds marks, not pixels; a list of YOLO's class names is none."""
    if PurePosixPath(path).name.lower() in yolo.NAMES:
        return False
    return PurePosixPath(path).suffix.lower() in (*_JSON, *_XML, *_SEPARATED)


def read_table(path: Path, columns: Mapping[str, str] | None = None, categories: Sequence[str] = ()) -> Table:
    """Reads a table of marks.

    Args:
      path: of the file; its suffix says whether it is JSON, XML or separated text, its content in which format.
      columns: names of columns or keys by their meaning (`columns.NAMES`), where they are others than those known.
      categories: names of what counts; empty: everything.

    Raises:
      DataError: with a line per problem, each with its row or entry; or the known formats, if it has none of them.
      ConfigError: a meaning that no column has.
      OSError: no such file.
    """
    columns = dict(columns or {})
    check_columns(columns)
    suffix = path.suffix.lower()
    if suffix in _XML:
        content, formats = read_xml(path), XML_FORMATS
    elif suffix in _JSON:
        content, formats = read_json(path), (*JSON_FORMATS, json_table.own_keys(columns))
    else:
        content, formats = _read_lines(path)
        formats = (*formats, csv_table.own_columns(columns))
    if columns and formats[-1].renamed:  # Who names columns wants them read so, if they are there.
        formats = (formats[-1], *formats[:-1]) if _names_all(content, columns) else formats
    form = next((form for form in formats if form.recognises(content)), None)
    if form is None:
        known = "; ".join(f"{form.name} ({form.looks_like})" for form in formats)
        raise DataError([f"{path}: of no known format. Known are {known}"])
    return read_format(form, path, content, categories)


def _read_lines(path: Path) -> tuple[Any, tuple[Format, ...]]:
    """Lines of separated text, and the formats that it may have. YOLO's cells are separated by spaces."""
    if path.suffix.lower() == ".txt":
        form = yolo.for_names(yolo.read_names(path))
        lines = [(i, line.split()) for i, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]
        if form.recognises(lines):
            return lines, (form,)
        return read_separated(path), (form, *CSV_FORMATS)
    return read_separated(path), CSV_FORMATS


def _names_all(content: Any, columns: Mapping[str, str]) -> bool:
    """Whether all the names stand in a table's header or in its first object."""
    first = content[0] if isinstance(content, list) and content else None
    names = first if isinstance(first, dict) else first[1] if isinstance(first, tuple) else ()
    return set(columns.values()) <= set(names)
