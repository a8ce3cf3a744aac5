"""Batch normalisation that knows about padded examples, several devices and frozen statistics."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .initializers import ones, zeros


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
        if train and not self.frozen:
            mean, var, count = self._batch_statistics(x, mask)
            if not self.is_initializing():
                unbiased = var * (count / jnp.maximum(count - 1, 1))
                counted = count.sum() if self.groups == 1 else self._everywhere(count.sum())
                kept = jnp.where(counted > 0, self.momentum, 1.0)
                running_mean.value = kept * running_mean.value + (1 - kept) * self._mean_over_groups(mean, count)
                running_var.value = kept * running_var.value + (1 - kept) * self._mean_over_groups(unbiased, count)
        else:
            mean, var = running_mean.value[None], running_var.value[None]
        factor = scale[None] * jax.lax.rsqrt(var + self.epsilon)
        shift = bias[None] - mean * factor

        def per_channel(values: Array) -> Array:
            """Values [groups, channels], as they broadcast to x, whose first axis falls into the groups."""
            groups = values.shape[0]
            rows = values if groups == 1 else jnp.repeat(values, x.shape[0] // groups, axis=0)
            return rows.reshape(rows.shape[0], *[1] * (x.ndim - 2), x.shape[-1])

        return (x.astype(_widened(x)) * per_channel(factor) + per_channel(shift)).astype(x.dtype)

    def _batch_statistics(self, x: Array, mask: Array | None) -> tuple[Array, Array, Array]:
        """Mean and biased variance [groups here, channels] and number of values [groups here, 1]."""
        groups = 1 if self.is_initializing() else self.groups
        if self.axis_name is not None and not self.is_initializing():
            groups, devices = 1, jax.lax.axis_size(self.axis_name)  # what this program sees is its device's part alone
            if self.groups not in (1, devices):
                raise ValueError(
                    f"{self.groups} groups over {devices} devices: under pmap statistics are those of all devices (1) "
                    "or of each"
                )
        if x.shape[0] % groups:
            raise ValueError(f"a batch of {x.shape[0]} examples does not fall into {groups} equal groups")
        x = x.astype(_widened(x))
        weights = jnp.ones(x.shape[:1], x.dtype) if mask is None else mask.astype(x.dtype)
        places = tuple(range(1, x.ndim - 1))
        # Over places first: weights that met every place would be spread over an array of x's size.
        in_groups = lambda values: values.reshape(groups, -1, values.shape[-1])
        weights = in_groups(weights[:, None])
        count = weights.sum(1) * math.prod(x.shape[1:-1])
        weighted = lambda values: (in_groups(values.sum(places)) * weights).sum(1)
        sums = (weighted(x), weighted(jnp.square(x)), count)
        if self.groups == 1:
            sums = self._everywhere(sums)
        total, total_square, count = sums
        mean = total / jnp.maximum(count, 1)
        return mean, jnp.maximum(total_square / jnp.maximum(count, 1) - jnp.square(mean), 0), count

    def _mean_over_groups(self, values: Array, count: Array) -> Array:
        if self.groups == 1:
            return values[0]
        total, count = self._everywhere(((values * count).sum(0), count.sum(0)))
        return total / jnp.maximum(count, 1)

    def _everywhere(self, sums: Any) -> Any:
        if self.axis_name is None or self.is_initializing():
            return sums
        return jax.lax.psum(sums, self.axis_name)


def _widened(x: Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)
