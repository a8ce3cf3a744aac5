"""Are the backbones the same networks as torchvision's and timm's? Compared layer by layer on random weights.

python -m pytest -m parity tests/parity -n 0 -s
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from launch.benchmark.reference_networks import REFERENCES, build_reference, import_torch, numpy_state_dict
from tfcam_jax.models import MODEL_CARDS, MODELS
from tfcam_jax.models.norm import BatchNorm
from tfcam_jax.models.normed import Dense
from tfcam_jax.models.state_dicts import read_state_dict
from tfcam_jax.models.weights import convert, merge, rename

pytestmark = pytest.mark.parity
BATCH_SIZE = 2  # BatchNorm is compared in training mode too
TOLERANCE = 1e-4  # largest absolute difference over the largest absolute reference value
# ReLU6 cuts large values off, but not their rounding. In float64 the logits of both differ by 8e-15 at most.
LARGER_TOLERANCE = {"efficientnet_lite0": 3e-4, "mobilenet_v2": 3e-4}
ROW = "{:<18} {:>11} {:>6}  {:<38} {:>8} {:>8} {:>8} {:>8} {:>8}"


@pytest.fixture(scope="module", autouse=True)
def headings():
    columns = ("backbone", "parameters", "layers", "worst layer", "", "features", "logits", "train", "stats")
    print(f"\n{ROW.format(*columns)}", end="")


@pytest.mark.parametrize("name", REFERENCES)
def test_a_backbone_is_its_original(name):
    network = build_reference(name, seed=0)
    shape = (BATCH_SIZE, *2 * (MODEL_CARDS[name].image_size,), 3)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    ours = run_ours(name, numpy_state_dict(network), images)
    theirs = run_reference(name, network, images)
    assert ours.parameters == theirs.parameters
    # A dense block's layers are no modules of their own here. What they give is in the norms of what comes behind the
    # block, and what goes on inside them in the running statistics of both their norms.
    comparable = [path for path in theirs.layers if "denselayer" not in path[0]]
    assert set(ours.layers) == set(comparable)
    layers = {".".join(path): relative_error(ours.layers[path], theirs.layers[path]) for path in comparable}
    worst = max(layers, key=layers.get)
    errors = {
        worst: layers[worst],
        "features": relative_error(ours.features, theirs.features),
        "logits": relative_error(ours.logits, theirs.logits),
        "train_logits": relative_error(ours.train_logits, theirs.train_logits),
        "batch_stats": max(
            jax.tree.leaves(jax.tree.map(relative_error, ours.batch_stats, theirs.batch_stats)), default=0.0
        ),
    }
    cells = [f"{error:.1e}" for error in errors.values()]
    cells[-1] = cells[-1] if ours.batch_stats else "-"
    print("\n" + ROW.format(name, f"{ours.parameters:,}", len(layers), worst, *cells), end="  ", flush=True)
    assert max(errors.values()) <= LARGER_TOLERANCE.get(name, TOLERANCE), errors


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("name", REFERENCES)
def test_a_file_of_torch_save_is_read_bit_by_bit(tmp_path, name, is_zip):
    network, path = build_reference(name, seed=0), tmp_path / "weights.pth"
    import_torch().save(network.state_dict(), path, _use_new_zipfile_serialization=is_zip)
    expected, arrays = numpy_state_dict(network), read_state_dict(path)
    assert arrays.keys() == expected.keys()
    assert all(array.tobytes() == expected[key].tobytes() for key, array in arrays.items())


class Forward(NamedTuple):
    """What one network makes of the same weights and images, as NumPy arrays in the layout used here."""

    parameters: int
    layers: dict[tuple[str, ...], np.ndarray]
    features: np.ndarray
    logits: np.ndarray
    train_logits: np.ndarray
    batch_stats: dict[str, Any]


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest absolute difference over largest absolute value of `theirs`; infinite for different shapes or NaN."""
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        return float("inf")
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def run_ours(name: str, state_dict: dict[str, np.ndarray], images: np.ndarray) -> Forward:
    model = MODELS[name](num_classes=1000)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.asarray(images), train=False))
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    variables = merge(convert(state_dict, MODEL_CARDS[name].torch_names), empty, keep_head=True)
    kinds = nn.Conv | BatchNorm | nn.LayerNorm | Dense
    capture = lambda module, method: isinstance(module, kinds) and method == "__call__"
    inference = lambda v, x: model.apply(v, x, train=False, capture_intermediates=capture, mutable=["intermediates"])
    output, captured = jax.device_get(jax.jit(inference)(variables, images))
    features = output.features
    training = lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"])
    train_output, updated = jax.device_get(jax.jit(training)(variables, images))
    layers = traverse_util.flatten_dict(captured["intermediates"])
    return Forward(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        layers={path[:-1]: value[0].reshape(-1, value[0].shape[-1]) for path, value in layers.items()},
        features=features.reshape(-1, features.shape[-1]),
        logits=output.logits,
        train_logits=train_output.logits,
        batch_stats=dict(updated.get("batch_stats", {})),
    )


def rows(output: Any, module: Any) -> np.ndarray:
    """What a module gives, channels last, a row for each place; a copy, since ReLU may work in place on it."""
    channels_last = type(module).__name__ in ("LayerNorm", "Linear")
    tensor = output.detach().clone() if channels_last else output.detach().clone().permute(0, 2, 3, 1)
    return tensor.reshape(-1, tensor.shape[-1]).numpy()


def last_linear(network: Any) -> Any:
    linear = import_torch().nn.Linear
    return [module for module in network.modules() if isinstance(module, linear)][-1]


def run_reference(name: str, network: Any, images: np.ndarray) -> Forward:
    torch = import_torch()
    torch_names = MODEL_CARDS[name].torch_names
    layers, pooled = {}, []
    entry = REFERENCES[name]
    relu = (lambda output: output.relu()) if entry.has_relu else (lambda output: output)
    handles = [
        network.get_submodule(entry.pooled).register_forward_hook(
            lambda module, _inputs, output: pooled.append(rows(relu(output), module))
        )
    ]
    kinds = torch.nn.Conv2d | torch.nn.BatchNorm2d | torch.nn.LayerNorm | torch.nn.Linear
    for key, module in network.named_modules():
        if isinstance(module, kinds) and not re.match(entry.left_out, key) and module is not last_linear(network):
            path = tuple(rename(f"{key}.weight", torch_names).split(".")[:-1])
            keep = lambda module, _inputs, output, path=path: layers.update({path: rows(output, module)})
            compared = network.get_submodule(re.sub(*entry.compared_at, key))
            handles.append(compared.register_forward_hook(keep))
    inputs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        logits = network(inputs).numpy()
        for handle in handles:
            handle.remove()
        train_logits = network.train()(inputs).numpy()
    features = pooled[0]
    if "norm1" in entry.pooled:  # of a class token, which comes first
        tokens = features.reshape(len(images), -1, features.shape[-1])
        features = tokens[:, 1:].reshape(-1, features.shape[-1])
    return Forward(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        layers=layers,
        features=features,
        logits=logits,
        train_logits=train_logits,
        batch_stats=convert(numpy_state_dict(network), torch_names).get("batch_stats", {}),
    )
