"""Human maps of one image each: pictures and arrays brought to floats in [0, 1], or refused by name.

What was done to a file's values beyond dividing them by what its depth can hold is told in a note, a key of `NOTES`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from .array_files import ARRAYS, read_array, suffix_of
from .checks.outcomes import FEWER_BITS, LABEL, LEFT_VOID, MASK, ONE_COLOUR, OPACITY, ROWS_FIRST, VOTES
from .decode import DEEP_MODES, bits_in_use, open_picture, over_black, unit_range

# An 8-bit picture that holds nothing above is not one of grey values: votes, or numbers of classes.
_FEW = 15
_MOST_CLASSES = 32
_VOID = 255  # number of the border around objects in label images, after Pascal VOC
# Grey is what has no more colour than this, of 255, on the mean over blocks of so many pixels a side: noise of a camera
# or of JPEG evens out, a stroke of one pixel does not.
_PART = 2**20  # pixels
_GREY, _BLOCK, _SHARE_COLOURED = 24, 8, 0.001
# More than so many pixels of a colour beyond that noise, or of so large a share, are drawn.
_STRONG, _HANDFUL, _SHARE_STRONG = 96, 20, 1e-5
# Of 255: how near the ground is to black or white; how far a picture of one colour may be off it, at a share of what is
# marked; how dark strokes on a transparent ground are.
_GROUND, _OFF, _SHARE_OFF, _DARK = 32, 24, 0.05, 64


class MapFile(NamedTuple):
    """A map, [h, w] float32 in [0, 1], and notes on what was done to its values."""

    values: Float[np.ndarray, "h w"]
    notes: tuple[str, ...] = ()


def read_map_file(
    encoded: bytes, name: str, size: tuple[int, int], page: int | None = None, invert: bool = False
) -> MapFile:
    """The map in a file.

    Args:
      encoded: the file.
      name: its name; the suffix tells arrays (`array_files.ARRAYS`) from pictures.
      size: height and width of its image: which way a NIfTI slice lies.
      page: of a file of several, the first being 1.
      invert: 1 - map, for files where what is marked is dark.

    Raises:
      ValueError: not a map, broken, or one whose values can't be known.
    """
    if suffix_of(name) in ARRAYS:
        array, rows_first = read_array(encoded, suffix_of(name), size, page)
        values, notes = scale_array(array)
        found = MapFile(values, (*notes, *([ROWS_FIRST] if rows_first else [])))
    else:
        found = decode_map(encoded, page)
    return found._replace(values=1 - found.values) if invert else found


def scale_array(array: np.ndarray) -> MapFile:
    """Brings numbers to [0, 1].

    Integers are divided by their own largest value: votes, whatever the type. Booleans and floats up to 1 are taken
    as they are, floats beyond 1 divided by their own largest. Raises ValueError unless the array is [h, w] or
    [h, w, 1], finite and non-negative.
    """
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 or not array.size or array.dtype.kind not in "buif":
        raise ValueError(f"a map must be [h, w] numbers; got shape {array.shape}, {array.dtype}")
    if not (np.isfinite(array).all() and array.min() >= 0):
        raise ValueError("a map must be finite and non-negative")
    largest = float(array.max())
    if largest <= 1:
        return MapFile(array.astype(np.float32))
    # 255 and 65535 are white: nothing a user need be told of.
    whole = array.dtype.kind in "ui" and largest in (255, 65535)
    return MapFile((array / largest).astype(np.float32), () if whole else (VOTES,))


def decode_map(encoded: bytes, page: int | None = None) -> MapFile:
    """Decodes a picture: 1 is the brightest value of its bit depth.

    - Pictures of two values, the lower 0, are masks: the other value counts as 1. Other grey pictures that hold
      nothing above 15 are votes and divided by their largest; 255 beside such values is the void border of a label
      image, and not marked.
    - 16 bits keep their depth, see `decode.guessed_bits`. Floats are in [0, 1], or divided by their largest.
    - Colours that are grey become luma. One colour on black or white marks by how much of it there is.
    - Transparent pixels are laid over black: nobody marked them. Where all that can be seen is dark, strokes in black,
      its opacity is the map.
    - Palettes that are numbers of classes: the one class beside 0, the background, and 255, a void border.

    Raises ValueError as `decode.open_picture`, and for pictures of several colours or classes.
    """
    image = open_picture(encoded, page)
    if image.mode in DEEP_MODES:
        return _scale_deep(image)
    if image.mode == "1":
        return MapFile(np.asarray(image).astype(np.float32))
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
        alpha = rgba[..., 3]
        if alpha.any() and alpha.min() < alpha.max() and rgba[alpha > 0, :3].max() <= _DARK:
            return MapFile(alpha / np.float32(255), (OPACITY,))
    elif image.mode == "P" and _is_voc(image):
        return _one_class(np.asarray(image))
    if image.mode in ("L", "LA"):
        return _scale_grey(np.asarray(over_black(image, "L")))
    colours = over_black(image, "RGB")
    if _is_grey(colours) and not _has_strong_colours(colours):
        return _scale_grey(np.asarray(colours.convert("L")))
    amount = _amount_of_colour(np.asarray(colours))
    if amount is not None:
        return MapFile(amount, (ONE_COLOUR,))
    if _may_be_classes(image):
        return _one_class(np.asarray(image))
    raise ValueError(
        "a picture of several colours, such as a colour-mapped heat map or an overlay, has no known order of values; "
        "export the grey values"
    )


def _scale_deep(image: Image.Image) -> MapFile:
    values = np.asarray(image)
    if image.mode == "F":
        return scale_array(values)
    largest = values.max()
    if values.min() >= 0 and largest > 0 and ((values == 0) | (values == largest)).all():
        return MapFile((values > 0).astype(np.float32), (MASK,) if largest not in (255, 65535) else ())
    if 1 < largest <= _FEW:
        return scale_array(values)
    return MapFile(unit_range(image), (FEWER_BITS,) if bits_in_use(image) < 16 else ())


def _scale_grey(values: UInt8[np.ndarray, "h w"]) -> MapFile:
    used = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
    largest = used[-1]
    if largest == 0:
        return MapFile(values.astype(np.float32))
    if len(used) == 2 and used[0] == 0:
        return MapFile((values > 0).astype(np.float32), (MASK,) if largest < 255 else ())
    if len(used) > 2 and largest == _VOID and used[-2] <= _FEW:
        return _one_class(values)
    if len(used) > 2 and largest <= _FEW:
        return MapFile(values / np.float32(largest), (VOTES,))
    return MapFile(values / np.float32(255))


def _one_class(numbers: UInt8[np.ndarray, "h w"]) -> MapFile:
    """Where the one class of a label image lies, whose background is 0 and whose void border, if any, 255."""
    classes = [number for number in np.unique(numbers).tolist() if number not in (0, _VOID)]
    void = (numbers == _VOID).any()
    if not classes:
        return MapFile((numbers == _VOID).astype(np.float32), (LABEL,))
    if len(classes) > 1:
        named = ", ".join(map(str, classes[:8])) + (", ..." if len(classes) > 8 else "")
        raise ValueError(
            f"a label image of {len(classes)} classes, {named}; which of them are meant can't be known: save a mask of "
            "those alone"
        )
    return MapFile((numbers == classes[0]).astype(np.float32), (LABEL, *([LEFT_VOID] if void else [])))


def _is_voc(image: Image.Image) -> bool:
    """Whether a palette is that of Pascal VOC's label images, which other tools write too."""
    palette = np.array(image.getpalette("RGB"), int).reshape(-1, 3)
    used = np.unique(np.asarray(image))
    bit = lambda numbers, place: numbers >> place & 1
    expected = np.zeros((len(used), 3), int)
    for place in range(3):
        for channel in range(3):
            expected[:, channel] |= bit(used, 3 * place + channel).astype(int) << (7 - place)
    return bool(used[-1] > 0 and used[-1] < len(palette) and (palette[used] == expected).all())


