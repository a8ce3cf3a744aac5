"""What a compiled program says of itself: which collectives it runs, and of what."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

_OPERATIONS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
_INSTRUCTION = re.compile(rf"= (?P<type>\(.*?\)|\S+) (?P<operation>{'|'.join(_OPERATIONS)})(?P<start>-start)?\(")
_ARRAY = re.compile(r"\b(?P<dtype>pred|[a-z]+\d+\w*)\[(?P<dims>[\d,]*)\]")


class Collective(NamedTuple):
    """One collective operation.

    Attributes:
      operation: its name in HLO, such as `all-reduce`.
      shapes: of its results, on each device.
      result_bytes: of all of them together.
    """

    operation: str
    shapes: list[list[int]]
    result_bytes: int


def find_collectives(hlo: str) -> list[Collective]:
    """Collectives of a program over all of its devices, in the order of the text.

    Args:
      hlo: `compiled.as_text()`. What stands in a loop's body counts once.
    """
    found = []
    for match in _INSTRUCTION.finditer(hlo):
        arrays = _ARRAY.findall(match["type"])
        # An asynchronous start yields its operands, then its results; all-reduce's yields the results alone.
        if match["start"] and match["operation"] != "all-reduce":
            arrays = arrays[len(arrays) // 2 :]
        shapes = [[int(size) for size in dims.split(",") if size] for _, dims in arrays]
        sizes = [_bytes(dtype) * math.prod(shape) for (dtype, _), shape in zip(arrays, shapes, strict=True)]
        found.append(Collective(match["operation"], shapes, sum(sizes)))
    return found


def _bytes(dtype: str) -> int:
    """Size of an element; types of less than a byte take one."""
    return 1 if dtype == "pred" else max(1, int(re.search(r"\d+", dtype)[0]) // 8)
