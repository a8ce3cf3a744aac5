"""Encoded pictures to 8-bit images: any mode and bit depth that Pillow reads, and DICOM.

Pictures follow their EXIF orientation, as every viewer that an annotator may have used does.
"""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from ..errors import ConfigError
from .bounds import FORMATS, TooLargeError, open_image, take_pixels
from .source import pixels

_SIXTEEN_BIT = 65535
_INTEGER_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
DEEP_MODES = (*_INTEGER_MODES, "F")
# Of the values in use in a file of 16 bits that doesn't say how many are: the first that holds its largest value. Not
# 10 or 14: a dark film of a scanner of 12 or 16 bits would look like one of these.
_GUESSED_BITS = (8, 12, 16)
# Where Pillow finds an orientation, besides TIFF's own tags; looking for it costs as much as opening the file.
_ORIENTED_BY = frozenset({"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"})
_ORIENTATION = 0x0112
# Kinds whose further pages are pictures in their own right; those of an MPO are a photograph's by-products.
_PAGED = frozenset({"TIFF", "GIF", "WEBP", "PNG", "AVIF"})
_DEFLATED = b"1.2.840.10008.1.2.1.99"  # DICOM's transfer syntax
_SUBFILE_TYPE, _LARGEST_SAMPLE = 254, 281  # tags of TIFF


def image_suffixes() -> set[str]:
    """Of files that are images by their name: of every format that is read (`bounds.FORMATS`), and DICOM."""
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS} | {".dcm", ".dicom"}


def check_channels(channels: int) -> None:
    """Raises ConfigError unless images of that many channels can be had."""
    if channels not in (1, 3):
        raise ConfigError(f"channels must be 1 (grey) or 3 (RGB); got {channels}")


def check_bits(bits: int | None) -> None:
    """Raises ConfigError unless that many bits of a file of 16 can be in use."""
    if bits is not None and not 0 <= bits <= 16:
        raise ConfigError(f"data.bits must be 1 to 16, or 0 (each file by its own largest value); got {bits}")


def decode_image(encoded: bytes, channels: int, bits: int | None = None) -> UInt8[np.ndarray, "H W channels"]:
    """The pixels of `decode_picture`."""
    return pixels(decode_picture(encoded, channels, bits))


def decode_picture(encoded: bytes, channels: int, bits: int | None = None) -> Image.Image:
    """Decodes an image to mode RGB (`channels=3`) or L (`channels=1`, ITU-R 601 luma).

    Palettes are resolved, CMYK and other colour spaces converted. Values of 16 bits are divided by the largest of
    those `bits` that are in use, and rounded to 8 bits; 0 or None: by what `guessed_bits` finds.
    Transparent pixels are laid over black: their hidden colour is arbitrary, and black is what lies outside the
    object in the images at hand. Raises ValueError: not an image, a broken or truncated one, one of several pages, or
    of a kind without a known brightness (floats, 32-bit integers beyond 16 bits).
    """
    image = open_picture(encoded)
    if image.mode in DEEP_MODES:
        image = Image.fromarray(np.rint(255 * unit_range(image, bits)).astype(np.uint8))
    return over_black(image, "RGB" if channels == 3 else "L")


def guessed_bits(encoded: bytes) -> int:
    """How many bits of a grey file of 16 are taken to be in use by its largest value: 8, 12 or 16.

    TIFF may name a larger value that its samples can have. 0 for a file of another kind, which leaves no choice, and
    for one that is black.
    """
    if encoded[128:132] == b"DICM":
        return 0
    with open_image(encoded) as header:  # a picture that was decoded before
        if header.mode not in _INTEGER_MODES:
            return 0
    image = open_picture(encoded)
    return bits_in_use(image) if np.any(np.asarray(image)) else 0


def turned_by(encoded: bytes) -> int:
    """The EXIF orientation of a picture, which decoding follows: 2 to 8, or 1 for none."""
    if encoded[128:132] == b"DICM":
        return 1
    with open_image(encoded) as header:
        return header.getexif().get(_ORIENTATION, 1)


def open_picture(encoded: bytes, page: int | None = None) -> Image.Image:
    """Opens a picture, turned as its EXIF orientation says, in the mode of its file.

    `page` is that of a file of several, the first being 1; None: the file has one. Raises ValueError: not an image, a
    broken one, or one without that page.
    """
    if encoded[128:132] == b"DICM":
        return _open_dicom(encoded, page)
    image = open_image(encoded)
    try:
        if place := choose_page(_pages(image), page):
            image.seek(place)
        take_pixels(image.width, image.height)
        image.load()
        if image.format == "TIFF" or not _ORIENTED_BY.isdisjoint(image.info):
            ImageOps.exif_transpose(image, in_place=True)
        return image
    except (PageError, TooLargeError):
        raise
    except Exception as error:  # Pillow's parsers raise whatever they stumble over.
        raise ValueError(f"broken image ({error})") from error


