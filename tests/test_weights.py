"""Weights come into the model with every array in its place, or with an error that says which is not and why."""

import http.server
import re
import socket
import threading
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util
from huggingface_hub import constants as hub_constants

from tfcam_jax.models import MODEL_CARDS, MODELS, ResNet, Xception, hub, weights
from tfcam_jax.models.weights import (
    WeightsError,
    adapt_input_channels,
    convert,
    find_weights,
    load_pretrained,
    merge,
)

TINY = partial(ResNet, depths=(1,))


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch):
    """A ResNet of one block with a card of its own, and few backbones that weights may be another's of."""
    monkeypatch.setitem(MODEL_CARDS, "tiny", MODEL_CARDS["resnet18"]._replace(repository="someone/tiny"))
    monkeypatch.setattr(weights, "MODELS", {name: MODELS[name] for name in ("resnet18", "resnet34")})


def variables_of(build, num_classes: int, image_size: int = 128) -> dict:
    model = build(num_classes=num_classes)
    images = jnp.zeros((1, image_size, image_size, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    return jax.tree.map(lambda leaf: np.full(leaf.shape, -1, leaf.dtype), shapes)


def densenet_name(module: str) -> str:
    module = re.sub(r"^(denseblock\d+)_", r"\1.", module)
    return module.replace("head", "classifier") if module == "head" else f"features.{module}"


def inception_name(module: str) -> str:
    return "fc" if module == "head" else module


def resnet_name(module: str) -> str:
    module = re.sub(r"^(layer\d)_(\d+)", r"\1.\2", module)
    module = module.replace("downsample_conv", "downsample.0").replace("downsample_bn", "downsample.1")
    return "fc" if module == "head" else module


def xception_name(module: str) -> str:
    """In timm a block is ReLU, convolution, BatchNorm, ReLU...; only the first block has no ReLU at its start."""
    block = re.fullmatch(r"block(\d+)\.(conv|bn)(\d)(.*)", module)
    if block:
        number, kind, i = int(block[1]), block[2], int(block[3])
        position = 3 * (i - 1) + (kind == "bn") + (number > 1)
        module = f"block{number}.rep.{position}{block[4]}"
    return "fc" if module == "head" else module.replace("depthwise", "conv1")


# torchvision's and timm's module name from ours, written down apart from the patterns under test.
NAMES = {
    "densenet121": densenet_name,
    "inception_v3": inception_name,
    "resnet18": resnet_name,
    "resnet50": resnet_name,
    "tiny": resnet_name,
    "xception": xception_name,
}
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def torch_state_dict(variables: dict, name: str, seed: int = 0) -> dict[str, np.ndarray]:
    """A state dict of random numbers in PyTorch's names, order of axes, and with its step counters."""
    rng = np.random.default_rng(seed)
    state_dict = {}
    for (_, *module, leaf), array in traverse_util.flatten_dict(variables).items():
        axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim]
        shape = tuple(array.shape[axis] for axis in axes)
        torch_module = NAMES[name](".".join(module))
        state_dict[f"{torch_module}.{LEAVES[leaf]}"] = rng.random(shape, np.float32)
        if leaf == "mean":
            state_dict[f"{torch_module}.num_batches_tracked"] = np.array(5, np.int64)
    return state_dict


# Names and shapes read off torchvision's and timm's state dicts.
KNOWN = {
    "densenet121": {
        "features.conv0.weight": (64, 3, 7, 7),
        "features.denseblock4.denselayer16.norm1.running_var": (992,),
        "features.denseblock1.denselayer1.conv2.weight": (32, 128, 3, 3),
        "features.transition3.conv.weight": (512, 1024, 1, 1),
        "features.norm5.bias": (1024,),
        "classifier.weight": (1000, 1024),
    },
    "inception_v3": {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Mixed_6b.branch7x7dbl_2.conv.weight": (128, 128, 7, 1),
        "Mixed_7c.branch3x3dbl_3b.bn.running_mean": (384,),
        "fc.weight": (1000, 2048),
    },
    "resnet50": {
        "conv1.weight": (64, 3, 7, 7),
        "layer2.0.downsample.0.weight": (512, 256, 1, 1),
        "layer2.0.downsample.1.running_var": (512,),
        "layer4.2.conv3.weight": (2048, 512, 1, 1),
        "fc.bias": (1000,),
    },
    "xception": {
        "block1.rep.0.conv1.weight": (64, 1, 3, 3),
        "block1.rep.4.running_mean": (128,),
        "block2.rep.1.pointwise.weight": (256, 128, 1, 1),
        "block12.rep.5.weight": (1024,),
        "block12.skip.weight": (1024, 728, 1, 1),
        "conv4.pointwise.weight": (2048, 1536, 1, 1),
        "fc.weight": (1000, 2048),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_every_array_of_the_published_names_finds_its_place(name):
    variables = variables_of(MODELS[name], 1000)
    state_dict = torch_state_dict(variables, name)
    for key, shape in KNOWN[name].items():
        assert state_dict[key].shape == shape
    merged = merge(convert(state_dict, MODEL_CARDS[name].torch_names), variables, keep_head=True)
    for (_, *module, leaf), array in traverse_util.flatten_dict(merged).items():
        original = state_dict[f"{NAMES[name]('.'.join(module))}.{LEAVES[leaf]}"]
        order = {4: "oihw->hwio", 2: "oi->io", 1: "c->c"}[original.ndim]
        np.testing.assert_array_equal(array, np.einsum(order, original))


@pytest.mark.parametrize(
    ("name", "key", "place"),
    [
        ("mobilenet_v2", "features.0.1.weight", "stem_bn.weight"),
        ("mobilenet_v2", "features.1.conv.1.weight", "block0_0.project.weight"),
        ("mobilenet_v2", "features.1.conv.2.bias", "block0_0.project_bn.bias"),
        ("mobilenet_v2", "features.17.conv.1.0.weight", "block6_0.depthwise.weight"),
        ("mobilenet_v2", "features.18.0.weight", "last.weight"),
        ("mobilenet_v2", "classifier.1.weight", "head.weight"),
        ("mobilenet_v2", "blocks.0.0.conv_pw.weight", "block0_0.project.weight"),  # timm's names
        ("mobilenet_v2", "blocks.0.0.bn2.bias", "block0_0.project_bn.bias"),
        ("mobilenet_v2", "blocks.6.0.conv_dw.weight", "block6_0.depthwise.weight"),
        ("mobilenet_v2", "blocks.6.0.bn2.bias", "block6_0.depthwise_bn.bias"),
        ("mobilenet_v2", "bn2.weight", "last_bn.weight"),
        ("mobilenet_v2", "classifier.bias", "head.bias"),
        ("efficientnet_lite0", "_blocks.0._bn1.weight", "block0_0.depthwise_bn.weight"),
        ("efficientnet_lite0", "_blocks.15._expand_conv.weight", "block6_0.expand.weight"),
        ("efficientnet_lite0", "_bn1.weight", "last_bn.weight"),
        ("efficientnet_lite0", "_fc.bias", "head.bias"),
    ],
)
def test_inverted_residuals_have_one_name_of_several(name, key, place):
    assert weights.rename(key, MODEL_CARDS[name].torch_names) == place


def save(path: Path, state_dict: dict[str, np.ndarray]) -> Path:
    safetensors.numpy.save_file({key: np.ascontiguousarray(array) for key, array in state_dict.items()}, path)
    return path


def tiny_file(folder: Path, num_classes: int = 5, seed: int = 0) -> tuple[Path, dict[str, np.ndarray]]:
    state_dict = torch_state_dict(variables_of(TINY, num_classes), "tiny", seed)
    return save(folder / f"tiny{seed}.safetensors", state_dict), state_dict


def test_the_head_is_replaced(tmp_path):
    file, state_dict = tiny_file(tmp_path)
    variables = variables_of(TINY, 3)
    loaded = load_pretrained("tiny", file, variables)
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(loaded))
    np.testing.assert_array_equal(loaded["params"]["head"]["kernel"], variables["params"]["head"]["kernel"])
    np.testing.assert_array_equal(loaded["params"]["head"]["bias"], variables["params"]["head"]["bias"])
    np.testing.assert_array_equal(loaded["batch_stats"]["bn1"]["var"], state_dict["bn1.running_var"])
    assert all((leaf == -1).all() for leaf in jax.tree.leaves(variables))  # not changed in place
    TINY(num_classes=3).apply(loaded, jnp.zeros((1, 32, 32, 3)), train=False)


def test_the_head_is_kept_on_request(tmp_path):
    file, state_dict = tiny_file(tmp_path)
    loaded = load_pretrained("tiny", file, variables_of(TINY, 5), keep_head=True)
    np.testing.assert_array_equal(loaded["params"]["head"]["kernel"], state_dict["fc.weight"].T)
    np.testing.assert_array_equal(loaded["params"]["head"]["bias"], state_dict["fc.bias"])


def test_a_head_of_other_classes_is_refused_with_both_shapes(tmp_path):
    file, _ = tiny_file(tmp_path)
    with pytest.raises(WeightsError, match=r"params/head/kernel: \(64, 5\) in the weights, \(64, 3\) in the model"):
        load_pretrained("tiny", file, variables_of(TINY, 3), keep_head=True)


def test_names_that_differ_are_counted_and_paired(tmp_path):
    _, state_dict = tiny_file(tmp_path)
    state_dict["layer9.0.conv1.weight"] = np.zeros((2, 3, 1, 1), np.float32)
    del state_dict["layer1.0.bn2.running_mean"]
    file = save(tmp_path / "odd.safetensors", state_dict)
    with pytest.raises(WeightsError) as error:
        load_pretrained("tiny", file, variables_of(TINY, 3))
    lines = str(error.value).splitlines()
    assert lines[0] == (
        f"{file} does not fit tiny; the file's names share no prefix; arrays of the model that the file does not have: "
        "1, arrays of the file that the model does not have: 1"
    )
    assert lines[1:] == ["  the model's layer1_0.bn2.running_mean; nearest in the file: layer9.0.conv1.weight"]


def test_arrays_that_cannot_be_converted_are_listed_at_once():
    state_dict = {
        "a.weight": np.zeros((1, 2, 3), np.float32),
        "a.extra": np.zeros(4, np.float32),
        "b.bias": np.array([0, np.nan], np.float32),
        "fc.bias": np.zeros(2, np.float32),
        "head.bias": np.zeros(2, np.float32),
    }
    with pytest.raises(WeightsError) as error:
        convert(state_dict, MODEL_CARDS["resnet18"].torch_names)
    for part in ("a.weight (1, 2, 3)", "a.extra (4,)", "b.bias: not finite", "head.bias: a second array"):
        assert part in str(error.value)


def test_only_the_auxiliary_head_of_inception_is_left_out():
    names = MODEL_CARDS["inception_v3"].torch_names
    bias = np.ones(3, np.float32)
    converted = convert({"AuxLogits.fc.bias": bias, "fc.bias": bias, "Mixed_5b.branch1x1.bn.bias": bias}, names)
    expected = {"head": {"bias": bias}, "Mixed_5b": {"branch1x1": {"bn": {"bias": bias}}}}
    jax.tree.map(np.testing.assert_array_equal, converted["params"], expected)
    assert "AuxLogits2" in convert({"AuxLogits2.fc.bias": bias}, names)["params"]


def test_old_densenet_names_are_the_same():
    """torchvision's own DenseNet files say norm.1 for norm1."""
    names = MODEL_CARDS["densenet121"].torch_names
    old = {"features.denseblock1.denselayer2.norm.1.weight": np.ones(96, np.float32)}
    new = {"features.denseblock1.denselayer2.norm1.weight": np.ones(96, np.float32)}
    assert jax.tree.structure(convert(old, names)) == jax.tree.structure(convert(new, names))


def prefixed(state_dict: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {prefix + key: array for key, array in state_dict.items()}


def assert_taken(loaded: dict, state_dict: dict[str, np.ndarray]):
    """The first, a middle and the last array are where they belong."""
    np.testing.assert_array_equal(loaded["params"]["conv1"]["kernel"], state_dict["conv1.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(
        loaded["batch_stats"]["layer1_0"]["bn2"]["var"], state_dict["layer1.0.bn2.running_var"]
    )
    np.testing.assert_array_equal(loaded["params"]["head"]["kernel"], state_dict["fc.weight"].T)


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "model.",
        "backbone.",
        "encoder.",
        "_orig_mod.",
        "net.",
        "module.model.",
        "_orig_mod.module.net.",
        "my.own.",
    ],
)
def test_what_a_network_was_wrapped_in_is_taken_off_and_told(tmp_path, caplog, prefix):
    caplog.set_level("INFO")
    _, state_dict = tiny_file(tmp_path)
    others = {"criterion.weight": np.ones(2, np.float32), "loss.net.scale": np.ones((2, 2, 2), np.float32)}
    file = save(tmp_path / "wrapped.safetensors", prefixed(state_dict, prefix) | others)
    assert_taken(load_pretrained("tiny", file, variables_of(TINY, 5), keep_head=True), state_dict)
    assert f"names without their prefix '{prefix}'; left out 2 arrays outside it" in caplog.text


@pytest.mark.parametrize("head", ["fc.", "classifier.", "model.head.", "module.last_linear.1.", "backbone.fc.2."])
def test_a_head_beside_the_wrapped_network_or_behind_dropout_is_found(tmp_path, head):
    _, state_dict = tiny_file(tmp_path)
    file = {f"{head}{key[3:]}" if key[:3] == "fc." else f"backbone.{key}": array for key, array in state_dict.items()}
    path = save(tmp_path / "wrapped.safetensors", file)
    assert_taken(load_pretrained("tiny", path, variables_of(TINY, 5), keep_head=True), state_dict)


def test_a_head_of_several_layers_is_left_out_or_refused(tmp_path, caplog):
    caplog.set_level("INFO")
    _, state_dict = tiny_file(tmp_path)
    state_dict["fc.3.weight"] = state_dict.pop("fc.weight")
    state_dict["fc.0.weight"] = np.ones((64, 64), np.float32)
    path = save(tmp_path / "deep.safetensors", state_dict)
    load_pretrained("tiny", path, variables_of(TINY, 5))
    assert "left out its head of 3 layers" in caplog.text  # fc.bias is one
    with pytest.raises(WeightsError, match=r"head of 3 layers \(head, head\.0, head\.3\)"):
        load_pretrained("tiny", path, variables_of(TINY, 5), keep_head=True)


def test_of_two_networks_in_one_file_the_usual_wrapping_is_meant_or_none(tmp_path):
    _, state_dict = tiny_file(tmp_path)
    _, other = tiny_file(tmp_path, seed=1)
    both = save(tmp_path / "both.safetensors", prefixed(other, "average.") | prefixed(state_dict, "model."))
    assert_taken(load_pretrained("tiny", both, variables_of(TINY, 5), keep_head=True), state_dict)
    both = save(tmp_path / "both.safetensors", prefixed(other, "teacher.") | prefixed(state_dict, "student."))
    with pytest.raises(WeightsError, match=r"fit under each of 'student\.', 'teacher\.'"):
        load_pretrained("tiny", both, variables_of(TINY, 5))


def test_names_of_another_network_are_told_in_a_few_lines(tmp_path):
    vit = {f"visual.blocks.{i}.attn.{leaf}": np.zeros(3, np.float32) for i in range(99) for leaf in ("weight", "bias")}
    with pytest.raises(WeightsError) as error:
        load_pretrained("tiny", save(tmp_path / "vit.safetensors", vit), variables_of(TINY, 3))
    lines = str(error.value).splitlines()
    assert "all names in the file begin with 'visual.blocks.'" in lines[0] and len(lines) == 6
    assert "does not have: 15, arrays of the file that the model does not have: 198" in lines[0]
    assert all(
        re.match(r"  the model's \S+; nearest in the file: visual\.blocks\.\d+\.attn\.\w+$", line) for line in lines[1:]
    )


def test_a_misspelt_name_is_paired_with_the_one_that_was_meant(tmp_path):
    _, state_dict = tiny_file(tmp_path)
    for i in (1, 2):
        state_dict[f"layer1.0.bn{i}.wieght"] = state_dict.pop(f"layer1.0.bn{i}.weight")
    with pytest.raises(WeightsError) as error:
        load_pretrained("tiny", save(tmp_path / "odd.safetensors", state_dict), variables_of(TINY, 3))
    assert str(error.value).splitlines()[1:] == [
        f"  the model's layer1_0.bn{i}.weight; nearest in the file: layer1.0.bn{i}.wieght" for i in (1, 2)
    ]


def test_whose_weights_they_are_is_told(tmp_path):
    state_dict = prefixed(torch_state_dict(variables_of(MODELS["resnet18"], 3), "resnet18"), "module.")
    path = save(tmp_path / "odd.safetensors", state_dict)
    with pytest.raises(WeightsError, match=r"These are the weights of resnet18: --config\.model\.name=resnet18"):
        load_pretrained("tiny", path, variables_of(TINY, 3))


def test_shapes_that_differ_are_counted_and_five_told(tmp_path):
    _, state_dict = tiny_file(tmp_path)
    state_dict = {key: np.repeat(array, 2, axis=0) if array.ndim else array for key, array in state_dict.items()}
    with pytest.raises(WeightsError) as error:
        load_pretrained("tiny", save(tmp_path / "wide.safetensors", state_dict), variables_of(TINY, 3))
    lines = str(error.value).splitlines()
    assert lines[0].endswith("does not fit the model: arrays of another shape: 15") and len(lines) == 6
    assert "  batch_stats/bn1/mean: (128,) in the weights, (64,) in the model" in lines


def test_kernels_of_two_dimensions_are_those_of_1x1_convolutions(tmp_path, caplog):
    """As in xception-b5690688.pth, whose head is last_linear in CYBORG's checkpoints: {"state_dict": ...}."""
    caplog.set_level("INFO")
    build = partial(Xception, widths=((8, 8), (8, 16)))
    variables = variables_of(build, 2)
    state_dict = torch_state_dict(variables, "xception")
    flat = {
        key.replace("fc.", "last_linear."): array[:, :, 0, 0] if "pointwise" in key else array
        for key, array in state_dict.items()
    }
    loaded = load_pretrained("xception", save(tmp_path / "x.safetensors", flat), variables, keep_head=True)
    expected = merge(convert(state_dict, MODEL_CARDS["xception"].torch_names), variables, keep_head=True)
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)
    assert "6 kernels of 1x1 convolutions got or lost their axes of places" in caplog.text


@pytest.mark.parametrize(("given", "wanted"), [(1, 3), (3, 1), (1, 2)])
def test_a_grey_image_gives_the_same_whatever_the_number_of_channels(given, wanted):
    """Against a loop over places and channels, in float64."""
    rng = np.random.default_rng(0)
    kernel, image = jnp.asarray(rng.normal(size=(3, 3, given, 4)), jnp.float32), rng.normal(size=(6, 6))

    def convolve(kernel):
        patches = np.lib.stride_tricks.sliding_window_view(np.pad(image, 1), (3, 3))
        return sum(np.einsum("hwij,ijo->hwo", patches, kernel[:, :, c]) for c in range(kernel.shape[2]))

    adapted = adapt_input_channels(kernel, wanted)
    assert adapted.shape == (3, 3, wanted, 4) and adapted.dtype == np.float32
    np.testing.assert_allclose(
        convolve(np.asarray(adapted, np.float64)), convolve(np.asarray(kernel, np.float64)), atol=1e-5
    )


def test_channels_that_differ_in_meaning_are_not_made_of_others():
    with pytest.raises(ValueError, match="3 input channels cannot be made one of 4"):
        adapt_input_channels(jnp.zeros((3, 3, 3, 8)), 4)


def test_weights_for_one_channel_give_grey_images_what_their_own_network_gives(tmp_path, caplog):
    """Their network is here the one of three channels of which only the first counts."""
    caplog.set_level("INFO")
    variables = variables_of(TINY, 5)
    state_dict = torch_state_dict(variables, "tiny")
    kernel = state_dict["conv1.weight"][:, :1]
    first_alone = np.concatenate([kernel, np.zeros_like(kernel), np.zeros_like(kernel)], axis=1)
    loaded, expected = (
        load_pretrained(
            "tiny", save(tmp_path / "one.safetensors", state_dict | {"conv1.weight": each}), variables, keep_head=True
        )
        for each in (kernel, first_alone)
    )
    grey = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 1)), jnp.float32)
    logits = [
        TINY(num_classes=5).apply(each, jnp.repeat(grey, 3, axis=-1), train=False).logits for each in (loaded, expected)
    ]
    np.testing.assert_allclose(*logits, rtol=1e-5)
    assert "params/conv1/kernel of one input channel became three" in caplog.text


