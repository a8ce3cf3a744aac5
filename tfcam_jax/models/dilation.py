"""A finer feature map from the same weights: stages that would go beyond an output stride are dilated instead.

As DeepLab (Chen et al., 2015), torchvision's `replace_stride_with_dilation` and timm's `output_stride` have it: such a
stage takes stride 1, and what comes behind its stride reads places as far apart as they lay before. So a convolution
sees what it saw when the weights were trained, and with running statistics the places that the strided network has keep
their values; the new ones lie between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

OUTPUT_STRIDES = (32, 16, 8)


class StageSteps(NamedTuple):
    """How the convolutions of a stage step over their input.

    Attributes:
      stride: of the first block, where it has one.
      first_dilation: of the first block up to its stride, which reads what the stage before left.
      dilation: of all that comes behind that stride.
    """

    stride: int
    first_dilation: int
    dilation: int


def steps_of_stages(strides: Sequence[int], stem: int, output_stride: int) -> list[StageSteps]:
    """Of each stage, so that all together have `output_stride` at most.

    Args:
      strides: of the stages' first blocks, in the network's own plan.
      stem: stride of what comes before them.
      output_stride: one of `OUTPUT_STRIDES`; ValueError for another.
    """
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(f"output_stride is {output_stride}; it is one of {', '.join(map(str, OUTPUT_STRIDES))}")
    steps, reached, dilation = [], stem, 1
    for stride in strides:
        before = dilation
        if reached * stride > output_stride:
            dilation, stride = dilation * stride, 1
        reached *= stride
        steps.append(StageSteps(stride, before, dilation))
    return steps