class PageError(ValueError):
    """A file of several pages, slices or frames none of which was chosen, or without the one that was."""


def choose_page(count: int, page: int | None) -> int:
    """Index of the page, slice or frame to take of so many; PageError where that can't be known."""
    if page is None and count > 1:
        raise PageError(
            f"{count} pages, slices or frames in one file; keep the one that is meant, or for maps choose it by "
            f"data.maps.page, 1 to {count}"
        )
    if page is not None and not 1 <= page <= count:
        raise PageError(f"no page {page} (data.maps.page): the file has {count}")
    return (page or 1) - 1


def _pages(image: Image.Image) -> int:
    """How many pictures a file holds; smaller copies of the first in a TIFF don't count."""
    count = getattr(image, "n_frames", 1) if image.format in _PAGED else 1
    if image.format != "TIFF" or count == 1:
        return count
    kinds = []
    for place in range(count):
        image.seek(place)
        kinds.append(getattr(image, "tag_v2", {}).get(_SUBFILE_TYPE, 0))
    image.seek(0)
    return count if any(kind & 1 == 0 for kind in kinds[1:]) else 1


def _open_dicom(encoded: bytes, page: int | None) -> Image.Image:
    """One frame with its window applied, brought to 8 bits, dark = 0 also where the file has it the other way."""
    try:
        import pydicom
        from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
    except ModuleNotFoundError as error:
        raise ValueError("a DICOM file; reading it needs pydicom: pip install pydicom") from error
    if _DEFLATED in encoded:  # unpacked whole before anything of it is known
        raise ValueError("a deflated DICOM file; save it uncompressed")
    try:
        file = pydicom.dcmread(io.BytesIO(encoded))
        sides = [int(file.get(name) or 1) for name in ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel")]
    except Exception as error:  # As above.
        raise ValueError(f"broken DICOM ({error})") from error
    take_pixels(*sides)
    try:
        values = apply_voi_lut(apply_modality_lut(file.pixel_array, file), file).astype(np.float64)
        inverted, samples = file.PhotometricInterpretation == "MONOCHROME1", file.SamplesPerPixel
    except Exception as error:  # As above.
        raise ValueError(f"broken DICOM ({error})") from error
    if samples != 1:
        raise ValueError(f"a DICOM file of {samples} colours; only grey ones are read: export it as PNG")
    frames = values if values.ndim == 3 else values[None]
    values = frames[choose_page(len(frames), page)]
    low, high = values.min(), values.max()
    # 8-bit files are taken as they are, deeper ones from their darkest to their brightest pixel.
    eight_bit = file.BitsStored == 8 and low >= 0 and high <= 255
    grey = values if eight_bit else 255 * (values - low) / max(high - low, 1e-9)
    return Image.fromarray(np.rint(255 - grey if inverted else grey).astype(np.uint8))


def unit_range(image: Image.Image, bits: int | None = None) -> Float[np.ndarray, "h w"]:
    """Values of a picture of `DEEP_MODES`, the largest that its bits can hold being 1; `bits` as in `decode_picture`.

    Raises ValueError for values beyond that, below 0, or that are no numbers; floats are in [0, 1] already.
    """
    values = np.asarray(image).astype(np.float32)
    largest = 1.0
    if image.mode != "F":
        largest = 2.0 ** (bits or bits_in_use(image)) - 1
    if not (values.min() >= 0 and values.max() <= largest):  # NaN fails both.
        remedy = "save it with 8 or 16 bits" if largest in (1, _SIXTEEN_BIT) else "data.bits is too small"
        raise ValueError(f"values outside 0 to {largest:g} in a file of Pillow mode {image.mode}; {remedy}")
    return values / np.float32(largest)


def bits_in_use(image: Image.Image) -> int:
    """`guessed_bits` of an opened picture of 16 bits."""
    stated = getattr(image, "tag_v2", {}).get(_LARGEST_SAMPLE, 0)
    largest = max(np.max(np.asarray(image)), *(stated if isinstance(stated, tuple) else (stated,)))
    return next((bits for bits in _GUESSED_BITS if largest < 2**bits), _GUESSED_BITS[-1])


def over_black(image: Image.Image, mode: str) -> Image.Image:
    """The picture in mode L or RGB, transparent pixels laid over black."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba).convert("RGB")
    return image if image.mode == mode else image.convert(mode)  # `convert` copies even where nothing changes.
