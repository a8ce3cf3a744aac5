"""The backbones, by the name that a config gives. All return `ModelOutput`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from .backbone import Backbone, cam_size
from .cards import MODEL_CARDS, ModelCard
from .densenet import DenseNet
from .head import ModelOutput, PooledLinearHead
from .inception import InceptionV3
from .resnet import ResNet
from .small_cnn import SmallCNN
from .xception import Xception

__all__ = [
    "MODELS",
    "MODEL_CARDS",
    "Backbone",
    "DenseNet",
    "InceptionV3",
    "ModelCard",
    "ModelOutput",
    "PooledLinearHead",
    "ResNet",
    "SmallCNN",
    "Xception",
    "cam_size",
]

MODELS: dict[str, Callable[..., Backbone]] = {
    "densenet121": DenseNet,
    "inception_v3": InceptionV3,
    "resnet18": partial(ResNet, depths=(2, 2, 2, 2)),
    "resnet34": partial(ResNet, depths=(3, 4, 6, 3)),
    "resnet50": partial(ResNet, depths=(3, 4, 6, 3), bottleneck=True),
    "small_cnn": SmallCNN,
    "xception": Xception,
}
