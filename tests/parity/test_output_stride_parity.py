"""Networks of a smaller output stride against torchvision's and timm's, with the same weights."""

import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.benchmark.reference_networks import build_reference, draw_parameters, import_torch, numpy_state_dict
from tfcam_jax.models import MODEL_CARDS, MODELS
from tfcam_jax.models.weights import convert, merge

pytestmark = pytest.mark.parity
SIZE = 160
TOLERANCE = 3e-4  # largest absolute difference over the largest absolute value; ReLU6 keeps rounding, see test_networks
TORCHVISIONS = {16: [False, False, True], 8: [False, True, True]}


def theirs(name, stride):
    """The reference network, and the module whose output after ReLU is pooled."""
    if name == "resnet50":
        return build_reference(name, 0, replace_stride_with_dilation=TORCHVISIONS[stride]), "layer4"
    if name == "efficientnet_lite0":
        return build_reference(name, 0, output_stride=stride), "bn2"
    # torchvision's basic blocks and its MobileNetV2 can't be dilated; timm's can, under timm's names.
    import_torch().manual_seed(0)
    constructor = {"mobilenet_v2": "mobilenetv2_100", "resnet18": "resnet18"}[name]
    network = importlib.import_module("timm").create_model(constructor, output_stride=stride)
    draw_parameters(network, linear=False)
    return network.eval(), {"mobilenet_v2": "bn2", "resnet18": "layer4"}[name]


@pytest.mark.parametrize("stride", [16, 8])
@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenet_v2", "resnet18", "resnet50"])
def test_a_dilated_backbone_is_its_original(name, stride):
    torch = import_torch()
    network, pooled = theirs(name, stride)
    images = np.random.default_rng(0).normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    kept = []
    handle = network.get_submodule(pooled).register_forward_hook(lambda *called: kept.append(called[-1].relu().numpy()))
    inputs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    state = numpy_state_dict(network)
    with torch.no_grad():
        logits = network(inputs).numpy()
        handle.remove()
        train_logits = network.train()(inputs).numpy()
    model = MODELS[name](num_classes=1000, output_stride=stride)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.asarray(images), train=False))
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    variables = merge(convert(state, MODEL_CARDS[name].torch_names), empty, keep_head=True)
    output = jax.jit(partial(model.apply, train=False))(variables, images)
    assert output.features.shape[1:3] == (SIZE // stride,) * 2
    trained, _ = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))(variables, images)
    pairs = {
        "features": (output.features, kept[0].transpose(0, 2, 3, 1)),
        "logits": (output.logits, logits),
        "train_logits": (trained.logits, train_logits),
    }
    errors = {key: float(np.abs(ours - other).max() / np.abs(other).max()) for key, (ours, other) in pairs.items()}
    print(f"\n{name:<18} {stride:>2}", *(f"{key} {error:.1e}" for key, error in errors.items()), end="  ", flush=True)
    assert max(errors.values()) <= TOLERANCE, errors
