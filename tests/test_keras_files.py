"""Weights that Keras saved, written here with h5py in its layouts, come into the backbone that is the same network."""

import io
import json
import tracemalloc
import zipfile
from functools import partial
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tfcam_jax.models import Xception, keras_files
from tfcam_jax.models.cpu_ops import max_pool_3x3
from tfcam_jax.models.keras_files import KerasFileError, is_keras_file, read_keras_weights
from tfcam_jax.models.weights import WeightsError, load_pretrained

TINY = partial(Xception, widths=((8, 8), (8, 16)), padding="SAME", epsilon=1e-3)
# A module's name here -> Keras' name and class of the layer, written down apart from the patterns under test.
LAYERS = {
    "conv1": ("block1_conv1", "Conv2D"),
    "bn1": ("block1_conv1_bn", "BatchNormalization"),
    "conv2": ("block1_conv2", "Conv2D"),
    "bn2": ("block1_conv2_bn", "BatchNormalization"),
    "block1/skip": ("conv2d_4", "Conv2D"),
    "block1/conv1": ("block2_sepconv1", "SeparableConv2D"),
    "block1/bn1": ("block2_sepconv1_bn", "BatchNormalization"),
    "block1/conv2": ("block2_sepconv2", "SeparableConv2D"),
    "block1/bn2": ("block2_sepconv2_bn", "BatchNormalization"),
    "block1/skipbn": ("batch_normalization_9", "BatchNormalization"),
    "block2/skip": ("conv2d_5", "Conv2D"),
    "block2/conv1": ("block3_sepconv1", "SeparableConv2D"),
    "block2/bn1": ("block3_sepconv1_bn", "BatchNormalization"),
    "block2/conv2": ("block3_sepconv2", "SeparableConv2D"),
    "block2/bn2": ("block3_sepconv2_bn", "BatchNormalization"),
    "block2/skipbn": ("batch_normalization_10", "BatchNormalization"),
    "conv3": ("block14_sepconv1", "SeparableConv2D"),
    "bn3": ("block14_sepconv1_bn", "BatchNormalization"),
    "conv4": ("block14_sepconv2", "SeparableConv2D"),
    "bn4": ("block14_sepconv2_bn", "BatchNormalization"),
    "head": ("predictions", "Dense"),
}
VARIABLES = {
    "Conv2D": {"kernel": "params/{}/kernel"},
    "SeparableConv2D": {
        "depthwise_kernel": "params/{}/depthwise/kernel",
        "pointwise_kernel": "params/{}/pointwise/kernel",
    },
    "BatchNormalization": {
        "gamma": "params/{}/scale",
        "beta": "params/{}/bias",
        "moving_mean": "batch_stats/{}/mean",
        "moving_variance": "batch_stats/{}/var",
    },
    "Dense": {"kernel": "params/{}/kernel", "bias": "params/{}/bias"},
}
GROUPS = {
    "Conv2D": "conv2d",
    "SeparableConv2D": "separable_conv2d",
    "BatchNormalization": "batch_normalization",
    "Dense": "dense",
}


@pytest.fixture(scope="module")
def model() -> dict:
    """A tree of random numbers."""
    network = TINY(num_classes=3)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), shapes)


def layers_of(model: dict) -> list[tuple[str, str, dict[str, np.ndarray]]]:
    """Name, class and variables of each layer; a depthwise kernel is [h, w, channels, 1] in Keras."""
    flat = traverse_util.flatten_dict(model, sep="/")
    found = []
    for module, (name, kind) in LAYERS.items():
        arrays = {variable: flat[place.format(module)] for variable, place in VARIABLES[kind].items()}
        if kind == "SeparableConv2D":
            arrays["depthwise_kernel"] = arrays["depthwise_kernel"].transpose(0, 1, 3, 2)
        found.append((name, kind, arrays))
    return found


def write_old(path: Path, layers: list, root: str = "", suffix: str = ":0") -> Path:
    """`keras.applications`' published files, and `model.save("a.h5")` with root "model_weights"."""
    with h5py.File(path, "w") as file:
        group = file.require_group(root) if root else file
        group.attrs["layer_names"] = [name.encode() for name, _, _ in layers]
        for name, _, variables in layers:
            layer = group.create_group(name)
            layer.attrs["weight_names"] = [f"{name}/{variable}{suffix}".encode() for variable in variables]
            for variable, array in variables.items():
                layer[f"{name}/{variable}{suffix}"] = array
        if root:
            file["optimizer_weights/adam/m:0"] = np.zeros(3, np.float32)
    return path


