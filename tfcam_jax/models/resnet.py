"""ResNet (He et al., CVPR 2016), as torchvision builds it: the stride sits in the 3x3 convolution."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from .norm import BatchNorm
from .output import ModelOutput, PooledLinearHead

_he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    width: int
    stride: int
    dtype: jnp.dtype
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Array, train: bool, mask: Array | None) -> Array:
        conv = lambda size, stride, name: nn.Conv(
            self.width,
            (size, size),
            strides=stride,
            padding=size // 2,
            use_bias=False,
            kernel_init=_he_normal,
            dtype=self.dtype,
            name=name,
        )
        norm = lambda name: BatchNorm(axis_name=self.axis_name, name=name)
        y = nn.relu(norm("bn1")(conv(3, self.stride, "conv1")(x), train, mask))
        y = norm("bn2")(conv(3, 1, "conv2")(y), train, mask)
        if x.shape != y.shape:
            x = norm("downsample_bn")(conv(1, self.stride, "downsample_conv")(x), train, mask)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A ResNet of basic blocks: a 7x7 stem, then `depths[i]` blocks of `64 * 2**i` channels.

    The CAM has a 32nd of the input's resolution: 7x7 at 224 px.
    """

    num_classes: int
    depths: tuple[int, ...] = (2, 2, 2, 2)
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch H W 3"], train: bool, mask: Float[Array, " batch"] | None = None
    ) -> ModelOutput:
        x = images.astype(self.dtype)
        x = nn.Conv(
            64, (7, 7), strides=2, padding=3, use_bias=False, kernel_init=_he_normal, dtype=self.dtype, name="conv1"
        )(x)
        x = nn.relu(BatchNorm(axis_name=self.axis_name, name="bn1")(x, train, mask))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, depth in enumerate(self.depths):
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                block = BasicBlock(64 * 2**stage, stride, self.dtype, self.axis_name, name=f"layer{stage + 1}_{i}")
                x = block(x, train, mask)
        return PooledLinearHead(self.num_classes, name="head")(x)
