"""How fine a backbone's CAM is for images of a size, and what would make it finer, in words."""

from __future__ import annotations

from .lookup import find_network

# Below so many places a side, a map tells little more than a quadrant.
COARSE_BELOW = 4
_FINE_MODEL = "small_cnn"  # it halves the image three times; the deep ones five times


def describe_cam(name: str, image_size: int, side: int) -> str:
    """One line: the CAM's size and number of places, the pixels that a place stands for, and what makes it finer.

    Args:
      name: of the backbone, as a config gives it.
      image_size: side of the images in px.
      side: of its CAM at that size, see `cam_size`.
    """
    pixels = image_size / side
    share = f"{pixels:.0f}" if pixels.is_integer() else f"about {pixels:.0f}"
    what = f"CAM {side}x{side}, {side * side} places, each {share} px of the {image_size} px image"
    if side == 1:
        what = f"CAM 1x1, one place for the whole {image_size} px image: it can't say where"
    elif side < COARSE_BELOW:
        what += ": coarse"
    return f"{what}. Finer: {finer(name, image_size, side)}"


def finer(name: str, image_size: int, side: int) -> str:
    """Flags that give a finer CAM: the size that the backbone is made for or, from there on, twice the size."""
    card = find_network(name).card
    if card is None or side >= card.cam_size:
        return f"--config.data.image_size={2 * image_size} (about {2 * side}x{2 * side})"
    larger = f"--config.data.image_size={card.image_size} ({card.cam_size}x{card.cam_size})"
    if name == _FINE_MODEL:
        return larger
    other = find_network(_FINE_MODEL).look(image_size).cam_side
    return f"{larger} or --config.model.name={_FINE_MODEL} ({other}x{other}, from scratch)"
