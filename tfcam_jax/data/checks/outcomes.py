"""What checking a row's files found, kept from one start to the next so that only what changed is decoded again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import UInt8

ABSENT, EMPTY, CONSTANT, USABLE = "absent", "empty", "constant", "usable"

# What was done to a row's files, or is odd about them.
FEWER_BITS, VOTES, MASK, OPACITY, ONE_COLOUR = (
    "map_fewer_bits",
    "map_votes",
    "map_mask",
    "map_opacity",
    "map_one_colour",
)
LABEL, LEFT_VOID, ROWS_FIRST, MOSTLY_MARKED = "map_label", "map_left_void", "map_rows_first", "map_mostly_marked"
TURNED, BITS_8, BITS_12, BITS_16 = "image_turned", "image_8_bits", "image_12_bits", "image_16_bits"
# What to tell of it, after the number of rows; "" for nothing. Keys are kept in files.
NOTES: Mapping[str, str] = {
    MOSTLY_MARKED: "maps mark more than half of their image; if they are inverted, set data.maps.invert",
    VOTES: "maps were divided by their own largest value, which is not that of their type",
    MASK: "maps hold 0 and one other value below white, which counts as 1",
    FEWER_BITS: "maps in files of 16 bits use fewer of them and were stretched",
    OPACITY: "maps are dark on a transparent ground: their opacity was taken",
    ONE_COLOUR: "maps are in one colour on black or white: its amount was taken",
    LABEL: "maps are label images of one class, which was taken",
    LEFT_VOID: "label images have a border of 255, which was left out",
    ROWS_FIRST: "NIfTI maps don't say how they lie and were taken as rows by columns",
    TURNED: "annotated images are turned by their EXIF orientation; maps must lie as viewers show them",
    BITS_8: "images in files of 16 bits stay below 256 and were read as 8 bits; data.bits says otherwise",
    BITS_12: "images in files of 16 bits stay below 4096 and were read as 12 bits; data.bits says otherwise",
    BITS_16: "",
}

# Of the file and of what is found: another number, and all is checked anew.
_VERSION = 4
_CONTENT = 16  # characters of a file's digest


@dataclass(frozen=True)
class Outcome:
    """What decoding a row's files showed.

    Attributes:
      problems: why the row can't be used.
      digest: identifies the image's pixels, "" if it can't be read.
      size: height and width, pixels.
      map: "absent", "empty" (all zero), "constant" or "usable".
      notes: what was done to the files' values, keys of `NOTES`.
      image_content, map_content: identify the image's file and what annotators left, by their bytes or marks
        (`content_of`), whatever a version of Pillow decodes them to; "" without any.
      missing: the problem is that there is no image of that name.
      hash, thumbnail, annotators, agreement: only after a closer look, and not kept: see `near_duplicates`; how many
        annotated the image, and `human_maps.agreement` between them.
    """

    problems: tuple[str, ...] = ()
    digest: str = ""
    size: tuple[int, int] = (0, 0)
    map: str = ABSENT
    notes: tuple[str, ...] = ()
    image_content: str = ""
    map_content: str = ""
    missing: bool = False
    hash: int = 0
    thumbnail: UInt8[np.ndarray, "16 16"] | None = None
    annotators: int = 0
    agreement: float | None = None


# By what they depend on (`inspection.row_keys`).
Outcomes = Mapping[str, Outcome]


def outcomes_json(outcomes: Outcomes) -> str:
    """Outcomes as `load_outcomes` reads them; those with problems are left out."""
    rows = {
        key: [each.digest, each.image_content, each.map_content, *each.size, each.map, *each.notes]
        for key, each in outcomes.items()
        if not each.problems
    }
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


def content_of(content: bytes) -> str:
    """A digest that two different files share once in 2^64."""
    return hashlib.sha256(content).hexdigest()[:_CONTENT]


def _outcome(
    digest: str, image_content: str, map_content: str, height: int, width: int, kind: str, *notes: str
) -> Outcome:
    known = kind in (ABSENT, EMPTY, CONSTANT, USABLE) and all(note in NOTES for note in notes)
    lengths = len(digest) == 64 and len(image_content) == _CONTENT and len(map_content) in (0, _CONTENT)
    if not (lengths and min(height, width) > 0 and known):
        contents = f"{digest!r}, {image_content!r}, {map_content!r}"
        raise ValueError(f"an entry {contents}, {height!r}, {width!r}, {kind!r}, {notes!r}")
    return Outcome((), digest, (height, width), kind, notes, image_content, map_content)
