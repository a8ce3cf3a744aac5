"""REFLACX (Bigolin Lanfredi et al., Scientific Data 2022): five radiologists' gaze and ellipses on films of MIMIC-CXR.

A reading is one radiologist's of one film; a film of the first two phases has several, which are its annotators.
Columns are those of version 1.0.0's description; the collection was not at hand.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath

from ...annotations import read_table
from ...annotations.marks import Marks
from ...listing import Row
from ...source import SPLIT_NAMES
from .collection import ABNORMAL, NORMAL, Collection, Reading

_NEEDED = (
    "id",
    "split",
    "image",
    "dicom_id",
    "subject_id",
    "image_size_x",
    "image_size_y",
    "eye_tracking_data_discarded",
)
# Columns of the metadata that are no anomaly; the others hold the certainty of one, 0 to 5.
_NO_ANOMALY = frozenset({*_NEEDED, "Support devices", "Quality issue", "Other", ""})
# The owners' own limit: "possibly" or surer.
_POSSIBLY = 3


def read(reading: Reading) -> None:
    of_film: dict[str, list[tuple[str, int, dict]]] = defaultdict(list)
    for path in sorted(reading.folder / name for name in reading.files):
        for number, cell in reading.cells(path, _NEEDED):
            of_film[cell["dicom_id"]].append((str(path), number, cell))
    own = "reflacx" in reading.options.owner_splits
    reading.images = reading.root
    for readings in of_film.values():
        path, number, cell = readings[0]
        split = SPLIT_NAMES.get(cell["split"].lower(), str(cell["split"])) if own else ""
        label = ABNORMAL if 2 * sum(_is_abnormal(each) for _, _, each in readings) > len(readings) else NORMAL
        row = Row(path, number, split, label, cell["image"], "", "mimic", f"mimic{cell['subject_id']}")
        reading.add(row, _marks(reading, [each for _, _, each in readings]), PurePath(path).name)


def _is_abnormal(cell: Mapping[str, str]) -> bool:
    """Whether a radiologist named an anomaly, as possible at least."""
    certainties = (text for name, text in cell.items() if name not in _NO_ANOMALY)
    return any(text.replace(".", "").isdigit() and float(text) >= _POSSIBLY for text in certainties)


def _marks(reading: Reading, cells: Sequence[Mapping[str, str]]) -> dict[str, Marks]:
    """What each reading of a film marks, by its name; nothing of gaze that its owners discarded."""
    kind, found = reading.options.reflacx_maps, {}
    for cell in cells:
        if kind == "fixations" and cell["eye_tracking_data_discarded"].lower() == "true":
            continue
        folder = reading.path / cell["id"]
        path = folder / ("fixations.csv" if kind == "fixations" else "anomaly_location_ellipses.csv")
        table = reading.attempt(lambda path=path: read_table(path), path, f"it holds a reading's {kind}")
        if table is None:
            continue
        size = (float(cell["image_size_x"]), float(cell["image_size_y"]))
        # A file without rows: somebody looked and marked nothing.
        found[cell["id"]] = replace(sum(table.marks.get("", {}).values(), Marks()), size=size)
    return found


COLLECTION = Collection("reflacx", ("metadata_phase_*.csv",), read, has_splits=True)