def test_one_logit_becomes_two_with_the_same_sigmoid(tmp_path, caplog):
    caplog.set_level("INFO")
    file, state_dict = tiny_file(tmp_path, num_classes=1)
    loaded = load_pretrained("tiny", file, variables_of(TINY, 2), keep_head=True)
    output = TINY(num_classes=2).apply(loaded, jnp.ones((1, 32, 32, 3)), train=False)
    z = output.features.mean((1, 2)) @ state_dict["fc.weight"].T + state_dict["fc.bias"][None]
    np.testing.assert_allclose(jax.nn.softmax(output.logits)[:, 1:], jax.nn.sigmoid(z), rtol=1e-5)
    assert "its one logit z became the logits (-z / 2, z / 2)" in caplog.text
    with pytest.raises(WeightsError, match=r"head/kernel: \(64, 1\) in the weights, \(64, 3\) in the model"):
        load_pretrained("tiny", file, variables_of(TINY, 3), keep_head=True)


def test_half_precision_becomes_float32():
    array = np.array([0.5, 1.5]).astype(jnp.bfloat16)
    converted = convert({"bn1.weight": array}, ())["params"]["bn1"]["scale"]
    assert converted.dtype == np.float32
    np.testing.assert_array_equal(converted, [0.5, 1.5])


