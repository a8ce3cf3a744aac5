"""EfficientNet-Lite0 (Google, 2020): EfficientNet-B0 with ReLU6 and without squeeze-and-excitation.

As TensorFlow's original and timm's `tf_efficientnet_lite0` have it, padding and epsilon too; timm's own
`efficientnet_lite0` pads as PyTorch does. Drop-connect, of training alone, is left out.
"""

from __future__ import annotations

from .mobilenet import TIMM_NAMES, MobileNetV2, Stage, block_names

STAGES = (
    Stage(1, 16, 3, 1, expansion=1),
    Stage(2, 24, 3, 2),
    Stage(2, 40, 5, 2),
    Stage(3, 80, 3, 2),
    Stage(3, 112, 5, 1),
    Stage(4, 192, 5, 2),
    Stage(1, 320, 3, 1),
)

# Module names in the state dict of the package that ports the original, and in timm's -> names here (see weights.py).
TORCH_NAMES = (
    *((rf"^_blocks\.{i}\.", f"{name}.") for i, name in enumerate(block_names(STAGES))),
    (r"\._expand_conv\.", ".expand."),
    (r"\._bn0\.", ".expand_bn."),
    (r"\._depthwise_conv\.", ".depthwise."),
    (r"\._bn1\.", ".depthwise_bn."),
    (r"\._project_conv\.", ".project."),
    (r"\._bn2\.", ".project_bn."),
    (r"^_conv_stem\.", "stem."),
    (r"^_bn0\.", "stem_bn."),
    (r"^_conv_head\.", "last."),
    (r"^_bn1\.", "last_bn."),
    (r"^_fc\.", "head."),
    *TIMM_NAMES,
)


class EfficientNetLite(MobileNetV2):
    """MobileNetV2's plan with other stages, TensorFlow's padding and its epsilon."""

    stages: tuple[Stage, ...] = STAGES
    same_padding: bool = True
    epsilon: float = 1e-3