def write_numbered(file: h5py.File, layers: list, named: bool, below: str = "") -> None:
    counts: dict[str, int] = {}
    for name, kind, variables in layers:
        number = counts.get(kind, 0)
        counts[kind] = number + 1
        group = file.create_group(f"{below}layers/{GROUPS[kind]}{f'_{number}' if number else ''}/vars")
        if named:
            group.attrs["name"] = name
        for i, array in enumerate(variables.values()):
            group[str(i)] = array


def write_weights(path: Path, layers: list, named: bool = True) -> Path:
    with h5py.File(path, "w") as file:
        write_numbered(file, layers, named)
        file["optimizer/vars/0"] = np.zeros((), np.int64)
    return path


def describe(layers: list) -> list[dict]:
    return [{"class_name": kind, "config": {"name": name}} for name, kind, _ in layers]


def write_archive(path: Path, layers: list, compression: int = zipfile.ZIP_STORED) -> Path:
    """A network in another, as transfer learning makes it, of Keras before it wrote names; its head is outside."""
    inner = {"class_name": "Functional", "config": {"name": "xception", "layers": describe(layers[:-1])}}
    config = {"class_name": "Functional", "config": {"name": "whole", "layers": [inner, *describe(layers[-1:])]}}
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        write_numbered(file, layers[:-1], named=False, below="layers/functional/")
        write_numbered(file, layers[-1:], named=False)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", content.getvalue())
    return path


WRITERS = {
    "published.h5": write_old,
    "whole.h5": partial(write_old, root="model_weights", suffix=""),
    "a.weights.h5": write_weights,
    "a.keras": write_archive,
    "renamed.bin": write_archive,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_layout_is_read(tmp_path, model, name):
    path = WRITERS[name](tmp_path / name, layers_of(model))
    assert is_keras_file(path)
    empty = jax.tree.map(np.zeros_like, model)
    loaded = load_pretrained("xception_keras", path, empty, keep_head=True)
    jax.tree.map(np.testing.assert_array_equal, loaded, model)


def test_names_of_the_first_keras_and_half_precision_are_read(tmp_path, model):
    old = {"kernel": "W", "bias": "b", "moving_mean": "running_mean", "moving_variance": "running_std"}
    kinds = {"conv2d_": "convolution2d_", "batch_normalization_": "batchnormalization_"}
    layers = []
    with h5py.File(tmp_path / "first.h5", "w") as file:
        for name, _, variables in layers_of(model):
            for new, first in kinds.items():
                name = f"{first}{name.removeprefix(new)}" if name.startswith(new) else name
            for variable, array in variables.items():
                file[f"{name}/{name}_{old.get(variable, variable)}:0"] = array.astype(np.float16)
            layers.append(name)
    loaded = load_pretrained(
        "xception_keras", tmp_path / "first.h5", jax.tree.map(np.zeros_like, model), keep_head=True
    )
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float16)), loaded, model)


def test_bfloat16_is_read_as_keras_writes_it(tmp_path):
    values = np.array([[0.5, -1.25]]).astype(jnp.bfloat16)
    write_weights(tmp_path / "a.weights.h5", [("only", "Dense", {"kernel": values.view("V2"), "bias": np.ones(2)})])
    np.testing.assert_array_equal(read_keras_weights(tmp_path / "a.weights.h5")["head.weight"], values.T)


def test_a_head_of_two_layers_is_left_out_or_refused(tmp_path, model):
    layers = layers_of(model)
    layers[-1:] = [(f"dense_{i}", "Dense", layers[-1][2]) for i in (3, 4)]
    path = write_weights(tmp_path / "a.weights.h5", layers)
    loaded = load_pretrained("xception_keras", path, jax.tree.map(np.zeros_like, model))
    assert not loaded["params"]["head"]["kernel"].any() and loaded["params"]["conv4"]["pointwise"]["kernel"].all()
    with pytest.raises(WeightsError, match=r"head of 2 layers \(head\.0, head\.1\)"):
        load_pretrained("xception_keras", path, model, keep_head=True)


@pytest.mark.parametrize(
    ("layer", "backbone", "message"),
    [
        ("block14_sepconv2", "xception", r"Keras' Xception, not of xception; take --config.model.name=xception_keras"),
        ("conv5_block3_3_conv", "resnet50", r"no backbone here is it.*stride sits in the first 1x1 convolution"),
        ("res5c_branch2c", "resnet50", r"no backbone here is it.*have biases"),
        ("conv5_block16_2_conv", "resnet18", r"DenseNet-121, not of resnet18; take --config.model.name=densenet121"),
    ],
)
def test_another_network_of_the_same_name_is_refused_with_the_reason(tmp_path, model, layer, backbone, message):
    path = write_old(tmp_path / "a.h5", [(layer, "Conv2D", {"kernel": np.ones((1, 1, 2, 2), np.float32)})])
    with pytest.raises(WeightsError, match=message):
        load_pretrained(backbone, path, model)


