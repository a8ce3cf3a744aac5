"""What every model returns, and the head that makes it: the contract between backbones and CAMs."""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float


@flax.struct.dataclass
class ModelOutput:
    """Logits and what a class activation map needs, all float32.

    `logits == features.mean((1, 2)) @ kernel + bias`: `features` is the tensor that is really pooled, so that the
    mean over places of a class's map plus its bias is that class's logit.
    """

    logits: Float[Array, "batch classes"]
    features: Float[Array, "batch h w channels"]
    kernel: Float[Array, "channels classes"]
    bias: Float[Array, " classes"]


class PooledLinearHead(nn.Module):
    """Global average pooling and one linear layer, in float32 whatever the backbone computes in."""

    num_classes: int

    @nn.compact
    def __call__(self, features: Float[Array, "batch h w channels"]) -> ModelOutput:
        features = features.astype(jnp.float32)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (features.shape[-1], self.num_classes))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.num_classes,))
        pooled = features.mean(axis=(1, 2))
        logits = jnp.matmul(pooled, kernel, precision="highest") + bias[None, :]
        return ModelOutput(logits=logits, features=features, kernel=kernel, bias=bias)
