"""A small CNN for small images: four 3x3 convolutions, an eighth of the input's resolution."""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array

from .backbone import Backbone


class SmallCNN(Backbone):
    """Convolution, BatchNorm, ReLU, four times; the first three halve the resolution: 8x8 places of 64 px.

    98,000 parameters at the default width and two classes. The hooked tensor is the last convolution's output.
    """

    widths: tuple[int, ...] = (16, 32, 64, 128)
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    def feature_maps(self, x: Array, train: bool, mask: Array | None) -> tuple[Array, Array]:
        convolved = x
        for i, width in enumerate(self.widths):
            stride = 2 if i < len(self.widths) - 1 else 1

            def layer(
                model: SmallCNN, x: Array, i: int = i, width: int = width, stride: int = stride
            ) -> tuple[Array, Array]:
                x = model.conv(width, (3, 3), strides=stride, padding=1, name=f"Conv_{i}")(x)
                return nn.relu(model.norm(name=f"BatchNorm_{i}")(x, train, mask)), x

            x, convolved = (nn.remat(layer) if self.rematerialize else layer)(self, x)
        return x, convolved
