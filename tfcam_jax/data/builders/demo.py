"""The embedded data set: a TFDS builder that draws its images, so that the first run needs no download."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from ...errors import ConfigError
from ..checks.outcomes import Outcomes
from ..decode import check_channels
from ..source import Dataset, Records
from .demo_images import CLASS_NAMES, draw
from .tfds_source import OrderedBuilder, columns_path, content_of_pixels, open_prepared, pack, png, save_records

AGREES, RANDOM = "shortcut_agrees", "shortcut_random"
# Exceptions are rare enough that a classifier can do well without ever looking at the marks.
SHORTCUT_AGREEMENT = 0.97
_SPLIT_CODES = {"train": 0, "val": 1, "test": 2}


@dataclass(eq=False)
class DemoConfig(tfds.core.BuilderConfig):
    """What a prepared set depends on. The name holds all of it, so that different settings lie side by side.

    Attributes:
      seed: of the drawing, >= 0.
      num_train, num_val, num_test: images of training, of validation, and of each of the two test parts.
      shortcut_agreement: share of images, outside the open-set test, where the light fits the class.
    """

    name: str = ""
    seed: int = 0
    num_train: int = 1200
    num_val: int = 300
    num_test: int = 400
    shortcut_agreement: float = SHORTCUT_AGREEMENT

    def __post_init__(self):
        if self.seed < 0 or min(self.num_train, self.num_val, self.num_test) < 2:
            raise ConfigError(f"the demo needs a seed >= 0 and at least 2 images, one per class, in each part: {self}")
        if not 0 <= self.shortcut_agreement <= 1:
            raise ConfigError(f"shortcut_agreement must be in [0, 1]; got {self.shortcut_agreement}")
        sizes = f"{self.num_train}_{self.num_val}_{self.num_test}"
        self.name = f"seed{self.seed}_{sizes}_agree{self.shortcut_agreement}"


class Demo(OrderedBuilder):
    """Drawn images with a local true cue, a global shortcut, and human maps of the true cue (demo.md)."""

    BUILDER_CONFIGS: ClassVar = [DemoConfig()]
    CLASS_NAMES = CLASS_NAMES

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        config: Any = self.builder_config
        agrees, at_random = (AGREES, config.shortcut_agreement), (RANDOM, 0.5)
        train = self._generate_examples(config.seed, "train", config.num_train, agrees)
        val = self._generate_examples(config.seed, "val", config.num_val, agrees)
        test = self._generate_examples(config.seed, "test", config.num_test, agrees, at_random)
        return self._counted(
            {"train": (config.num_train, train), "val": (config.num_val, val), "test": (2 * config.num_test, test)}
        )

    def _generate_examples(self, seed: int, split: str, count: int, *parts: tuple[str, float]) -> Iterator:
        seeds, path = [seed, _SPLIT_CODES[split]], columns_path(self.data_path, split)
        rows = []
        for part, (domain, agreement) in enumerate(parts):
            agrees = _agreeing(np.random.default_rng([*seeds, part, 0]), count, agreement)
            for i in range(count):
                label = i % 2
                drawing = draw(np.random.default_rng([*seeds, part, i + 1]), label, warm=bool(label == agrees[i]))
                number = part * count + i
                known = {"label": label, "domain": domain, "group": "", "id": f"{split}_{number:06d}"}
                rows.append((known["id"], label, domain, *map(content_of_pixels, (drawing.image, drawing.saliency))))
                yield number, pack(png(drawing.image), drawing.saliency, **known)
        ids, labels, domains, images, maps = zip(*rows, strict=True)
        has_map = np.array([content != "" for content in maps])
        columns = (np.array(labels, np.int32), domains, ("",) * len(ids), has_map)
        save_records(path, Records(ids, *columns, image_contents=images, map_contents=maps))


def _agreeing(rng: np.random.Generator, count: int, agreement: float) -> np.ndarray:
    """For labels 0, 1, 0, 1...: which images have the light of their class; an exact share of each class, no coin."""
    agrees = np.zeros(count, bool)
    for label in (0, 1):
        members = rng.permutation(np.arange(label, count, 2))
        agrees[members[: round(agreement * len(members))]] = True
    return agrees


def open_demo(*, data_dir: str = "", channels: int = 3, known: Outcomes | None = None, **options: Any) -> Dataset:
    """Opens the demo data, drawing it first if these settings are not on disk yet (seconds).

    Both test parts are in split "test", told apart by their domain.

    Args:
      data_dir: folder for prepared data sets; "" means TFDS's own default.
      channels: 3 for RGB, 1 for grey (which hides the shortcut).
      known: makes no difference, as there are no files to check.
      **options: fields of `DemoConfig`, but for the name; ConfigError where they can't be.
    """
    check_channels(channels)
    config = DemoConfig(**options)
    config = Demo.builder_configs.get(config.name, config)
    return open_prepared(Demo(data_dir=data_dir or None, config=config, file_format="array_record"), channels)
