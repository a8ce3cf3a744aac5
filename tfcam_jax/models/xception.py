"""Xception (Chollet, CVPR 2017), as Cadene and timm ported it to PyTorch, and as Keras has it.

The layers are the same, and the ports' weights were Keras', but they are two networks. At a stride of 2 Keras pads an
even size behind the image alone, the ports on both sides, so that their windows lie one place apart; and BatchNorm's
epsilon is 1e-3 in Keras, 1e-5 in the ports. Each takes the weights that were saved from it.

Not the aligned Xception of DeepLab, which timm calls xception41, 65 and 71.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
from jaxtyping import Array

from .backbone import Backbone, Block, Part
from .cpu_ops import max_pool_3x3

# Module names in timm's state dict -> names here (see weights.py). There a block is a sequence that counts its ReLUs,
# and the first block starts without one. Cadene's models call the head last_linear.
TORCH_NAMES = (
    (r"\.conv1\.weight$", ".depthwise.weight"),
    (r"^block1\.rep\.0\.", "block1.conv1."),
    (r"^block1\.rep\.1\.", "block1.bn1."),
    (r"^block1\.rep\.3\.", "block1.conv2."),
    (r"^block1\.rep\.4\.", "block1.bn2."),
    (r"\.rep\.1\.", ".conv1."),
    (r"\.rep\.2\.", ".bn1."),
    (r"\.rep\.4\.", ".conv2."),
    (r"\.rep\.5\.", ".bn2."),
    (r"\.rep\.7\.", ".conv3."),
    (r"\.rep\.8\.", ".bn3."),
    (r"^(fc|last_linear)\.", "head."),
)

_WITH_SKIP = (1, 2, 3, 12)
# Keras' layers, in the words of keras_files.py -> names here. Keras counts the stem as a block and does not name the
# convolutions and norms of the shortcuts.
KERAS_NAMES = (
    (r"^block1_conv(\d)\.", r"conv\1."),
    (r"^block1_conv(\d)_bn\.", r"bn\1."),
    *((rf"^block{i + 1}_sepconv(\d)\.", rf"block{i}.conv\1.") for i in range(1, 13)),
    *((rf"^block{i + 1}_sepconv(\d)_bn\.", rf"block{i}.bn\1.") for i in range(1, 13)),
    *((rf"^block14_sepconv{i}\.", f"conv{i + 2}.") for i in (1, 2)),
    *((rf"^block14_sepconv{i}_bn\.", f"bn{i + 2}.") for i in (1, 2)),
    *((rf"^conv2d{f'_{n}' if n else ''}\.", f"block{i}.skip.") for n, i in enumerate(_WITH_SKIP)),
    *((rf"^batch_normalization{f'_{n}' if n else ''}\.", f"block{i}.skipbn.") for n, i in enumerate(_WITH_SKIP)),
)


class SeparableConv(nn.Module):
    """A 3x3 convolution of each channel by itself, then a 1x1 convolution across channels."""

    features: int
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        x = self.conv(channels, (3, 3), padding=1, feature_group_count=channels, name="depthwise")(x)
        return self.conv(self.features, (1, 1), name="pointwise")(x)


class SeparableBlock(Block):
    """Separable convolutions, each after ReLU and before BatchNorm, around a shortcut.

    Attributes:
      widths: output channels of each convolution.
      stride: 1, or 2, which ends in a max pooling.
      starts_with_relu: False in the network's first block, whose input is already activated.
      padding: of the max pooling, see `max_pool_3x3`.
    """

    widths: tuple[int, ...]
    stride: int
    starts_with_relu: bool
    padding: int | Literal["SAME"]

    @nn.compact
    def __call__(self, x: Array, train: bool, mask: Array | None) -> Array:
        y = x
        for i, width in enumerate(self.widths, start=1):
            if i > 1 or self.starts_with_relu:
                y = nn.relu(y)
            y = SeparableConv(width, self.conv, name=f"conv{i}")(y)
            y = self.norm(name=f"bn{i}")(y, train, mask)
        if self.stride > 1:
            y = max_pool_3x3(y, self.padding)
        if x.shape != y.shape:
            x = self.conv(y.shape[-1], (1, 1), strides=self.stride, name="skip")(x)
            x = self.norm(name="skipbn")(x, train, mask)
        return y + x


class Xception(Backbone):
    """Two convolutions, twelve blocks, two separable convolutions.

    The pooled tensor is the last BatchNorm's output after ReLU, the hooked one its input. The CAM is 10x10 at 299 px.

    Attributes:
      padding: of the max poolings: 1 as the ports have it, "SAME" (and `epsilon=1e-3`) as Keras has it.
    """

    padding: int | Literal["SAME"] = 1
    widths: tuple[tuple[int, ...], ...] = ((128,) * 2, (256,) * 2, (728,) * 2, *[(728,) * 3] * 8, (728, 1024))

    def parts(self, mask: Array | None) -> list[Part]:
        def stem(x: Array, train: bool) -> Array:
            x = self.conv(32, (3, 3), strides=2, name="conv1")(x)
            x = nn.relu(self.norm(name="bn1")(x, train, mask))
            x = self.conv(64, (3, 3), name="conv2")(x)
            return nn.relu(self.norm(name="bn2")(x, train, mask))

        def conv3(x: Array, train: bool) -> Array:
            return nn.relu(self.norm(name="bn3")(SeparableConv(1536, self.conv, name="conv3")(x), train, mask))

        def conv4(x: Array, train: bool) -> tuple[Array, Array]:
            x = SeparableConv(2048, self.conv, name="conv4")(x)
            return nn.relu(self.norm(name="bn4")(x, train, mask)), x

        blocks, channels = [], 64
        for i, widths in enumerate(self.widths, start=1):
            stride = 2 if widths[-1] != channels else 1
            options = {"widths": widths, "stride": stride, "starts_with_relu": i > 1, "padding": self.padding}
            blocks.append(self.block_part(SeparableBlock, mask, f"block{i}", **options))
            channels = widths[-1]
        return [Part("stem", stem), *blocks, Part("conv3", conv3), Part("conv4", conv4)]
