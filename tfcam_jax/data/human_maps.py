"""What is done with human maps once they are drawn: combining annotators, blur, threshold, and placebos.

A placebo replaces the maps of training by ones that say nothing of their image, or the opposite. A gain counts only if
the true maps beat them. The examples that have a map stay the same, and so do order, augmentation and step count.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from ..errors import ConfigError, check_known, check_ranges
from .source import DataError, Dataset, Example, Records, Source, WithRecords

# How annotators are combined; any other word is the name of one.
HOW = ("mean", "majority")
PLACEBOS = ("none", "other_image", "mean_map", "border_ring", "inverted")
PREDICTED = ("use", "ignore", "other_image")

# A smaller share of training with a map is told.
_FEW = 0.1
# Of a map that stands for a whole class: the places of the usual CAM, and pixels for each.
_PLACES, _PLACE_SIDE = 7, 16
_PLACEBO_SIDE = _PLACES * _PLACE_SIDE
# Of `is_usable`: CAMs' sides, a multiple of most of them, and a share of the peak.
_CAM_PLACES, _CHECKED_SIDE, _LEAST_RANGE = range(4, 15), 56, 1e-3


def combine(maps: Mapping[str, Float[np.ndarray, "_ _"]], how: str) -> Float[np.ndarray, "h w"] | None:
    """One map of several annotators', at least one; they are brought to the first one's size.

    `how` is "mean"; "majority": the share of annotators is counted whose map reaches half of its own peak, and the
    result is 1 where they are more than half; or the name of an annotator: None if that one did not see the image.
    """
    if how not in HOW:
        return maps.get(how)
    first, *others = maps.values()
    if not others:
        return first
    stack = np.stack([first, *(_resize(other, first.shape) for other in others)])
    if how == "mean":
        return stack.mean(0, dtype=np.float32)
    peaks = stack.max((1, 2), keepdims=True)
    votes = (stack >= 0.5 * peaks) & (peaks > 0)
    return (2 * votes.sum(0) > len(stack)).astype(np.float32)


def agreement(maps: Sequence[Float[np.ndarray, "_ _"]]) -> float | None:
    """Mean Pearson correlation over all pairs of annotators of one image; None without a pair of maps that vary."""
    varying = [m for m in maps if m.min() < m.max()]
    if len(varying) < 2:
        return None
    shape = varying[0].shape
    correlations = np.corrcoef([_resize(m, shape).ravel() for m in varying])
    return float(np.mean(correlations[np.triu_indices(len(varying), 1)]))


def mostly_marked(saliency: Float[np.ndarray, "h w"]) -> bool:
    """Whether a map looks like a mask, nearly all of it at 0 or at its peak, with more than half of it marked.

    A constant map marks nothing.
    """
    peak = saliency.max()
    if not saliency.min() < peak:
        return False
    marked = saliency >= 0.9 * peak
    return bool(marked.mean() > 0.5 and np.mean(marked | (saliency <= 0.1 * peak)) >= 0.95)


def is_usable(saliency: Float[np.ndarray, "h w"]) -> bool:
    """Whether a map says something at the resolution of a CAM, of 4 x 4 to 14 x 14 places.

    Brought to that many places its range must be a thousandth of its peak. Training asks for a hundred-thousandth at
    the CAM's own resolution (`saliency.to_cam_resolution`), and gets no map of those that fail here: what passes is
    used, so that there is one definition. A mask that leaves out one pixel fails; one that marks one pixel passes.
    """
    # Every map is first brought to one size, as in training, so that the small ones cost nothing.
    small = _resize(saliency, (_CHECKED_SIDE, _CHECKED_SIDE))
    for places in _CAM_PLACES:
        values = _resize(small, (places, places))
        if not values.max() - values.min() > _LEAST_RANGE * values.max():
            return False
    return True


class WithMaps(WithRecords):
    """A source whose maps went through `change`, called with the row number and the map; the records stay."""

    def __init__(self, source: Source, change: Callable[[int, np.ndarray], np.ndarray]):
        self.records, self._source, self._change = source.records, source, change

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        saliency = example.saliency
        return example if saliency is None else replace(example, saliency=self._change(index, saliency))


@dataclass(frozen=True)
class Smooth:
    """Blurs and thresholds a map; a class, as it travels to worker processes.

    Attributes:
      blur: standard deviation of a Gaussian, as a share of the map's longer side; 0 leaves it. What lies beyond the
        border counts as the border's value.
      threshold: after the blur, 1 where the map reaches this share of its peak and 0 elsewhere; 0 leaves it.
    """

    blur: float = 0.0
    threshold: float = 0.0

    def __post_init__(self):
        check_ranges("maps", self, {"blur": 0.5, "threshold": 1.0})

    def __call__(self, index: int, saliency: np.ndarray) -> np.ndarray:
        if self.blur:
            from scipy import ndimage  # half a second of every start otherwise

            saliency = ndimage.gaussian_filter(saliency, self.blur * max(saliency.shape), mode="nearest")
        if self.threshold:
            saliency = (saliency >= self.threshold * saliency.max()).astype(np.float32)
        return saliency


def smooth_maps(source: Source, blur: float, threshold: float) -> Source:
    """The source with its maps blurred and thresholded; the same source if both are 0."""
    change = Smooth(blur, threshold)
    return WithMaps(source, change) if blur or threshold else source


class WithoutMaps(WithRecords):
    """A source without the maps of some rows, as if nobody had annotated them."""

    def __init__(self, source: Source, rows: Int[np.ndarray, " m"]):
        has_map = source.records.has_map.copy()
        has_map[rows] = False
        self.records, self._source = replace(source.records, has_map=has_map), source

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        return example if self.records.has_map[index] else replace(example, saliency=None)


@dataclass(frozen=True)
class MapChoice:
    """Which of a data set's maps are taken.

    Attributes:
      predicted: of maps that a network predicted (column `predicted` of a manifest), in training: "use"; "ignore"; or
        "other_image", a placebo: each is dealt to another image of its class, people's maps stay. Validation and test
        never take them, as agreement is measured with people's.
      share: of training's maps that people drew, so many are kept, whole groups of each class; above 0, at most 1. A
        smaller share is part of a larger one.
      share_seed: of the choice, and of the dealing.
    """

    predicted: str = "use"
    share: float = 1.0
    share_seed: int = 0

    def __post_init__(self):
        check_known("data.maps.predicted", self.predicted, PREDICTED)
        if not (0 < self.share <= 1 and self.share_seed >= 0):
            given = f"{self.share} and {self.share_seed}"
            raise ConfigError(f"data.maps.share must be above 0 and at most 1, share_seed at least 0; got {given}")

    def apply(self, dataset: Dataset) -> Dataset:
        """The data set with these maps alone. Raises DataError where predicted maps can't be dealt."""
        splits = dict(dataset.splits)
        for split, source in splits.items():
            if split != "train" or self.predicted == "ignore":
                splits[split] = without_predicted(source)
        if "train" not in splits:
            return replace(dataset, splits=splits)
        train = splits["train"]
        if self.predicted == "other_image":
            train = _deal_predicted(train, self.share_seed)
        if self.share < 1:
            train = WithoutMaps(train, _left_out(train.records, self.share, self.share_seed))
        return replace(dataset, splits={**splits, "train": train})


