"""The embedded data set: a TFDS builder that draws its images, so that the first run needs no download."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool

from ...errors import ConfigError
from ..checks.outcomes import Outcomes
from ..decode import check_channels
from ..source import Dataset, Records
from .demo_images import NEW_KINDS, PATTERNS, TRAINED_KINDS, Drawing, draw
from .tfds_source import OrderedBuilder, columns_path, content_of_pixels, open_prepared, pack, png, save_records

NORMAL_CLASSES = ("normal", "marked")
_SPLIT_CODES = {"train": 0, "val": 1, "test": 2}


@dataclass(eq=False)
class DemoConfig(tfds.core.BuilderConfig):
    """What a prepared set depends on. The name holds all of it, so that different settings lie side by side.

    Attributes:
      seed: of the drawing, >= 0.
      num_train, num_val, num_test: images of training, of validation, and of each of the two test parts.
      shortcut_agreement: share of images, outside the open-set test, where the light (the global shortcut) fits the
        class.
      local_agreement: the same of the stain (the local shortcut), independently.
      open_agreement: of both in the open-set test: 0.5 void, 0 reversed.
      normal: the first class has neither marks nor maps, and the second's are checks or rings, alike often.
    """

    name: str = ""
    seed: int = 0
    num_train: int = 1600
    num_val: int = 300
    num_test: int = 600
    shortcut_agreement: float = 0.9
    local_agreement: float = 0.9
    open_agreement: float = 0.5
    normal: bool = False

    def __post_init__(self):
        if self.seed < 0 or min(self.num_train, self.num_val, self.num_test) < 2:
            raise ConfigError(f"the demo needs a seed >= 0 and at least 2 images, one per class, in each part: {self}")
        for key in ("shortcut_agreement", "local_agreement", "open_agreement"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(f"{key} must be in [0, 1]; got {getattr(self, key)}")
        sizes = f"{self.num_train}_{self.num_val}_{self.num_test}"
        agreements = f"{self.shortcut_agreement}_{self.local_agreement}_{self.open_agreement}"
        self.name = f"seed{self.seed}_{sizes}_agree{agreements}{'_normal' * self.normal}"


class _Part(NamedTuple):
    """A part of a split whose images are drawn alike: how their marks may look, and how often each shortcut fits."""

    kinds: tuple[str, ...]
    agreements: tuple[float, float]


class Demo(OrderedBuilder):
    """Drawn images with a local true cue, two shortcuts, and human maps of the true cue (demo.md)."""

    # 2: a second shortcut, and kinds of mark that training never sees.
    VERSION = tfds.core.Version("2.0.0")
    BUILDER_CONFIGS: ClassVar = [DemoConfig()]

    def _class_names(self) -> tuple[str, ...]:
        config: Any = self.builder_config
        return NORMAL_CLASSES if config.normal else PATTERNS

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        config: Any = self.builder_config
        closed = _Part(TRAINED_KINDS, (config.shortcut_agreement, config.local_agreement))
        opened = _Part(NEW_KINDS, (config.open_agreement, config.open_agreement))
        parts = {
            "train": (config.num_train, [closed]),
            "val": (config.num_val, [closed]),
            "test": (config.num_test, [closed, opened]),
        }
        return self._counted(
            {
                split: (count * len(own), self._generate_examples(split, count, own))
                for split, (count, own) in parts.items()
            }
        )

    def _generate_examples(self, split: str, count: int, parts: list[_Part]) -> Iterator:
        config: Any = self.builder_config
        rows = []
        for number, part in enumerate(parts):
            seeds = [config.seed, _SPLIT_CODES[split], number]
            for i, (kind, drawing) in enumerate(_draw_part(seeds, count, part, config.normal)):
                key = number * count + i
                known = {"label": i % 2, "domain": kind, "group": "", "id": f"{split}_{key:06d}"}
                rows.append((known["id"], i % 2, kind, *map(content_of_pixels, (drawing.image, drawing.saliency))))
                yield key, pack(png(drawing.image), drawing.saliency, **known)
        ids, labels, domains, images, maps = zip(*rows, strict=True)
        has_map = np.array([content != "" for content in maps])
        columns = (np.array(labels, np.int32), domains, ("",) * len(ids), has_map)
        path = columns_path(self.data_path, split)
        save_records(path, Records(ids, *columns, image_contents=images, map_contents=maps))


def _draw_part(seeds: list[int], count: int, part: _Part, normal: bool) -> Iterator[tuple[str, Drawing]]:
    """Images of labels 0, 1, 0, 1..., each with its kind: one after the other, so that both classes have each."""
    agrees = [_agreeing(np.random.default_rng([*seeds, 0, j]), count, share) for j, share in enumerate(part.agreements)]
    for i in range(count):
        rng, label, kind = np.random.default_rng([*seeds, i + 1]), i % 2, part.kinds[i // 2 % len(part.kinds)]
        pattern = PATTERNS[label]
        if normal:
            pattern = PATTERNS[rng.integers(2)] if label else None
        warm, light = (bool(label == fits[i]) for fits in agrees)
        yield kind, draw(rng, pattern, kind, warm, light)


def _agreeing(rng: np.random.Generator, count: int, agreement: float) -> Bool[np.ndarray, " count"]:
    """For labels 0, 1, 0, 1...: in which images a shortcut fits the class; an exact share of each class, no coin."""
    agrees = np.zeros(count, bool)
    for label in (0, 1):
        members = rng.permutation(np.arange(label, count, 2))
        agrees[members[: round(agreement * len(members))]] = True
    return agrees


def open_demo(*, data_dir: str = "", channels: int = 3, known: Outcomes | None = None, **options: Any) -> Dataset:
    """Opens the demo data, drawing it first if these settings are not on disk yet (seconds).

    An image's domain is its kind of mark. Both test parts are in split "test", told apart by kinds: training has those
    of the closed part alone.

    Args:
      data_dir: folder for prepared data sets; "" means TFDS's own default.
      channels: 3 for RGB, 1 for grey (which hides the global shortcut).
      known: makes no difference, as there are no files to check.
      **options: fields of `DemoConfig`, but for the name; ConfigError where they can't be.
    """
    check_channels(channels)
    config = DemoConfig(**options)
    config = Demo.builder_configs.get(config.name, config)
    return open_prepared(Demo(data_dir=data_dir or None, config=config, file_format="array_record"), channels)
