"""ResNet (He et al., CVPR 2016), as torchvision builds it: the stride sits in the 3x3 convolution."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
from jaxtyping import Array

from .backbone import Backbone, Block, Part
from .cpu_ops import max_pool_3x3
from .dilation import steps_of_stages

# Module names in torchvision's state dicts -> names here (see weights.py).
TORCH_NAMES = (
    (r"^(layer\d)\.(\d+)\.", r"\1_\2."),
    (r"\.downsample\.0\.", ".downsample_conv."),
    (r"\.downsample\.1\.", ".downsample_bn."),
    (r"^fc\.", "head."),
)


class Layer(NamedTuple):
    """A convolution: its output channels, the side of its kernel, its stride and its dilation."""

    features: int
    size: int
    stride: int = 1
    dilation: int = 1


class ResidualBlock(Block):
    """Convolutions, each before BatchNorm, around a shortcut: x itself, or a 1x1 convolution where the shape changes.

    Returns the block's output and that of its last convolution.

    Attributes:
      layers: the convolutions.
    """

    layers: tuple[Layer, ...]

    @nn.compact
    def __call__(self, x: Array, train: bool, mask: Array | None) -> tuple[Array, Array]:
        y = convolved = x
        for i, (features, size, stride, dilation) in enumerate(self.layers, start=1):
            y = y if i == 1 else nn.relu(y)
            sizes = {"strides": stride, "kernel_dilation": dilation, "padding": dilation * (size // 2)}
            convolved = self.conv(features, (size, size), **sizes, name=f"conv{i}")(y)
            y = self.norm(name=f"bn{i}")(convolved, train, mask)
        if x.shape != y.shape:
            stride = max(layer.stride for layer in self.layers)
            x = self.conv(y.shape[-1], (1, 1), strides=stride, name="downsample_conv")(x)
            x = self.norm(name="downsample_bn")(x, train, mask)
        return nn.relu(y + x), convolved


class ResNet(Backbone):
    """A 7x7 stem, then `depths[i]` blocks of two 3x3 convolutions with `64 * 2**i` channels.

    The CAM has a 32nd of the input's resolution, rounded up: 7x7 at 224 px. The hooked tensor is the last convolution's
    output, before BatchNorm, shortcut and ReLU.

    Attributes:
      bottleneck: of three convolutions instead: 1x1, 3x3, and 1x1 to four times as many channels.
      output_stride: pixels of the input for a place of the CAM, see `dilation`.
    """

    depths: tuple[int, ...] = (2, 2, 2, 2)
    bottleneck: bool = False
    output_stride: int = 32

    def parts(self, mask: Array | None) -> list[Part]:
        def stem(x: Array, train: bool) -> Array:
            x = self.conv(64, (7, 7), strides=2, padding=3, name="conv1")(x)
            return max_pool_3x3(nn.relu(self.norm(name="bn1")(x, train, mask)), padding=1)

        blocks = []
        strides = [1 if stage == 0 else 2 for stage in range(len(self.depths))]
        for stage, (stride, first_dilation, dilation) in enumerate(steps_of_stages(strides, 4, self.output_stride)):
            width = 64 * 2**stage
            for i in range(self.depths[stage]):
                strided = (stride, first_dilation) if i == 0 else (1, dilation)
                # Behind the stride of a basic block comes another convolution, which the stage's dilation is for.
                basic = Layer(width, 3, *strided), Layer(width, 3, dilation=dilation)
                bottleneck = Layer(width, 1), Layer(width, 3, *strided), Layer(4 * width, 1)
                layers = bottleneck if self.bottleneck else basic
                blocks.append(self.block_part(ResidualBlock, mask, f"layer{stage + 1}_{i}", layers=layers))
        first = [Part(part.name, lambda x, train, run=part.run: run(x, train)[0]) for part in blocks[:-1]]
        return [Part("stem", stem), *first, blocks[-1]]
