"""Inception-v3 (Szegedy et al., CVPR 2016), as torchvision builds it, without the auxiliary head.

torchvision's pretrained model takes images with ImageNet's mean and deviation and maps them, inside the network
(`transform_input`), to mean 0.5 and deviation 0.5. That belongs to preprocessing: this network takes images
normalised with 0.5 and 0.5, as its model card says, and is then the same function of the pixels.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from .backbone import Backbone, Block, Part
from .cpu_ops import avg_pool_3x3, max_pool_3x3
from .initializers import truncated_normal

# Module names in torchvision's and timm's state dicts -> names here (see weights.py). The auxiliary head only helps
# training from scratch; there is none here, so exactly its keys are left out.
TORCH_NAMES = (
    (r"^AuxLogits\.", None),
    (r"^fc\.", "head."),
)


class Unit(NamedTuple):
    """One convolution with its BatchNorm and ReLU."""

    name: str
    features: int
    size: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"


def _chain(name: str, *layers: tuple) -> tuple[Unit, ...]:
    """Units one after the other, numbered from 1."""
    return tuple(Unit(f"{name}_{i}", *layer) for i, layer in enumerate(layers, start=1))


# A branch is a sequence of units and poolings; a tuple of units is a fork, whose outputs are concatenated.
_maximum = partial(max_pool_3x3, padding=0)


def _mixed_35(pool_features: int) -> tuple:
    """Branches of the modules at 35x35 places (InceptionA in torchvision)."""
    return (
        (Unit("branch1x1", 64, (1, 1)),),
        _chain("branch5x5", (48, (1, 1)), (64, (5, 5))),
        _chain("branch3x3dbl", (64, (1, 1)), (96, (3, 3)), (96, (3, 3))),
        (avg_pool_3x3, Unit("branch_pool", pool_features, (1, 1))),
    )


def _mixed_17(width: int) -> tuple:
    """Branches of the modules at 17x17 places (InceptionC)."""
    point, row, column = (width, (1, 1)), (width, (1, 7)), (width, (7, 1))
    return (
        (Unit("branch1x1", 192, (1, 1)),),
        _chain("branch7x7", point, row, (192, (7, 1))),
        _chain("branch7x7dbl", point, column, row, column, (192, (1, 7))),
        (avg_pool_3x3, Unit("branch_pool", 192, (1, 1))),
    )


# Branches of the modules at 8x8 places (InceptionE).
_MIXED_8 = (
    (Unit("branch1x1", 320, (1, 1)),),
    (Unit("branch3x3_1", 384, (1, 1)), (Unit("branch3x3_2a", 384, (1, 3)), Unit("branch3x3_2b", 384, (3, 1)))),
    (
        *_chain("branch3x3dbl", (448, (1, 1)), (384, (3, 3))),
        (Unit("branch3x3dbl_3a", 384, (1, 3)), Unit("branch3x3dbl_3b", 384, (3, 1))),
    ),
    (avg_pool_3x3, Unit("branch_pool", 192, (1, 1))),
)

# From 35x35 to 17x17 places (InceptionB), and from 17x17 to 8x8 (InceptionD).
_REDUCE_17 = (
    (Unit("branch3x3", 384, (3, 3), 2, "VALID"),),
    _chain("branch3x3dbl", (64, (1, 1)), (96, (3, 3)), (96, (3, 3), 2, "VALID")),
    (_maximum,),
)
_REDUCE_8 = (
    _chain("branch3x3", (192, (1, 1)), (320, (3, 3), 2, "VALID")),
    _chain("branch7x7x3", (192, (1, 1)), (192, (1, 7)), (192, (7, 1)), (192, (3, 3), 2, "VALID")),
    (_maximum,),
)

_STEM = (
    Unit("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
    Unit("Conv2d_2a_3x3", 32, (3, 3), padding="VALID"),
    Unit("Conv2d_2b_3x3", 64, (3, 3)),
    _maximum,
    Unit("Conv2d_3b_1x1", 80, (1, 1)),
    Unit("Conv2d_4a_3x3", 192, (3, 3), padding="VALID"),
    _maximum,
)
_MODULES = (
    ("Mixed_5b", _mixed_35(32)),
    ("Mixed_5c", _mixed_35(64)),
    ("Mixed_5d", _mixed_35(64)),
    ("Mixed_6a", _REDUCE_17),
    ("Mixed_6b", _mixed_17(128)),
    ("Mixed_6c", _mixed_17(160)),
    ("Mixed_6d", _mixed_17(160)),
    ("Mixed_6e", _mixed_17(192)),
    ("Mixed_7a", _REDUCE_8),
    ("Mixed_7b", _MIXED_8),
    ("Mixed_7c", _MIXED_8),
)


class ConvNorm(Block):
    """Convolution, BatchNorm, ReLU."""

    unit: Unit

    @nn.compact
    def __call__(self, x: Array, train: bool, mask: Array | None) -> Array:
        _, features, size, stride, padding = self.unit
        x = self.conv(features, size, strides=stride, padding=padding, name="conv")(x)
        return nn.relu(self.norm(name="bn")(x, train, mask))


class Mixed(Block):
    """Parallel branches from one input, concatenated."""

    branches: tuple

    @nn.compact
    def __call__(self, x: Array, train: bool, mask: Array | None) -> Array:
        return jnp.concatenate([self._branch(branch, x, train, mask) for branch in self.branches], axis=-1)

    def _branch(self, branch: tuple, x: Array, train: bool, mask: Array | None) -> Array:
        for step in branch:
            if isinstance(step, Unit):
                x = ConvNorm(unit=step, conv=self.conv, norm=self.norm, name=step.name)(x, train, mask)
            elif isinstance(step, tuple):
                x = jnp.concatenate([self._branch((unit,), x, train, mask) for unit in step], axis=-1)
            else:
                x = step(x)
        return x


class InceptionV3(Backbone):
    """Five convolutions, then modules of parallel branches. The CAM is 8x8 at 299 px; the least image size is 75 px.

    Attributes:
      modules: the branches of each module, by name.
    """

    modules: tuple[tuple[str, tuple], ...] = _MODULES
    kernel_init: nn.initializers.Initializer = truncated_normal(0.1)
    epsilon: float = 1e-3

    def parts(self, mask: Array | None) -> list[Part]:
        def stem(x: Array, train: bool) -> Array:
            for step in _STEM:
                is_unit = isinstance(step, Unit)
                x = self.block(ConvNorm)(unit=step, name=step.name)(x, train, mask) if is_unit else step(x)
            return x

        parts = [self.block_part(Mixed, mask, name, branches=branches) for name, branches in self.modules]
        last = Part(parts[-1].name, lambda x, train: (parts[-1].run(x, train),) * 2)
        return [Part("stem", stem), *parts[:-1], last]
