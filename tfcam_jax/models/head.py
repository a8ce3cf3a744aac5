"""The head of most backbones, a mean over places and one linear layer, and its parts for the others."""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from .contract import ModelOutput
from .initializers import lecun_normal, uniform, zeros

# Initialisers of kernel and bias, from the number of channels. "pytorch" is `torch.nn.Linear`'s own.
HEAD_INITS: dict[str, Callable[[int], tuple[nn.initializers.Initializer, nn.initializers.Initializer]]] = {
    "lecun": lambda channels: (lecun_normal, zeros),
    "pytorch": lambda channels: (uniform(1 / math.sqrt(channels)), uniform(1 / math.sqrt(channels))),
}


def dropout_factors(draw: UInt32[Array, " batch"], rate: float, channels: int) -> Float[Array, "batch channels"]:
    """0 for a channel that is dropped, with probability `rate`, else 1 / (1 - rate).

    An example's own number decides alone, not its place in the batch: the devices and parts that a batch is spread
    over change nothing.
    """
    share = jnp.float32(1 - rate)  # of that dtype also where jax computes in float64, so that the mask is the same
    kept = jax.vmap(lambda seed: jax.random.bernoulli(jax.random.key(seed), share, (channels,)))(draw)
    return kept / (1 - rate)


def drop_channels(
    pooled: Float[Array, "batch channels"], rate: float, draw: UInt32[Array, " batch"] | None
) -> Float[Array, "batch channels"]:
    """Dropout before a linear layer; see `dropout_factors`. ValueError for a rate above 0 without `draw`."""
    if not rate:
        return pooled
    if draw is None:
        raise ValueError("dropout needs a number for each example, `draw`")
    return pooled * dropout_factors(draw, rate, pooled.shape[-1])


class LinearParameters(nn.Module):
    """Kernel and bias of a head's linear layer, which whoever asks for them applies itself.

    Attributes:
      num_classes: K, the layer's width.
      head_init: a key of `HEAD_INITS`.
    """

    num_classes: int
    head_init: str = "lecun"

    @nn.compact
    def __call__(self, channels: int) -> tuple[Float[Array, "channels classes"], Float[Array, " classes"]]:
        return _declare(self, channels)


def _declare(head: LinearParameters | PooledLinearHead, channels: int) -> tuple[Array, Array]:
    kernel_init, bias_init = HEAD_INITS[head.head_init](channels)
    kernel = head.param("kernel", kernel_init, (channels, head.num_classes))
    return kernel, head.param("bias", bias_init, (head.num_classes,))


def linear(
    x: Float[Array, "batch channels"], kernel: Float[Array, "channels classes"], bias: Float[Array, " classes"]
) -> Float[Array, "batch classes"]:
    """A head's last layer, on accelerators too in full float32."""
    return jnp.matmul(x, kernel, precision="highest") + bias[None, :]


class PooledLinearHead(nn.Module):
    """Global average pooling, dropout and one linear layer, at least in float32 whatever the backbone computes in.

    Attributes:
      num_classes, head_init: of `LinearParameters`.
      dropout: share of the pooled channels that is dropped, in [0, 1).
    """

    num_classes: int
    head_init: str = "lecun"
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "batch h w channels"],
        hooked: Float[Array, "batch h w channels"] | None,
        draw: UInt32[Array, " batch"] | None = None,
    ) -> ModelOutput:
        """Pools `features`; `draw` decides what is dropped of each example. ValueError for dropout without it."""
        dtype = jnp.promote_types(features.dtype, jnp.float32)
        features, hooked = features.astype(dtype), None if hooked is None else hooked.astype(dtype)
        kernel, bias = _declare(self, features.shape[-1])
        logits = linear(drop_channels(features.mean(axis=(1, 2)), self.dropout, draw), kernel, bias)
        return ModelOutput(logits=logits, features=features, kernel=kernel, bias=bias, hooked=hooked)
