"""One geometric transform for an image and its human map (crop, resize, flip, affine), colour for the image alone,
and blur for the map alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, Real, Shaped, UInt8
from PIL import Image, ImageEnhance

from ..errors import ConfigError, check_ranges
from ..saliency import triangle_weights
from .source import Example, pixels

_BILINEAR = Image.Resampling.BILINEAR
# A smaller range, as a share of the largest value, says nothing: `cams.is_constant`, without jax.
_LEAST_RANGE, _SMALLEST_RANGE = 1e-5, 1e-18
# Beyond these no image is left to learn from, and what must be padded grows without bound.
LIMITS = {"flip": 1, "crop": 0.9, "rotate": 180, "translate": 0.5, "scale": 0.5, "shear": 45}
LIMITS |= {"brightness": 0.5, "contrast": 0.9, "saturation": 1}


@dataclass(frozen=True)
class Augment:
    """Random geometry, colour and blur, all drawn uniformly. The default changes nothing, as in the CYBORG recipe.

    Attributes:
      flip: probability of a left-right flip, 0..1.
      crop: largest share of each side that is cut off, 0..0.9; both sides and the place are drawn independently.
      rotate: largest rotation, degrees, either way, 0..180.
      translate: largest shift along each axis, as a share of the side, either way, 0..0.5.
      scale: largest change of size, as a share, either way, 0..0.5.
      shear: largest shear along x, degrees, either way, 0..45.
      brightness: largest shift of all values, as a share of the range, either way, 0..0.5.
      contrast: largest change of the values' distance from their mean, as a share, either way, 0..0.9.
      saturation: largest change of the colours' distance from grey, as a share, either way, 0..1.
      map_blur: of the map alone, last: least and largest standard deviation, above 0, of a Gaussian, in pixels of the
        map as it is handed on; empty: none. Its kernel has 3 x 3 pixels, whatever the deviation, and what lies beyond
        the border is mirrored without repeating the border, as in torchvision's `GaussianBlur(3, sigma)`, which the
        public code of VISER (IJCB 2026) applies to maps of 7 x 7 places, `Resize.map_size` here. On maps of an image's
        size 3 x 3 pixels are next to nothing. The peak is not restored.

    Raises:
      ConfigError: a value beyond its limits.
    """

    flip: float = 0.0
    crop: float = 0.0
    rotate: float = 0.0
    translate: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    map_blur: tuple = ()

    def __post_init__(self):
        check_ranges("config.augment", self, LIMITS)
        numbers = all(isinstance(sigma, int | float) for sigma in self.map_blur)
        if self.map_blur and not (numbers and len(self.map_blur) == 2 and 0 < self.map_blur[0] <= self.map_blur[1]):
            what = (
                "config.augment.map_blur must be empty or two numbers, least and largest standard deviation in pixels"
            )
            raise ConfigError(f"{what}, 0 < least <= largest, as (0.1, 2.0); got {self.map_blur}")

    @property
    def of_pixels(self) -> tuple[str, ...]:
        """What is varied of the image beyond flips; without it an image has two views at most."""
        return tuple(name for name in LIMITS if name != "flip" and getattr(self, name))


IDENTITY = Augment()


@dataclass(frozen=True)
class Resize:
    """How image and map come to their size. By default both in one step, together.

    Attributes:
      size: side of the square image, and of the map, in pixels.
      through: sides that both are brought to before, one after the other.
      map_size: side of the map where it is resized alone, from its file to the CAM's places at once, rounded to 8 bits
        before and after as Pillow does with files, so 0 to 255: the CYBORG code's way. A faint map may round to a
        constant, which is no map. None: the map is resized with the image, on floats.
      places: side that a map which was resized with its image is brought to last, after everything that varies or
        blurs it, to travel to the device as float16 (`_to_travel`). None: it stays float32, of the image's size. Beside
        `map_size` it does not change the size, and what is of 8 bits travels so.

    Raises:
      ConfigError: a side below 1.
    """

    size: int
    through: tuple[int, ...] = ()
    map_size: int | None = None
    places: int | None = None

    def __post_init__(self):
        for side in self.through:
            if not isinstance(side, int) or side < 1:
                raise ConfigError(f"config.data.resize_through holds {side!r}; it must hold pixels, at least 1")

    @property
    def map_side(self) -> int:
        """Of the maps that come out."""
        return self.map_size or self.places or self.size


@dataclass(frozen=True)
class _Geometry:
    """One draw: the box kept (left, top, right, bottom as shares), and where each output pixel comes from."""

    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    flip: bool = False
    # Matrix [2, 2], output to input, about the centre; shift [2], x and y, share of the side.
    affine: tuple[np.ndarray, np.ndarray] | None = None


def apply(
    example: Example, resize: Resize, augment: Augment = IDENTITY, rng: np.random.Generator | None = None
) -> tuple[UInt8[np.ndarray, "size size channels"], Real[np.ndarray, "map_size map_size"]]:
    """Brings image and map to the size that `resize` says, moving both alike.

    The aspect ratio is not kept (the CYBORG code squeezes too). Resizing is Pillow's antialiased triangle filter, on
    uint8 for the image and on floats for the map, whose faint values would otherwise round away.

    The affine part may ask for pixels beyond the border. The image repeats its edge there, as a black wedge would be
    a cue of its own; the map is 0 there, as nobody marked what does not exist.

    Without a source of draws, `rng`, nothing is varied. The saliency returned is all zero, which later stages read as
    "no map", if there is none, if it is constant, or if the crop leaves a constant piece of it. It is float32 but
    where `resize.places` says otherwise.
    """
    geometry, colours, blur = _draw_all(augment, rng)
    image = _move_picture(_in_stages(example.picture, resize.through), resize.size, geometry)
    if colours is not None and (augment.brightness or augment.contrast or augment.saturation):
        image = _recolour(image, augment, colours)
    return image, _finish_map(_resize_map(example.saliency, resize, geometry), resize, augment, blur)


def resize_first(example: Example, image_side: int | None, map_side: int | None) -> Example:
    """The example with image and map brought to the side that `apply` brings them to first; None: left as they are.

    `apply` then gives the same bits: in stages that is the first one, without them and without a crop the last.
    """
    picture, saliency = example.picture, example.saliency
    if image_side is not None:
        picture = picture.resize((image_side, image_side), _BILINEAR)
    if map_side is not None and saliency is not None:
        floats = Image.fromarray(np.asarray(saliency, np.float32))
        saliency = np.asarray(floats.resize((map_side, map_side), _BILINEAR))
    return Example(picture, saliency)


def resize_map(saliency: Float[np.ndarray, "h w"] | None, resize: Resize) -> Real[np.ndarray, "map_size map_size"]:
    """The map that `apply` returns without a source of draws."""
    return _finish_map(_resize_map(saliency, resize, _Geometry()), resize, IDENTITY, None)


def vary_views(
    views: Shaped[np.ndarray, "views ..."],
    saliency: Real[np.ndarray, "h w"],
    resize: Resize,
    augment: Augment,
    rng: np.random.Generator | None = None,
) -> tuple[np.ndarray, Real[np.ndarray, "map_size map_size"], np.ndarray]:
    """As `apply`, by the same draws, for an image of which there are finished views and a finished map (`resize_map`).

    A map that is blurred must be finished but for its way to `resize.places`, which comes after the blur.

    `views` has what the image is seen as, and, if the augmentation flips, its mirror image; nothing else may vary it
    (`Augment.of_pixels`). Returns the view that is drawn, the map, and the other view, or the same where there is one.
    """
    geometry, _, blur = _draw_all(augment, rng)
    moved = saliency[:, ::-1] if geometry.flip else saliency
    drawn = int(geometry.flip)
    return views[drawn], _finish_map(moved, resize, augment, blur), views[(drawn + 1) % len(views)]


def _resize_map(saliency: np.ndarray | None, resize: Resize, geometry: _Geometry) -> np.ndarray:
    map_size = resize.map_size or resize.size
    if saliency is None:
        return np.zeros((map_size, map_size), np.float32)
    saliency = np.asarray(saliency, np.float32)
    if resize.map_size is None:
        return _move_map(_in_stages(Image.fromarray(saliency), resize.through), map_size, geometry)
    eight_bits = Image.fromarray(np.rint(np.clip(saliency, 0, 1) * 255).astype(np.uint8))
    return _move_map(eight_bits, map_size, geometry).astype(np.float32)


def _finish_map(saliency: np.ndarray, resize: Resize, augment: Augment, draw: float | None) -> np.ndarray:
    """Blurs a map as drawn, and then makes it what travels; one that is that already stays as it is."""
    if draw is not None and augment.map_blur:
        least, largest = augment.map_blur
        saliency = _blur(saliency, least + (largest - least) * draw)
    if resize.places is None or saliency.dtype != np.float32:
        return saliency
    if resize.map_size is not None:  # of 8 bits by now, but for what a blur made of it
        return saliency if augment.map_blur else saliency.astype(np.uint8)
    return _to_travel(saliency, resize.places)


def _to_travel(saliency: Float[np.ndarray, "h w"], places: int) -> Float[np.ndarray, "places places"]:
    """A map as `saliency.to_cam_resolution` makes it, brought to so many places a side and to [0, 1], as float16.

    As the range is stretched before it is rounded, a faint map loses no more than another: 2^-12 of each value. That
    function does nothing more to it. All zero: none, or constant at these places.
    """
    if saliency.shape != (places, places):
        height, width = saliency.shape
        saliency = _weights(height, places).T @ saliency @ _weights(width, places)
    low, high = saliency.min(), saliency.max()
    span = high - low
    if not (np.isfinite(span) and span > _LEAST_RANGE * high + _SMALLEST_RANGE):
        return np.zeros((places, places), np.float16)
    return ((saliency - low) / span).astype(np.float16)


@cache
def _weights(old: int, new: int) -> Float[np.ndarray, "old new"]:
    # An eighth of the time that Pillow takes on floats, to the same 1e-7.
    return triangle_weights(old, new).astype(np.float32)


def _draw_all(augment: Augment, rng: np.random.Generator | None) -> tuple[_Geometry, np.ndarray | None, float | None]:
    """Geometry, three numbers for the colours and one for the map's blur, all of them drawn whether used or not."""
    return (_Geometry(), None, None) if rng is None else (_draw(augment, rng), rng.random(3), rng.random())


