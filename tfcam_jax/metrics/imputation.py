"""Filling in removed pixels linearly, the removal of ROAD (Rong et al., ICML 2022), by multigrid.

Each removed pixel becomes the weighted mean of its neighbours: 1/6 for those beside, 1/12 across a corner. As a linear
system, A x = b with (A x) = total x - (sum over neighbours) on the removed pixels. Conjugate gradients alone need as
many iterations as a hole has pixels across; with a multigrid cycle as preconditioner about fifteen, whatever the size.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import optimization_barrier
from jaxtyping import Array, Bool, Float

TOLERANCE = 1e-5
MOST_ITERATIONS = 100
# A grid with a side this short is not coarsened further, but smoothed so often.
_COARSEST, _SMOOTHINGS = 8, 8

Planes = Float[Array, "planes h w"]


class _Level(NamedTuple):
    """A grid of the hierarchy: 1 at unknown places, else 0; and the same over A's diagonal."""

    unknown: Planes
    inverse: Planes


def linear_imputation(
    images: Float[Array, "batch H W C"], removed: Bool[Array, "batch H W"]
) -> Float[Array, "batch H W C"]:
    """Replaces removed pixels so that each is the weighted mean of its eight neighbours.

    Each image's channel is solved to a relative residual of `TOLERANCE`, or as far as `MOST_ITERATIONS` lead, whatever
    others are in the batch. An image that is removed as a whole becomes 0.
    """
    batch, height, width, channels = images.shape
    planes = jnp.moveaxis(images, -1, 1).reshape(batch * channels, height, width)
    unknown = jnp.repeat(removed.astype(images.dtype), channels, axis=0)
    known = planes * (1 - unknown)
    filled = known + _solve(_hierarchy(unknown), optimization_barrier(unknown * _neighbours(known)))
    return jnp.moveaxis(filled.reshape(batch, channels, height, width), 1, -1)


def _solve(levels: list[_Level], right: Planes) -> Planes:
    """Conjugate gradients, preconditioned by `_cycle`. A plane that has converged stands still."""
    unknown, total = levels[0].unknown, _neighbours(jnp.ones_like(right[:1]))
    product = lambda a, b: (a * b).sum((-2, -1), keepdims=True)
    enough = TOLERANCE**2 * product(right, right)

    def iterate(state: tuple[Array, ...]) -> tuple[Array, ...]:
        number, x, residual, direction, before = state
        active = product(residual, residual) > enough
        gradient = _cycle(levels, residual)
        slope = product(residual, gradient)
        direction = gradient + jnp.where(active, slope / before, 0) * direction
        image = optimization_barrier(unknown * (total * direction - _neighbours(direction)))
        step = jnp.where(active, slope / jnp.where(active, product(direction, image), 1), 0)
        residual = optimization_barrier(residual - step * image)
        return number + 1, x + step * direction, residual, direction, jnp.where(active, slope, before)

    unfinished = lambda s: (s[0] < MOST_ITERATIONS) & (product(s[2], s[2]) > enough).any()
    start = (jnp.zeros((), int), jnp.zeros_like(right), right, jnp.zeros_like(right), jnp.ones_like(enough))
    return jax.lax.while_loop(unfinished, iterate, start)[1]


def _cycle(levels: list[_Level], right: Planes) -> Planes:
    """One V-cycle with a Jacobi smoothing before and after, which is symmetric as a preconditioner has to be.

    Barriers keep XLA from computing a stencil anew for each of its uses in the next one.
    """
    (unknown, inverse), *coarser = levels
    smooth = lambda x: optimization_barrier(inverse * (right + _neighbours(x)))
    x = optimization_barrier(inverse * right)
    if not coarser:
        return jax.lax.fori_loop(1, _SMOOTHINGS, lambda _, x: smooth(x), x)
    residual = optimization_barrier(unknown * _neighbours(x))  # right - A x, where x is right over A's diagonal
    correction = _cycle(coarser, optimization_barrier(coarser[0].unknown * _restrict(residual)))
    prolonged = _prolong(correction, *right.shape[-2:])
    return smooth(optimization_barrier(x + unknown * prolonged))


def _hierarchy(unknown: Planes) -> list[_Level]:
    """Grids of half the size each; a coarse place is unknown where all that it stands for are.

    In two dimensions the same stencil serves on every grid, as its energy does not depend on the spacing.
    """
    levels = []
    while True:
        inverse = unknown / _neighbours(jnp.ones_like(unknown[:1]))
        levels.append(_Level(unknown, optimization_barrier(inverse)))
        height, width = unknown.shape[-2:]
        if min(height, width) <= _COARSEST:
            return levels
        even = jnp.pad(unknown, ((0, 0), (0, height % 2), (0, width % 2)))
        unknown = even.reshape(-1, math.ceil(height / 2), 2, math.ceil(width / 2), 2).min((2, 4))


def _prolong(x: Float[Array, "planes half_h half_w"], height: int, width: int) -> Planes:
    """To a grid of twice the size, linearly between the middles of places, 0 beyond the border."""
    x = optimization_barrier(x @ jnp.asarray(_interpolation(width)).T)
    above, below = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1], jnp.pad(x, ((0, 0), (0, 1), (0, 0)))[:, 1:]
    rows = jnp.stack([0.75 * x + 0.25 * above, 0.75 * x + 0.25 * below], axis=2)
    return rows.reshape(len(x), -1, width)[:, :height]


def _restrict(x: Planes) -> Float[Array, "planes half_h half_w"]:
    """The transpose of `_prolong`."""
    height, width = x.shape[-2:]
    rows = jnp.pad(x, ((0, 0), (1, 1 + height % 2), (0, 0)))
    first, second, third, fourth = (rows[:, start : rows.shape[1] - 3 + start : 2] for start in range(4))
    halved = optimization_barrier(0.25 * (first + fourth) + 0.75 * (second + third))
    return halved @ jnp.asarray(_interpolation(width))


def _interpolation(side: int) -> Float[np.ndarray, "side half"]:
    """Linear interpolation from the middles of pairs of places to the places, 0 beyond the border."""
    places, halves = np.arange(side)[:, None], np.arange(math.ceil(side / 2))[None, :]
    return np.maximum(0, 1 - np.abs((places - 0.5) / 2 - halves)).astype(np.float32)


def _neighbours(x: Planes) -> Planes:
    """Weighted sum of each pixel's neighbours within the image."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1)))
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:] - 4 * x) / 12
