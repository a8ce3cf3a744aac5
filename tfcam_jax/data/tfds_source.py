"""A split of a prepared TFDS data set as a source, read without TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow_datasets as tfds

from .decode import decode_image, decode_map
from .source import Example, Records

_METADATA = ("id", "label", "domain", "group", "has_map")


@dataclass(frozen=True)
class TfdsSource:
    """One split of a set with the features image, saliency, has_map, label, domain, group and id.

    Images are taken from TFDS as encoded bytes and decoded here, as files of a manifest are: one way for all.
    """

    encoded: Sequence
    channels: int
    records: Records

    @classmethod
    def open(cls, builder: tfds.core.DatasetBuilder, split: str, channels: int) -> TfdsSource:
        """Reads the split's metadata; `builder` has been prepared."""
        skip = {name: tfds.decode.SkipDecoding() for name in ("image", "saliency")}
        encoded = builder.as_data_source(split=split, decoders=skip)
        return cls(encoded, channels, _read_records(encoded))

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):  # array_record raises a ValueError, which `for` doesn't stop at.
            raise IndexError(f"row {index} of {len(self)}")
        example = self.encoded[index]
        saliency = decode_map(example["saliency"]) if self.records.has_map[index] else None
        return Example(decode_image(example["image"], self.channels), saliency)


def _read_records(encoded: Sequence) -> Records:
    rows = [{name: example[name] for name in _METADATA} for example in encoded]
    text = lambda name: tuple(row[name].decode() for row in rows)
    return Records(
        ids=text("id"),
        labels=np.array([row["label"] for row in rows], np.int32),
        domains=text("domain"),
        groups=text("group"),
        has_map=np.array([row["has_map"] for row in rows], bool),
    )
