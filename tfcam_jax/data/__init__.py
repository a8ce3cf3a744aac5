"""Where images and human maps come from, and how they become batches.

`SOURCES` maps a name to a function of plain keyword arguments that opens a `Dataset`. A new source is one such
function and one line here.
"""

from __future__ import annotations

from collections.abc import Callable

from .chest_xray import open_chest_xray
from .cyborg_faces import open_cyborg_faces
from .demo import open_demo
from .iris_pad import open_iris_pad
from .manifest import open_manifest
from .pipeline import Batch, eval_batches, train_batches
from .source import DataError, Dataset, Example, Records, Source
from .transforms import Augment

__all__ = [
    "SOURCES",
    "Augment",
    "Batch",
    "DataError",
    "Dataset",
    "Example",
    "Records",
    "Source",
    "eval_batches",
    "open_chest_xray",
    "open_cyborg_faces",
    "open_demo",
    "open_iris_pad",
    "open_manifest",
    "train_batches",
]

SOURCES: dict[str, Callable[..., Dataset]] = {
    "demo": open_demo,
    "manifest": open_manifest,
    "cyborg_faces": open_cyborg_faces,
    "iris_pad": open_iris_pad,
    "chest_xray": open_chest_xray,
}
