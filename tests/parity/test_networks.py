"""Are the backbones the same networks as torchvision's and timm's? Compared layer by layer on random weights.

Needs the extra `parity` (torch, torchvision, timm), which are imported only when something here is called.
"""

from __future__ import annotations

import importlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from tfcam_jax.models import MODEL_CARDS, MODELS
from tfcam_jax.models.norm import BatchNorm
from tfcam_jax.models.state_dicts import read_state_dict
from tfcam_jax.models.weights import convert, merge, rename


class Reference(NamedTuple):
    """A PyTorch network.

    Attributes:
      module: where it is built,
      constructor: by which function,
      options: and which options.
      pooled: the module whose output, after ReLU, is pooled.
      compared_at: (pattern, replacement) for layers whose output here is that of another module there.
    """

    module: str
    constructor: str
    pooled: str
    options: Mapping[str, Any] = MappingProxyType({})
    compared_at: tuple[str, str] = ("^$", "")


REFERENCES = {
    # Transitions pool before they convolve here, and after it there, which is the same.
    "densenet121": Reference(
        "torchvision.models", "densenet121", "features", compared_at=(r"(transition\d)\.conv$", r"\1.pool")
    ),
    "inception_v3": Reference(
        "torchvision.models", "inception_v3", "Mixed_7c", {"aux_logits": False, "init_weights": False}
    ),
    "resnet18": Reference("torchvision.models", "resnet18", "layer4"),
    "resnet34": Reference("torchvision.models", "resnet34", "layer4"),
    "resnet50": Reference("torchvision.models", "resnet50", "layer4"),
    "xception": Reference("timm.models.xception", "legacy_xception", "act4"),
}


class Comparison(NamedTuple):
    """One backbone's result. Errors are the largest absolute difference over the largest absolute reference value.

    Attributes:
      name: the backbone.
      parameters: ours and the reference's.
      layers: convolutions and BatchNorms compared.
      worst_layer: the one with the largest error in inference mode, and that error.
      features: error of the pooled tensor in inference mode.
      logits: error in inference mode.
      train_logits: error in training mode.
      batch_stats: largest error of the running statistics after one forward pass in training mode.
      files_equal: the state dict was read back bit by bit from both formats of torch.save.
    """

    name: str
    parameters: tuple[int, int]
    layers: int
    worst_layer: tuple[str, float]
    features: float
    logits: float
    train_logits: float
    batch_stats: float
    files_equal: bool

    def passed(self, tolerance: float) -> bool:
        errors = (self.worst_layer[1], self.features, self.logits, self.train_logits, self.batch_stats)
        return self.parameters[0] == self.parameters[1] and self.files_equal and max(errors) <= tolerance


def run(names: Sequence[str], image_size: int | None, batch_size: int, seed: int, tolerance: float) -> bool:
    """Compares each named backbone, prints a table as it goes, and says whether all agree within `tolerance`.

    Args:
      names: keys of `REFERENCES`.
      image_size: side of the random images in px; None: each model card's.
      batch_size: number of images; at least 2, since BatchNorm is compared in training mode too.
      seed: of weights and images.
      tolerance: largest relative error that passes.
    """
    columns = ("backbone", "parameters", "layers", "worst layer", "", "features", "logits", "train", "stats", "files")
    row = "{:<13} {:>11} {:>6}  {:<38} {:>8} {:>8} {:>8} {:>8} {:>8} {:>6}  {}"
    print(row.format(*columns, ""))
    passed = []
    for name in names:
        result = compare(name, image_size or MODEL_CARDS[name].image_size, batch_size, seed)
        passed.append(result.passed(tolerance))
        counts = result.parameters
        errors = (result.worst_layer[1], result.features, result.logits, result.train_logits, result.batch_stats)
        print(
            row.format(
                name,
                f"{counts[0]:,}" if counts[0] == counts[1] else f"{counts[0]:,} for {counts[1]:,}",
                result.layers,
                result.worst_layer[0],
                *(f"{error:.1e}" for error in errors),
                "equal" if result.files_equal else "differ",
                "passed" if passed[-1] else "FAILED",
            ),
            flush=True,
        )
    print(f"{sum(passed)} passed, {len(passed) - sum(passed)} failed (relative error at most {tolerance:g})")
    return all(passed)


class Forward(NamedTuple):
    """What one network makes of the same weights and images, as NumPy arrays in the layout used here."""

    parameters: int
    layers: dict[tuple[str, ...], np.ndarray]
    features: np.ndarray
    logits: np.ndarray
    train_logits: np.ndarray
    batch_stats: dict[str, Any]


