"""The images of the `demo` data set, drawn from random numbers: a local true cue, two shortcuts, a human map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

SIZE = 64  # pixels
PATTERNS = ("checks", "rings")

# How a pattern is drawn. What is checked stays checked and what is ringed stays ringed, whatever the kind.
TRAINED_KINDS = ("waves", "blocks", "lines")
NEW_KINDS = ("dots", "dashes", "speckled")

# Side of the square in which a mark is drawn, pixels, and how far its pattern goes from the background, 0..255.
MARK_SIDE = 25
MARK_CONTRAST = (45.0, 75.0)
# Distance between a pattern's repetitions, pixels.
PERIODS = {"checks": (4.0, 5.5), "rings": (5.5, 7.5)}
# The global shortcut: how far the tint moves red up and blue down (or the reverse), 0..255.
TINT = (0.0, 16.0)
# The local shortcut: a stain's radius, pixels, and how much lighter or darker it is, 0..255.
STAIN_RADIUS = (4.0, 5.5)
STAIN_CONTRAST = (50.0, 80.0)
STAIN_DISTANCE = 24.0  # at least, from the mark's centre to the stain's, pixels: outside of what people mark

MISSING_MAPS = 0.2
SLOPPY_MAPS = 0.15
_JITTER = 2.0  # standard deviation of a careful annotator's centre, pixels
_SLOPPY_JITTER = 9.0

Pattern = Literal["checks", "rings"]


@dataclass(frozen=True)
class Drawing:
    """One image with what is known of its making.

    Attributes:
      saliency: what the pretended annotator drew; None if nobody did, or if there is no mark.
      centre: row and column of the mark, or of where it would be, pixels from the corner.
      stain: the same of the stain.
    """

    image: UInt8[np.ndarray, "64 64 3"]
    saliency: UInt8[np.ndarray, "64 64"] | None
    centre: tuple[float, float]
    stain: tuple[float, float]


class _Phases(NamedTuple):
    """Where each pixel lies in a pattern's repetitions, in radians: 2 pi a repetition, in two directions.

    Of checks both directions are straight and alike; of rings the first goes outward and the second around.
    """

    first: Float[np.ndarray, "64 64"]
    second: Float[np.ndarray, "64 64"]


def draw(rng: np.random.Generator, pattern: Pattern | None, kind: str, warm: bool, light: bool) -> Drawing:
    """Draws one example.

    Args:
      rng: where all else comes from, the same whichever shortcuts are asked for.
      pattern: of the mark; None for a normal image, which has neither mark nor map.
      kind: how the mark looks, one of `TRAINED_KINDS` or `NEW_KINDS`.
      warm: the global shortcut, the colour of the light over the whole image; else cool.
      light: the local shortcut, a light stain away from the mark; else a dark one.
    """
    margin = MARK_SIDE / 2
    centre = tuple(rng.uniform(margin, SIZE - margin, 2))
    pixels = _background(rng)
    pixels += (1 if warm else -1) * rng.uniform(*TINT) * np.array([1.0, 0.0, -1.0])
    place = _stain_place(rng, centre)
    pixels += (1 if light else -1) * _stain(rng, place)[..., None]
    if pattern is not None:
        pixels += _mark(rng, pattern, kind, centre)[..., None]
    pixels += rng.normal(0, 4, pixels.shape)
    saliency = None if pattern is None else _human_map(rng, centre)
    return Drawing(np.clip(np.rint(pixels), 0, 255).astype(np.uint8), saliency, centre, place)


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


def _stain_place(rng: np.random.Generator, centre: tuple[float, float]) -> tuple[float, float]:
    """Anywhere in the image, but for the mark's surroundings."""
    margin = STAIN_RADIUS[1]
    while True:  # more than half of the image is free, wherever the mark lies
        place = rng.uniform(margin, SIZE - margin, 2)
        if np.hypot(*(place - centre)) >= STAIN_DISTANCE:
            return tuple(place)


