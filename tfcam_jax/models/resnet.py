"""ResNet (He et al., CVPR 2016), as torchvision builds it: the stride sits in the 3x3 convolution."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array

from .backbone import Backbone
from .cpu_ops import max_pool_3x3

# Module names in torchvision's state dicts -> names here (see weights.py).
TORCH_NAMES = (
    (r"^(layer\d)\.(\d+)\.", r"\1_\2."),
    (r"\.downsample\.0\.", ".downsample_conv."),
    (r"\.downsample\.1\.", ".downsample_bn."),
    (r"^fc\.", "head."),
)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    width: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array, train: bool, mask: Array | None) -> Array:
        y = self.conv(self.width, (3, 3), strides=self.stride, padding=1, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train, mask))
        y = self.conv(self.width, (3, 3), padding=1, name="conv2")(y)
        y = self.norm(name="bn2")(y, train, mask)
        return nn.relu(y + _shortcut(self, x, y.shape, train, mask))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut; four times as many channels come out."""

    width: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array, train: bool, mask: Array | None) -> Array:
        y = self.conv(self.width, (1, 1), name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train, mask))
        y = self.conv(self.width, (3, 3), strides=self.stride, padding=1, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y, train, mask))
        y = self.conv(4 * self.width, (1, 1), name="conv3")(y)
        y = self.norm(name="bn3")(y, train, mask)
        return nn.relu(y + _shortcut(self, x, y.shape, train, mask))


def _shortcut(block: BasicBlock | Bottleneck, x: Array, shape: tuple[int, ...], train: bool, mask: Array | None):
    """x itself, or where the shape changes, a 1x1 convolution of it."""
    if x.shape == shape:
        return x
    x = block.conv(shape[-1], (1, 1), strides=block.stride, name="downsample_conv")(x)
    return block.norm(name="downsample_bn")(x, train, mask)


class ResNet(Backbone):
    """A 7x7 stem, then `depths[i]` blocks of `64 * 2**i` channels (times four in a `Bottleneck`).

    The CAM has a 32nd of the input's resolution, rounded up: 7x7 at 224 px.
    """

    depths: tuple[int, ...] = (2, 2, 2, 2)
    block_type: type[nn.Module] = BasicBlock

    def feature_maps(self, x: Array, train: bool, mask: Array | None) -> Array:
        x = self.conv(64, (7, 7), strides=2, padding=3, name="conv1")(x)
        x = nn.relu(self.norm(name="bn1")(x, train, mask))
        x = max_pool_3x3(x, padding=1)
        block = self.block(self.block_type)
        for stage, depth in enumerate(self.depths):
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                name = f"layer{stage + 1}_{i}"
                x = block(64 * 2**stage, stride, self.conv, self.norm, name=name)(x, train, mask)
        return x