def _may_be_classes(image: Image.Image) -> bool:
    """Whether a picture has a palette of few colours in use, the first of which is black."""
    if image.mode != "P" or image.has_transparency_data or (image.getpalette("RGB") or [1])[:3] != [0, 0, 0]:
        return False
    return len(np.unique(np.asarray(image))) <= _MOST_CLASSES


def _is_grey(colours: Image.Image) -> bool:
    blocks = np.asarray(colours.reduce(_BLOCK))
    return bool(np.mean(np.ptp(blocks, axis=-1) > _GREY) <= _SHARE_COLOURED)


def _has_strong_colours(colours: Image.Image) -> bool:
    """Whether more pixels than a handful are of a strong colour, as thin outlines on a grey picture are."""
    strong = np.ptp(np.asarray(colours), axis=-1) > _STRONG
    return bool(strong.sum() > max(_HANDFUL, _SHARE_STRONG * strong.size))


def _amount_of_colour(colours: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"] | None:
    """How far each pixel lies on the way from the ground, black or white, to the one colour of a picture.

    None if there is no such ground, or more than one colour, grey being one.
    """
    pixels = colours.reshape(-1, 3)
    black, white = np.mean(pixels.max(1) <= _GROUND), np.mean(pixels.min(1) >= 255 - _GROUND)
    if max(black, white) < 0.01:
        return None
    # A part at a time: as floats a large picture takes gigabytes.
    offsets = lambda: (each.astype(np.float32) - (0 if black >= white else 255) for each in _parts(pixels))
    distance = np.concatenate([np.linalg.norm(offset, axis=1) for offset in offsets()])
    colour = _median(pixels[distance >= 0.9 * distance.max()]) - np.float32(0 if black >= white else 255)
    if np.ptp(colour) <= _GREY:  # a grey picture with something coloured in it
        return None
    amounts, off = [], 0
    for offset in offsets():
        amounts.append(amount := offset @ colour / (colour @ colour))
        off += np.sum(np.abs(offset - amount[:, None] * colour).max(1) > _OFF)
    if off > _SHARE_OFF * np.sum(distance > _GROUND):
        return None
    return np.concatenate([np.clip(amount, 0, 1) for amount in amounts]).reshape(colours.shape[:2])


def _parts(pixels: UInt8[np.ndarray, "n 3"]) -> Iterator[UInt8[np.ndarray, "part 3"]]:
    return (pixels[start : start + _PART] for start in range(0, len(pixels), _PART))


def _median(pixels: UInt8[np.ndarray, "n 3"]) -> Float[np.ndarray, 3]:
    """Median of each channel, by counting: sorting takes memory."""
    middle = np.array([(len(pixels) + 1) // 2, len(pixels) // 2 + 1])
    counted = [np.cumsum(np.bincount(pixels[:, channel], minlength=256)) for channel in range(3)]
    return np.array([np.searchsorted(each, middle).mean() for each in counted], np.float32)