def _draw(augment: Augment, rng: np.random.Generator) -> _Geometry:
    # Always the same number of draws, so that switching one part on leaves the others as they were.
    flip, *unit = rng.random(10)
    width, height = 1 - augment.crop * unit[0], 1 - augment.crop * unit[1]
    left, top = (1 - width) * unit[2], (1 - height) * unit[3]
    angle, shear, scale, *shift = 2 * np.asarray(unit[4:]) - 1
    affine = None
    if augment.rotate or augment.shear or augment.scale or augment.translate:
        radians = math.radians(augment.rotate * angle)
        rotation = np.array([[math.cos(radians), -math.sin(radians)], [math.sin(radians), math.cos(radians)]])
        slant = np.array([[1, math.tan(math.radians(augment.shear * shear))], [0, 1]])
        matrix = np.linalg.inv((1 + augment.scale * scale) * rotation @ slant)
        affine = (matrix, augment.translate * np.asarray(shift))
    return _Geometry((left, top, left + width, top + height), bool(flip < augment.flip), affine)


def _recolour(image: np.ndarray, augment: Augment, unit: np.ndarray) -> np.ndarray:
    """Brightness and contrast as one table of 256 values, then saturation; the map has no colours."""
    brightness, contrast, saturation = 2 * unit - 1
    mean = image.mean()
    table = (1 + augment.contrast * contrast) * (np.arange(256) - mean) + mean + 255 * augment.brightness * brightness
    image = np.clip(np.rint(table), 0, 255).astype(np.uint8)[image]
    if augment.saturation and image.shape[-1] == 3:
        enhancer = ImageEnhance.Color(Image.fromarray(image))
        image = np.asarray(enhancer.enhance(1 + augment.saturation * saturation))
    return image


