"""One picture of a few images of each class and domain, with their human maps laid over them."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

from ...errors import visible
from ..decode import decode_image
from ..listing import Row
from .inspection import Inspection
from .outcomes import USABLE, Outcome

CELL = 160  # pixels
_CAPTION = 26
_COLUMNS = 8
_MARGIN = 4
_NAME = 46  # characters of a file's name


def draw_contact_sheet(inspection: Inspection, path: Path, per_kind: int = 4) -> None:
    """Writes a PNG: up to `per_kind` images of each split, class and domain, those with maps first.

    A map is shown beside its image: the image in grey under the map in colour, from nothing (0) to yellow (its peak).
    """
    chosen, reader = _choose(inspection, per_kind), inspection.listing.reader
    rows = -(-len(chosen) // (_COLUMNS // 2)) or 1
    sheet = Image.new("RGB", (_COLUMNS * CELL, rows * (CELL + _CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (row, _) in enumerate(chosen):
        left, top = (i % (_COLUMNS // 2)) * 2 * CELL, (i // (_COLUMNS // 2)) * (CELL + _CAPTION)
        image = decode_image(reader.open(row.image), 3, reader.bits)
        saliency = reader.read(row, *image.shape[:2])
        side = CELL - _MARGIN
        small = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
        sheet.paste(small, (left, top + _CAPTION))
        if saliency is not None and saliency.max() > 0:
            sheet.paste(_overlay(small, saliency), (left + CELL - _MARGIN, top + _CAPTION))
        else:
            draw.text((left + CELL + side // 3, top + _CAPTION + side // 2), "no map", fill="gray")
        draw.text((left + 2, top + 1), visible(f"{row.split}  {row.label}  {row.domain}")[:50], fill="black")
        name = visible(row.image)
        draw.text((left + 2, top + 13), name if len(name) <= _NAME else "..." + name[-_NAME:], fill="gray")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _choose(inspection: Inspection, per_kind: int) -> list[tuple[Row, Outcome]]:
    """Spread over each kind, so that neighbours in the list (often of one group) don't fill it."""
    kinds = defaultdict(list)
    for row, outcome in zip(inspection.listing.rows, inspection.outcomes, strict=True):
        if outcome.digest and not outcome.problems:
            kinds[row.split, row.label, row.domain].append((row, outcome))
    chosen = []
    for kind in sorted(kinds):
        with_map = [pair for pair in kinds[kind] if pair[1].map == USABLE]
        without = [pair for pair in kinds[kind] if pair[1].map != USABLE]
        shown = _spread(with_map, per_kind)
        chosen += shown + _spread(without, per_kind - len(shown))
    return chosen


def _spread(members: list, count: int) -> list:
    return [members[i] for i in np.linspace(0, len(members) - 1, min(count, len(members))).round().astype(int)]


def _overlay(image: Image.Image, saliency: np.ndarray) -> Image.Image:
    heat = Image.fromarray(np.asarray(saliency / saliency.max(), np.float32))
    weight = np.clip(np.asarray(heat.resize(image.size, Image.Resampling.BILINEAR)), 0, 1)[..., None]
    grey = np.asarray(image.convert("L"), np.float32)[..., None]
    colours = colormaps["inferno"](0.3 + 0.6 * weight[..., 0])[..., :3] * 255
    share = 0.65 * np.sqrt(weight)
    return Image.fromarray(np.rint((1 - share) * grey + share * colours).astype(np.uint8))
