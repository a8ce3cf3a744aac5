"""VinDr-CXR (Nguyen et al., Scientific Data 2022): boxes of three radiologists, of five in consensus on its test films.

Read are version 1.0.0 (annotations_train.csv, annotations_test.csv) and the Kaggle form (train.csv). No patients are
published. Columns are those of their pages; the collection was not at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...annotations.marks import Marks
from ...listing import Row
from .collection import ABNORMAL, NORMAL, Collection, Reading

_TABLES = {"annotations_train.csv": "train", "train.csv": "train", "annotations_test.csv": "test"}
_NEEDED = ("image_id", "class_name", "x_min", "y_min", "x_max", "y_max")
_NONE = "no finding"


def read(reading: Reading) -> None:
    own = "vindr" in reading.options.owner_splits
    for name, split in _TABLES.items():
        path = reading.path / name
        if not path.is_file():
            continue
        marks = reading.marks(name)
        found: dict[str, set[str]] = {}
        numbers: dict[str, int] = {}
        for number, cell in reading.cells(path, _NEEDED):
            image = cell["image_id"]
            numbers.setdefault(image, number)
            found.setdefault(image, set()).add(cell["class_name"].lower())
        for image, number in numbers.items():
            label = _label(found[image], marks.get(image, {}))
            row = Row(str(path), number, split if own else "", label, f"{image}.dicom", "", "vindr", "")
            reading.add(row, marks.get(image, {}), name)


def _label(findings: set[str], marks: Mapping[str, Marks]) -> str:
    """Normal where most of the film's radiologists found nothing; all boxes of a film count as maps none the less."""
    marked = sum(map(bool, marks.values()))
    return ABNORMAL if findings - {_NONE} and 2 * marked >= len(marks) else NORMAL


def _is_vindr(cells: Sequence[str]) -> bool:
    return set(_NEEDED) <= set(cells)


COLLECTION = Collection("vindr", tuple(_TABLES), read, has_splits=True, recognise=_is_vindr)
