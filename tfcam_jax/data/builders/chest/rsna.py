"""RSNA Pneumonia Detection Challenge: boxes on films of class Lung Opacity. Its test has no labels.

Names and columns are those of the challenge's page; the collection was not at hand.
"""

from __future__ import annotations

from ...listing import Row
from .collection import ABNORMAL, NORMAL, Collection, Reading

_BOXES, _CLASSES = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"


def read(reading: Reading) -> None:
    boxes = reading.marks(_BOXES)
    reading.images = reading.below("stage_2_train_images")
    seen = set()
    path = reading.path / _CLASSES
    for number, cell in reading.cells(path, ("patientId", "class")):
        patient = cell["patientId"]
        if patient in seen:  # One row per box.
            continue
        seen.add(patient)
        label = NORMAL if cell["class"] == "Normal" else ABNORMAL
        row = Row(str(path), number, "", label, f"{patient}.dcm", "", "rsna", f"rsna{patient}")
        reading.add(row, boxes.get(patient, {}), _BOXES)


COLLECTION = Collection("rsna", (_BOXES, _CLASSES), read)
