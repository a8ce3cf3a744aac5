"""SIIM-ACR Pneumothorax Segmentation: masks of pneumothorax as relative runs; a film without one is class normal.

So normal means "no pneumothorax" here. Patients are not published, and its test has no labels. Columns are those of the
challenge's page; the collection was not at hand.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...listing import Row
from .collection import ABNORMAL, NORMAL, Collection, Reading

_TABLES = ("stage_2_train.csv", "train-rle.csv", "train-rle-sample.csv")


def read(reading: Reading) -> None:
    # The second stage's list holds the first one's films too.
    name = next(name for name in _TABLES if (reading.path / name).is_file())
    path = reading.path / name
    masks = reading.marks(name)
    reading.images = reading.root
    seen = set()
    for number, cell in reading.cells(path, ("ImageId",)):
        image = cell["ImageId"]
        if image in seen:  # One row per mask.
            continue
        seen.add(image)
        marks = masks.get(image, {})
        label = ABNORMAL if any(marks.values()) else NORMAL
        row = Row(str(path), number, "", label, f"{image}.dcm", "", "siim", "")
        reading.add(row, marks, name)


def _is_siim(cells: Sequence[str]) -> bool:
    return {"ImageId", "EncodedPixels"} <= set(cells)


COLLECTION = Collection("siim", _TABLES, read, recognise=_is_siim)
