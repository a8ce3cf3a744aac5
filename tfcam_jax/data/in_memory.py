"""Decoded examples kept in memory, for data that many runs read again and again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .source import Dataset, Example, Source, WithRecords
from .transforms import Resize, apply


class InMemory(WithRecords):
    """A source whose examples are brought to the model's size when first asked for, and kept.

    The pipeline finds nothing left to resize and gives the same bits as without, but for what starts from the stored
    size: don't keep a source that is cropped, resized in stages or has maps of a size of their own.
    """

    def __init__(self, source: Source, image_size: int):
        self.records = source.records
        self._source, self._image_size = source, image_size
        self._examples: dict[int, Example] = {}

    def __getitem__(self, index: int) -> Example:
        # Two threads may both decode an example, to the same end.
        if index not in self._examples:
            image, saliency = apply(self._source[index], Resize(self._image_size))
            self._examples[index] = Example.from_arrays(image, saliency if np.any(saliency) else None)
        return self._examples[index]


def keep_in_memory(dataset: Dataset, splits: tuple[str, ...], image_size: int) -> Dataset:
    """The data set with these of its splits kept in memory, where it has them."""
    kept = {split: InMemory(dataset.splits[split], image_size) for split in splits if split in dataset.splits}
    return replace(dataset, splits={**dataset.splits, **kept})


def bytes_in_memory(dataset: Dataset, image_size: int, channels: int) -> int:
    """Memory that all splits take when kept: uint8 images and float32 maps."""
    return sum(map(len, dataset.splits.values())) * image_size**2 * (channels + 4)