def test_weights_without_names_are_refused_with_the_remedy(tmp_path, model):
    path = write_weights(tmp_path / "a.weights.h5", layers_of(model), named=False)
    with pytest.raises(KerasFileError, match=r"does not say which layer .* save the whole model as \.keras"):
        read_keras_weights(path)


def test_without_h5py_the_extra_is_named(tmp_path, model, monkeypatch):
    path = write_old(tmp_path / "a.h5", layers_of(model))
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(KerasFileError, match=r"needs h5py: pip install 'tfcam_jax\[keras\]'"):
        read_keras_weights(path)


def other_file(folder: Path) -> Path:
    with h5py.File(folder / "secret.h5", "w") as file:
        file["kernel:0"] = np.ones((2, 2), np.float32)
    return folder / "secret.h5"


def hostile(kind: str, group: h5py.Group, folder: Path) -> None:
    """Fills a layer's group with what Keras never writes."""
    if kind == "external link":
        group["kernel:0"] = h5py.ExternalLink(str(other_file(folder)), "/kernel:0")
    elif kind == "external file":
        (folder / "secret.bin").write_bytes(bytes(16))
        group.create_dataset("kernel:0", (2, 2), np.float32, external=[(str(folder / "secret.bin"), 0, 16)])
    elif kind == "virtual":
        layout = h5py.VirtualLayout((2, 2), np.float32)
        layout[:] = h5py.VirtualSource(str(other_file(folder)), "kernel:0", (2, 2))
        group.create_virtual_dataset("kernel:0", layout)
    elif kind == "soft link":
        group["kernel:0"] = h5py.SoftLink("/")
    elif kind == "cycle":
        group["again"] = group
    elif kind == "never written":
        group.create_dataset("kernel:0", (2**40, 2**20), np.float32)
    elif kind == "zeros":
        group.create_dataset("kernel:0", data=np.zeros((2**12, 2**12), np.float32), compression="gzip", chunks=True)
    elif kind == "chunk":
        group.create_dataset(
            "kernel:0", (2, 2), np.float32, maxshape=(None, None), chunks=(2**14, 2**13), compression=9
        )
    elif kind == "the same":
        group["kernel:0"] = np.ones((512, 512), np.float32)
        for i in range(9):
            group.create_group(f"layer{i}")["kernel:0"] = group["kernel:0"]
    elif kind == "text":
        group["kernel:0"] = ["a", "b"]
    elif kind == "packed":
        group.create_dataset("kernel:0", data=np.zeros((64, 64)), scaleoffset=2)


KINDS = {
    **dict.fromkeys(("external link", "soft link"), "is a link"),
    **dict.fromkeys(("external file", "virtual"), "lies in another place or file"),
    **dict.fromkeys(("never written", "zeros", "chunk", "the same"), "more than twice the file's size"),
    "cycle": "nested more than",
    "text": "no array of numbers",
    "packed": "packed in an unknown way",
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_keras_never_writes_is_refused_before_it_is_read(tmp_path, kind):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        hostile(kind, file.create_group("layer"), tmp_path)
    tracemalloc.start()
    with pytest.raises(KerasFileError, match=KINDS[kind]):
        read_keras_weights(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * path.stat().st_size + 2**21


def test_an_archive_that_does_not_add_up_is_refused(tmp_path, model):
    path = write_archive(tmp_path / "a.keras", layers_of(model), zipfile.ZIP_DEFLATED)
    with pytest.raises(KerasFileError, match="compressed or damaged members"):
        read_keras_weights(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.weights.h5", b"")
    with pytest.raises(KerasFileError, match=r"holds no config\.json"):
        read_keras_weights(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("config.json", "[" * 200_000)
    with pytest.raises(KerasFileError, match="lists no layers"):
        read_keras_weights(path)


@pytest.mark.parametrize("kept", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("name", ["published.h5", "a.keras"])
def test_a_truncated_file_is_refused(tmp_path, model, name, kept):
    path = WRITERS[name](tmp_path / name, layers_of(model))
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"is (damaged|truncated)"):
        load_pretrained("xception_keras", path, model)


@pytest.mark.parametrize("size", [7, 8])
def test_same_padding_is_that_of_xla(size):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, size, size + 1, 3)), jnp.float32)
    expected = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
    np.testing.assert_array_equal(max_pool_3x3(x, "SAME"), expected)


def test_the_table_names_backbones_that_are_there():
    from tfcam_jax.models import MODEL_CARDS

    named = {network.backbone for network in keras_files.NETWORKS} - {None}
    assert named == {name for name, card in MODEL_CARDS.items() if card.keras_names}