def _move_picture(picture: Image.Image, size: int, geometry: _Geometry) -> np.ndarray:
    picture = _crop_and_resize(picture, size, geometry)
    if geometry.affine:
        values, coefficients = np.asarray(picture), _affine_coefficients(size, *geometry.affine)
        margin = _overshoot(size, coefficients)
        padded = np.pad(values, ((margin, margin), (margin, margin), *[(0, 0)] * (values.ndim - 2)), mode="edge")
        picture = _affine(Image.fromarray(padded), size, coefficients + np.array([0, 0, margin]))
    return pixels(picture)


def _move_map(saliency: Image.Image, size: int, geometry: _Geometry) -> np.ndarray:
    moved = _crop_and_resize(saliency, size, geometry)
    values = np.asarray(moved)
    if values.min() == values.max():
        # Before the affine part, whose zeros outside would turn a constant piece into a map of the border.
        return np.zeros((size, size), np.float32)
    if geometry.affine:
        values = np.asarray(_affine(moved, size, _affine_coefficients(size, *geometry.affine)))
    return values


def _blur(values: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian cut to 3 x 3 pixels; zeros stay zeros."""
    beside = np.float32(math.exp(-0.5 / sigma**2))
    middle, beside = 1 / (1 + 2 * beside), beside / (1 + 2 * beside)
    padded = np.pad(values, 1, mode="reflect")
    rows = beside * (padded[:-2] + padded[2:]) + middle * padded[1:-1]
    return beside * (rows[:, :-2] + rows[:, 2:]) + middle * rows[:, 1:-1]


def _in_stages(picture: Image.Image, sides: tuple[int, ...]) -> Image.Image:
    for side in sides:
        picture = picture.resize((side, side), _BILINEAR)
    return picture


def _crop_and_resize(picture: Image.Image, size: int, geometry: _Geometry) -> Image.Image:
    left, top, right, bottom = geometry.box
    width, height = picture.size
    box = (left * width, top * height, min(right * width, width), min(bottom * height, height))
    picture = picture.resize((size, size), _BILINEAR, box=box)
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if geometry.flip else picture


def _affine_coefficients(size: int, matrix: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """[2, 3]: input (x, y) of an output point (x, y, 1), in pixels from the corner."""
    centre = np.full(2, size / 2)
    return np.column_stack([matrix, centre - matrix @ (centre + size * shift)])


def _overshoot(size: int, coefficients: np.ndarray) -> int:
    """How many pixels beyond the border the output's corners reach."""
    corners = np.array([[0, 0, size, size], [0, size, 0, size], [1, 1, 1, 1]])
    reached = coefficients @ corners
    return max(0, math.ceil(max(-reached.min(), reached.max() - size))) + 1


def _affine(picture: Image.Image, size: int, coefficients: np.ndarray) -> Image.Image:
    data = tuple(coefficients.ravel())
    return picture.transform((size, size), Image.Transform.AFFINE, data, _BILINEAR, fillcolor=0)