def without_predicted(source: Source) -> Source:
    """The source with the maps that people drew alone."""
    predicted = source.records.predicted
    return source if predicted is None or not predicted.any() else WithoutMaps(source, np.flatnonzero(predicted))


def _deal_predicted(source: Source, seed: int) -> Source:
    records = source.records
    if records.predicted is None or not (records.predicted & records.has_map).any():
        return source
    donors = deal_maps(replace(records, has_map=records.has_map & records.predicted), seed)
    return WithMaps(source, partial(_donors_map, source, np.where(donors < 0, np.arange(len(records)), donors)))


def _left_out(records: Records, share: float, seed: int) -> Int[np.ndarray, " m"]:
    """Rows of people's maps beyond the share: of each class, groups in a random order until the share is reached."""
    drawn = records.has_map if records.predicted is None else records.has_map & ~records.predicted
    left = []
    for label in np.unique(records.labels[drawn]):
        rows = np.flatnonzero(drawn & (records.labels == label))
        _, group, sizes = _group_rows(records, rows)
        order = np.random.default_rng([seed, int(label)]).permutation(len(sizes))
        before = np.concatenate([[0], np.cumsum(sizes[order])[:-1]])
        beyond = order[before >= share * len(rows)]
        left.append(rows[np.isin(group, beyond)])
    return np.concatenate(left) if left else np.array([], int)


