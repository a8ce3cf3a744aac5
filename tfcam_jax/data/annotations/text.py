"""Text of tables: JSON, XML and what is separated by commas, tabs or semicolons, from files that nobody vouches for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from ..csv_files import read_lines
from ..source import DataError

_LARGEST = 2**30  # bytes
_DECIMAL_COMMA = re.compile(r"-?\d+,\d+")


def read_text(path: Path) -> str:
    """A UTF-8 file, with or without a BOM. Raises DataError for anything else, or a gigabyte; OSError: no such file."""
    if path.stat().st_size > _LARGEST:
        raise DataError([f"{path}: more than {_LARGEST >> 20} MiB of text; split it"])
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError([f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"]) from error


def read_json(path: Path) -> Any:
    """What a JSON file holds; of JSON lines the list of what each holds. Raises DataError and OSError."""
    text = read_text(path)
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        by_line = path.suffix.lower() in (".jsonl", ".ndjson")
        return [json.loads(line) for line in lines] if by_line else json.loads(text)
    except ValueError as error:  # also numbers of thousands of digits
        if lines and not by_line and all(line[:1] == "{" and line.rstrip()[-1] == "}" for line in lines):
            raise DataError([f"{path}: not JSON ({error}); JSON lines? Name it .jsonl"]) from error
        raise DataError([f"{path}: not JSON ({error})"]) from error
    except RecursionError as error:
        raise DataError([f"{path}: JSON nested too deeply to be a table of marks"]) from error


def read_xml(path: Path) -> Element:
    """The root of an XML file. Declarations of types and entities are refused: a few bytes of them fill any memory.

    Raises DataError and OSError.
    """
    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*_: Any) -> None:
        raise DataError([f"{path}: declares a document type or entities, which no annotation needs; delete them"])

    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    if path.stat().st_size > _LARGEST:
        raise DataError([f"{path}: more than {_LARGEST >> 20} MiB of XML; split it"])
    try:
        parser.Parse(path.read_bytes(), True)
    except (expat.ExpatError, UnicodeError, LookupError) as error:
        raise DataError([f"{path}: not XML ({error})"]) from error
    return builder.close()


def read_separated(path: Path) -> list[tuple[int, list[str]]]:
    """Number and cells of a table's lines, separated by what is most frequent in the first of them.

    Between semicolons a comma is a decimal point. Raises DataError and OSError.
    """
    text = read_text(path)
    first = next((line for line in text.splitlines() if line.strip()), "")
    unquoted = re.sub(r'"[^"]*"', "", first)
    delimiter = max(",;\t", key=unquoted.count)
    lines = read_lines(path, delimiter)
    if delimiter != ";":
        return lines
    decimal = lambda cell: cell.replace(",", ".") if _DECIMAL_COMMA.fullmatch(cell) else cell
    return [(number, [decimal(cell) for cell in cells]) for number, cells in lines]
