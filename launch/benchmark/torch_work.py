"""The same work in PyTorch: train steps and class activation maps, written from the description of each method.

Needs the extra `parity` (torch, torchvision, timm; grad-cam for the maps). They are imported only when something
here is called.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from launch.benchmark.cases import LEARNING_RATE, NUM_CLASSES, Case, random_batch
from launch.benchmark.reference_networks import REFERENCES, build_reference, import_torch
from tfcam_jax.models import MODEL_CARDS

ALPHA = 0.5
# What CYBORG's code takes for the features; where there is none it runs the network's features a second time.
DESCRIBED_LAYERS = {
    "efficientnet_lite0": "conv_head",
    "inception_v3": "Mixed_7c",
    "mobilenet_v2": "features.18.0",
    "resnet18": "layer4.1.conv2",
    "resnet34": "layer4.2.conv2",
    "resnet50": "layer4.2.conv3",
    "xception": "conv4",
}

Work = Callable[[], dict[str, float] | None]


class Setting(NamedTuple):
    """A network and a batch on the device.

    Attributes:
      torch: the library.
      network: torchvision's or timm's with random weights, in training mode.
      images: normalised, float32, [B, 3, H, W].
      human: human maps of the images' size, [B, H, W].
      labels: [B].
      captured: after a forward pass, the output of the module that was asked for.
      forward: context in which a forward pass runs.
    """

    torch: Any
    network: Any
    images: Any
    human: Any
    labels: Any
    captured: list[Any]
    forward: Callable[[], contextlib.AbstractContextManager[Any]]

    @property
    def head(self) -> Any:
        """Weights of the linear head, [K, C]."""
        linear = [module for module in self.network.modules() if isinstance(module, self.torch.nn.Linear)]
        return linear[-1].weight

    def optimizer(self) -> Any:
        """SGD as in the CYBORG recipe, but for the learning rate."""
        parameters = self.network.parameters()
        return self.torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-6)

    def human_maps(self) -> Any:
        """Human maps in [0, 1] at the resolution of the captured output, [B, h, w]."""
        size = self.captured[0].shape[-2:]
        resize = functools.partial(self.torch.nn.functional.interpolate, mode="bilinear", antialias=True)
        return normalize(resize(self.human[:, None], size=size)[:, 0])


def prepare(case: Case, layer: str | None = None, channels_last: bool = False) -> Setting:
    """Builds the network and puts the batch on the device; `layer` names the module whose output is captured."""
    torch = import_torch()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layout = {"memory_format": torch.channels_last if channels_last else torch.contiguous_format}
    network = build_reference(case.model, seed=0, num_classes=NUM_CLASSES).train().to(device, **layout)
    captured: list[Any] = []
    if layer is not None:
        keep = lambda _module, _inputs, output: captured.__setitem__(slice(None), [output])
        network.get_submodule(layer).register_forward_hook(keep)
    batch, card = random_batch(case), MODEL_CARDS[case.model]
    images = (batch["image"].astype(np.float32) / 255 - np.float32(card.mean)) / np.float32(card.std)
    images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device).contiguous(**layout)
    human, labels = torch.from_numpy(batch["saliency"]).to(device), torch.from_numpy(batch["label"]).long().to(device)
    mixed = functools.partial(torch.autocast, device.type, torch.bfloat16)
    forward = mixed if case.dtype == "bfloat16" else contextlib.nullcontext
    return Setting(torch, network, images, human, labels, captured, forward)


def normalize(maps: Any) -> Any:
    """Min-max of each map of [B, h, w] to [0, 1]; no map here is constant."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low)


def cross_entropy_step(case: Case, channels_last: bool = False, compiled: bool = False) -> Work:
    """Plain training, for every guided step to be compared with."""
    setting = prepare(case, channels_last=channels_last)
    optimizer, functional = setting.optimizer(), setting.torch.nn.functional
    network = setting.torch.compile(setting.network) if compiled else setting.network

    def step() -> dict[str, float]:
        optimizer.zero_grad()
        with setting.forward():
            logits = network(setting.images)
        loss = functional.cross_entropy(logits.float(), setting.labels)
        loss.backward()
        optimizer.step()
        return {"cross_entropy": loss.item()}

    return step


def described_step(case: Case) -> Work:
    """CYBORG as its code is described: hooks, for DenseNet a second forward pass, and a loop over the images.

    It guides the predicted class's map. Human maps come ready at the CAM's resolution, as from its data loader.
    """
    layer = DESCRIBED_LAYERS.get(case.model)
    setting = prepare(case, layer or REFERENCES[case.model].pooled)
    optimizer, functional = setting.optimizer(), setting.torch.nn.functional
    human: list[Any] = []

    def step() -> dict[str, float]:
        optimizer.zero_grad()
        with setting.forward():
            logits = setting.network(setting.images)
            features = setting.captured[0] if layer else setting.network.features(setting.images)
        if not human:
            human.extend(setting.human_maps())
        entropy, guidance = functional.cross_entropy(logits.float(), setting.labels), 0.0
        for i, predicted in enumerate(logits.argmax(1).tolist()):
            channels = features[i].float()
            cam = (setting.head[predicted] @ channels.flatten(1)).reshape(channels.shape[1:])
            cam = cam - cam.min()
            guidance = guidance + functional.mse_loss(cam / cam.max(), human[i])
        loss = ALPHA * entropy + (1 - ALPHA) * guidance / len(human)
        loss.backward()
        optimizer.step()
        return {"cross_entropy": entropy.item(), "cyborg": guidance.item() / len(human)}

    return step


