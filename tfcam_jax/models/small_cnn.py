"""A small CNN for small images: four 3x3 convolutions, an eighth of the input's resolution."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from .norm import BatchNorm
from .output import ModelOutput, PooledLinearHead


class SmallCNN(nn.Module):
    """Convolution, BatchNorm, ReLU, four times; the first three halve the resolution.

    64 px give an 8x8 CAM. 98,000 parameters at the default width and two classes.
    """

    num_classes: int
    widths: tuple[int, ...] = (16, 32, 64, 128)
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch H W 3"], train: bool, mask: Float[Array, " batch"] | None = None
    ) -> ModelOutput:
        x = images.astype(self.dtype)
        for i, width in enumerate(self.widths):
            stride = 2 if i < len(self.widths) - 1 else 1
            x = nn.Conv(width, (3, 3), strides=stride, padding=1, use_bias=False, dtype=self.dtype)(x)
            x = nn.relu(BatchNorm(axis_name=self.axis_name)(x, train, mask))
        return PooledLinearHead(self.num_classes, name="head")(x)
