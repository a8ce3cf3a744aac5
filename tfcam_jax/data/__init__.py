"""Where images and human maps come from, and how they become batches.

`SOURCES` maps a name to a function of plain keyword arguments that opens a `Dataset`: its own options, `channels`, and
`known`, the outcomes of an earlier opening's checks, which it may ignore. A new source is one such function and one
line here.
"""

from __future__ import annotations

from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any


def _at(place: str) -> Callable[..., Any]:
    """The function at `module:name`, imported when it is called: not every run needs TFDS."""
    return lambda *args, **options: resolve_name(f"{__name__}.{place}")(*args, **options)


SOURCES: dict[str, Callable[..., Any]] = {
    "demo": _at("builders.demo:open_demo"),
    "folders": _at("folders:open_folders"),
    "manifest": _at("manifest:open_manifest"),
    "cyborg_faces": _at("builders.cyborg_faces:CyborgFaces.open_files"),
    "iris_pad": _at("builders.iris_pad:IrisPad.open_files"),
    "chest_xray": _at("builders.chest_xray:ChestXray.open_files"),
}

# The same sources' files before any image is opened, as `listing.Listing`; `demo` has none, it is drawn.
LISTINGS: dict[str, Callable[..., Any]] = {
    "folders": _at("folders:list_folders"),
    "manifest": _at("manifest:list_manifest"),
    "cyborg_faces": _at("builders.cyborg_faces:CyborgFaces.list_files"),
    "iris_pad": _at("builders.iris_pad:IrisPad.list_files"),
    "chest_xray": _at("builders.chest_xray:ChestXray.list_files"),
}
