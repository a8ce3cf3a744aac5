"""Distances between two maps: `[..., h, w]`, `[..., h, w]` -> one value per example, `[...]`.

Pure functions of arrays that need jax alone. Each takes the model's map first and the human map (the target)
second, both in [0, 1], is 0 or smallest where they are equal, and computes in float32 (float64 if that comes in). An
example that is not finite has value NaN and gradient 0. ValueError: maps of different shapes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from .cams import absolute, finite_examples, is_constant, largest_magnitude

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# Keeps log finite, as a share of the peak: min-max normalised maps hold an exact 0 and an exact 1.
LOG_FLOOR = 1e-6

_PLACES = (-2, -1)


def mse(maps: Float[Array, "*batch h w"], target: Float[Array, "*batch h w"]) -> Float[Array, "*batch"]:
    """Mean over places of the squared difference, in [0, 1]."""
    taint, maps, target = finite_examples(maps, target)
    return jnp.square(maps - target).mean(_PLACES) + taint


def l1(maps: Float[Array, "*batch h w"], target: Float[Array, "*batch h w"]) -> Float[Array, "*batch"]:
    """Mean over places of the absolute difference, in [0, 1]. A place where both agree has gradient 0."""
    taint, maps, target = finite_examples(maps, target)
    return absolute(maps - target).mean(_PLACES) + taint


def bce(maps: Float[Array, "*batch h w"], target: Float[Array, "*batch h w"]) -> Float[Array, "*batch"]:
    """Mean over places of the binary cross-entropy, in nats, in [0, 13.8].

    `maps` is clipped to [1e-6, 1 - 1e-6], with gradient 0 beyond. Smallest at `maps == target`, where it is the
    target's own binary entropy, which is not 0 for a soft target.
    """
    taint, maps, target = finite_examples(maps, target)
    # 1 - maps is clipped on its own, since 1 - (1 - 1e-6) is 1.3% off in float32.
    log = lambda probability: jnp.log(jnp.clip(probability, LOG_FLOOR, 1 - LOG_FLOOR))
    return -(target * log(maps) + (1 - target) * log(1 - maps)).mean(_PLACES) + taint


def kl(maps: Float[Array, "*batch h w"], target: Float[Array, "*batch h w"]) -> Float[Array, "*batch"]:
    """KL divergence, in nats, of the target from the map, each divided by its sum over places.

    1e-6 of a map's peak is added to its every place first, so an all-zero map counts as uniform. A common factor of a
    map changes nothing; the peak is a constant for the gradient.
    """
    taint, maps, target = finite_examples(maps, target)
    floored = lambda x: by_peak(x) + LOG_FLOOR
    share = lambda x: floored(x) / floored(x).sum(_PLACES, keepdims=True)
    p, q = share(target), share(maps)
    return (p * (jnp.log(p) - jnp.log(q))).sum(_PLACES) + taint


def pearson(maps: Float[Array, "*batch h w"], target: Float[Array, "*batch h w"]) -> Float[Array, "*batch"]:
    """1 - Pearson correlation over places, in [0, 2]. If either map is constant: value 1, gradient 0.

    A common factor of a map changes nothing.
    """
    taint, maps, target = finite_examples(maps, target)
    maps, target = by_peak(maps), by_peak(target)
    undefined = (is_constant(maps) | is_constant(target))[..., None, None]
    centre = lambda x: x - x.mean(_PLACES, keepdims=True)
    norm = lambda x: jnp.sqrt(jnp.where(undefined, 1, jnp.square(x).sum(_PLACES, keepdims=True)))
    # Each is divided by its own norm, since the product of two small norms is below float32's range.
    unit = lambda x: jnp.where(undefined, 0, x / norm(x))
    return 1 - (unit(centre(maps)) * unit(centre(target))).sum(_PLACES) + taint


def by_peak(maps: Array) -> Array:
    """Each map divided by its largest magnitude, a constant for the gradient: squares and sums stay within range."""
    peak = largest_magnitude(maps)[..., None, None]
    # XLA multiplies by the reciprocal, which must not be below float32's range; to the bit the same.
    towards_1 = jnp.where(peak > 1, 1 / 16, 16)
    return towards_1 * maps / jnp.where(peak == 0, 1, towards_1 * peak)


DIVERGENCES = {"mse": mse, "l1": l1, "bce": bce, "kl": kl, "pearson": pearson}
