"""The poolings of these networks, from slices.

XLA for CPUs runs its own pooling (`reduce_window`) as a scalar loop, and its gradient as a scatter: ten times slower
than these, which become vectorised loops.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def avg_pool_2x2(x: Float[Array, "batch h w channels"]) -> Float[Array, "batch h//2 w//2 channels"]:
    """Mean of 2x2 places at stride 2; an odd last row or column is left out."""
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def avg_pool_3x3(x: Float[Array, "batch h w channels"]) -> Float[Array, "batch h w channels"]:
    """Mean of 3x3 places at stride 1, zeros around the edge counted in, as PyTorch does by default."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)) / 9


def max_pool_3x3(x: Float[Array, "batch h w channels"], padding: int) -> Float[Array, "batch h_out w_out channels"]:
    """Maximum over 3x3 places at stride 2, after padding every side with -inf.

    Of equal values the first in row-major order gets the gradient, as in PyTorch.
    """
    sides = (padding, padding, 0)
    return _max_pool(lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), sides, sides, (0, 0, 0))))


@jax.custom_vjp
def _max_pool(x: Array) -> Array:
    return _max_and_place(x)[0]


def _max_and_place(x: Array) -> tuple[Array, Array]:
    """The maximum of each window, and which of its nine places (row-major) holds it first."""
    best, place = None, None
    for i, value in enumerate(_window_places(x)):
        if best is None:
            best, place = value, jnp.zeros(value.shape, jnp.int8)
        else:
            place = jnp.where(value > best, jnp.int8(i), place)
            best = jnp.maximum(best, value)
    return best, place


def _window_places(x: Array) -> list[Array]:
    """For each of the nine places of a window, its value in all windows."""
    h, w = (max(size - 1, 0) // 2 for size in x.shape[1:3])
    return [x[:, i : i + 2 * h : 2, j : j + 2 * w : 2] for i in range(3) for j in range(3)]


def _max_pool_forward(x: Array) -> tuple[Array, tuple[Array, tuple[int, ...]]]:
    best, place = _max_and_place(x)
    return best, (place, x.shape)


def _max_pool_backward(residuals: tuple[Array, tuple[int, ...]], gradient: Array) -> tuple[Array]:
    """Adds each place's share where its slice was taken from."""
    place, (_, height, width, _) = residuals
    h, w = gradient.shape[1:3]
    zero = jnp.zeros((), gradient.dtype)

    def share(i: int, j: int) -> Array:
        taken = jnp.where(place == 3 * i + j, gradient, zero)
        rows, columns = (i, height - max(2 * h - 1, 0) - i, 1), (j, width - max(2 * w - 1, 0) - j, 1)
        return lax.pad(taken, zero, ((0, 0, 0), rows, columns, (0, 0, 0)))

    return (sum(share(i, j) for i in range(3) for j in range(3)),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)