def _group_rows(
    records: Records, rows: Int[np.ndarray, " n"]
) -> tuple[list[str], Int[np.ndarray, " n"], Int[np.ndarray, " groups"]]:
    """Each row's group by name and by number, and the groups' sizes; rows without a group stand alone."""
    names = [records.groups[row] or f"\0{row}" for row in rows]
    _, group, sizes = np.unique(names, return_inverse=True, return_counts=True)
    return names, group, sizes


def count_maps(dataset: Dataset) -> dict[str, dict[str, int]]:
    """Of training, by class: how many `images` there are and how many have a usable human map (`maps`).

    Empty where there is no training split.
    """
    if "train" not in dataset.splits:
        return {}
    records = dataset.splits["train"].records
    of_class = lambda label: {
        "images": int((records.labels == label).sum()),
        "maps": int(records.has_map[records.labels == label].sum()),
    }
    return {name: of_class(label) for label, name in enumerate(dataset.class_names)}


def format_counts(counts: Mapping[str, Mapping[str, int]]) -> str:
    """What `count_maps` gives, in a line."""
    return ", ".join(f"{name} {each['maps']} of {each['images']}" for name, each in counts.items())


def describe_maps(dataset: Dataset, unmarked_classes: Collection[str] = ()) -> list[str]:
    """Lines that tell how many images of each class of training have a human map, and where that is next to none.

    Of `unmarked_classes` (`strategies.guide_unmarked`) also how many have none.
    """
    counts = count_maps(dataset)
    lines, (maps, images) = [f"Human maps in training: {format_counts(counts)}"], _sum(counts)
    if maps and maps < _FEW * images:
        lines.append(f"Only {maps} of {images} training images have a human map: guidance will have little to say.")
    records = dataset.splits["train"].records
    if records.predicted is not None and (predicted := int((records.has_map & records.predicted).sum())):
        lines.append(f"{predicted} of these maps were predicted by a network, the others are people's.")
    for name in unmarked_classes:
        without = counts[name]["images"] - counts[name]["maps"]
        lines.append(
            f"Guided as images on which there is nothing to mark: the {without} of {name} without a human map."
        )
    lacking = [name for name, each in counts.items() if not each["maps"] and name not in unmarked_classes]
    lacking = lacking if maps else []
    if lacking:
        which = " and ".join(lacking)
        lines.append(f"No image of {which} has a human map: guidance enters the loss for the other classes alone.")
    return lines


def check_maps(dataset: Dataset) -> None:
    """Raises DataError if no training image has a usable map: guidance would be void, training plain cross-entropy."""
    maps, images = _sum(count_maps(dataset))
    if not maps:
        what = f"none of the {images} training images has a usable human map, so that guidance would be void"
        remedy = "launch/prepare.py --check says what became of each; or take --config.strategy=cross_entropy"
        raise DataError([f"{dataset.name}: {what}; {remedy}"])


def check_unmarked(dataset: Dataset, unmarked_classes: Collection[str]) -> None:
    """Raises DataError for a class of which no training image lacks a human map: there would be no example for it."""
    counts = count_maps(dataset)
    for name in unmarked_classes:
        if counts[name]["maps"] == counts[name]["images"]:
            what = f"all {counts[name]['images']} training images of {name!r} have a human map"
            raise DataError([f"{dataset.name}: {what}; take {name!r} out of config.guidance.unmarked_classes"])


def _sum(counts: Mapping[str, Mapping[str, int]]) -> tuple[int, int]:
    return sum(each["maps"] for each in counts.values()), sum(each["images"] for each in counts.values())


def process_maps(dataset: Dataset, *, blur: float, threshold: float, placebo: str, seed: int) -> Dataset:
    """The data set with all maps blurred and thresholded, and training's replaced by placebos.

    Placebos are made of the smoothed maps. Validation and test keep their maps, as they measure. Arguments as in
    `Smooth` and `placebo_maps`.
    """
    splits = {split: smooth_maps(source, blur, threshold) for split, source in dataset.splits.items()}
    if "train" in splits:
        splits["train"] = placebo_maps(splits["train"], placebo, seed)
    return replace(dataset, splits=splits)


