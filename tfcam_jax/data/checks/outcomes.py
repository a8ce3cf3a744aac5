"""What checking a row's files found, kept from one start to the next so that only what changed is decoded again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import UInt8

ABSENT, EMPTY, CONSTANT, USABLE = "absent", "empty", "constant", "usable"

# Of the file and of what is found: another number, and all is checked anew.
_VERSION = 2


@dataclass(frozen=True)
class Outcome:
    """What decoding a row's files showed.

    Attributes:
      problems: why the row can't be used.
      digest: identifies the image's pixels, "" if it can't be read.
      size: height and width, pixels.
      map: "absent", "empty" (all zero), "constant" or "usable".
      missing: the problem is that there is no image of that name.
      hash, thumbnail, annotators, agreement: only after a closer look, and not kept: see `near_duplicates`; how many
        annotated the image, and `human_maps.agreement` between them.
    """

    problems: tuple[str, ...] = ()
    digest: str = ""
    size: tuple[int, int] = (0, 0)
    map: str = ABSENT
    missing: bool = False
    hash: int = 0
    thumbnail: UInt8[np.ndarray, "16 16"] | None = None
    annotators: int = 0
    agreement: float | None = None


# By what they depend on (`inspection.row_keys`).
Outcomes = Mapping[str, Outcome]


def outcomes_json(outcomes: Outcomes) -> str:
    """Outcomes as `load_outcomes` reads them; those with problems are left out."""
    rows = {key: [each.digest, *each.size, each.map] for key, each in outcomes.items() if not each.problems}
    return json.dumps({"version": _VERSION, "rows": rows}, separators=(",", ":"))


def load_outcomes(path: str | Path) -> dict[str, Outcome]:
    """What `outcomes_json` gave. Nothing where there is no file, or, with a warning, where it is damaged."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["version"] != _VERSION:
            logging.info("%s is of another version: all images are checked again", path)
            return {}
        return {key: _outcome(*row) for key, row in content["rows"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        logging.warning("%s is damaged (%s): all images are checked again", path, error)
        return {}


def _outcome(digest: str, height: int, width: int, kind: str) -> Outcome:
    if not (len(digest) == 64 and min(height, width) > 0 and kind in (ABSENT, EMPTY, CONSTANT, USABLE)):
        raise ValueError(f"an entry {digest!r}, {height!r}, {width!r}, {kind!r}")
    return Outcome((), digest, (height, width), kind)
