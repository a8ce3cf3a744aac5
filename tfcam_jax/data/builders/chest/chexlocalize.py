"""CheXlocalize (Saporta et al., Nature Machine Intelligence 2022): masks by pathology on CheXpert's later films.

Its files were checked on the two films of its repository's sample. Only frontal films are taken. Patients are in the
films' paths.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from ...csv_files import read_table
from ...listing import Row
from ...source import DataError
from .collection import ABNORMAL, NORMAL, Collection, Reading

_MASKS = ("gt_segmentations_val.json", "gt_segmentations_test.json")
# CheXpert's own lists of the films, and those of its labels that CheXlocalize's download comes with.
_LABELS = ("valid.csv", "val_labels.csv", "test.csv", "test_labels.csv")
_NO_ANOMALY = frozenset({"no finding", "support devices"})
_FIRST_LABEL = "No Finding"


def read(reading: Reading) -> None:
    masks = {}
    for name in _MASKS:
        if (reading.path / name).is_file():
            table = reading.marks(name)
            masks |= {film: (marks, name) for film, marks in table.items()}
    reading.images = reading.root
    lists = _label_lists(reading)
    if not lists:
        wanted = " or ".join(_LABELS)
        reading.found.problems.append(f"{reading.path}: no list {wanted} beside or below it; it labels the films")
    for path in lists:
        for number, cell in reading.cells(path, ("Path", _FIRST_LABEL), "it labels the films"):
            view = PurePosixPath(cell["Path"])
            if "lateral" in view.stem.lower():
                continue
            patient = next(iter(re.findall(r"patient\d+", cell["Path"])), "")
            names = list(cell)[list(cell).index(_FIRST_LABEL) :]
            positive = any(cell[name] in ("1", "1.0") for name in names if name.lower() not in _NO_ANOMALY)
            label = ABNORMAL if positive else NORMAL
            row = Row(str(path), number, "", label, cell["Path"], "", "chexpert", f"chexpert{patient}")
            reading.add(row, *masks.get("_".join([*view.parts[-3:-1], view.stem]), ({}, _MASKS[0])))


def _label_lists(reading: Reading) -> list[Path]:
    """Lists of labels in the collection's folder, below it or beside it."""
    places = [reading.path, *reading.path.glob("*"), *reading.path.parent.glob("*")]
    found = {path.resolve(): path for place in places if place.is_dir() for path in (place / name for name in _LABELS)}
    return [path for path in found.values() if path.is_file() and _has_labels(path)]


def _has_labels(path: Path) -> bool:
    try:
        return bool(read_table(path, ("Path", _FIRST_LABEL)))
    except DataError:
        return False


COLLECTION = Collection("chexlocalize", _MASKS, read)
