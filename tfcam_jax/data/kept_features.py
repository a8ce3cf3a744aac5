"""Splits whose images were turned once into what a frozen part of a network makes of them, and their maps beside it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Real, Shaped

from .bounds import decoding
from .source import Dataset, Example, Source, WithRecords
from .transforms import Augment, Resize, resize_map, vary_views


class MapsInMemory(WithRecords):
    """A source whose maps are kept once they have their final size; its images are not."""

    def __init__(self, source: Source):
        self.records, self._source = source.records, source
        self._maps: dict[tuple[int, Resize], np.ndarray] = {}

    def __getitem__(self, index: int) -> Example:
        return self._source[index]

    def finished(self, index: int, resize: Resize) -> Real[np.ndarray, "map_size map_size"]:
        """The map of a row as `transforms.apply` gives it without augmentation: all zero where there is none."""
        found = self._maps.get((index, resize))
        if found is None:  # two threads may both make it, to the same end
            with decoding():
                found = resize_map(self._source[index].saliency, resize)
            if not found.any():
                found = np.zeros((), found.dtype)
            self._maps[index, resize] = found
        side = resize.map_side
        return found if found.ndim else np.broadcast_to(found, (side, side))


class KeptFeatures(WithRecords):
    """A split with features in place of its images.

    Attributes:
      views: [n, views, ...], of each image, and with two views of its mirror image.
    """

    def __init__(self, source: Source, views: Shaped[np.ndarray, "n views ..."]):
        self.records, self.views = source.records, views
        self._maps = source if isinstance(source, MapsInMemory) else MapsInMemory(source)

    def __getitem__(self, index: int) -> Example:
        """The image and map themselves, read anew."""
        return self._maps[index]

    def read(
        self, index: int, resize: Resize, augment: Augment, rng: np.random.Generator | None
    ) -> tuple[np.ndarray, Real[np.ndarray, "map_size map_size"], np.ndarray]:
        """Features of the view that is drawn, the map, mirrored with it, and features of the other view.

        Of one view alone both are the same.
        """
        # A blur comes before the way to the CAM's places.
        of_map = replace(resize, places=None) if augment.map_blur else resize
        return vary_views(self.views[index], self._maps.finished(index, of_map), resize, augment, rng)


def keep_maps(dataset: Dataset, splits: tuple[str, ...]) -> Dataset:
    """The data set with the maps of these splits kept in memory, in their final size."""
    kept = {split: MapsInMemory(dataset.splits[split]) for split in splits if split in dataset.splits}
    return replace(dataset, splits={**dataset.splits, **kept})


def bytes_of_maps(source: Source, resize: Resize, augment: Augment) -> int:
    """Memory that a split's maps take: as they travel, or where they are yet to be blurred as float32."""
    travel = resize.places is not None and not augment.map_blur
    side = resize.map_side if travel else resize.map_size or resize.size
    of_place = 4 if not travel else 1 if resize.map_size else 2
    return of_place * int(source.records.has_map.sum()) * side**2
