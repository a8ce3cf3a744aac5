"""DenseNet-BC (Huang et al., CVPR 2017), as torchvision builds it."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from .backbone import Backbone, Block, Part
from .cpu_ops import avg_pool_2x2, max_pool_3x3
from .initializers import he_normal

# Module names in torchvision's state dicts -> names here (see weights.py). Its own files still say norm.1 for norm1.
TORCH_NAMES = (
    (r"^features\.", ""),
    (r"^(denseblock\d+)\.", r"\1_"),
    (r"\.(norm|conv)\.([12])\.", r".\1\2."),
    (r"^classifier\.", "head."),
)
# Keras' layers, in the words of keras_files.py -> names here. The same network but for BatchNorm's epsilon, 1.001e-5.
KERAS_NAMES = (
    (r"^conv1_conv\.", "conv0."),
    (r"^conv1_bn\.", "norm0."),
    (r"^bn\.", "norm5."),
    *((rf"^conv{i + 1}_block(\d+)_", rf"denseblock{i}_denselayer\1.") for i in range(1, 5)),
    (r"\.0_bn\.", ".norm1."),
    (r"\.1_bn\.", ".norm2."),
    (r"\.([12])_conv\.", r".conv\1."),
    *((rf"^pool{i + 1}_(bn|conv)\.", rf"transition{i}.\1.") for i in range(1, 4)),
    (r"^(transition\d)\.bn\.", r"\1.norm."),
)


class DenseLayer(Block):
    """A 1x1 convolution to `4 * growth` channels and a 3x3 one to `growth`, each after BatchNorm and ReLU."""

    growth: int

    @nn.compact
    def __call__(self, earlier: tuple[Array, ...], train: bool, mask: Array | None) -> Array:
        """The new channels, from the block's input and the channels of the layers before this one."""
        x = jnp.concatenate(earlier, axis=-1)
        x = nn.relu(self.norm(name="norm1")(x, train, mask))
        x = self.conv(4 * self.growth, (1, 1), name="conv1")(x)
        x = nn.relu(self.norm(name="norm2")(x, train, mask))
        return self.conv(self.growth, (3, 3), padding=1, name="conv2")(x)


class Transition(Block):
    """Halves channels and resolution.

    Pools before the 1x1 convolution, which a mean over places commutes with, for a quarter of the work.
    """

    @nn.compact
    def __call__(self, x: Array, train: bool, mask: Array | None) -> Array:
        x = nn.relu(self.norm(name="norm")(x, train, mask))
        return self.conv(x.shape[-1] // 2, (1, 1), name="conv")(avg_pool_2x2(x))


class DenseNet(Backbone):
    """A 7x7 stem, then blocks of `depths[i]` dense layers with transitions between them.

    The pooled tensor is the last BatchNorm's output after ReLU, the hooked one the same before it. CYBORG's code runs
    the network a second time to get it: the same values, and running statistics that are updated twice, which
    `batch_norm_momentum=0.81` amounts to. The CAM has a 32nd of the input's resolution, each transition rounding down:
    7x7 at 224 px.
    """

    depths: tuple[int, ...] = (6, 12, 24, 16)
    growth: int = 32
    kernel_init: nn.initializers.Initializer = he_normal

    def parts(self, mask: Array | None) -> list[Part]:
        def stem(x: Array, train: bool) -> Array:
            x = self.conv(2 * self.growth, (7, 7), strides=2, padding=3, name="conv0")(x)
            return max_pool_3x3(nn.relu(self.norm(name="norm0")(x, train, mask)), padding=1)

        def dense_block(i: int, x: Array, train: bool) -> Array:
            # In halves, so that the gradient of x, a sum over all layers, is written to memory once: XLA for CPUs fuses
            # sums into what comes before the block, the max pooling, and works them out again for each of its places,
            # but no concatenation.
            channels = tuple(jnp.split(x, [x.shape[-1] // 2], axis=-1))
            for j in range(1, self.depths[i - 1] + 1):
                dense_layer = self.block(DenseLayer)(growth=self.growth, name=f"denseblock{i}_denselayer{j}")
                channels += (dense_layer(channels, train, mask),)
            return jnp.concatenate(channels, axis=-1)

        def last(x: Array, train: bool) -> tuple[Array, Array]:
            x = self.norm(name="norm5")(x, train, mask)
            return nn.relu(x), x

        parts = [Part("stem", stem)]
        for i in range(1, len(self.depths) + 1):
            parts.append(Part(f"denseblock{i}", partial(dense_block, i)))
            if i < len(self.depths):
                parts.append(self.block_part(Transition, mask, f"transition{i}"))
        return [*parts, Part("norm5", last)]
