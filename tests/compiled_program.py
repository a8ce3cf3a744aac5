"""What a compiled program says of itself: which collectives it runs and how much they send."""

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
      result_bytes: of its result, on each device.
    """

    operation: str
    result_bytes: int

    def sent_bytes(self, devices: int) -> float:
        """What each device sends by the ring algorithm, which sends the least.

        A reduction of n bytes over d devices sends `2 n (d - 1) / d`, a gathering of a result of n bytes
        `n (d - 1) / d` (Patarasuk and Yuan, 2009); a reduce-scatter's result is the d-th part of what is reduced.
        """
        share = (devices - 1) / devices
        if self.operation == "all-reduce":
            return 2 * self.result_bytes * share
        if self.operation == "reduce-scatter":
            return self.result_bytes * devices * share
        if self.operation in ("all-gather", "all-to-all", "ragged-all-to-all"):
            return self.result_bytes * share
        return float(self.result_bytes)  # permute and broadcast hand the whole on


def find_collectives(hlo: str) -> list[Collective]:
    """Collectives of a program over all of its devices, in the order of the text.

    Args:
      hlo: `compiled.as_text()`. What stands in a loop's body counts once.
    """
    found = []
    for match in _INSTRUCTION.finditer(hlo):
        arrays = [_bytes(array["dtype"], array["dims"]) for array in _ARRAY.finditer(match["type"])]
        # An asynchronous start yields its operands, then its results; all-reduce's yields the results alone.
        if match["start"] and match["operation"] != "all-reduce":
            arrays = arrays[len(arrays) // 2 :]
        found.append(Collective(match["operation"], sum(arrays)))
    return found


def _bytes(dtype: str, dims: str) -> int:
    """Size of an array; types of less than a byte take one."""
    bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
    return math.prod(int(size) for size in dims.split(",") if size) * max(1, bits // 8)
