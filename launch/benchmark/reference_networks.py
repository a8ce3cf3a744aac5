"""The backbones' originals in PyTorch, from torchvision and timm, with random weights.

Needs the extra `parity` (torch, torchvision, timm), which are imported only when something here is called.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import numpy as np


class Reference(NamedTuple):
    """A PyTorch network.

    Attributes:
      module: where it is built,
      constructor: by which function,
      options: and which options.
      pooled: the module whose output, after ReLU, is pooled; of networks without BatchNorm the module whose output is
        what maps are made of.
      compared_at: (pattern, replacement) for layers whose output here is that of another module there.
      left_out: pattern of the layers that are no modules of their own here.
    """

    module: str
    constructor: str
    pooled: str
    options: Mapping[str, Any] = MappingProxyType({})
    compared_at: tuple[str, str] = ("^$", "")
    left_out: str = "^$"

    @property
    def pools_by_mean(self) -> bool:
        """Whether a mean over places goes into the head, not a class token."""
        return "norm1" not in self.pooled

    @property
    def has_relu(self) -> bool:
        """Whether what is pooled goes through ReLU, and then into the linear layer without a norm."""
        return self.left_out == "^$"


_CONVNEXT = "timm.models.convnext"
_VIT = "timm.models.vision_transformer"
_AFTER_POOLING = r"^head\."
_CLASS_TOKEN = r"^(norm|head|blocks\.11\..*)$"

REFERENCES = {
    "convnext_base": Reference(_CONVNEXT, "convnext_base", "stages", left_out=_AFTER_POOLING),
    "convnext_small": Reference(_CONVNEXT, "convnext_small", "stages", left_out=_AFTER_POOLING),
    "convnext_tiny": Reference(_CONVNEXT, "convnext_tiny", "stages", left_out=_AFTER_POOLING),
    "deit_small_patch16": Reference(
        "timm.models.deit", "deit_small_patch16_224", "blocks.11.norm1", left_out=_CLASS_TOKEN
    ),
    # Transitions pool before they convolve here, and after it there, which is the same.
    "densenet121": Reference(
        "torchvision.models", "densenet121", "features", compared_at=(r"(transition\d)\.conv$", r"\1.pool")
    ),
    # timm's norms end in their activation; inside them comes an empty dropout before it.
    "efficientnet_lite0": Reference(
        "timm.models.efficientnet", "tf_efficientnet_lite0", "bn2", compared_at=(r"(bn\d)$", r"\1.drop")
    ),
    "inception_v3": Reference(
        "torchvision.models", "inception_v3", "Mixed_7c", {"aux_logits": False, "init_weights": False}
    ),
    "mobilenet_v2": Reference("torchvision.models", "mobilenet_v2", "features"),
    "resnet18": Reference("torchvision.models", "resnet18", "layer4"),
    "resnet34": Reference("torchvision.models", "resnet34", "layer4"),
    "resnet50": Reference("torchvision.models", "resnet50", "layer4"),
    "vit_base_patch16": Reference(_VIT, "vit_base_patch16_224", "blocks.11.norm1", left_out=_CLASS_TOKEN),
    "vit_small_patch16": Reference(_VIT, "vit_small_patch16_224", "blocks.11.norm1", left_out=_CLASS_TOKEN),
    "xception": Reference("timm.models.xception", "legacy_xception", "act4"),
}


def import_torch() -> ModuleType:
    """PyTorch, with torchvision importable.

    torchvision registers its operators when its compiled part loads. Where that part was built for another PyTorch it
    does not load, and then registering their meta functions fails; the networks here use none of these operators, so
    declaring the two that it asks for is enough.
    """
    torch = importlib.import_module("torch")
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        importlib.import_module("torchvision")
    return torch


def build_reference(name: str, seed: int, num_classes: int = 1000, **options: Any) -> Any:
    """The PyTorch network with random weights, random BatchNorm statistics and no dropout.

    `options` are further ones of its constructor.
    """
    torch = import_torch()
    entry = REFERENCES[name]
    torch.manual_seed(seed)  # the constructor draws the head
    build = getattr(importlib.import_module(entry.module), entry.constructor)
    network = build(num_classes=num_classes, **entry.options, **options)
    draw_parameters(network, linear=not entry.has_relu)
    return network.eval()


def draw_parameters(network: Any, linear: bool) -> None:
    """Random parameters of a usual size in place of ones, zeros and scales of 1e-6, behind which slips could hide.

    `linear` is for networks whose linear layers are more than the head. Dropout is switched off.
    """
    torch = import_torch()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_in")
        elif isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
        elif isinstance(module, torch.nn.Linear) and linear:
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="linear")
            torch.nn.init.normal_(module.bias, std=0.2)
        elif isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for key, parameter in network.named_parameters():
        if key.endswith(("gamma", "layer_scale", "cls_token", "pos_embed")):
            torch.nn.init.uniform_(parameter, 0.1, 0.4)


def numpy_state_dict(network: Any) -> dict[str, np.ndarray]:
    """A copy of a network's parameters and statistics by PyTorch's names."""
    return {key: value.numpy().copy() for key, value in network.state_dict().items()}
