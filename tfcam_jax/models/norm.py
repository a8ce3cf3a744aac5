"""Batch normalisation that knows about padded examples, several devices and frozen statistics."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class BatchNorm(nn.Module):
    """Batch normalisation over batch and places, as PyTorch computes it.

    Flax's own module keeps the biased running variance; PyTorch, whose weights and recipes are used here, keeps the
    unbiased one. Statistics are float32 whatever the input's dtype; the output has the input's dtype.

    Attributes:
      momentum: share of the old running statistics that is kept at each training step (PyTorch's 1 - momentum).
      epsilon: added to the variance.
      axis_name: pmap axis over which statistics are shared; None keeps them local to the device.
      frozen: use the running statistics in training too, and leave them as they are.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None
    frozen: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *places channels"], train: bool, mask: Float[Array, " batch"] | None = None
    ) -> Float[Array, "batch *places channels"]:
        """Normalises x. `mask` is 1 for an example that counts, 0 for padding; None counts all."""
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones_init(), channels)
        bias = self.param("bias", nn.initializers.zeros_init(), channels)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)
        if train and not self.frozen:
            mean, var, count = self._batch_statistics(x, mask)
            if not self.is_initializing():
                unbiased = var * (count / jnp.maximum(count - 1, 1))
                running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
                running_var.value = self.momentum * running_var.value + (1 - self.momentum) * unbiased
        else:
            mean, var = running_mean.value, running_var.value
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        shift = bias - mean * factor
        per_channel = lambda values: values.reshape(*[1] * (x.ndim - 1), -1)
        return (x.astype(jnp.float32) * per_channel(factor) + per_channel(shift)).astype(x.dtype)

    def _batch_statistics(self, x: Array, mask: Array | None) -> tuple[Array, Array, Array]:
        """Mean, biased variance and number of values per channel, over all devices of the axis."""
        x = x.astype(jnp.float32)
        axes = tuple(range(x.ndim - 1))
        weights = jnp.ones(x.shape[:1], jnp.float32) if mask is None else mask.astype(jnp.float32)
        weights = weights.reshape(-1, *[1] * (x.ndim - 1))
        places = x[..., 0].size // x.shape[0]
        sums = ((x * weights).sum(axes), (jnp.square(x) * weights).sum(axes), weights.sum() * places)
        if self.axis_name is not None and not self.is_initializing():
            sums = jax.lax.psum(sums, self.axis_name)
        total, total_square, count = sums
        mean = total / jnp.maximum(count, 1)
        return mean, jnp.maximum(total_square / jnp.maximum(count, 1) - jnp.square(mean), 0), count
