"""Images that a caller hands over, as arrays or as paths, as a source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from .decode import decode_picture
from .source import DataError, Example, Records

UNLABELLED = -1


@dataclass(frozen=True)
class GivenImages:
    """Arrays or paths, decoded to `channels` when asked for."""

    images: Sequence[np.ndarray | Path]
    channels: int
    records: Records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        image = self.images[index]
        if isinstance(image, Path):
            try:
                return Example(decode_picture(image.read_bytes(), self.channels), None)
            except (OSError, ValueError) as error:
                raise DataError([f"{image}: {error}; give the path of an image that can be read"]) from error
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        return Example(picture.convert("L" if self.channels == 1 else "RGB"), None)


def open_images(
    images: UInt8[np.ndarray, "n H W channels"] | Sequence[str | Path] | str | Path,
    channels: int,
    labels: Int[np.ndarray, " n"] | Sequence[int] | None,
    num_classes: int,
) -> GivenImages:
    """Checks what was handed over, but for the content of files, and makes a source of it.

    Args:
      images: uint8 with 1 or 3 channels, all of one size; or paths of files; or one path.
      channels: that the source gives: grey becomes RGB and the other way round.
      labels: class indices; None: unlabelled.
      num_classes: labels are below it.

    Raises:
      DataError: no image, arrays of another dtype or shape, files that are not there, labels that don't fit.
    """
    if isinstance(images, str | Path):
        images = [images]
    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise DataError(
                [f"images must be uint8 [n, H, W, 1 or 3], 0 to 255; got {images.dtype} of shape {images.shape}"]
            )
        names = [f"image {number}" for number in range(len(images))]
    else:
        images = [Path(path) for path in images]
        names = [str(path) for path in images]
        if missing := [name for name, path in zip(names, images, strict=True) if not path.is_file()]:
            raise DataError([f"{name}: no such file" for name in missing])
    if not len(images):
        raise DataError(["there are no images"])
    return GivenImages(images, channels, _records(names, labels, num_classes))


def _records(names: list[str], labels: Int[np.ndarray, " n"] | Sequence[int] | None, num_classes: int) -> Records:
    known = np.full(len(names), UNLABELLED, np.int32) if labels is None else np.asarray(labels)
    if known.shape != (len(names),) or not np.issubdtype(known.dtype, np.integer):
        raise DataError(
            [f"labels must be {len(names)} class indices, one for each image; got {known.dtype} {known.shape}"]
        )
    if labels is not None and not ((known >= 0) & (known < num_classes)).all():
        raise DataError([f"labels must lie in 0..{num_classes - 1}; got {known.min()} to {known.max()}"])
    empty = ("",) * len(names)
    return Records(tuple(names), known.astype(np.int32), empty, empty, np.zeros(len(names), bool))
