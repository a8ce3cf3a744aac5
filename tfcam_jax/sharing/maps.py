"""Pictures of a published model: mean maps, in which no image is seen, and, if asked for, examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..data.source import Source, Subset, choose_rows
from ..explanation import explain_source
from ..inference import Trained
from ..report.map_grid import Panel, Row, draw_panels

_MOST_CLASSES = 12
_SHOWN = ("human map", "T", "U", "D = T - U")


def draw_mean_maps(trained: Trained, source: Source, split: str, path: Path) -> None:
    """Draws, a row for each class, the means over its images of the human map, T, U and D, for the label as true.

    The human map's is over the images that have one. Of more than 12 classes the first 12, which the title says.
    """
    sums: dict[int, list[np.ndarray]] = {}
    counts: dict[int, np.ndarray] = {}
    for output, _ in trained.outputs(source):
        for label in np.unique(output.labels):
            part = jax.tree.map(lambda leaf, rows=output.labels == label: np.asarray(leaf[rows], np.float64), output)
            maps = (part.saliency[part.usable > 0], part.true_map, part.false_map, part.difference)
            before = sums.get(int(label), [0.0] * len(maps))
            sums[int(label)] = [old + each.sum(0) for old, each in zip(before, maps, strict=True)]
            counts[int(label)] = counts.get(int(label), 0) + np.array([len(each) for each in maps])
    rows = []
    for label in sorted(sums)[:_MOST_CLASSES]:
        means = [total / n if n else None for total, n in zip(sums[label], counts[label], strict=True)]
        usable, images = counts[label][:2]
        panels = [Panel(f"mean {name}", mean, signed=name[0] == "D") for name, mean in zip(_SHOWN, means, strict=True)]
        rows.append(Row(f"{trained.class_names[label]}\n{images} images\n{usable} human maps", panels))
    part = f", the first {_MOST_CLASSES} of {len(sums)} classes" if len(sums) > _MOST_CLASSES else ""
    draw_panels(rows, path, f"Mean maps over {split}, by class{part}; each panel on its own scale")


def draw_examples(trained: Trained, source: Source, number: int, split: str, path: Path) -> int:
    """Draws some images of a source with their maps, spread over the classes; returns how many. No file is named."""
    rows = []
    for explained in explain_source(trained, Subset(source, choose_rows(source.records, number))):
        for i, image in enumerate(explained.images):
            one: Any = jax.tree.map(lambda leaf, i=i: leaf[i], explained.output)
            label, called = (trained.class_names[k] for k in (int(one.labels), int(one.logits.argmax())))
            maps = (one.saliency if one.usable else None, one.true_map, one.false_map, one.true_map - one.false_map)
            panels = [Panel(name, values, signed=name[0] == "D") for name, values in zip(_SHOWN, maps, strict=True)]
            rows.append(Row(f"{label},\ncalled {called}\nmargin {one.margin:+.2f}", [Panel("image", image), *panels]))
    draw_panels(rows, path, f"Examples of {split}; each panel on its own scale")
    return len(rows)