def compare(name: str, image_size: int, batch_size: int, seed: int) -> Comparison:
    """Builds both networks with the same random weights and runs both on the same random images.

    Raises:
      ValueError: the networks do not have the same layers.
    """
    reference = build_reference(name, seed)
    images = np.random.default_rng(seed).normal(size=(batch_size, image_size, image_size, 3)).astype(np.float32)
    state_dict = _state_dict(reference)
    files_equal = _read_back_equal(reference)
    ours, theirs = _run_ours(name, state_dict, images), _run_reference(name, reference, images)
    if ours.layers.keys() != theirs.layers.keys():
        raise ValueError(f"{name}: layers differ: {sorted(ours.layers.keys() ^ theirs.layers.keys())}")
    layer_errors = {".".join(path): relative_error(ours.layers[path], theirs.layers[path]) for path in theirs.layers}
    return Comparison(
        name=name,
        parameters=(ours.parameters, theirs.parameters),
        layers=len(layer_errors),
        worst_layer=max(layer_errors.items(), key=lambda item: item[1]),
        features=relative_error(ours.features, theirs.features),
        logits=relative_error(ours.logits, theirs.logits),
        train_logits=relative_error(ours.train_logits, theirs.train_logits),
        batch_stats=max(jax.tree.leaves(jax.tree.map(relative_error, ours.batch_stats, theirs.batch_stats))),
        files_equal=files_equal,
    )


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest absolute difference over largest absolute value of `theirs`; infinite for different shapes or NaN."""
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        return float("inf")
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


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


def build_reference(name: str, seed: int, num_classes: int = 1000) -> Any:
    """The PyTorch network with random weights, random BatchNorm statistics and no dropout."""
    torch = import_torch()
    entry = REFERENCES[name]
    torch.manual_seed(seed)  # the constructor draws the head
    network = getattr(importlib.import_module(entry.module), entry.constructor)(
        num_classes=num_classes, **entry.options
    )
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_in")
        elif isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return network.eval()


def _state_dict(network: Any) -> dict[str, np.ndarray]:
    return {key: value.numpy().copy() for key, value in network.state_dict().items()}


def _read_back_equal(network: Any) -> bool:
    """Whether `read_state_dict` reads both formats of torch.save bit by bit."""
    torch = import_torch()
    expected = _state_dict(network)
    with tempfile.TemporaryDirectory() as folder:
        for is_zip in (True, False):
            path = Path(folder) / "weights.pth"
            torch.save(network.state_dict(), path, _use_new_zipfile_serialization=is_zip)
            arrays = read_state_dict(path)
            if arrays.keys() != expected.keys() or any(a.tobytes() != expected[k].tobytes() for k, a in arrays.items()):
                return False
    return True


def _run_ours(name: str, state_dict: dict[str, np.ndarray], images: np.ndarray) -> Forward:
    model = MODELS[name](num_classes=1000)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.asarray(images), train=False))
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    variables = merge(convert(state_dict, MODEL_CARDS[name].torch_names), empty, keep_head=True)
    capture = lambda module, method: isinstance(module, nn.Conv | BatchNorm) and method == "__call__"
    inference = lambda v, x: model.apply(v, x, train=False, capture_intermediates=capture, mutable=["intermediates"])
    output, captured = jax.device_get(jax.jit(inference)(variables, images))
    training = lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"])
    train_output, updated = jax.device_get(jax.jit(training)(variables, images))
    layers = traverse_util.flatten_dict(captured["intermediates"])
    return Forward(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        layers={path[:-1]: value[0] for path, value in layers.items()},
        features=output.features,
        logits=output.logits,
        train_logits=train_output.logits,
        batch_stats=dict(updated["batch_stats"]),
    )


def _run_reference(name: str, network: Any, images: np.ndarray) -> Forward:
    torch = import_torch()
    torch_names = MODEL_CARDS[name].torch_names
    layers, pooled = {}, []
    # Copies, since ReLU works in place on what these layers return.
    to_numpy = lambda tensor: tensor.detach().clone().permute(0, 2, 3, 1).contiguous().numpy()
    handles = [
        network.get_submodule(REFERENCES[name].pooled).register_forward_hook(
            lambda _module, _inputs, output: pooled.append(to_numpy(output.relu()))
        )
    ]
    for key, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.BatchNorm2d):
            path = tuple(rename(f"{key}.weight", torch_names).split(".")[:-1])
            keep = lambda _module, _inputs, output, path=path: layers.update({path: to_numpy(output)})
            compared = network.get_submodule(re.sub(*REFERENCES[name].compared_at, key))
            handles.append(compared.register_forward_hook(keep))
    inputs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        logits = network(inputs).numpy()
        for handle in handles:
            handle.remove()
        train_logits = network.train()(inputs).numpy()
    return Forward(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        layers=layers,
        features=pooled[0],
        logits=logits,
        train_logits=train_logits,
        batch_stats=convert(_state_dict(network), torch_names)["batch_stats"],
    )
