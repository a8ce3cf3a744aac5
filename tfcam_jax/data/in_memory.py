"""Decoded examples kept in memory, for data that many runs read again and again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .source import Dataset, Example, Source
from .transforms import apply


class Held:
    """A source whose examples are brought to the model's size when first asked for, and kept.

    The pipeline finds nothing left to resize and gives the same bits as without, but for a random crop, which starts
    from the stored size: don't hold a source that is cropped.
    """

    def __init__(self, source: Source, image_size: int):
        self.records = source.records
        self._source, self._image_size = source, image_size
        self._examples: dict[int, Example] = {}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        # Two threads may both decode an example, to the same end.
        if index not in self._examples:
            image, saliency = apply(self._source[index], self._image_size)
            self._examples[index] = Example.from_arrays(image, saliency if np.any(saliency) else None)
        return self._examples[index]


def hold_splits(dataset: Dataset, splits: tuple[str, ...], image_size: int) -> Dataset:
    """The data set with these of its splits held, where it has them."""
    held = {split: Held(dataset.splits[split], image_size) for split in splits if split in dataset.splits}
    return replace(dataset, splits={**dataset.splits, **held})


def held_bytes(dataset: Dataset, image_size: int, channels: int) -> int:
    """Memory that all splits take when held: uint8 images and float32 maps."""
    return sum(map(len, dataset.splits.values())) * image_size**2 * (channels + 4)
