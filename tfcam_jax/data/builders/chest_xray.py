"""Normal and abnormal chest X-rays with boxes or gaze: NIH ChestX-ray14, RSNA, MIMIC with eye tracking."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar, TypeVar

from ..annotations import csv_table
from ..annotations.marks import Table
from ..csv_files import read_table
from ..listing import Row
from ..source import DataError
from ..unlisted import walk_images
from . import read_text
from .listed_builder import ListedBuilder, ListedConfig, no_rows
from .owner_files import Found, below, split_by_share

NORMAL, ABNORMAL = "normal", "abnormal"
NIH_BOXES, RSNA_BOXES, FIXATIONS = "nih/BBox_List_2017.csv", "rsna/stage_2_train_labels.csv", "mimic/fixations.csv"
_NIH_COLUMNS = {"Image Index": "image", "Bbox [x": "x", "y": "y", "w": "width", "h]": "height"}
_RSNA_COLUMNS = {"patientId": "image"}
_FIXATION_COLUMNS = {"DICOM_ID": "image", "X_ORIGINAL": "x", "Y_ORIGINAL": "y", "FPOGD": "duration"}

Read = TypeVar("Read")


@dataclass(eq=False)
class ChestXrayConfig(ListedConfig):
    """What to take.

    Attributes:
      collections: of "nih", "rsna" and "mimic"; those whose folder is missing are refused. Empty: those that are there.
      annotated_only: leave out abnormal films that nobody annotated; normal films have nothing to annotate.
    """

    collections: tuple[str, ...] = ()
    annotated_only: bool = False


class ChestXray(ListedBuilder):
    """Frontal chest films, class normal or abnormal; the domain is the collection (chest_xray.md)."""

    BUILDER_CONFIGS: ClassVar = [ChestXrayConfig()]
    CLASS_NAMES = (NORMAL, ABNORMAL)
    CITATION, MANUAL_DOWNLOAD_INSTRUCTIONS = read_text("chest_xray.bib"), read_text("chest_xray.txt")

    @classmethod
    def find_rows(cls, folder: Path, config: ChestXrayConfig) -> Found:
        chosen = config.collections or tuple(name for name in COLLECTIONS if (folder / name).is_dir())
        unknown = [name for name in chosen if name not in COLLECTIONS]
        if unknown:
            known = f"known are {', '.join(COLLECTIONS)}"
            raise DataError([f"data.chest_xray.collections: no collection {name!r}; {known}" for name in unknown])
        if not chosen:
            raise no_rows(cls, folder, f"none of the folders {', '.join(COLLECTIONS)}")
        found = Found()
        for name in chosen:
            COLLECTIONS[name](folder, found)
        if config.annotated_only:
            found.rows = [row for row in found.rows if row.label == NORMAL or row.map]
        return found


def _list_nih(folder: Path, found: Found) -> None:
    entries = next(iter(sorted((folder / "nih").glob("Data_Entry_2017*.csv"))), folder / "nih/Data_Entry_2017.csv")
    # The header's last two names hold commas and aren't quoted; what is needed stands before them.
    cells = _read(entries, ("Image Index", "Finding Labels", "Patient ID"), found)
    boxes = _marks(folder, NIH_BOXES, _NIH_COLUMNS, found)
    held_out = folder / "nih/test_list.txt"
    test = set(held_out.read_text(encoding="utf-8").split()) if held_out.is_file() else set()
    if not test:
        found.problems.append(f"{held_out}: no such file or empty; it names the test images")
    films = _films(folder, "nih")
    for number, cell in cells:
        image, patient = cell["Image Index"], cell["Patient ID"]
        split = "test" if image in test else split_by_share(f"nih{patient}", val=0.1, test=0.0)
        label = NORMAL if cell["Finding Labels"] == "No Finding" else ABNORMAL
        path = films.get(PurePosixPath(image).stem, f"nih/images/{image}")
        mark = NIH_BOXES if image in boxes else ""
        found.rows.append(Row(str(entries), number, split, label, path, mark, "nih", f"nih{patient}"))


def _list_rsna(folder: Path, found: Found) -> None:
    classes = folder / "rsna/stage_2_detailed_class_info.csv"
    boxes = _marks(folder, RSNA_BOXES, _RSNA_COLUMNS, found)
    films, seen = _films(folder, "rsna"), set()
    for number, cell in _read(classes, ("patientId", "class"), found):
        image = cell["patientId"]
        if image in seen:  # One row per box.
            continue
        seen.add(image)
        marked = any(marks.boxes for marks in boxes.get(image, {}).values())
        label = NORMAL if cell["class"] == "Normal" else ABNORMAL
        path, group = films.get(image, f"rsna/stage_2_train_images/{image}.dcm"), f"rsna{image}"
        mark = RSNA_BOXES if marked else ""
        found.rows.append(Row(str(classes), number, split_by_share(group), label, path, mark, "rsna", group))


def _list_mimic(folder: Path, found: Found) -> None:
    sheet = folder / "mimic/master_sheet.csv"
    gaze = _marks(folder, FIXATIONS, _FIXATION_COLUMNS, found)
    films = _films(folder, "mimic")
    for number, cell in _read(sheet, ("dicom_id", "path", "patient_id", "Normal"), found):
        image, group = cell["dicom_id"], f"mimic{cell['patient_id']}"
        label = NORMAL if cell["Normal"] in ("1", "1.0") else ABNORMAL
        path = films.get(image, below("mimic", cell["path"]))
        mark = FIXATIONS if image in gaze else ""
        found.rows.append(Row(str(sheet), number, split_by_share(group), label, path, mark, "mimic", group))


COLLECTIONS: Mapping[str, Callable[[Path, Found], None]] = {"nih": _list_nih, "rsna": _list_rsna, "mimic": _list_mimic}


def _films(folder: Path, collection: str) -> dict[str, str]:
    """File name without its suffix to path below the folder. The owners' names are unique."""
    return {PurePosixPath(path).stem: f"{collection}/{path}" for path in walk_images(folder / collection)}


def _read(path: Path, wanted: tuple[str, ...], found: Found) -> list[tuple[int, dict[str, str]]]:
    """Rows of an owner's CSV by column; problems go to what is found."""
    rows = _try(lambda: read_table(path, wanted, "is it the original?"), path, "it lists the films", found)
    if rows == []:
        found.problems.append(f"{path}, row 1: no rows; is it the original?")
    return [(number, {name: cells.get(name, "") for name in wanted}) for number, cells in rows or []]


def _marks(folder: Path, table: str, renamed: Mapping[str, str], found: Found) -> Table:
    """An owner's table of marks, which what is found then holds; empty if it can't be read."""
    read = lambda: csv_table.read(folder / table, renamed)
    found.tables[table] = _try(read, folder / table, "it holds what the radiologists marked", found) or {}
    return found.tables[table]


def _try(read: Callable[[], Read], path: Path, purpose: str, found: Found) -> Read | None:
    try:
        return read()
    except DataError as error:
        found.problems += error.problems
    except OSError:
        found.problems.append(f"{path}: no such file; {purpose}")
    return None
