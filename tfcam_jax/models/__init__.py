"""The backbones, by the name that a config gives. All return `ModelOutput`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn

from .output import ModelOutput, PooledLinearHead
from .resnet import ResNet
from .small_cnn import SmallCNN

__all__ = ["MODELS", "ModelOutput", "PooledLinearHead", "ResNet", "SmallCNN"]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "small_cnn": SmallCNN,
    "resnet18": partial(ResNet, depths=(2, 2, 2, 2)),
}
