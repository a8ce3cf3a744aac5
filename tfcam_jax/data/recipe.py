"""Temporary."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import LISTINGS, SOURCES
from .evaluation_sets import open_manifest_split
from .human_maps import process_maps
from .listing import Listing
from .manifest import read_rows
from .protocol import apply_protocol
from .source import Dataset, Source


@dataclasses.dataclass(frozen=True)
class DataRecipe:
    source: str
    options: Mapping[str, Any]
    channels: int
    protocol: Mapping[str, Any]
    blur: float
    threshold: float
    placebo: str
    seed: int

    def listing(self) -> Listing:
        return LISTINGS[self.source](**self.options)

    def open(self, known: Any = None) -> Dataset:
        return SOURCES[self.source](channels=self.channels, **self.options)

    def arrange(self, dataset: Dataset) -> Dataset:
        dataset = apply_protocol(dataset, **self.protocol)
        return process_maps(dataset, blur=self.blur, threshold=self.threshold, placebo=self.placebo, seed=self.seed)

    def open_split(
        self, manifest: str | Path, split: str | None, class_names: tuple[str, ...], known: Any = None
    ) -> tuple[Source, str]:
        if split is None:
            split = "test" if any(row.split == "test" for row in read_rows(Path(manifest))) else "val"
        return open_manifest_split(manifest, split, class_names, self.channels), split
