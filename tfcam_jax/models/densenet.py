"""DenseNet-BC (Huang et al., CVPR 2017), as torchvision builds it."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .backbone import Backbone, Block, Part
from .cpu_ops import avg_pool_2x2, max_pool_3x3
from .dense_block import Layer, run_block, run_layers
from .initializers import he_normal
from .norm import DeclaredNorm, Moments, Over, find_over, pool_moments, widened

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


class DenseLayer(nn.Module):
    """The variables of a 1x1 convolution to `4 * growth` channels and a 3x3 one to `growth`, each after a norm.

    A block computes with them for all its layers: see dense_block.py.
    """

    growth: int
    kernel_init: nn.initializers.Initializer

    def setup(self) -> None:
        self.norm1, self.norm2 = DeclaredNorm(), DeclaredNorm()
        self.conv1, self.conv2 = DeclaredKernel(self.kernel_init), DeclaredKernel(self.kernel_init)

    def __call__(self, channels: int, is_given: bool) -> Layer:
        """What a layer that reads so many channels computes with; `is_given`: its running statistics too."""
        inner = 4 * self.growth
        (norm1, running1), (norm2, running2) = self.norm1(channels), self.norm2(inner)
        kernels = self.conv1((1, 1, channels, inner)), self.conv2((3, 3, inner, self.growth))
        as_one_group = lambda running: tuple(values[None] for values in running)
        given = (as_one_group(running1), as_one_group(running2)) if is_given else None
        return Layer(norm1, kernels[0], norm2, kernels[1], given)

    def move_running(self, momentum: float, read: Moments, inner: Moments) -> None:
        """Takes up the statistics of what both norms normalised, the first of the channels of `read`."""
        self.norm1.move_running(momentum, read)
        self.norm2.move_running(momentum, inner)


class DeclaredKernel(nn.Module):
    """The kernel of a convolution, for whoever convolves by themselves."""

    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, shape: tuple[int, ...]) -> Array:
        return jnp.asarray(self.param("kernel", self.kernel_init, shape))


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

        def last(x: Array, train: bool) -> tuple[Array, Array]:
            x = self.norm(name="norm5")(x, train, mask)
            return nn.relu(x), x

        parts = [Part("stem", stem)]
        for i in range(1, len(self.depths) + 1):
            parts.append(Part(f"denseblock{i}", partial(self._dense_block, mask, i)))
            if i < len(self.depths):
                parts.append(self.block_part(Transition, mask, f"transition{i}"))
        return [*parts, Part("norm5", last)]

    def _dense_block(self, mask: Array | None, i: int, x: Array, train: bool) -> Array:
        is_given = not train or self.freeze_batch_norm
        make = lambda j: DenseLayer(self.growth, self.kernel_init, name=f"denseblock{i}_denselayer{j + 1}")
        modules = [make(j) for j in range(self.depths[i - 1])]
        layers = [module(x.shape[-1] + j * self.growth, is_given) for j, module in enumerate(modules)]
        if not train:
            return run_layers(self.epsilon, layers, x)
        weights = (jnp.ones(x.shape[:1]) if mask is None else mask).astype(widened(x))
        alone = is_given or self.is_initializing()
        over = Over(1, None) if alone else find_over(self.batch_norm_groups, self.axis_name, x.shape[0])
        x, moments = run_block(over, self.epsilon, layers, x, weights)
        if moments is not None and not self.is_initializing():
            pool = partial(pool_moments, self.batch_norm_groups, self.axis_name)
            read, inside = map(pool, jax.lax.stop_gradient(moments))
            for j, module in enumerate(modules):
                own = Moments(inside.mean[j], inside.var[j], inside.count[0])
                module.move_running(self.batch_norm_momentum, read, own)
        return x
