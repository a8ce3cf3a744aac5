"""Tables of public sets of radiographs, as their owners publish them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .csv_table import Lines, cells_of, header_of, with_columns
from .marks import SHARES, Marks, ellipse
from .rle import encode_rle
from .table import Entry, Format, to_number

_SIIM_SIDE = 1024  # pixels of its films
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def _numbers(cells: Mapping[str, str], *names: str) -> tuple[float, ...]:
    return tuple(to_number(cells[name], name) for name in names)


def _parse_nih(cells: Mapping[str, str]) -> Entry:
    """Its header is `Image Index,Finding Label,Bbox [x,y,w,h],,,`: the brackets' commas were not quoted."""
    box = _numbers(cells, "Bbox [x", "y", "w", "h]")
    return Entry(cells["Image Index"], Marks(boxes=(box,)), "", (cells["Finding Label"],))


NIH = Format(
    "NIH ChestX-ray14", "its BBox_List_2017.csv's header",
    with_columns("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"), cells_of, _parse_nih,
)  # fmt: skip


def _parse_rsna(cells: Mapping[str, str]) -> Entry:
    """A film without pneumonia has a row without a box."""
    names = ("x", "y", "width", "height")
    boxed, target = any(cells.get(name) for name in names), cells.get("Target", "1")
    if boxed != (target in ("1", "1.0")):
        raise ValueError(f"Target is {target!r} for a row {'with' if boxed else 'without'} a box")
    marks = Marks(boxes=(_numbers(cells, *names),)) if boxed else Marks()
    return Entry(cells["patientId"], marks, "", ("Lung Opacity",) if boxed else ())


RSNA = Format(
    "RSNA pneumonia", "columns patientId,x,y,width,height",
    with_columns("patientId", "x", "y", "width", "height"), cells_of, _parse_rsna,
)  # fmt: skip


def _reflacx_column(lines: Lines) -> bool:
    header = set(header_of(lines))
    at = [{f"{kind}x_position", f"{kind}y_position"} <= header for kind in ("average_", "")]
    return {"timestamp_start_fixation", "timestamp_end_fixation"} <= header and any(at)


def _parse_reflacx(cells: Mapping[str, str]) -> Entry:
    """A fixation, in pixels of the film; with its pixels per degree, which depend on zoom and place."""
    kind = "average_" if "average_x_position" in cells else ""
    start, end, x, y = _numbers(
        cells, "timestamp_start_fixation", "timestamp_end_fixation", f"{kind}x_position", f"{kind}y_position"
    )
    degree = [cells.get(f"angular_resolution_{axis}_pixels_per_degree") for axis in "xy"]
    resolution = tuple(to_number(value, "pixels_per_degree") for value in degree) if all(degree) else ()
    if resolution and min(resolution) <= 0:
        raise ValueError(f"pixels per degree must be above 0; got {resolution}")
    who = cells.get("reader", "")
    return Entry(_image_of(cells), Marks(fixations=((x, y, end - start, *resolution),)), who)


def _image_of(cells: Mapping[str, str]) -> str:
    """Films of a table that was joined from many, by the id of the film."""
    return next((cells[name] for name in ("image", "dicom_id", "id") if cells.get(name)), "")


REFLACX = Format(
    "REFLACX fixations", "columns timestamp_start_fixation and average_x_position",
    _reflacx_column, cells_of, _parse_reflacx, one_image=True,
)  # fmt: skip


def _ellipse_entries(lines: Lines) -> Iterator[tuple[str, Any]]:
    beside = header_of(lines).index("certainty")
    findings = header_of(lines)[beside + 1 :]
    return ((place, (cells, findings)) for place, cells in cells_of(lines))


def _parse_ellipse(part: Any) -> Entry:
    cells, findings = part
    left, top, right, bottom = _numbers(cells, *_CORNERS)
    outline = ellipse((left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2)
    named = tuple(name for name in findings if cells.get(name, "").lower() in ("true", "1", "1.0"))
    return Entry(_image_of(cells), Marks(polygons=(outline,)), "", named)


ELLIPSES = Format(
    "REFLACX ellipses", "columns xmin,ymin,xmax,ymax,certainty and findings",
    with_columns(*_CORNERS, "certainty"), _ellipse_entries, _parse_ellipse, one_image=True,
)  # fmt: skip


def _is_invalid(cells: Mapping[str, str]) -> bool:
    """Whether the tracker itself says that a fixation is none; FPOGV is 1 or 0."""
    return bool(cells.get("FPOGV")) and to_number(cells["FPOGV"], "FPOGV") == 0


def _parse_egd(cells: Mapping[str, str]) -> Entry:
    if _is_invalid(cells):
        return Entry(cells["DICOM_ID"])
    fixation = _numbers(cells, "X_ORIGINAL", "Y_ORIGINAL", "FPOGD")
    return Entry(cells["DICOM_ID"], Marks(fixations=(fixation,)))


def _invalid(lines: Lines) -> Iterator[str]:
    count = sum(_is_invalid(cells) for _, cells in cells_of(lines))
    if count:
        yield f"{count} of {len(lines) - 1} fixations are left out: their FPOGV is 0, invalid"


EGD = Format(
    "EGD-CXR fixations", "columns DICOM_ID,X_ORIGINAL,Y_ORIGINAL,FPOGD",
    with_columns("DICOM_ID", "X_ORIGINAL", "Y_ORIGINAL", "FPOGD"), cells_of, _parse_egd, remarks=_invalid,
)  # fmt: skip


def _parse_siim(cells: Mapping[str, str]) -> Entry:
    """Runs down the columns of 1024 x 1024: pixels to skip after the run before, then pixels of the run; -1: none."""
    runs = [int(number) for number in cells["EncodedPixels"].split()]
    if runs in ([-1], []):
        return Entry(cells["ImageId"])
    if len(runs) % 2 or min(runs) < 0:
        raise ValueError("EncodedPixels must be pairs: pixels to skip, pixels of a run")
    rest = _SIIM_SIDE**2 - sum(runs)
    if rest < 0:
        starts = "counted from the film's first pixel" if runs[2::2] == sorted(runs[2::2]) else "beyond it"
        raise ValueError(f"runs end {-rest} pixels after a film of 1024 x 1024; they are {starts}: use COCO's RLE")
    mask = np.repeat(np.arange(len(runs) + 1) % 2 == 1, [*runs, rest]).reshape(_SIIM_SIDE, _SIIM_SIDE).T
    return Entry(cells["ImageId"], Marks(masks=(encode_rle(mask),)), "", ("Pneumothorax",))


SIIM = Format(
    "SIIM pneumothorax", "columns ImageId,EncodedPixels",
    with_columns("ImageId", "EncodedPixels"), cells_of, _parse_siim,
)  # fmt: skip


def _parse_openimages(cells: Mapping[str, str]) -> Entry:
    left, right, top, bottom = _numbers(cells, "XMin", "XMax", "YMin", "YMax")
    marks = Marks(boxes=((left, top, right - left, bottom - top),), size=SHARES)
    return Entry(cells["ImageID"], marks, "", (cells["LabelName"],) if cells.get("LabelName") else ())


OPEN_IMAGES = Format(
    "Open Images", "columns ImageID,XMin,XMax,YMin,YMax",
    with_columns("ImageID", "XMin", "XMax", "YMin", "YMax"), cells_of, _parse_openimages,
)  # fmt: skip
