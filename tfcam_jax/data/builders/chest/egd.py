"""EGD-CXR (Karargyris et al., Scientific Data 2021): one radiologist's gaze on 1,083 films of MIMIC-CXR.

The owners publish no split as a file; theirs is the one of the code of their experiments. Columns are those of version
1.0.0; the collection was not at hand.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from ...listing import Row
from .collection import ABNORMAL, NORMAL, Collection, Reading

_SHEET, _FIXATIONS = "master_sheet.csv", "fixations.csv"
_OWNERS_SEED = 42


def read(reading: Reading) -> None:
    gaze = reading.marks(_FIXATIONS)
    path = reading.path / _SHEET
    cells = reading.cells(path, ("dicom_id", "path", "patient_id", "Normal"))
    splits = _owners_split([cell["patient_id"] for _, cell in cells]) if "egd" in reading.options.owner_splits else {}
    reading.images = reading.root
    for number, cell in cells:
        patient = cell["patient_id"]
        label = NORMAL if cell["Normal"] in ("1", "1.0") else ABNORMAL
        row = Row(str(path), number, splits.get(patient, ""), label, cell["path"], "", "mimic", f"mimic{patient}")
        reading.add(row, gaze.get(cell["dicom_id"], {}), _FIXATIONS)


def _owners_split(patients: Sequence[str]) -> dict[str, str]:
    """Each patient's split as in cxr-eye-gaze/eye-gaze-dataset: 80, 10 and 10 % of the shuffled patients."""
    order = list(dict.fromkeys(patients))
    random.Random(_OWNERS_SEED).shuffle(order)
    trained = round(len(order) * 0.8)
    validated = trained + round((len(order) - trained) * 0.5)
    names = ["train"] * trained + ["val"] * (validated - trained) + ["test"] * (len(order) - validated)
    return dict(zip(order, names, strict=True))


COLLECTION = Collection("egd", (_SHEET,), read, has_splits=True)
