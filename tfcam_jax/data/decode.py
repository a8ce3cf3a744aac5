"""Encoded files to arrays: images of any mode and bit depth that Pillow reads, DICOM, and NPY for maps.

Images become uint8, human maps float32 in [0, 1]. Pictures follow their EXIF orientation, as every viewer that an
annotator may have used does.
"""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import ConfigError
from .source import pixels

_SIXTEEN_BIT = 65535
# Where Pillow finds an orientation, besides TIFF's own tags; looking for it costs as much as opening the file.
_ORIENTED_BY = frozenset({"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"})
_INTEGER_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def check_channels(channels: int) -> None:
    """Raises ConfigError unless images of that many channels can be had."""
    if channels not in (1, 3):
        raise ConfigError(f"channels must be 1 (grey) or 3 (RGB); got {channels}")


def decode_image(encoded: bytes, channels: int) -> UInt8[np.ndarray, "H W channels"]:
    """The pixels of `decode_picture`."""
    return pixels(decode_picture(encoded, channels))


def decode_picture(encoded: bytes, channels: int) -> Image.Image:
    """Decodes an image to mode RGB (`channels=3`) or L (`channels=1`, ITU-R 601 luma).

    Palettes are resolved, CMYK and other colour spaces converted, 16-bit values divided by 257 and rounded.
    Transparent pixels are laid over black: their hidden colour is arbitrary, and black is what lies outside the
    object in the images at hand. Raises ValueError: not an image, a broken or truncated one, or of a kind without a
    known brightness (floats, 32-bit integers beyond 16 bits).
    """
    image = _open(encoded)
    if image.mode in (*_INTEGER_MODES, "F"):
        image = Image.fromarray(np.rint(255 * _unit_range(image)).astype(np.uint8))
    return _over_black(image, "RGB" if channels == 3 else "L")


def decode_map(encoded: bytes) -> Float[np.ndarray, "h w"]:
    """Decodes a human map to floats in [0, 1], where 1 is the brightest value of the file's bit depth.

    Colours become luma. Transparent pixels are laid over black: nobody marked them. 16-bit maps keep their depth;
    float files hold values in [0, 1] already. Raises ValueError as `decode_picture`.
    """
    image = _open(encoded)
    if image.mode in (*_INTEGER_MODES, "F"):
        return _unit_range(image)
    return np.divide(np.asarray(_over_black(image, "L")), np.float32(255), dtype=np.float32)


def decode_array(encoded: bytes) -> Float[np.ndarray, "h w"]:
    """Decodes a map from the bytes of an NPY file.

    Arrays are [h, w] or [h, w, 1], finite and non-negative. Booleans and integers up to 1 are taken as they are, larger
    integers are divided by their type's largest value, floats beyond 1 by their own largest. Raises ValueError for
    anything else.
    """
    try:
        array = np.load(io.BytesIO(encoded), allow_pickle=False)
    except Exception as error:  # NumPy raises whatever it stumbles over.
        raise ValueError(f"not a NumPy array ({error})") from error
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 or not array.size or array.dtype.kind not in "buif":
        raise ValueError(f"a map must be [h, w] numbers; got shape {array.shape}, {array.dtype}")
    values = array.astype(np.float32)
    if not (np.isfinite(values).all() and values.min() >= 0):
        raise ValueError("a map must be finite and non-negative")
    if values.max() > 1:
        values /= np.iinfo(array.dtype).max if array.dtype.kind in "ui" else values.max()
    return values


def _open(encoded: bytes) -> Image.Image:
    if encoded[128:132] == b"DICM":
        return _open_dicom(encoded)
    try:
        image = Image.open(io.BytesIO(encoded))
        image.load()
        if image.format == "TIFF" or not _ORIENTED_BY.isdisjoint(image.info):
            ImageOps.exif_transpose(image, in_place=True)
        return image
    except UnidentifiedImageError as error:
        raise ValueError("not an image that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"too large an image to open safely ({error}); scale it down") from error
    except Exception as error:  # Pillow's parsers raise whatever they stumble over.
        raise ValueError(f"broken image ({error})") from error


def _open_dicom(encoded: bytes) -> Image.Image:
    """The first frame with its window applied, brought to 8 bits, dark = 0 also where the file has it the other way."""
    try:
        import pydicom
        from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
    except ModuleNotFoundError as error:
        raise ValueError("a DICOM file; reading it needs pydicom: pip install pydicom") from error
    try:
        file = pydicom.dcmread(io.BytesIO(encoded))
        values = apply_voi_lut(apply_modality_lut(file.pixel_array, file), file).astype(np.float64)
        inverted = file.PhotometricInterpretation == "MONOCHROME1"
    except Exception as error:  # As above.
        raise ValueError(f"broken DICOM ({error})") from error
    if values.ndim != 2:
        raise ValueError(f"a DICOM file of shape {values.shape}; only single grey images are read")
    low, high = values.min(), values.max()
    # 8-bit files are taken as they are, deeper ones from their darkest to their brightest pixel.
    eight_bit = file.BitsStored == 8 and low >= 0 and high <= 255
    grey = values if eight_bit else 255 * (values - low) / max(high - low, 1e-9)
    return Image.fromarray(np.rint(255 - grey if inverted else grey).astype(np.uint8))


def _unit_range(image: Image.Image) -> Float[np.ndarray, "h w"]:
    values = np.asarray(image).astype(np.float32)
    if image.mode != "F":
        values /= _SIXTEEN_BIT
    if not (values.min() >= 0 and values.max() <= 1):  # NaN fails both.
        bounds = "0 to 1" if image.mode == "F" else f"0 to {_SIXTEEN_BIT}"
        raise ValueError(f"values outside {bounds} in a file of Pillow mode {image.mode}; save it with 8 or 16 bits")
    return values


def _over_black(image: Image.Image, mode: str) -> Image.Image:
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba).convert("RGB")
    return image if image.mode == mode else image.convert(mode)  # `convert` copies even where nothing changes.
