"""The images of the `demo` data set, drawn from random numbers: a local true cue, a global shortcut, a human map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

SIZE = 64  # pixels
CLASS_NAMES = ("checks", "rings")

# Side of the square in which a mark is drawn, pixels, and how far its pattern goes from the background, 0..255.
MARK_SIDE = 25
MARK_CONTRAST = (40.0, 70.0)
# Distance between a pattern's repetitions, pixels, per class.
PERIODS = ((4.0, 5.0), (6.0, 7.5))
# How far the shortcut's tint moves red up and blue down (or the reverse), 0..255.
TINT = (8.0, 20.0)

MISSING_MAPS = 0.2
SLOPPY_MAPS = 0.15
_JITTER = 2.0  # standard deviation of a careful annotator's centre, pixels
_SLOPPY_JITTER = 9.0


@dataclass(frozen=True)
class Drawing:
    """One image with what is known of its making.

    Attributes:
      saliency: what the pretended annotator drew; None if nobody did.
      centre: row and column of the mark, pixels from the corner.
    """

    image: UInt8[np.ndarray, "64 64 3"]
    saliency: UInt8[np.ndarray, "64 64"] | None
    centre: tuple[float, float]


def draw(rng: np.random.Generator, label: int, warm: bool) -> Drawing:
    """Draws one example: label 0 has a checked mark, 1 a ringed one; `warm` is the light's colour and no more."""
    margin = MARK_SIDE / 2
    centre = tuple(rng.uniform(margin, SIZE - margin, 2))
    pixels = _background(rng)
    pixels += (1 if warm else -1) * rng.uniform(*TINT) * np.array([1.0, 0.0, -1.0])
    pixels += _mark(rng, label, centre)[..., None]
    pixels += rng.normal(0, 4, pixels.shape)
    saliency = _human_map(rng, centre)
    return Drawing(np.clip(np.rint(pixels), 0, 255).astype(np.uint8), saliency, centre)


def _background(rng: np.random.Generator) -> Float[np.ndarray, "64 64 3"]:
    """Clouds of three scales around a random colour, alike in all channels but for a share of their own."""
    base = rng.uniform(90, 165) + rng.normal(0, 5, 3)
    grey = np.zeros((SIZE, SIZE), np.float32)
    for cells, strength in ((3, 18.0), (7, 12.0), (15, 8.0)):
        grey += _clouds(rng, cells, strength)
    colours = np.stack([_clouds(rng, 4, 6.0) for _ in range(3)], axis=-1)
    return base + grey[..., None] + colours


def _clouds(rng: np.random.Generator, cells: int, strength: float) -> Float[np.ndarray, "64 64"]:
    grid = rng.normal(0, strength, (cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def _mark(rng: np.random.Generator, label: int, centre: tuple[float, float]) -> Float[np.ndarray, "64 64"]:
    """A patch of a periodic pattern that fades out, in random phase, turn, period and contrast, light or dark."""
    rows, columns = _offsets(centre)
    radius = np.hypot(rows, columns)
    turn, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi, 2)
    frequency = 2 * np.pi / rng.uniform(*PERIODS[label])
    if label == 0:
        along = np.cos(turn) * rows + np.sin(turn) * columns
        across = np.cos(turn) * columns - np.sin(turn) * rows
        pattern = np.sin(frequency * along + phase[0]) * np.sin(frequency * across + phase[1])
    else:
        pattern = np.sin(frequency * radius + phase[0])
    window = np.exp(-0.5 * (radius / (MARK_SIDE / 4)) ** 2)
    return rng.uniform(*MARK_CONTRAST) * window * pattern


def _human_map(rng: np.random.Generator, centre: tuple[float, float]) -> UInt8[np.ndarray, "64 64"] | None:
    """A freehand outline around the mark, filled and soft at the edge; displaced, too large or missing at times."""
    missing, sloppy = rng.random(2) < (MISSING_MAPS, SLOPPY_MAPS)
    jitter = rng.normal(0, _SLOPPY_JITTER if sloppy else _JITTER, 2)
    reach = rng.uniform(8, 11) * (rng.uniform(1.2, 1.8) if sloppy else 1)
    wobble, phases = rng.normal(0, (0.12, 0.07, 0.04)), rng.uniform(0, 2 * np.pi, 3)
    softness, peak = rng.uniform(1, 2.5), rng.uniform(0.5, 1)
    if missing:
        return None
    middle = np.clip(np.add(centre, jitter), 0, SIZE - 1)
    rows, columns = _offsets(tuple(middle))
    angle = np.arctan2(rows, columns)
    waves = [w * np.cos(k * angle + p) for k, w, p in zip((2, 3, 4), wobble, phases, strict=True)]
    outline = reach * (1 + sum(waves))
    inside = 1 / (1 + np.exp((np.hypot(rows, columns) - outline) / softness))
    return np.rint(255 * peak * inside).astype(np.uint8)


def _offsets(centre: tuple[float, float]) -> tuple[Float[np.ndarray, "64 1"], Float[np.ndarray, "1 64"]]:
    """Rows below and columns right of the centre, at the pixels' middles."""
    pixels = np.arange(SIZE) + 0.5
    return (pixels - centre[0])[:, None], (pixels - centre[1])[None, :]
