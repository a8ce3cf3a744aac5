"""Distances between two maps: `[..., h, w]`, `[..., h, w]` -> one value per example, `[...]`.

Pure functions of arrays that need jax alone. Each takes the model's map first and the human map (the target)
second, both in [0, 1], is 0 or smallest where they are equal, and computes in float32 (float64 if that comes in).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from .cams import at_least_float32, is_constant

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# Keeps log finite: min-max normalised maps hold an exact 0 and an exact 1.
LOG_FLOOR = 1e-6

_PLACES = (-2, -1)


def mse(maps: Float[Array, "*batch h w"], target: Float[Array, "*batch h w"]) -> Float[Array, "*batch"]:
    """Mean over places of the squared difference, in [0, 1]."""
    return jnp.square(at_least_float32(maps) - at_least_float32(target)).mean(_PLACES)


def l1(maps: Float[Array, "*batch h w"], target: Float[Array, "*batch h w"]) -> Float[Array, "*batch"]:
    """Mean over places of the absolute difference, in [0, 1]. A place where both agree has gradient 0."""
    difference = at_least_float32(maps) - at_least_float32(target)
    # jnp.abs has the gradient 1 at 0, which would push at a map that fits already.
    return (difference * jax.lax.stop_gradient(jnp.sign(difference))).mean(_PLACES)


def bce(maps: Float[Array, "*batch h w"], target: Float[Array, "*batch h w"]) -> Float[Array, "*batch"]:
    """Mean over places of the binary cross-entropy, in nats, in [0, 13.8].

    `maps` is clipped to [1e-6, 1 - 1e-6], with gradient 0 beyond. Smallest at `maps == target`, where it is the
    target's own binary entropy, which is not 0 for a soft target.
    """
    maps, target = at_least_float32(maps), at_least_float32(target)
    # 1 - maps is clipped on its own, since 1 - (1 - 1e-6) is 1.3% off in float32.
    log = lambda probability: jnp.log(jnp.clip(probability, LOG_FLOOR, 1 - LOG_FLOOR))
    return -(target * log(maps) + (1 - target) * log(1 - maps)).mean(_PLACES)


def kl(maps: Float[Array, "*batch h w"], target: Float[Array, "*batch h w"]) -> Float[Array, "*batch"]:
    """KL divergence, in nats, of the target from the map, each divided by its sum over places.

    1e-6 is added to every place first, so an all-zero map counts as uniform.
    """
    maps, target = at_least_float32(maps) + LOG_FLOOR, at_least_float32(target) + LOG_FLOOR
    p = target / target.sum(_PLACES, keepdims=True)
    q = maps / maps.sum(_PLACES, keepdims=True)
    return (p * (jnp.log(p) - jnp.log(q))).sum(_PLACES)


def pearson(maps: Float[Array, "*batch h w"], target: Float[Array, "*batch h w"]) -> Float[Array, "*batch"]:
    """1 - Pearson correlation over places, in [0, 2]. If either map is constant: value 1, gradient 0."""
    maps, target = at_least_float32(maps), at_least_float32(target)
    undefined = (is_constant(maps) | is_constant(target))[..., None, None]
    centre = lambda x: x - x.mean(_PLACES, keepdims=True)
    norm = lambda x: jnp.sqrt(jnp.where(undefined, 1, jnp.square(x).sum(_PLACES, keepdims=True)))
    # Each is divided by its own norm, since the product of two small norms is below float32's range.
    unit = lambda x: jnp.where(undefined, 0, x / norm(x))
    return 1 - (unit(centre(maps)) * unit(centre(target))).sum(_PLACES)


DIVERGENCES = {"mse": mse, "l1": l1, "bce": bce, "kl": kl, "pearson": pearson}
