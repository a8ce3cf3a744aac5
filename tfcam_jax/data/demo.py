"""The embedded data set: a TFDS builder that draws its images, so that the first run needs no download."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from .drawing import CLASS_NAMES, draw
from .source import Dataset
from .tfds_source import TfdsSource

AGREES, RANDOM = "shortcut_agrees", "shortcut_random"
SHORTCUT_AGREEMENT = 0.97
_SPLIT_CODES = {"train": 0, "val": 1, "test": 2}


@dataclass(eq=False)
class DemoConfig(tfds.core.BuilderConfig):
    """What a prepared set depends on; its name holds all of it, so that different settings lie side by side."""

    seed: int = 0
    num_train: int = 1200
    num_val: int = 300
    num_test: int = 400
    shortcut_agreement: float = SHORTCUT_AGREEMENT

    def __post_init__(self):
        sizes = f"{self.num_train}_{self.num_val}_{self.num_test}"
        self.name = f"seed{self.seed}_{sizes}_agree{self.shortcut_agreement:g}"


class Demo(tfds.core.GeneratorBasedBuilder):
    """Drawn images with a local true cue, a global shortcut, and human maps of the true cue."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [DemoConfig(name="")]
    # Nothing is downloaded. To find that out, TFDS would import importlib_resources, which it doesn't declare.
    url_infos: ClassVar = None

    def _info(self) -> tfds.core.DatasetInfo:
        picture = lambda channels: tfds.features.Image(shape=(None, None, channels), encoding_format="png")
        features = {
            "image": picture(3),
            "saliency": picture(1),
            "has_map": tfds.features.Scalar(np.bool_),
            "label": tfds.features.ClassLabel(names=CLASS_NAMES),
            "domain": tfds.features.Text(),
            "group": tfds.features.Text(),
            "id": tfds.features.Text(),
        }
        # In the order of drawing: TFDS would shuffle by a hash of the key.
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        config = self.builder_config
        agrees, at_random = (AGREES, config.shortcut_agreement), (RANDOM, 0.5)
        return {
            "train": self._generate_examples("train", config.num_train, agrees),
            "val": self._generate_examples("val", config.num_val, agrees),
            "test": self._generate_examples("test", config.num_test, agrees, at_random),
        }

    def _generate_examples(self, split: str, count: int, *parts: tuple[str, float]) -> Iterator[tuple[int, dict]]:
        for i in range(count * len(parts)):
            domain, agreement = parts[i // count]
            rng = np.random.default_rng([self.builder_config.seed, _SPLIT_CODES[split], i])
            label = i % 2
            drawing = draw(rng, label, agreement)
            has_map = drawing.saliency is not None
            yield (
                i,
                {
                    "image": _png(drawing.image),
                    "saliency": _png(drawing.saliency if has_map else np.zeros((1, 1), np.uint8)),
                    "has_map": has_map,
                    "label": label,
                    "domain": domain,
                    "group": "",
                    "id": f"{split}_{i:06d}",
                },
            )


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def open_demo(
    *,
    data_dir: str = "",
    seed: int = 0,
    num_train: int = 1200,
    num_val: int = 300,
    num_test: int = 400,
    shortcut_agreement: float = SHORTCUT_AGREEMENT,
    channels: int = 3,
) -> Dataset:
    """Opens the demo data, drawing it first if these settings are not on disk yet (seconds).

    Args:
      data_dir: folder for prepared data sets; "" means TFDS's own default.
      seed: of the drawing, >= 0.
      num_train: training images.
      num_val: validation images.
      num_test: images of each of the two test parts.
      shortcut_agreement: share of images, outside the open-set test, where the light fits the class.
      channels: 3 for RGB, 1 for grey (which hides the shortcut).
    """
    config = DemoConfig(
        name="", seed=seed, num_train=num_train, num_val=num_val, num_test=num_test,
        shortcut_agreement=shortcut_agreement,
    )  # fmt: skip
    builder = Demo(
        data_dir=data_dir or None, config=Demo.builder_configs.get(config.name, config), file_format="array_record"
    )
    try:
        builder.download_and_prepare()
    except OSError:
        # Another process may have been first with the last step, a rename; then its set is whole and ours is gone.
        if not builder.data_path.exists():
            raise
    prepared = tfds.builder_from_directory(builder.data_dir)
    sources = {split: TfdsSource.open(prepared, split, channels) for split in ("train", "val", "test")}
    return Dataset("demo", tuple(prepared.info.features["label"].names), sources)