def placebo_maps(source: Source, kind: str, seed: int) -> Source:
    """The source with placebos in place of its maps, where it has maps.

    other_image: the map of another image of the same class and of another group. Within a class, maps are dealt out
      anew so that each is used exactly once: the set of maps of each class, hence where maps of a class lie, how large
      and how sharp they are, is that of the true arm, and only the tie between image and map is gone. Across classes
      it would also change what a class's maps look like.
    mean_map: the mean over the class's maps, each first divided by its peak. It knows where the class's objects lie
      on average, and nothing of the image. An image's own map is in it with 1/n.
    border_ring: 1 on the 28 outer ones of 7 x 7 places, 0 within; says nothing even of the class.
    inverted: the image's own map upside down, its peak minus it: guidance to where nobody looked (the sanity check of
      SAGE, arXiv 2511.12744, 2025). It is usable where the map is: both have the same range.

    `seed` is that of the dealing. Raises DataError for other_image, if a class has one map only, or one group holds
    more than half of a class's maps, and ConfigError for a kind that is none of `PLACEBOS`.
    """
    check_known("maps.placebo", kind, PLACEBOS)
    if kind == "none":
        return source
    if kind == "other_image":
        return WithMaps(source, partial(_donors_map, source, deal_maps(source.records, seed)))
    if kind == "inverted":
        return WithMaps(source, _inverted_map)
    labels = source.records.labels
    maps = mean_maps(source) if kind == "mean_map" else dict.fromkeys(np.unique(labels).tolist(), ring_map())
    return WithMaps(source, partial(_class_map, labels, maps))


# Not closures, as they travel to worker processes.
def _donors_map(source: Source, donors: np.ndarray, index: int, saliency: np.ndarray) -> np.ndarray:
    other = source[int(donors[index])].saliency
    return saliency if other is None else other


def _inverted_map(index: int, saliency: np.ndarray) -> np.ndarray:
    return saliency.max() - saliency


def _class_map(labels: np.ndarray, maps: Mapping[int, np.ndarray], index: int, saliency: np.ndarray) -> np.ndarray:
    return maps[int(labels[index])]


def deal_maps(records: Records, seed: int) -> Int[np.ndarray, " n"]:
    """For each row the row whose map it gets: another one, of its class, of another group; -1 without a map.

    Rows of a class are put in a random order that keeps groups together; each row gives its map to the one that stands
    as many places on as the largest group has members, which is never of its own group.
    """
    donors = np.full(len(records), -1)
    problems = []
    for label in np.unique(records.labels):
        rows = np.flatnonzero(records.has_map & (records.labels == label))
        if not len(rows):
            continue
        rng = np.random.default_rng([seed, int(label)])
        names, group, sizes = _group_rows(records, rows)
        order = rows[np.lexsort((rng.random(len(rows)), rng.permutation(len(sizes))[group]))]
        step = sizes.max()
        if 2 * step > len(rows):
            largest = names[int(np.argmax(group == sizes.argmax()))]
            what = f"group {largest!r} holds {step}" if step > 1 else "there is one"
            problems.append(
                f"placebo other_image: of the {len(rows)} maps of class {label}, {what}; more than half can't be dealt "
                "to other groups. Use mean_map or border_ring"
            )
            continue
        donors[order] = np.roll(order, step)
    if problems:
        raise DataError(problems)
    return donors


def mean_maps(source: Source) -> dict[int, Float[np.ndarray, "112 112"]]:
    """Mean map of each class that has maps, by class index; reads every map once."""
    sums: dict[int, Any] = defaultdict(int)
    counts = Counter()
    for row in np.flatnonzero(source.records.has_map):
        saliency, label = source[int(row)].saliency, int(source.records.labels[row])
        if saliency is not None:
            sums[label] += _resize(saliency / max(saliency.max(), 1e-12), (_PLACEBO_SIDE, _PLACEBO_SIDE))
            counts[label] += 1
    return {label: (total / counts[label]).astype(np.float32) for label, total in sums.items()}


def ring_map() -> Float[np.ndarray, "112 112"]:
    """The ring of strategy `sham`, 28 of 7 x 7 places, as an image's map."""
    from ..saliency import border_ring  # with jax, which nothing else here needs

    return np.kron(np.asarray(border_ring((_PLACES, _PLACES))), np.ones((_PLACE_SIDE, _PLACE_SIDE), np.float32))


def _resize(saliency: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if saliency.shape == tuple(shape):
        return saliency
    picture = Image.fromarray(np.asarray(saliency, np.float32))
    return np.asarray(picture.resize((shape[1], shape[0]), Image.Resampling.BILINEAR))
