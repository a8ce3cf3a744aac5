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

# The variance of nothing. Finite, so that multiplied by a weight of 0 it is 0.
UNKNOWN = 1e30


class Over(NamedTuple):
    """What statistics are taken over.

    Attributes:
      groups: equal parts of the rows at hand, each with statistics of its own.
      axis_name: of pmap, over which they are taken together; None: over these rows alone.
    """

    groups: int
    axis_name: str | None


class Moments(NamedTuple):
    """Statistics of each channel: mean and biased variance [groups, channels], number of values [groups, 1]."""

    mean: Array
    var: Array
    count: Array


class DeclaredNorm(nn.Module):
    """The variables of a `BatchNorm`, for whoever normalises by themselves."""

    @nn.compact
    def __call__(self, channels: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        """Scale and bias, and the running mean and variance, [channels] each."""
        scale, bias, mean, var = _declare(self, channels)
        as_jax = jnp.asarray  # a caller's may be NumPy's
        return (as_jax(scale), as_jax(bias)), (as_jax(mean.value), as_jax(var.value))

    def move_running(self, momentum: float, new: Moments) -> None:
        """Takes up what `pool_moments` gives, of the first of its channels. To be called after the call itself."""
        for name, value in (("mean", new.mean), ("var", new.var)):
            old = self.get_variable("batch_stats", name)
            self.put_variable("batch_stats", name, move_running(momentum, old, value[: len(old)], new.count))


def _declare(module: nn.Module, channels: int) -> tuple[Any, Any, nn.Variable, nn.Variable]:
    """Scale, bias, and what holds the running mean and variance."""
    scale, bias = (module.param(name, at_first, (channels,)) for name, at_first in (("scale", ones), ("bias", zeros)))
    running = lambda name, at_first: module.variable("batch_stats", name, at_first, None, (channels,))
    return scale, bias, running("mean", zeros), running("var", ones)


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

        A group without any example that counts leaves the running statistics as they are, and its rows become the bias.
        """
        scale, bias, running_mean, running_var = _declare(self, x.shape[-1])
        if not train or self.frozen:
            mean, var = running_mean.value[None], running_var.value[None]
            return apply_norm(self.epsilon, x, (scale, bias), (mean, var))
        over = Over(1, None) if self.is_initializing() else find_over(self.groups, self.axis_name, x.shape[0])
        weights = jnp.ones(x.shape[:1]) if mask is None else mask
        y, moments = _normalize(over, self.epsilon, x, scale, bias, weights.astype(widened(x)))
        if not self.is_initializing():
            new = pool_moments(self.groups, self.axis_name, jax.lax.stop_gradient(moments))
            running_mean.value = move_running(self.momentum, running_mean.value, new.mean, new.count)
            running_var.value = move_running(self.momentum, running_var.value, new.var, new.count)
        return y


def find_over(groups: int, axis_name: str | None, rows: int) -> Over:
    """What a `BatchNorm` of these settings takes statistics over.

    Raises ValueError for rows that don't fall into the groups.
    """
    if axis_name is not None:
        devices = jax.lax.axis_size(axis_name)
        if groups not in (1, devices):
            raise ValueError(
                f"{groups} groups over {devices} devices: under pmap statistics are those of all devices (1) or of each"
            )
        # What this program sees is its device's part alone.
        return Over(1, axis_name if groups == 1 else None)
    if rows % groups:
        raise ValueError(f"a batch of {rows} examples does not fall into {groups} equal groups")
    return Over(groups, None)


# Compiled by themselves, so that they are traced once for each shape, however many layers have it: most of a deep
# network's operations are these. They end up in the step's own program all the same.


@partial(jax.jit, static_argnums=(0, 1))
def _normalize(
    over: Over,
    epsilon: float,
    x: Float[Array, "batch *places channels"],
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"],
    weights: Float[Array, " batch"],
) -> tuple[Array, Moments]:
    """x normalised by its own statistics, all rows by those of the rows that count."""
    moments = find_moments(over, x, weights)
    return apply_norm(epsilon, x, (scale, bias), moments[:2]), moments


def find_moments(over: Over, x: Float[Array, "batch *places channels"], weights: Float[Array, " batch"]) -> Moments:
    """Statistics of the rows by their weights, 0 or 1, in at least float32.

    Of a group without any that count the mean is 0 and the variance `UNKNOWN`: its rows become the bias. By a variance
    of 0 they would grow from norm to norm until they are infinite, and then the gradients of all are.
    """
    wide = x.astype(widened(x))
    in_groups = lambda of_rows: of_rows.reshape(over.groups, -1, of_rows.shape[-1])
    counts = in_groups(weights[:, None])
    places = tuple(range(1, x.ndim - 1))
    # Over places first: weights that met every place would be spread over an array of x's size.
    weighted = lambda values: (in_groups(values.sum(places)) * counts).sum(1)
    sums = weighted(wide), weighted(jnp.square(wide)), _count_own(over, x, weights)
    total, total_square, count = _everywhere(over.axis_name, sums)
    mean = total / jnp.maximum(count, 1)
    var = jnp.maximum(total_square / jnp.maximum(count, 1) - jnp.square(mean), 0)
    return Moments(mean, jnp.where(count > 0, var, UNKNOWN), count)


def count_values(
    over: Over, x: Float[Array, "batch *places channels"], weights: Float[Array, " batch"]
) -> Float[Array, "groups 1"]:
    """`find_moments(...).count` alone."""
    return _everywhere(over.axis_name, _count_own(over, x, weights))


def _count_own(over: Over, x: Array, weights: Array) -> Array:
    """How many values of each group this program sees, [groups, 1]."""
    return weights.reshape(over.groups, -1).sum(1, keepdims=True) * math.prod(x.shape[1:-1])


def moments_pullback(
    over: Over,
    x: Float[Array, "batch *places channels"],
    weights: Float[Array, " batch"],
    moments: Moments,
    gradients: tuple[Array, Array],
) -> Float[Array, "batch *places channels"]:
    """The gradient by x of `find_moments`, whose result is `moments`, from those by mean and variance.

    Needs no statistics anew. A variance that rounding made negative counts like any other.
    """
    by_mean, by_var = (each / jnp.maximum(moments.count, 1) for each in _everywhere(over.axis_name, gradients))
    rows = partial(_per_row, x.shape)
    of_row = weights.reshape(-1, *[1] * (x.ndim - 1))
    factor, shift = 2 * by_var, by_mean - 2 * by_var * moments.mean
    return (of_row * (x.astype(widened(x)) * rows(factor) + rows(shift))).astype(x.dtype)


@partial(jax.jit, static_argnums=(0, 1))
def pool_moments(groups: int, axis_name: str | None, moments: Moments) -> Moments:
    """What running statistics take up of a step: [channels], the variance unbiased, and how many values there were.

    Of several groups (`BatchNorm.groups`) it is the mean over them, by their numbers.
    """
    mean, var, count = moments
    unbiased = var * (count / jnp.maximum(count - 1, 1))
    everywhere = axis_name if groups > 1 else None  # of each device's statistics all keep the mean
    sums = tuple(x.sum(0) for x in (mean * count, unbiased * count, count))
    of_means, of_variances, counted = _everywhere(everywhere, sums)
    least = jnp.maximum(counted, 1)
    return Moments(of_means / least, of_variances / least, counted)


@partial(jax.jit, static_argnums=0)
def move_running(momentum: float, old: Array, new: Array, count: Array) -> Array:
    """A running statistic after a step; as it was where nothing counted."""
    kept = jnp.where(count > 0, momentum, 1.0)
    return kept * old + (1 - kept) * new


def apply_norm(
    epsilon: float,
    x: Float[Array, "batch *places channels"],
    affine: tuple[Float[Array, " channels"], Float[Array, " channels"]],
    statistics: tuple[Float[Array, "groups channels"], Float[Array, "groups channels"]],
) -> Float[Array, "batch *places channels"]:
    """x normalised by a mean and a variance, then by scale and bias, as one multiplication and one addition."""
    (scale, bias), (mean, var) = affine, statistics
    rows, factor = partial(_per_row, x.shape), scale[None] * jax.lax.rsqrt(var + epsilon)
    return (x.astype(widened(x)) * rows(factor) + rows(bias[None] - mean * factor)).astype(x.dtype)


def _per_row(shape: tuple[Any, ...], values: Array) -> Array:
    """Values [groups, channels], as they broadcast to an array of this shape, whose rows fall into the groups."""
    groups = values.shape[0]
    rows = values if groups == 1 else jnp.repeat(values, shape[0] // groups, axis=0)
    return rows.reshape(rows.shape[0], *[1] * (len(shape) - 2), shape[-1])


def _everywhere(axis_name: str | None, sums: Any) -> Any:
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)


def widened(x: Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)
