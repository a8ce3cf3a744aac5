"""How fine a backbone's CAM is for images of a size, and what would make it finer, in words."""

from __future__ import annotations

from . import OUTPUT_STRIDES, settings_of
from .lookup import find_network

# Below so many places a side, a map tells little more than a quadrant.
COARSE_BELOW = 4
_FINE_MODEL = "small_cnn"  # it halves the image three times; the deep ones five times


def describe_cam(name: str, image_size: int, side: int, output_stride: int = 32) -> str:
    """One line: the CAM's size and number of places, the pixels that a place stands for, and what makes it finer.

    Args:
      name: of the backbone, as a config gives it.
      image_size: side of the images in px.
      side: of its CAM at that size, see `cam_size`.
      output_stride: the key `model.output_stride`, with which the CAM has that side.
    """
    pixels = image_size / side
    share = f"{pixels:.0f}" if pixels.is_integer() else f"about {pixels:.0f}"
    what = f"CAM {side}x{side}, {side * side} places, each {share} px of the {image_size} px image"
    if side == 1:
        what = f"CAM 1x1, one place for the whole {image_size} px image: it can't say where"
    elif side < COARSE_BELOW:
        what += ": coarse"
    return f"{what}. Finer: {finer(name, image_size, side, output_stride)}"


def finer(name: str, image_size: int, side: int, output_stride: int = 32) -> str:
    """Flags that give a finer CAM: the size that the backbone is made for or, from there on, twice the size; a smaller
    output stride where it has one; and the backbone that is finer by itself where the image is small."""
    card = find_network(name).card
    if card is None:
        return _twice(image_size, side)
    has_stride = "output_stride" in settings_of(name)
    usual = -(-card.image_size // output_stride) if has_stride else card.cam_size
    is_small = side < usual
    ways = [f"--config.data.image_size={card.image_size} ({usual}x{usual})" if is_small else _twice(image_size, side)]
    if has_stride:
        strided = {stride: -(-image_size // stride) for stride in OUTPUT_STRIDES if stride < output_stride}
        ways += [f"--config.model.output_stride={stride} ({n}x{n})" for stride, n in strided.items() if n > side][:1]
    other = find_network(_FINE_MODEL).look(image_size).cam_side if is_small else 0
    if other > side:
        ways.append(f"--config.model.name={_FINE_MODEL} ({other}x{other}, from scratch)")
    return " or ".join(ways)


def _twice(image_size: int, side: int) -> str:
    return f"--config.data.image_size={2 * image_size} (about {2 * side}x{2 * side})"
