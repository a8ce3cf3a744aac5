"""A split of a prepared TFDS data set as a source, read without TensorFlow."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image
from tensorflow_datasets.core.utils import tqdm_utils
from tqdm import tqdm

from ..checks.outcomes import content_of
from ..decode import decode_picture, open_picture
from ..source import SPLITS, Dataset, Example, Records, WithRecords
from . import read_text

# Columns of `Records` by the features that they come from.
_METADATA = {"ids": "id", "labels": "label", "domains": "domain", "groups": "group", "has_map": "has_map"}
_CONTENTS = ("image_contents", "map_contents")


def features(class_names: Sequence[str]) -> tfds.features.FeaturesDict:
    """The features that every builder has.

    `saliency` is a grey PNG, 1 x 1 where nobody annotated the image; `has_map` says whether it stands for something.
    """
    picture = lambda channels: tfds.features.Image(shape=(None, None, channels))
    label, has_map = tfds.features.ClassLabel(names=list(class_names)), tfds.features.Scalar(np.bool_)
    texts = {name: tfds.features.Text() for name in ("domain", "group", "id")}
    return tfds.features.FeaturesDict(
        {"image": picture(3), "saliency": picture(1), "has_map": has_map, "label": label, **texts}
    )


class OrderedBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A builder of examples with the features of `features`, described in a file (.md) of its name."""

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded. To find that out, TFDS would import importlib_resources, which it doesn't declare.
    url_infos = None
    CLASS_NAMES: ClassVar[tuple[str, ...]] = ()
    CITATION: ClassVar[str] = ""

    def _info(self) -> tfds.core.DatasetInfo:
        # In the order of the examples: TFDS would shuffle by a hash of the key.
        return tfds.core.DatasetInfo(
            builder=self,
            description=read_text(f"{self.name}.md"),
            citation=self.CITATION,
            features=features(self._class_names()),
            disable_shuffling=True,
        )

    def _class_names(self) -> tuple[str, ...]:
        return self.CLASS_NAMES

    def _log_download_bytes(self) -> None:
        """Says nothing, nor does the next: TFDS would print of a download that there is not, past its own logging."""

    def _log_download_done(self) -> None:
        pass

    def _counted(self, splits: Mapping[str, tuple[int, Iterator]]) -> dict[str, Iterator]:
        """The examples of each split, of which so many are to come, counted by one bar over all splits."""
        total = sum(number for number, _ in splits.values())
        bar = tqdm(total=total, desc=f"preparing {self.name}", unit="image", disable=None)
        if bar.disable:
            print(f"preparing {self.name}: {total} images", file=sys.stderr)

        def count(examples: Iterator) -> Iterator:
            for example in examples:
                yield example
                bar.update()
            if bar.n == total:
                bar.close()

        return {split: count(examples) for split, (_, examples) in splits.items()}


def open_prepared(builder: tfds.core.DatasetBuilder, channels: int, manual_dir: str | os.PathLike = "") -> Dataset:
    """Opens a builder's set, preparing it first if it isn't on disk yet.

    A set is prepared aside and moved into place when whole: one cut short is never read, and two processes may prepare
    at once.
    """
    try:
        with _without_bars_of_tfds():
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir or None))
    except OSError:
        # Another process may have been first with the last step, a rename; then its set is whole and ours is gone.
        if not builder.data_path.exists():
            raise
    return open_directory(builder.data_dir, channels)


@contextlib.contextmanager
def _without_bars_of_tfds() -> Iterator[None]:
    """TFDS has bars for splits, examples and shuffling, inside one another; what is prepared has one of its own."""
    shown = tqdm_utils._active  # it can be set and not asked for
    tfds.disable_progress_bar()
    try:
        yield
    finally:
        tfds.display_progress_bar(shown)


def open_directory(folder: str | os.PathLike, channels: int) -> Dataset:
    """Opens the prepared set in a folder."""
    prepared: Any = tfds.builder_from_directory(folder)
    skip = {name: tfds.decode.SkipDecoding() for name in ("image", "saliency")}
    sources = {}
    for split in SPLITS:
        if split in prepared.info.splits:
            encoded = prepared.as_data_source(split=split, decoders=skip)
            sources[split] = TfdsSource(encoded, channels, _load_records(columns_path(folder, split), encoded))
    return Dataset(prepared.name, tuple(prepared.info.features["label"].names), sources)


def pack(image: bytes, saliency: UInt8[np.ndarray, "h w"] | None, **known: Any) -> dict[str, Any]:
    """An example with the features of `features`, of which `known` are label, domain, group and id."""
    picture = png(np.zeros((1, 1), np.uint8) if saliency is None else saliency)
    return {"image": image, "saliency": picture, "has_map": saliency is not None, **known}


def png(pixels: np.ndarray) -> bytes:
    """Pixels, 8 bits each, as a file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@dataclass(frozen=True)
class TfdsSource(WithRecords):
    """One split of a set with the features of `features`.

    Images are taken from TFDS as encoded bytes and decoded here, as files of a manifest are: one way for all.
    """

    encoded: Sequence
    channels: int
    records: Records

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):  # array_record raises a ValueError, which `for` doesn't stop at.
            raise IndexError(f"row {index} of {len(self)}")
        example = self.encoded[index]
        saliency = None
        if self.records.has_map[index]:  # packed with its peak at 255: no file of an annotator's to make sense of
            saliency = np.divide(np.asarray(open_picture(example["saliency"])), np.float32(255), dtype=np.float32)
        return Example(decode_picture(example["image"], self.channels), saliency)


def content_of_pixels(pixels: np.ndarray | None) -> str:
    """A digest of a picture that is drawn here: another version of zlib would write another file. "" of none."""
    return "" if pixels is None else content_of(repr(pixels.shape).encode() + pixels.tobytes())


def columns_path(folder: str | os.PathLike, split: str) -> Path:
    """Where a split's metadata lie, so that opening a large set doesn't read every record."""
    return Path(folder) / f"{split}.columns.json"


def save_records(path: Path, records: Records) -> None:
    """Writes a split's columns."""
    listed: Mapping = {name: getattr(column, "tolist", lambda c=column: c)() for name, column in vars(records).items()}
    path.write_text(json.dumps(listed), encoding="utf-8")


def _load_records(path: Path, encoded: Sequence) -> Records:
    """The columns, if they are there; otherwise those of each record, as in a set that an earlier version prepared."""
    if path.exists():
        columns: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    else:
        seen = lambda encoded, there: content_of_pixels(np.asarray(open_picture(encoded)) if there else None)
        contents = lambda each: (seen(each["image"], True), seen(each["saliency"], each["has_map"]))
        rows = [[*(example[name] for name in _METADATA.values()), *contents(example)] for example in encoded]
        plain = lambda value: value.decode() if isinstance(value, bytes) else value
        columns = {name: [plain(row[i]) for row in rows] for i, name in enumerate((*_METADATA, *_CONTENTS))}
    for name, column in columns.items():
        kind = {"labels": np.int32, "has_map": bool, "predicted": bool}.get(name)
        columns[name] = None if column is None else np.array(column, kind) if kind else tuple(column)
    return Records(**columns)