@pytest.fixture
def offline_hub(tmp_path, monkeypatch) -> Path:
    """The hub's client without a connection, and its cache folder; an empty cache of our own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize(("source", "repository"), [("imagenet", "someone/tiny"), ("an/other", "an/other")])
def test_offline_the_error_says_which_file_to_place_where(tmp_path, offline_hub, source, repository):
    with pytest.raises(WeightsError) as error:
        load_pretrained("tiny", source, variables_of(TINY, 3))
    placed = tmp_path / "tfcam_jax" / repository / "model.safetensors"
    assert f"model.safetensors of {repository}" in str(error.value)
    assert str(placed) in str(error.value)
    # ... and placed there it is found.
    placed.parent.mkdir(parents=True)
    file, state_dict = tiny_file(tmp_path)
    file.rename(placed)
    loaded = load_pretrained("tiny", source, variables_of(TINY, 3))
    np.testing.assert_array_equal(loaded["params"]["bn1"]["scale"], state_dict["bn1.weight"])


def test_weights_in_the_hubs_own_cache_are_found(tmp_path, offline_hub):
    repository = offline_hub / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abcd")
    (repository / "snapshots" / "0123abcd").mkdir(parents=True)
    file, state_dict = tiny_file(tmp_path)
    file.rename(repository / "snapshots" / "0123abcd" / "model.safetensors")
    loaded = load_pretrained("tiny", "imagenet", variables_of(TINY, 3))
    np.testing.assert_array_equal(loaded["params"]["bn1"]["scale"], state_dict["bn1.weight"])


@pytest.mark.parametrize(
    ("name", "source", "error", "message"),
    [
        ("small_cnn", "imagenet", WeightsError, "no ImageNet weights are published"),
        ("resnet19", "imagenet", WeightsError, r"no model 'resnet19'; models are .*resnet18"),
        ("tiny", "/dev/zero", WeightsError, "a pipe or a device, not a file"),
        ("tiny", "nowhere/weights.pth", WeightsError, r"nowhere/weights\.pth does not exist.* no folder nowhere"),
        ("tiny", "not a repository!", WeightsError, "no name of a Hugging Face Hub repository"),
        ("tiny", "imagnet", WeightsError, "Did you mean 'imagenet'"),
        ("tiny", "an/other/one", WeightsError, "no name of a Hugging Face Hub repository"),
    ],
)
def test_sources_that_cannot_be(offline_hub, name, source, error, message):
    with pytest.raises(error, match=message):
        load_pretrained(name, source, variables_of(TINY, 3))


@pytest.mark.parametrize(
    "source", ["some/dir", "./absent", "../absent", "/absent/file", "~/absent", "dir/odd.safetensors"]
)
def test_a_path_is_never_looked_up_on_the_hub(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "some/dir").mkdir(parents=True)
    (tmp_path / "some/dir/net.pth").touch()
    monkeypatch.setattr(weights, "get_hub_file", lambda *_: pytest.fail("asked the hub"))
    message = "is a folder.*net.pth" if source == "some/dir" else f"weights file {re.escape(source)} does not exist"
    with pytest.raises(WeightsError, match=message):
        load_pretrained("tiny", source, variables_of(TINY, 3))


def test_a_file_wins_over_a_repository_of_its_name_and_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "some").mkdir()
    (tmp_path / "some/net").touch()
    for source in ("some/net", "~/some/net"):
        assert find_weights(MODEL_CARDS["tiny"], source).samefile(tmp_path / "some/net")


class StandIn(http.server.BaseHTTPRequestHandler):
    """A hub with one file, sent in two halves with a pause between them."""

    content, pause, asked = b"", 0.0, []

    def do_HEAD(self):
        self.asked.append((self.command, self.path))
        known = self.path == "/someone/tiny/resolve/main/model.safetensors"
        self.send_response(200 if known else 404)
        self.send_header("ETag", '"0123456789abcdef"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(self.content) if known else 0))
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        half = len(self.content) // 2
        self.wfile.write(self.content[:half])
        time.sleep(self.pause)
        self.wfile.write(self.content[half:])

    def log_message(self, format, *args):
        pass


@pytest.fixture
def reach(tmp_path, monkeypatch):
    """Makes the client ask the server at a port of this machine, with empty caches and without a proxy."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub_constants, "HF_HUB_DISABLE_TELEMETRY", True)

    def ask(port: int) -> None:
        monkeypatch.setattr(hub_constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        template = f"http://127.0.0.1:{port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    return ask


@pytest.fixture
def listening():
    """A socket that takes connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def told_in(seconds: float, *arguments) -> str:
    start = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        load_pretrained(*arguments)
    assert time.monotonic() - start < seconds
    return str(caught.value)


def test_no_connection_is_told_at_once_without_retries(reach, listening, caplog, monkeypatch):
    variables = variables_of(TINY, 3)
    port = listening.getsockname()[1]
    reach(port)
    monkeypatch.setattr(hub, "ANSWER_SECONDS", 0.5)
    assert "timed out" in told_in(2, "tiny", "imagenet", variables)
    listening.close()
    message = told_in(1, "tiny", "imagenet", variables)
    assert f"no connection to 127.0.0.1:{port}: " in message and "place it at " in message
    assert not caplog.records


def test_a_resolver_that_hangs_is_not_waited_for(reach, monkeypatch):
    reach(1)
    monkeypatch.setattr(hub, "CONNECT_SECONDS", 0.2)
    released, resolve = threading.Event(), socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *name, **options: released.wait() and resolve(*name, **options))
    assert "no answer in 0.2 s" in told_in(1, "tiny", "imagenet", variables_of(TINY, 3))
    released.set()


def test_the_proxy_is_what_is_connected_to(listening, monkeypatch):
    port = listening.getsockname()[1]
    monkeypatch.setenv("https_proxy", f"127.0.0.1:{port}")
    hub.check_connection("https://hub.invalid", 1)
    monkeypatch.setenv("no_proxy", "hub.invalid")
    with pytest.raises(ConnectionError, match=r"no connection to hub\.invalid:443"):
        hub.check_connection("https://hub.invalid", 1)


def test_a_slow_download_is_finished_and_then_kept(tmp_path, reach, monkeypatch):
    file, state_dict = tiny_file(tmp_path)
    monkeypatch.setattr(StandIn, "content", file.read_bytes())
    monkeypatch.setattr(StandIn, "pause", 1.0)
    monkeypatch.setattr(StandIn, "asked", [])
    monkeypatch.setattr(hub, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(hub, "ANSWER_SECONDS", 0.5)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), StandIn) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        reach(server.server_port)
        loaded = load_pretrained("tiny", "imagenet", variables_of(TINY, 3))
        np.testing.assert_array_equal(loaded["params"]["bn1"]["scale"], state_dict["bn1.weight"])
        assert "404" in told_in(1, "tiny", "an/other", variables_of(TINY, 3))
        asked = len(StandIn.asked)
        load_pretrained("tiny", "imagenet", variables_of(TINY, 3))
        assert len(StandIn.asked) == asked
        server.shutdown()
