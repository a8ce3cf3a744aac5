"""The head of most backbones: a mean over places and one linear layer."""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from .contract import ModelOutput


def _uniform(channels: int) -> nn.initializers.Initializer:
    """Uniform within 1 / sqrt(channels) of zero."""
    bound = 1 / math.sqrt(channels)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


# Initialisers of kernel and bias, from the number of channels. "pytorch" is `torch.nn.Linear`'s own.
HEAD_INITS: dict[str, Callable[[int], tuple[nn.initializers.Initializer, nn.initializers.Initializer]]] = {
    "lecun": lambda channels: (nn.initializers.lecun_normal(), nn.initializers.zeros_init()),
    "pytorch": lambda channels: (_uniform(channels), _uniform(channels)),
}


def dropout_factors(draw: UInt32[Array, " batch"], rate: float, channels: int) -> Float[Array, "batch channels"]:
    """0 for a channel that is dropped, with probability `rate`, else 1 / (1 - rate).

    An example's own number decides alone, not its place in the batch: the devices and parts that a batch is spread
    over change nothing.
    """
    share = jnp.float32(1 - rate)  # of that dtype also where jax computes in float64, so that the mask is the same
    kept = jax.vmap(lambda seed: jax.random.bernoulli(jax.random.key(seed), share, (channels,)))(draw)
    return kept / (1 - rate)


class PooledLinearHead(nn.Module):
    """Global average pooling, dropout and one linear layer, at least in float32 whatever the backbone computes in.

    Attributes:
      head_init: a key of `HEAD_INITS`.
      dropout: share of the pooled channels that is dropped, in [0, 1).
    """

    num_classes: int
    head_init: str = "lecun"
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "batch h w channels"],
        hooked: Float[Array, "batch h w channels"],
        draw: UInt32[Array, " batch"] | None = None,
    ) -> ModelOutput:
        """Pools `features`; `draw` decides what is dropped of each example. ValueError for dropout without it."""
        dtype = jnp.promote_types(features.dtype, jnp.float32)
        features, hooked = features.astype(dtype), hooked.astype(dtype)
        channels = features.shape[-1]
        kernel_init, bias_init = HEAD_INITS[self.head_init](channels)
        kernel = self.param("kernel", kernel_init, (channels, self.num_classes))
        bias = self.param("bias", bias_init, (self.num_classes,))
        pooled = features.mean(axis=(1, 2))
        if self.dropout:
            if draw is None:
                raise ValueError("dropout needs a number for each example, `draw`")
            pooled = pooled * dropout_factors(draw, self.dropout, channels)
        logits = jnp.matmul(pooled, kernel, precision="highest") + bias[None, :]
        return ModelOutput(logits=logits, features=features, kernel=kernel, bias=bias, hooked=hooked)
