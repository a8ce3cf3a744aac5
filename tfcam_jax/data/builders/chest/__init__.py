"""Collections of chest films, a file for each owner's layout."""

from __future__ import annotations

from collections.abc import Mapping

from . import chexlocalize, egd, lists, nih, reflacx, rsna, siim, vindr
from .collection import Collection

COLLECTIONS: Mapping[str, Collection] = {
    module.COLLECTION.name: module.COLLECTION for module in (nih, rsna, egd, reflacx, vindr, chexlocalize, siim, lists)
}
