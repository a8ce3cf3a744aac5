"""NIH ChestX-ray14 (Wang et al., CVPR 2017): boxes on 880 films, all of which are in the owner's test list.

Names and columns were checked on the owner's own tables, the films were not at hand.
"""

from __future__ import annotations

from ...annotations.table import named
from ...listing import Row
from .collection import ABNORMAL, NORMAL, Collection, Reading

_NORMAL = "No Finding"
_BOXES, _TEST = "BBox_List_2017.csv", "test_list.txt"


def read(reading: Reading) -> None:
    # The header's last two names hold commas and aren't quoted; what is needed stands before them.
    entries = sorted(reading.path.glob("Data_Entry_2017*.csv"))[-1]
    boxes = reading.marks(_BOXES)
    test = _read_names(reading) if "nih" in reading.options.owner_splits else set()
    reading.images = reading.below("images")
    cells = reading.cells(entries, ("Image Index", "Finding Labels", "Patient ID"))
    findings = sorted({cell["Finding Labels"] for _, cell in cells})
    if findings and _NORMAL not in findings:
        what = f"no row's Finding Labels is {_NORMAL!r}, which makes a film normal; found {named(findings)}"
        reading.found.problems.append(f"{entries}: {what}")
    for number, cell in cells:
        image, patient = cell["Image Index"], cell["Patient ID"]
        split = ("test" if image in test else "train") if test else ""
        label = NORMAL if cell["Finding Labels"] == _NORMAL else ABNORMAL
        row = Row(str(entries), number, split, label, image, "", "nih", f"nih{patient}")
        reading.add(row, boxes.get(image, {}), _BOXES)


def _read_names(reading: Reading) -> set[str]:
    path = reading.path / _TEST
    names = set(path.read_text(encoding="utf-8").split()) if path.is_file() else set()
    if not names:
        reading.found.problems.append(f"{path}: no such file or empty; it names the test images")
    return names


COLLECTION = Collection("nih", ("Data_Entry_2017*.csv",), read, has_splits=True)
