"""Pictures of images and maps side by side, as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from ..errors import visible
from ..run.files import write_bytes
from .pictures import own_scale, values_range

INCHES = 1.5


class Panel(NamedTuple):
    """One cell: uint8 [H, W, channels] is drawn as an image, a float [h, w] as a map, None as an empty cell.

    `signed` is of a map whose zero means something, as D: it is drawn as far to either side of zero.
    """

    title: str
    values: np.ndarray | None
    signed: bool = False


class Row(NamedTuple):
    """The panels of one image, with a caption to their left."""

    caption: str
    panels: Sequence[Panel]


@rc_context({"text.parse_math": False})  # names are data: no "$" in them begins a formula
def draw_panels(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draws a grid; titles of the first row head the columns.

    Maps go from blue (lowest) to red (highest), each panel on its own scale; a signed one has white at 0. Below each
    stands the range of its values. They are upsampled for display only. A column that is empty in every row is left
    out.
    """
    kept = [i for i, cells in enumerate(zip(*(row.panels for row in rows), strict=True)) if any(map(_filled, cells))]
    rows = [row._replace(panels=[row.panels[i] for i in kept]) for row in rows]
    columns = len(kept)
    figure = Figure(figsize=(INCHES * (columns + 1), INCHES * len(rows) + 0.8), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, line in zip(rows, axes, strict=True):
        for (_, values, signed), axis in zip(row.panels, line, strict=True):
            axis.set(xticks=[], yticks=[])
            if values is None:
                middle = {"ha": "center", "va": "center", "transform": axis.transAxes}
                axis.text(0.5, 0.5, "none", fontsize=7, color="gray", **middle)
            elif values.ndim == 3:
                axis.imshow(values.squeeze(-1) if values.shape[-1] == 1 else values, cmap="gray", vmin=0, vmax=255)
            else:
                low, high = own_scale(values, signed)
                axis.imshow(values, cmap="RdBu_r", interpolation="bilinear", vmin=low, vmax=high)
                axis.set_xlabel(values_range(values, signed), fontsize=6, labelpad=2)
        line[0].set_ylabel(visible(row.caption, "\n"), rotation=0, ha="right", va="center", fontsize=7)
    for panel, axis in zip(rows[0].panels, axes[0], strict=True):
        axis.set_title(visible(panel.title, "\n"), fontsize=8)
    figure.suptitle(visible(title, "\n"), fontsize=9)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_bytes(path, picture.getvalue())


def _filled(panel: Panel) -> bool:
    return panel.values is not None