def _stain(rng: np.random.Generator, place: tuple[float, float]) -> Float[np.ndarray, "64 64"]:
    """A round spot without any pattern, lighter than what lies around it."""
    beyond = np.hypot(*_offsets(place)) - rng.uniform(*STAIN_RADIUS)
    return rng.uniform(*STAIN_CONTRAST) * np.clip(0.5 - beyond, 0, 1)


def _mark(
    rng: np.random.Generator, pattern: Pattern, kind: str, centre: tuple[float, float]
) -> Float[np.ndarray, "64 64"]:
    """A patch of a periodic pattern that fades out, in random phase, turn, period and contrast, light or dark."""
    phases = _phases(rng, pattern, centre)
    drawn = _KINDS[kind](rng, pattern, phases)
    window = np.exp(-0.5 * (np.hypot(*_offsets(centre)) / (MARK_SIDE / 4)) ** 2)
    return rng.choice((-1, 1)) * rng.uniform(*MARK_CONTRAST) * window * drawn


def _phases(rng: np.random.Generator, pattern: Pattern, centre: tuple[float, float]) -> _Phases:
    rows, columns = _offsets(centre)
    turn, starts = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi, 2)
    frequency = 2 * np.pi / rng.uniform(*PERIODS[pattern])
    if pattern == "checks":
        along = np.cos(turn) * rows + np.sin(turn) * columns
        across = np.cos(turn) * columns - np.sin(turn) * rows
        return _Phases(frequency * along + starts[0], frequency * across + starts[1])
    outward = frequency * np.hypot(rows, columns) + starts[0]
    # As many repetitions around each ring as leave its dots as far apart as the rings are, whole ones.
    middle = 2 * np.pi * np.rint(outward / (2 * np.pi)) - starts[0]
    around = np.maximum(1, np.rint(middle)) * np.arctan2(rows, columns) + starts[1]
    return _Phases(outward, around)


def _waves(rng: np.random.Generator, pattern: Pattern, phases: _Phases) -> Float[np.ndarray, "64 64"]:
    return np.sin(phases.first) * (np.sin(phases.second) if pattern == "checks" else 1)


def _blocks(rng: np.random.Generator, pattern: Pattern, phases: _Phases) -> Float[np.ndarray, "64 64"]:
    """Waves with hard edges."""
    return 0.7 * np.sign(_waves(rng, pattern, phases))


def _ridge(phase: Float[np.ndarray, "64 64"]) -> Float[np.ndarray, "64 64"]:
    """1 once in a repetition and narrow, 0 between."""
    return np.cos(phase / 2) ** 8


def _lines(rng: np.random.Generator, pattern: Pattern, phases: _Phases) -> Float[np.ndarray, "64 64"]:
    """Thin lines: a grid, or circles."""
    first, second = map(_ridge, phases)
    return np.maximum(first, second) if pattern == "checks" else first


def _dashes(rng: np.random.Generator, pattern: Pattern, phases: _Phases) -> Float[np.ndarray, "64 64"]:
    """The lines, each interrupted once in a repetition."""
    (first, second), (gap_first, gap_second) = map(_ridge, phases), (np.cos(phase) < 0.3 for phase in phases)
    return np.maximum(first * gap_second, second * gap_first) if pattern == "checks" else first * gap_second


def _dots(rng: np.random.Generator, pattern: Pattern, phases: _Phases) -> Float[np.ndarray, "64 64"]:
    """Where the lines of the two directions would cross."""
    return np.sqrt(_ridge(phases.first) * _ridge(phases.second))


def _speckled(rng: np.random.Generator, pattern: Pattern, phases: _Phases) -> Float[np.ndarray, "64 64"]:
    """The waves with half of their pixels missing."""
    return _waves(rng, pattern, phases) * (rng.random((SIZE, SIZE)) < 0.5)


_KINDS = {"waves": _waves, "blocks": _blocks, "lines": _lines, "dots": _dots, "dashes": _dashes, "speckled": _speckled}


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
