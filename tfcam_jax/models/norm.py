"""Batch normalisation that knows about padded examples, several devices and frozen statistics."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .initializers import ones, zeros


class _Over(NamedTuple):
    """What statistics are taken over.

    Attributes:
      groups: equal parts of the rows at hand, each with statistics of its own.
      axis_name: of pmap, over which they are taken together; None: over these rows alone.
    """

    groups: int
    axis_name: str | None


class BatchNorm(nn.Module):
    """Batch normalisation over batch and places, as PyTorch computes it.

    Flax's own module keeps the biased running variance; PyTorch, whose weights and recipes are used here, keeps the
    unbiased one. Statistics are at least float32 whatever the input's dtype; the output has the input's dtype.

    Attributes:
      momentum: share of the running statistics that is kept at each training step (PyTorch's 1 - momentum).
      epsilon: added to the variance.
      axis_name: pmap axis that the batch is spread over; None where the input is the whole batch.
      groups: equal parts of the whole batch, of consecutive examples, that are normalised each by its own statistics:
        1 synchronises all devices, their number keeps the statistics local to each. The running statistics take the
        mean over the groups, by the number of their values, and are the same on every device.
      frozen: use the running statistics in training too, and leave them as they are.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None
    groups: int = 1
    frozen: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *places channels"], train: bool, mask: Float[Array, " batch"] | None = None
    ) -> Float[Array, "batch *places channels"]:
        """Normalises x. `mask` is 1 for an example that counts, 0 for padding; None counts all.

        A group without any example that counts leaves the running statistics as they are.
        """
        channels = x.shape[-1:]
        scale = self.param("scale", ones, channels)
        bias = self.param("bias", zeros, channels)
        running_mean = self.variable("batch_stats", "mean", zeros, None, channels)
        running_var = self.variable("batch_stats", "var", ones, None, channels)
        if not train or self.frozen:
            mean, var = running_mean.value[None], running_var.value[None]
            return _apply(x, *_line(scale, bias, mean, jax.lax.rsqrt(var + self.epsilon)))
        over = self._over(x.shape[0])
        weights = jnp.ones(x.shape[:1]) if mask is None else mask
        y, *statistics = _normalize(over, self.epsilon, x, scale, bias, weights.astype(_widened(x)))
        if not self.is_initializing():
            everywhere = self.axis_name if self.groups > 1 else None  # of each device's statistics all keep the mean
            running = running_mean.value, running_var.value
            moved = _move_running(self.momentum, everywhere, running, jax.lax.stop_gradient(tuple(statistics)))
            running_mean.value, running_var.value = moved
        return y

    def _over(self, rows: int) -> _Over:
        """What statistics are taken over. Raises ValueError for rows that don't fall into the groups."""
        if self.is_initializing():
            return _Over(1, None)
        if self.axis_name is not None:
            devices = jax.lax.axis_size(self.axis_name)
            if self.groups not in (1, devices):
                raise ValueError(
                    f"{self.groups} groups over {devices} devices: under pmap statistics are those of all devices (1) "
                    "or of each"
                )
            # What this program sees is its device's part alone.
            return _Over(1, self.axis_name if self.groups == 1 else None)
        if rows % self.groups:
            raise ValueError(f"a batch of {rows} examples does not fall into {self.groups} equal groups")
        return _Over(self.groups, None)


# Compiled by themselves, so that they are traced once for each shape, however many layers have it: most of a deep
# network's operations are these. They end up in the step's own program all the same.


@partial(jax.jit, static_argnums=(0, 1))
def _normalize(
    over: _Over,
    epsilon: float,
    x: Float[Array, "batch *places channels"],
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"],
    weights: Float[Array, " batch"],
) -> tuple[Array, Array, Array, Array]:
    """x normalised by its own statistics; mean and biased variance [groups, channels]; number of values [groups, 1].

    Statistics are those of the rows by their weights, 0 or 1; all rows are normalised.
    """
    wide = x.astype(_widened(x))
    in_groups = lambda of_rows: of_rows.reshape(over.groups, -1, of_rows.shape[-1])
    counts = in_groups(weights[:, None])
    places = tuple(range(1, x.ndim - 1))
    # Over places first: weights that met every place would be spread over an array of x's size.
    weighted = lambda values: (in_groups(values.sum(places)) * counts).sum(1)
    sums = weighted(wide), weighted(jnp.square(wide)), counts.sum(1) * math.prod(x.shape[1:-1])
    total, total_square, count = _everywhere(over.axis_name, sums)
    mean = total / jnp.maximum(count, 1)
    var = jnp.maximum(total_square / jnp.maximum(count, 1) - jnp.square(mean), 0)
    return _apply(x, *_line(scale, bias, mean, jax.lax.rsqrt(var + epsilon))), mean, var, count


@partial(jax.jit, static_argnums=(0, 1))
def _move_running(
    momentum: float, axis_name: str | None, running: tuple[Array, Array], statistics: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    """The running mean and variance after a step; of several groups by the mean over them, by their numbers."""
    mean, var, count = statistics
    unbiased = var * (count / jnp.maximum(count - 1, 1))
    counted, *totals = _everywhere(axis_name, tuple(x.sum(0) for x in (count, mean * count, unbiased * count)))
    kept = jnp.where(counted > 0, momentum, 1.0)
    means = (total / jnp.maximum(counted, 1) for total in totals)
    new_mean, new_var = (kept * old + (1 - kept) * new for old, new in zip(running, means, strict=True))
    return new_mean, new_var


def _line(scale: Array, bias: Array, mean: Array, inverse: Array) -> tuple[Array, Array]:
    """Normalising as `x * factor + shift`, [groups, channels] each."""
    factor = scale[None] * inverse
    return factor, bias[None] - mean * factor


def _apply(x: Array, factor: Array, shift: Array) -> Array:
    rows = partial(_per_row, x.shape)
    return (x.astype(_widened(x)) * rows(factor) + rows(shift)).astype(x.dtype)


def _per_row(shape: tuple[Any, ...], values: Array) -> Array:
    """Values [groups, channels], as they broadcast to an array of this shape, whose rows fall into the groups."""
    groups = values.shape[0]
    rows = values if groups == 1 else jnp.repeat(values, shape[0] // groups, axis=0)
    return rows.reshape(rows.shape[0], *[1] * (len(shape) - 2), shape[-1])


def _everywhere(axis_name: str | None, sums: Any) -> Any:
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)


def _widened(x: Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)
