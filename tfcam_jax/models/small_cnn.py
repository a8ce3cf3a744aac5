"""A small CNN for small images: four 3x3 convolutions, an eighth of the input's resolution."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
from jaxtyping import Array

from .backbone import Backbone, Part
from .initializers import lecun_normal


class SmallCNN(Backbone):
    """Convolution, BatchNorm, ReLU, four times; the first three halve the resolution: 8x8 places of 64 px.

    98,000 parameters at the default width and two classes. The hooked tensor is the last convolution's output.
    """

    widths: tuple[int, ...] = (16, 32, 64, 128)
    kernel_init: nn.initializers.Initializer = lecun_normal

    def parts(self, mask: Array | None) -> list[Part]:
        last = len(self.widths) - 1

        def run(i: int, x: Array, train: bool) -> Array | tuple[Array, Array]:
            def layer(model: SmallCNN, x: Array) -> tuple[Array, Array]:
                x = model.conv(self.widths[i], (3, 3), strides=2 if i < last else 1, padding=1, name=f"Conv_{i}")(x)
                return nn.relu(model.norm(name=f"BatchNorm_{i}")(x, train, mask)), x

            outputs = (nn.remat(layer) if self.rematerialize else layer)(self, x)
            return outputs if i == last else outputs[0]

        return [Part(f"Conv_{i}", partial(run, i)) for i in range(last + 1)]
