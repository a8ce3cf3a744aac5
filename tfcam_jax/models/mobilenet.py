"""MobileNetV2 (Sandler et al., CVPR 2018), as torchvision and timm build it, and the blocks that it is known for."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
from jaxtyping import Array

from .backbone import Backbone, Block, Part
from .dilation import steps_of_stages


class Stage(NamedTuple):
    """Inverted residuals in a row; the first has the stride and changes the number of channels.

    Attributes:
      depth: number of blocks.
      features: channels that each puts out.
      size: side of the depthwise kernels.
      stride: of the first block.
      expansion: how many times as many channels there are inside a block.
    """

    depth: int
    features: int
    size: int
    stride: int
    expansion: int = 6


def block_names(stages: tuple[Stage, ...]) -> list[str]:
    """The blocks' names here, in their order."""
    return [f"block{i}_{j}" for i, stage in enumerate(stages) for j in range(stage.depth)]


STAGES = (
    Stage(1, 16, 3, 1, expansion=1),
    Stage(2, 24, 3, 2),
    Stage(3, 32, 3, 2),
    Stage(4, 64, 3, 2),
    Stage(3, 96, 3, 1),
    Stage(3, 160, 3, 2),
    Stage(1, 320, 3, 1),
)

# Module names in timm's state dicts -> names here (see weights.py). timm numbers a block's norms, of which the first
# block, that expands nothing, has one less.
TIMM_NAMES = (
    (r"^blocks\.(\d)\.(\d)\.", r"block\1_\2."),
    (r"^block0_0\.bn1\.", "block0_0.depthwise_bn."),
    (r"^block0_0\.conv_pw\.", "block0_0.project."),
    (r"^block0_0\.bn2\.", "block0_0.project_bn."),
    (r"\.conv_pw\.", ".expand."),
    (r"\.conv_dw\.", ".depthwise."),
    (r"\.conv_pwl\.", ".project."),
    (r"^(block\d_\d)\.bn1\.", r"\1.expand_bn."),
    (r"^(block\d_\d)\.bn2\.", r"\1.depthwise_bn."),
    (r"^(block\d_\d)\.bn3\.", r"\1.project_bn."),
    (r"^conv_stem\.", "stem."),
    (r"^bn1\.", "stem_bn."),
    (r"^conv_head\.", "last."),
    (r"^bn2\.", "last_bn."),
    (r"^classifier\.", "head."),
)
# And in torchvision's, where a block is a sequence. The stem is number 0, the last convolution number 18.
TORCH_NAMES = (
    (r"^features\.0\.0\.", "stem."),
    (r"^features\.0\.1\.", "stem_bn."),
    (r"^features\.18\.0\.", "last."),
    (r"^features\.18\.1\.", "last_bn."),
    (r"^features\.1\.conv\.0\.0\.", "block0_0.depthwise."),
    (r"^features\.1\.conv\.0\.1\.", "block0_0.depthwise_bn."),
    (r"^features\.1\.conv\.1\.", "block0_0.project."),
    (r"^features\.1\.conv\.2\.", "block0_0.project_bn."),
    *((rf"^features\.{i}\.", f"{name}.") for i, name in enumerate(block_names(STAGES), start=1)),
    (r"\.conv\.0\.0\.", ".expand."),
    (r"\.conv\.0\.1\.", ".expand_bn."),
    (r"\.conv\.1\.0\.", ".depthwise."),
    (r"\.conv\.1\.1\.", ".depthwise_bn."),
    (r"\.conv\.2\.", ".project."),
    (r"\.conv\.3\.", ".project_bn."),
    (r"^classifier\.1\.", "head."),
    *TIMM_NAMES,
)


class InvertedResidual(Block):
    """A 1x1 convolution to more channels, a convolution of each channel by itself, a 1x1 convolution to fewer.

    The first two end in BatchNorm and ReLU6, the last in BatchNorm alone. Where the shape stays, the input is added.

    Attributes:
      features, size, stride, expansion: as in `Stage`, but of this block; an expansion of 1 leaves the first
        convolution out.
      same_padding: TensorFlow's at stride 2, one row and column more at the end than at the start; else PyTorch's,
        the same on all sides.
      dilation: of the convolution of each channel by itself.
    """

    features: int
    size: int
    stride: int
    expansion: int
    same_padding: bool = False
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Array, train: bool, mask: Array | None) -> Array:
        y, wide = x, self.expansion * x.shape[-1]
        if self.expansion != 1:
            y = self.conv(wide, (1, 1), name="expand")(y)
            y = nn.relu6(self.norm(name="expand_bn")(y, train, mask))
        padding = "SAME" if self.same_padding else self.dilation * (self.size // 2)
        sizes = {"kernel_size": (self.size, self.size), "strides": self.stride, "padding": padding}
        sizes["kernel_dilation"] = self.dilation
        y = self.conv(wide, **sizes, feature_group_count=wide, name="depthwise")(y)
        y = nn.relu6(self.norm(name="depthwise_bn")(y, train, mask))
        y = self.conv(self.features, (1, 1), name="project")(y)
        y = self.norm(name="project_bn")(y, train, mask)
        return y + x if self.stride == 1 and x.shape == y.shape else y


class MobileNetV2(Backbone):
    """A 3x3 stem at stride 2, `stages` of inverted residuals, and a 1x1 convolution to 1280 channels.

    The pooled tensor is that convolution's output after BatchNorm and ReLU6, the hooked one before. The CAM has a 32nd
    of the input's resolution, rounded up: 7x7 at 224 px.

    Attributes:
      same_padding: as in `InvertedResidual`, of the stem too.
      last_features: channels of the last convolution.
      output_stride: pixels of the input for a place of the CAM, see `dilation`.
    """

    stages: tuple[Stage, ...] = STAGES
    same_padding: bool = False
    last_features: int = 1280
    output_stride: int = 32

    def parts(self, mask: Array | None) -> list[Part]:
        def stem(x: Array, train: bool) -> Array:
            padding = "SAME" if self.same_padding else 1
            x = self.conv(32, (3, 3), strides=2, padding=padding, name="stem")(x)
            return nn.relu6(self.norm(name="stem_bn")(x, train, mask))

        def last(x: Array, train: bool) -> tuple[Array, Array]:
            x = self.conv(self.last_features, (1, 1), name="last")(x)
            return nn.relu6(self.norm(name="last_bn")(x, train, mask)), x

        blocks = []
        steps = steps_of_stages([stage.stride for stage in self.stages], 2, self.output_stride)
        for i, (stage, (stride, first_dilation, dilation)) in enumerate(zip(self.stages, steps, strict=True)):
            for j in range(stage.depth):
                shape = {"features": stage.features, "size": stage.size, "expansion": stage.expansion}
                shape |= {"stride": stride if j == 0 else 1, "dilation": first_dilation if j == 0 else dilation}
                shape["same_padding"] = self.same_padding
                blocks.append(self.block_part(InvertedResidual, mask, f"block{i}_{j}", **shape))
        return [Part("stem", stem), *blocks, Part("last", last)]
