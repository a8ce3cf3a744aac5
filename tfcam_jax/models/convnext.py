"""ConvNeXt (Liu et al., CVPR 2022), as its authors, timm and torchvision build it, without stochastic depth."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float

from .backbone import Part
from .contract import ModelOutput
from .cpu_ops import conv_general_dilated
from .initializers import constant, zeros
from .normed import LayerNorm, NormedNetwork, Perceptron, kernel_init

# Module names in torchvision's state dicts, in the authors' and in timm's -> names here (see weights.py). In the first
# stages and what lies between them are counted alike, and a block is a sequence.
TORCH_NAMES = (
    (r"^features\.0\.0\.", "stem."),
    (r"^features\.0\.1\.", "stem_norm."),
    *((rf"^features\.{2 * i + 1}\.", f"stages.{i}.") for i in range(4)),
    *((rf"^features\.{2 * i}\.", f"downsample_layers.{i}.") for i in range(1, 4)),
    (r"\.block\.0\.", ".conv_dw."),
    (r"\.block\.2\.", ".norm."),
    (r"\.block\.3\.", ".mlp.fc1."),
    (r"\.block\.5\.", ".mlp.fc2."),
    (r"\.layer_scale$", ".gamma"),
    (r"^classifier\.0\.", "norm."),
    (r"^classifier\.2\.", "head."),
    (r"^downsample_layers\.0\.0\.", "stem."),
    (r"^downsample_layers\.0\.1\.", "stem_norm."),
    (r"^downsample_layers\.(\d)\.0\.", r"downsample\1_norm."),
    (r"^downsample_layers\.(\d)\.1\.", r"downsample\1."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv1\.", ".mlp.fc1."),
    (r"\.pwconv2\.", ".mlp.fc2."),
    (r"^stem\.0\.", "stem."),
    (r"^stem\.1\.", "stem_norm."),
    (r"^stages\.(\d)\.downsample\.0\.", r"downsample\1_norm."),
    (r"^stages\.(\d)\.downsample\.1\.", r"downsample\1."),
    (r"^stages\.(\d)\.(blocks\.)?(\d+)\.", r"stage\1_\3."),
    (r"^head\.norm\.", "norm."),
    (r"^head\.fc\.", "head."),
)


def adapt(converted: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
    """torchvision keeps layer scale as [channels, 1, 1]; here it is [channels]."""
    del variables
    flat = cast("dict[tuple[str, ...], Any]", traverse_util.flatten_dict(dict(converted)))
    return traverse_util.unflatten_dict(
        {path: np.ravel(array) if path[-1] == "gamma" else array for path, array in flat.items()}
    )


class ConvNeXtBlock(nn.Module):
    """A 7x7 convolution of each channel by itself, LayerNorm and a perceptron at each place, scaled, added to x."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w channels"]) -> Float[Array, "batch h w channels"]:
        channels = x.shape[-1]
        y = nn.Conv(
            channels,
            (7, 7),
            padding=3,
            feature_group_count=channels,
            dtype=self.dtype,
            kernel_init=kernel_init,
            bias_init=zeros,
            conv_general_dilated=conv_general_dilated,
            name="conv_dw",
        )(x)
        y = LayerNorm(dtype=self.dtype, name="norm")(y)
        y = Perceptron(4 * channels, self.dtype, name="mlp")(y)
        gamma = self.param("gamma", constant(1e-6), (channels,))
        return x + y * gamma.astype(self.dtype).reshape(1, 1, 1, -1)


class ConvNeXt(NormedNetwork):
    """Patches of 4x4 px, then four stages of `depths[i]` blocks with `widths[i]` channels, each at half the resolution.

    The CAM has a 32nd of the input's resolution, rounded down: 7x7 at 224 px, and what is left over at the right and
    at the bottom is not looked at. LayerNorm stands between the mean over places and the linear layer: see `normed`
    for what maps are. There is no hooked tensor. Stochastic depth, of training alone, is left out.
    """

    depths: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)

    def parts(self, mask: Array | None) -> list[Part]:
        del mask  # nothing looks at other examples

        def stem(x: Array, train: bool) -> Array:
            return LayerNorm(dtype=self.dtype, name="stem_norm")(self._shrink(x, self.widths[0], 4, "stem"))

        def downsample(stage: int, x: Array, train: bool) -> Array:
            x = LayerNorm(dtype=self.dtype, name=f"downsample{stage}_norm")(x)
            return self._shrink(x, self.widths[stage], 2, f"downsample{stage}")

        def block(name: str, x: Array, train: bool) -> Array:
            return (nn.remat(ConvNeXtBlock) if self.rematerialize else ConvNeXtBlock)(self.dtype, name=name)(x)

        parts = [Part("stem", stem)]
        for stage, depth in enumerate(self.depths):
            parts += [Part(f"downsample{stage}", partial(downsample, stage))] if stage > 0 else []
            parts += [Part(name, partial(block, name)) for name in (f"stage{stage}_{i}" for i in range(depth))]
        return parts

    def classify(self, x: Array, train: bool, draw: Array | None, shape: tuple[Any, ...]) -> ModelOutput:
        return self.normed_head(x, train, draw)

    def _shrink(self, x: Array, width: int, side: int, name: str) -> Array:
        """A convolution of `side` places a side, each place once."""
        return nn.Conv(
            width,
            (side, side),
            side,
            padding="VALID",
            dtype=self.dtype,
            kernel_init=kernel_init,
            bias_init=zeros,
            name=name,
        )(x)