def behind_a_norm(setting: Setting, features: Any, weights: Any) -> Any:
    """Weights [B, C] of a class as seen from before the pooled vector's LayerNorm, given that vector's deviation."""
    norm = [module for module in setting.network.modules() if isinstance(module, setting.torch.nn.LayerNorm)][-1]
    inverse = (features.mean((2, 3)).var(1, correction=0) + norm.eps).rsqrt()
    scaled = norm.weight * weights
    return inverse[:, None] * (scaled - scaled.mean(1, keepdim=True))


def tidy_step(case: Case, channels_last: bool = False) -> Work:
    """`cyborg` as this package defines it, in good PyTorch: one forward pass, the pooled tensor, the batch at once."""
    setting = prepare(case, REFERENCES[case.model].pooled, channels_last)
    optimizer, functional = setting.optimizer(), setting.torch.nn.functional

    def step() -> dict[str, float]:
        optimizer.zero_grad()
        with setting.forward():
            logits = setting.network(setting.images)
        entropy = functional.cross_entropy(logits.float(), setting.labels)
        features = setting.captured[0].float()
        features = features.relu() if REFERENCES[case.model].has_relu else features
        weights = setting.head[setting.labels]
        weights = weights if REFERENCES[case.model].has_relu else behind_a_norm(setting, features, weights)
        true_map = setting.torch.einsum("bchw,bc->bhw", features, weights)
        guidance = functional.mse_loss(normalize(true_map), setting.human_maps())
        (ALPHA * entropy + (1 - ALPHA) * guidance).backward()
        optimizer.step()
        return {"cross_entropy": entropy.item(), "cyborg": guidance.item()}

    return step


def tidy_maps(case: Case, channels_last: bool = False) -> Work:
    """T, U and D at the CAM's resolution from one forward pass without gradients."""
    setting = prepare(case, REFERENCES[case.model].pooled, channels_last)
    setting.network.eval()

    def maps() -> None:
        with setting.torch.inference_mode():
            with setting.forward():
                setting.network(setting.images)
            per_class = setting.torch.einsum("bchw,kc->bkhw", setting.captured[0].float().relu(), setting.head)
            rows = setting.torch.arange(len(setting.labels), device=per_class.device)
            true_map, false_map = per_class[rows, setting.labels], per_class[rows, 1 - setting.labels]
            for each in (true_map, false_map, true_map - false_map):
                each.cpu()

    return maps


def grad_cam_maps(case: Case) -> Work:
    """T, U and D by pytorch-grad-cam's Grad-CAM: one call for each, as its users ask for them.

    A call gives the map's positive part, scaled to [0, 1] and resized to the image; so D comes from a target of its
    own, the difference of the logits.
    """
    setting = prepare(case)
    library = importlib.import_module("pytorch_grad_cam")
    layer = setting.network.get_submodule(REFERENCES[case.model].pooled)
    cam = library.GradCAM(model=setting.network, target_layers=[layer])
    logit = lambda k: lambda output: output[k]
    difference = lambda k: lambda output: output[k] - output[1 - k]
    labels = setting.labels.tolist()
    targets = ([logit(k) for k in labels], [logit(1 - k) for k in labels], [difference(k) for k in labels])

    def maps() -> None:
        with setting.forward():
            for target in targets:
                cam(input_tensor=setting.images, targets=target)

    return maps


STEPS: dict[str, Callable[[Case], Work]] = {
    "torch cross_entropy": cross_entropy_step,
    "torch cross_entropy, channels_last": functools.partial(cross_entropy_step, channels_last=True),
    "torch cross_entropy, compiled": functools.partial(cross_entropy_step, channels_last=True, compiled=True),
    "torch cyborg as described": described_step,
    "torch cyborg tidy": tidy_step,
    "torch cyborg tidy, channels_last": functools.partial(tidy_step, channels_last=True),
}
MAPS: dict[str, Callable[[Case], Work]] = {
    "torch tidy": tidy_maps,
    "torch tidy, channels_last": functools.partial(tidy_maps, channels_last=True),
    "pytorch-grad-cam": grad_cam_maps,
}


def synchronize() -> None:
    """Waits for the GPU, if there is one."""
    torch = import_torch()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def device_peak_bytes() -> int | None:
    """Most GPU memory in use since the last call; None without a GPU."""
    torch = import_torch()
    if not torch.cuda.is_available():
        return None
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak
