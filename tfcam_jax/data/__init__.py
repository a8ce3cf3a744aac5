"""Where images and human maps come from, and how they become batches.

`SOURCES` maps a name to a function of plain keyword arguments that opens a `Dataset`. A new source is one such
function and one line here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from .builders.chest_xray import ChestXray, ChestXrayConfig
from .builders.cyborg_faces import CyborgFaces, CyborgFacesConfig
from .builders.demo import open_demo
from .builders.iris_pad import IrisPad, IrisPadConfig
from .builders.listed_builder import list_owner_files, open_owner_files
from .listing import Listing
from .manifest import list_manifest, open_manifest
from .pipeline import Batch, eval_batches, train_batches
from .source import DataError, Dataset, Example, Records, Source
from .transforms import Augment

__all__ = [
    "LISTINGS",
    "SOURCES",
    "Augment",
    "Batch",
    "DataError",
    "Dataset",
    "Example",
    "Records",
    "Source",
    "eval_batches",
    "open_demo",
    "open_manifest",
    "train_batches",
]

SOURCES: dict[str, Callable[..., Dataset]] = {
    "demo": open_demo,
    "manifest": open_manifest,
    "cyborg_faces": partial(open_owner_files, CyborgFaces, CyborgFacesConfig),
    "iris_pad": partial(open_owner_files, IrisPad, IrisPadConfig),
    "chest_xray": partial(open_owner_files, ChestXray, ChestXrayConfig),
}

# The same sources' files before any image is opened, for `prepare --check`; `demo` has none, it is drawn.
LISTINGS: dict[str, Callable[..., Listing]] = {
    "manifest": list_manifest,
    "cyborg_faces": partial(list_owner_files, CyborgFaces, CyborgFacesConfig),
    "iris_pad": partial(list_owner_files, IrisPad, IrisPadConfig),
    "chest_xray": partial(list_owner_files, ChestXray, ChestXrayConfig),
}
