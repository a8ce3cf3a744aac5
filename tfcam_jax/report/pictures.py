"""Images and maps as pixels: colour scales, the PNG of one image, and pictures small enough to stand in a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont

from ..errors import visible

_COLORS = np.rint(255 * colormaps["RdBu_r"](np.linspace(0, 1, 256))[:, :3]).astype(np.uint8)
_MARGIN, _TITLE, _FOOT = 8, 20, 16


def colorize(values: Float[np.ndarray, "h w"], low: float, high: float) -> UInt8[np.ndarray, "h w 3"]:
    """Blue at `low`, white halfway, red at `high`; white everywhere if both are equal."""
    span = high - low
    unit = (values - low) / span if span > 0 else np.full(values.shape, 0.5)
    return _COLORS[np.clip(np.rint(255 * unit), 0, 255).astype(int)]


def own_scale(values: Float[np.ndarray, "h w"], signed: bool) -> tuple[float, float]:
    """The values that are blue and red where a map has a scale of its own.

    Of a signed map, as D, whose zero means something: as far to either side of zero, so that white is 0 and no place
    above it is blue. Of any other: its lowest and its highest.
    """
    if signed:
        reach = float(np.abs(values).max())
        return -reach, reach
    return float(values.min()), float(values.max())


def values_range(values: Float[np.ndarray, "h w"], signed: bool) -> str:
    """The lowest and highest value of a map, as it stands below its picture; of a signed one also what white is."""
    return f"{values.min():.3g} to {values.max():.3g}" + (", white 0" if signed else "")


def enlarge(values: Float[np.ndarray, "h w"], side: int) -> Float[np.ndarray, "side side"]:
    """Linear interpolation to `side` by `side` pixels."""
    return np.asarray(Image.fromarray(np.asarray(values, np.float32)).resize((side, side), Image.Resampling.BILINEAR))


def sheet(
    image: UInt8[np.ndarray, "H W channels"],
    human: Float[np.ndarray, "h w"] | None,
    maps: dict[str, Float[np.ndarray, "h w"]],
    signed: Collection[str],
    caption: str,
    notes: list[str],
    side: int = 160,
) -> Image.Image:
    """The picture of one image: input, human map, and each map on its own scale; below, notes and a shared scale.

    Own scale: see `own_scale`; the maps named in `signed` are centred on zero, of the others blue is the lowest place
    and red the highest, as in the figure of the paper. Shared scale: white is 0, and red and blue reach equally far in
    all maps. Below each map stands the range of its values.
    """
    reach = max(float(np.abs(values).max()) for values in maps.values())
    font = ImageFont.load_default(12)
    if human is None:
        shown = Image.new("RGB", (side, side), "whitesmoke")
        ImageDraw.Draw(shown).text((side // 2 - 14, side // 2 - 8), "none", fill="gray", font=font)
    else:
        shown = _to_pillow(np.rint(255 * enlarge(human, side)).astype(np.uint8)[..., None])
    top = [("input", _to_pillow(image).resize((side, side), Image.Resampling.BILINEAR), ""), ("human map", shown, "")]
    bottom = []
    for name, values in maps.items():
        large, centred = enlarge(values, side), name in signed
        own, shared = (_to_pillow(colorize(large, *ends)) for ends in (own_scale(values, centred), (-reach, reach)))
        top.append((f"{name}, own scale", own, values_range(values, centred)))
        bottom.append((f"{name}, shared scale", shared, values_range(values, signed=True)))
    cell, height = side + _MARGIN, side + _TITLE + _FOOT
    page = Image.new("RGB", (len(top) * cell + _MARGIN, 2 * height + _TITLE + _MARGIN), "white")
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, 4), visible(caption), fill="black", font=font)
    for number, note in enumerate(notes):
        draw.text((_MARGIN, _TITLE * (2 + number) + height), note, fill="black", font=font)
    for y, first, cells in ((_TITLE, 0, top), (_TITLE + height, 2, bottom)):
        for column, (title, picture, below) in enumerate(cells, start=first):
            x = _MARGIN + column * cell
            draw.text((x, y + 3), title, fill="dimgray", font=font)
            page.paste(picture, (x, y + _TITLE))
            draw.text((x, y + _TITLE + side + 1), below, fill="dimgray", font=font)
    return page


def _to_pillow(image: UInt8[np.ndarray, "H W channels"]) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")


def data_uri(image: UInt8[np.ndarray, "H W channels"], longest: int) -> str:
    """A WebP of at most `longest` pixels a side, as `data:` URI."""
    picture = _to_pillow(image)
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    picture.save(encoded, "WEBP", quality=78)
    return "data:image/webp;base64," + base64.b64encode(encoded.getvalue()).decode()


def crop(
    image: UInt8[np.ndarray, "H W channels"], box: tuple[int, int, int, int], places: tuple[int, int]
) -> np.ndarray:
    """The pixels of a box of places, with half a place around it as far as the image reaches."""
    scale = np.divide(image.shape[:2], places)
    top, left = np.maximum((np.array(box[:2]) - 0.5) * scale, 0).astype(int)
    bottom, right = np.ceil((np.array(box[2:]) + 0.5) * scale).astype(int)
    return image[top:bottom, left:right]


def pack_maps(maps: Float[np.ndarray, "m h w"]) -> tuple[str, float]:
    """Maps as base64 of little-endian int16, and the value that 32767 stands for (their largest magnitude)."""
    reach = float(np.abs(maps).max())
    scaled = np.rint(maps * (32767 / reach)) if reach > 0 else np.zeros(maps.shape)
    return base64.b64encode(scaled.astype("<i2").tobytes()).decode(), reach
