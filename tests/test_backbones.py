"""Every model keeps the CAM contract, and every setting does what it says."""

import re
from collections.abc import Iterator
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_program import find_collectives
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import TypeCheckError
from slow_params import slow_but

from tfcam_jax import losses
from tfcam_jax.cams import class_activation_maps, split_true_false
from tfcam_jax.models import (
    MODEL_CARDS,
    MODELS,
    Backbone,
    DenseNet,
    EfficientNetLite,
    InceptionV3,
    MobileNetV2,
    ModelOutput,
    ResNet,
    SmallCNN,
    Xception,
    cam_size,
    settings_of,
)
from tfcam_jax.models.cpu_ops import avg_pool_2x2, avg_pool_3x3, conv_general_dilated, depthwise_conv, max_pool_3x3
from tfcam_jax.models.inception import Unit
from tfcam_jax.models.mobilenet import Stage
from tfcam_jax.models.norm import BatchNorm

# Per architecture a model that compiles fast and yet has every kind of block.
INCEPTION_MODULES = (
    ("reduce", ((Unit("a", 16, (3, 3), 2, "VALID"),), (partial(max_pool_3x3, padding=0),))),
    ("fork", ((Unit("a", 16, (1, 1)), (Unit("b", 16, (1, 3)), Unit("c", 16, (3, 1)))), (Unit("d", 16, (1, 1)),))),
)
INVERTED_STAGES = (Stage(1, 8, 3, 1, expansion=1), Stage(2, 12, 5, 2, expansion=2))
SMALL_MODELS = {
    "densenet": partial(DenseNet, depths=(2, 2), growth=8),
    "efficientnet": partial(EfficientNetLite, stages=INVERTED_STAGES, last_features=24),
    "inception": partial(InceptionV3, modules=INCEPTION_MODULES),
    "mobilenet": partial(MobileNetV2, stages=INVERTED_STAGES, last_features=24),
    "resnet_basic": partial(ResNet, depths=(1, 1)),
    "resnet_bottleneck": partial(ResNet, depths=(1, 1), bottleneck=True),
    "small_cnn": partial(SmallCNN, widths=(8, 16)),
    "xception": partial(Xception, widths=((16, 16), (16, 16, 16), (16, 32))),
}


def small_size(name: str) -> int:
    return {"inception_v3": 107}.get(name, 64)


def random_variables(model: Backbone, image_size: int, seed: int = 0) -> dict:
    """Weights of a usual size and BatchNorm statistics that are not 0 and 1, by NumPy: JAX compiles init for long."""
    rng = np.random.default_rng(seed)
    images = jnp.zeros((1, image_size, image_size, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))

    def fill(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        deviation = np.sqrt(2 / np.prod(leaf.shape[:-1])) if path[-1].key == "kernel" else 0.2
        return (deviation * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def random_images(count: int, size: int, seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal((count, size, size, 3)), jnp.float32)


QUICK = ("resnet18", "small_cnn")
POOLED = [name for name in MODELS if "batch_norm_groups" in settings_of(name)]  # the others: test_normed_networks.py
WHOLE = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in POOLED]


@pytest.fixture(scope="module", params=WHOLE)
def inference(request) -> Iterator[tuple[str, ModelOutput, dict]]:
    """Of each whole network in turn, which is gone before the next one is compiled: its name, output and variables."""
    name = request.param
    model = MODELS[name](num_classes=3)
    variables = random_variables(model, small_size(name))
    output = jax.jit(partial(model.apply, train=False))(variables, random_images(3, small_size(name)))
    yield name, output, variables
    jax.clear_caches()


def assert_cam_mean_plus_bias_is_the_logit(output: ModelOutput, head: dict):
    assert output.features.dtype == output.logits.dtype == jnp.float32
    np.testing.assert_array_equal(output.kernel, head["kernel"])
    np.testing.assert_array_equal(output.bias, head["bias"])
    maps = np.asarray(output.features, np.float64) @ np.asarray(output.kernel, np.float64)
    expected = maps.mean((1, 2)) + np.asarray(output.bias)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(output.logits, expected, rtol=0, atol=1e-5 * scale)
    assert np.ptp(np.asarray(output.logits), axis=0).min() > 1e-3 * scale  # the images make a difference


def test_cam_mean_plus_bias_is_the_logit(inference):
    _, output, variables = inference
    assert_cam_mean_plus_bias_is_the_logit(output, variables["params"]["head"])


def test_features_are_activated_and_of_the_traced_size(inference):
    name, output, _ = inference
    assert output.features.shape[1:3] == cam_size(MODELS[name](num_classes=3), small_size(name))
    assert output.features.min() >= 0
    assert output.features.max() > 0


# torchvision 0.28's `num_params` (Inception-v3: built with aux_logits=False), and timm 1.0.31 for the rest.
PARAMETERS = {
    "convnext_base": 88_591_464,
    "convnext_small": 50_223_688,
    "convnext_tiny": 28_589_128,
    "deit_small_patch16": 22_050_664,
    "densenet121": 7_978_856,
    "efficientnet_lite0": 4_652_008,
    "inception_v3": 23_834_568,
    "mobilenet_v2": 3_504_872,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "vit_base_patch16": 86_567_656,
    "vit_small_patch16": 22_050_664,
    "xception": 22_855_952,
}


def count_parameters(name: str, num_classes: int) -> int:
    model = MODELS[name](num_classes=num_classes)
    images = jnp.zeros((1, *2 * (MODEL_CARDS[name].image_size,), 3))  # position embeddings depend on it
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count_is_the_published_one(name):
    assert count_parameters(name, num_classes=1000) == PARAMETERS[name]


def test_every_model_has_a_card():
    assert MODEL_CARDS.keys() == MODELS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_cam_size_at_the_default_image_size(name):
    card = MODEL_CARDS[name]
    assert cam_size(MODELS[name](num_classes=2), card.image_size) == (card.cam_size, card.cam_size)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "image_size", "expected"),
    [
        ("densenet121", 128, (4, 4)),
        ("densenet121", (224, 320), (7, 10)),
        ("densenet121", 29, (1, 1)),  # torchvision's min_size
        ("inception_v3", 224, (5, 5)),
        ("inception_v3", 75, (1, 1)),  # torchvision's min_size
        ("resnet50", 225, (8, 8)),
        ("xception", 224, (7, 7)),
    ],
)
def test_cam_size_at_other_sizes(name, image_size, expected):
    assert cam_size(MODELS[name](num_classes=2), image_size) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("name", "image_size"), [("densenet121", 28), ("inception_v3", 74), ("xception", 4)])
def test_images_that_are_too_small_are_refused(name, image_size):
    with pytest.raises(ValueError, match=f"images of {image_size}x{image_size} px are too small"):
        cam_size(MODELS[name](num_classes=2), image_size)


@pytest.mark.parametrize("shape", [(2, 64, 64, 1), (64, 64, 3), (2, 3, 64, 64)])
def test_images_of_another_shape_are_refused(shape):
    # The check of signatures, in tests only, comes before the model's own.
    with pytest.raises((ValueError, TypeCheckError), match=r"takes images of shape|parameter 'images'"):
        jax.eval_shape(lambda: SmallCNN(num_classes=2).init(jax.random.key(0), jnp.zeros(shape), train=False))


# From here on: the settings, on small models and few compiled functions, each of them for 4 images of 48 px.


@cache
def small_model(name: str) -> tuple[Backbone, dict]:
    model = SMALL_MODELS[name](num_classes=2)
    return model, random_variables(model, 48)


@cache
def compiled_forward(name: str, train: bool, **settings):
    """(variables, images, mask) -> (output, updated) of the small model with other settings."""
    model = SMALL_MODELS[name](num_classes=2, **settings)
    return jax.jit(lambda v, x, mask=None: model.apply(v, x, train=train, mask=mask, mutable=["batch_stats"]))


def forward(name: str, train: bool, images: np.ndarray, mask=(1, 1, 1, 1), **settings) -> tuple[ModelOutput, dict]:
    _, variables = small_model(name)
    return compiled_forward(name, train, **settings)(variables, images, jnp.asarray(mask, jnp.float32))


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_MODELS)
def test_training_keeps_the_contract_and_updates_every_running_statistic(name):
    _, variables = small_model(name)
    output, updated = forward(name, True, random_images(4, 48))
    assert_cam_mean_plus_bias_is_the_logit(output, variables["params"]["head"])
    old, new = jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(updated["batch_stats"])
    assert len(old) == len(new)
    assert all(np.asarray(n).dtype == np.float32 and not np.array_equal(o, n) for o, n in zip(old, new, strict=True))


# What comes before the pooled tensor, by the path of the module that gives it; None: the pooled one itself.
HOOKED = {
    "densenet": ("norm5",),
    "efficientnet": ("last",),
    "inception": None,
    "mobilenet": ("last",),
    "resnet_basic": ("layer2_0", "conv2"),
    "resnet_bottleneck": ("layer2_0", "conv3"),
    "small_cnn": ("Conv_1",),
    "xception": ("conv4",),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_MODELS)
def test_the_hooked_tensor_is_the_one_described(name):
    model, variables = small_model(name)
    run = jax.jit(partial(model.apply, train=False, capture_intermediates=True, mutable=["intermediates"]))
    output, captured = run(variables, random_images(2, 48))
    modules = traverse_util.flatten_dict(captured["intermediates"])
    expected = output.features if HOOKED[name] is None else modules[(*HOOKED[name], "__call__")][0]
    np.testing.assert_array_equal(output.hooked, expected)
    assert output.hooked.shape == output.features.shape
    assert ((output.hooked < 0).any()) == (HOOKED[name] is not None)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_MODELS)
def test_inference_leaves_the_running_statistics(name):
    _, updated = forward(name, False, random_images(4, 48))
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], small_model(name)[1]["batch_stats"])


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_MODELS)
def test_padded_examples_do_not_count(name):
    images = random_images(4, 48)
    other = np.concatenate([images[:3], 100 * random_images(1, 48, seed=5)])
    expected, expected_stats = forward(name, True, images, mask=(1, 1, 1, 0))
    actual, actual_stats = forward(name, True, other, mask=(1, 1, 1, 0))
    np.testing.assert_array_equal(actual.logits[:3], expected.logits[:3])
    jax.tree.map(np.testing.assert_array_equal, actual_stats, expected_stats)
    counted, _ = forward(name, True, images)
    assert np.abs(counted.logits[:3] - expected.logits[:3]).max() > 1e-3 * np.abs(expected.logits).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_MODELS)
def test_synchronised_batch_norm_sees_all_devices(name):
    """Two halves of a batch on two devices (the axis of a vmap) give what the whole batch gives on one."""
    images = random_images(4, 48)
    expected, stats = forward(name, True, images)
    model = SMALL_MODELS[name](num_classes=2, axis_name="devices")
    on_device = partial(model.apply, train=True, mutable=["batch_stats"])
    halves = jax.jit(jax.vmap(on_device, in_axes=(None, 0), axis_name="devices"))
    actual, actual_stats = halves(small_model(name)[1], images.reshape(2, 2, 48, 48, 3))
    scale = np.abs(expected.logits).max()
    np.testing.assert_allclose(actual.logits.reshape(4, 2), expected.logits, rtol=0, atol=1e-4 * scale)
    for device in range(2):
        own = jax.tree.map(lambda leaf, device=device: leaf[device], actual_stats)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), own, stats)
    alone, _ = forward(name, True, images, mask=(1, 1, 0, 0))
    assert np.abs(alone.logits[:2] - expected.logits[:2]).max() > 1e-3 * scale


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_MODELS)
def test_frozen_batch_norm_uses_and_keeps_the_running_statistics(name):
    images = random_images(4, 48)
    expected, _ = forward(name, False, images)
    actual, updated = forward(name, True, images, freeze_batch_norm=True)
    np.testing.assert_allclose(actual.logits, expected.logits, rtol=0, atol=1e-5 * np.abs(expected.logits).max())
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], small_model(name)[1]["batch_stats"])


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_MODELS)
def test_bfloat16_gives_the_same_cam_losses(name):
    labels, saliency = jnp.arange(4) % 2, jnp.asarray(np.random.default_rng(2).random((4, 16, 16), np.float32))

    def cam_losses(output):
        assert output.logits.dtype == output.features.dtype == jnp.float32
        true_map, false_map = split_true_false(class_activation_maps(output.features, output.kernel), labels)
        target = jax.image.resize(saliency, true_map.shape, "linear")
        values = (
            losses.cyborg_loss(true_map, target),
            losses.opposed_loss(true_map, false_map, target),
            losses.difference_loss(true_map, false_map, target),
            losses.contrast_loss(true_map, false_map, target),
        )
        return [np.asarray(value).mean() for value in values]

    images = random_images(4, 48)
    exact, _ = forward(name, False, images)
    rounded, _ = forward(name, False, images, dtype=jnp.bfloat16)
    np.testing.assert_allclose(cam_losses(rounded), cam_losses(exact), rtol=0.02)


def equations(program):
    """Of a jaxpr and of those that it calls, in their order."""
    for equation in program.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            yield from equations(inner) if hasattr(inner, "eqns") else ()


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_MODELS)
def test_every_convolution_is_in_the_compute_dtype(name):
    _, variables = small_model(name)
    model = SMALL_MODELS[name](num_classes=2, dtype=jnp.bfloat16)
    program = jax.make_jaxpr(partial(model.apply, train=False))(variables, random_images(1, 48))
    every = list(equations(program.jaxpr))
    dtypes_of = lambda *names: [e.outvars[0].aval.dtype for e in every if e.primitive.name in names]
    kernels = {path for path in traverse_util.flatten_dict(variables["params"]) if path[-1] == "kernel"}
    depthwise = {path for path in kernels if "depthwise" in path}
    products = dtypes_of("conv_general_dilated", "dot_general")
    assert products == [jnp.bfloat16] * (len(kernels - depthwise) - 1) + [jnp.float32]  # the head's, which comes last
    others = dtypes_of("custom_vjp_call")  # depthwise convolutions and max pools
    assert len(others) >= len(depthwise) and set(others) <= {jnp.dtype("bfloat16")}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_MODELS)
def test_rematerialisation_changes_no_value(name):
    _, variables = small_model(name)
    images = random_images(4, 48)

    def loss_and_gradients(rematerialize):
        model = SMALL_MODELS[name](num_classes=2, rematerialize=rematerialize)

        def loss(params):
            output, updated = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return jnp.square(output.logits).sum() + output.features.mean(), updated

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])

    expected, actual = loss_and_gradients(False), loss_and_gradients(True)
    assert jax.tree.structure(expected) == jax.tree.structure(actual)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(a).max())


def residual_bytes(model: Backbone) -> int:
    """Bytes that the forward pass keeps for the backward pass, parameters apart; nothing is computed."""
    images = jax.ShapeDtypeStruct((8, 128, 128, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)

    def pullback(variables, images):
        output = lambda params: model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )[0]
        return jax.vjp(lambda params: output(params).logits.sum(), variables["params"])[1]

    sizes = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    return sizes(jax.eval_shape(pullback, variables, images)) - sizes(variables["params"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [
        partial(InceptionV3, modules=tuple((f"fork{i}", INCEPTION_MODULES[1][1]) for i in range(6))),
        MODELS["resnet18"],
        SmallCNN,
        Xception,
    ],
)
def test_rematerialisation_keeps_half_at_most(build):
    plain, remat = (build(num_classes=2, rematerialize=flag) for flag in (False, True))
    assert residual_bytes(remat) < 0.5 * residual_bytes(plain)


def test_batch_norm_is_pytorchs():
    """Biased variance normalises, the unbiased one is kept, with a tenth of the new value; padding is left out."""
    x = jnp.asarray(np.random.default_rng(0).normal(2, 3, (4, 5, 6, 7)), jnp.float32)
    real = np.asarray(x[:3])
    norm = BatchNorm(epsilon=1e-3)
    variables = norm.init(jax.random.key(0), x, train=False)
    scale, bias = np.linspace(0.5, 2, 7, dtype=np.float32), np.linspace(-1, 1, 7, dtype=np.float32)
    variables = {**variables, "params": {"scale": scale, "bias": bias}}
    y, updated = norm.apply(variables, x, train=True, mask=jnp.array([1.0, 1.0, 1.0, 0.0]), mutable=["batch_stats"])
    places = (0, 1, 2)
    expected = (real - real.mean(places)) / np.sqrt(real.var(places) + 1e-3) * scale + bias
    np.testing.assert_allclose(y[:3], expected, atol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * real.mean(places), rtol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * real.var(places, ddof=1), rtol=1e-5)


@pytest.mark.parametrize("name", slow_but(SMALL_MODELS, "densenet"))
def test_a_group_of_padding_alone_disturbs_nothing(name):
    """As the last batch of an epoch may leave to a device: its values must not grow from norm to norm to infinity."""
    model = SMALL_MODELS[name](num_classes=2, batch_norm_groups=2)
    variables = jax.tree.map(jnp.asarray, small_model(name)[1])
    images, mask = random_images(4, 48), jnp.array([1.0, 1.0, 0.0, 0.0])

    @jax.jit
    def train(params, images):
        apply = lambda p: model.apply(
            {**variables, "params": p}, images, train=True, mask=mask, mutable=["batch_stats"]
        )
        loss = lambda p: (jnp.where(mask[:, None] > 0, (found := apply(p))[0].logits, 0).sum(), found)
        return jax.grad(loss, has_aux=True)(params)

    gradients, (output, updated) = train(variables["params"], images)
    alone = lambda x: model.clone(batch_norm_groups=1).apply(variables, x, train=True, mutable=["batch_stats"])
    assert np.isfinite(output.logits).all()
    expected, other = jax.jit(alone)(images[:2])
    np.testing.assert_allclose(output.logits[:2], expected.logits, rtol=1e-3, atol=1e-4)
    for mine, theirs in zip(jax.tree.leaves(updated), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_frozen_batch_norm_still_learns_scale_and_bias():
    x = jnp.asarray(np.random.default_rng(0).normal(2, 3, (4, 5, 6, 7)), jnp.float32)
    norm = BatchNorm(frozen=True)
    variables = norm.init(jax.random.key(0), x, train=False)
    loss = lambda params: (norm.apply({**variables, "params": params}, x, train=True) * x).sum()
    gradients = jax.grad(loss)(variables["params"])
    np.testing.assert_allclose(gradients["bias"], x.sum((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(gradients["scale"], np.square(x).sum((0, 1, 2)) / np.sqrt(1 + 1e-5), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(7, 7), (8, 9), (3, 4), (2, 5)])
@pytest.mark.parametrize("padding", [0, 1])
def test_max_pool_is_the_usual_one(size, padding):
    x = jnp.asarray(np.random.default_rng(0).integers(-3, 3, (2, *size, 3)).astype(np.float32))  # with ties
    sides = ((padding, padding), (padding, padding))
    usual = lambda x: nn.max_pool(x, (3, 3), strides=(2, 2), padding=sides)
    expected, expected_pullback = jax.vjp(usual, x)
    actual, pullback = jax.vjp(partial(max_pool_3x3, padding=padding), x)
    np.testing.assert_array_equal(actual, expected)
    gradient = jnp.arange(expected.size, dtype=jnp.float32).reshape(expected.shape)
    np.testing.assert_array_equal(pullback(gradient)[0], expected_pullback(gradient)[0])


@pytest.mark.parametrize("size", [(6, 6), (7, 4), (1, 5)])
def test_average_pools_are_the_usual_ones(size):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, *size, 3)), jnp.float32)
    np.testing.assert_allclose(avg_pool_2x2(x), nn.avg_pool(x, (2, 2), strides=(2, 2)), atol=1e-6)
    np.testing.assert_allclose(avg_pool_3x3(x), nn.avg_pool(x, (3, 3), padding="SAME"), atol=1e-6)


@pytest.mark.parametrize(("size", "strides", "padding"), [(1, 1, "SAME"), (1, 2, "VALID"), (1, 1, 1), (3, 2, 1)])
def test_convolution_is_the_usual_one(size, strides, padding):
    x = np.random.default_rng(0).standard_normal((2, 7, 6, 5)).astype(np.float32)
    usual = nn.Conv(4, (size, size), strides=strides, padding=padding)
    ours = nn.Conv(4, (size, size), strides=strides, padding=padding, conv_general_dilated=conv_general_dilated)
    variables = usual.init(jax.random.key(0), x)
    np.testing.assert_allclose(ours.apply(variables, x), usual.apply(variables, x), atol=1e-5)


def usual_conv(x, kernel, strides=(1, 1), padding="SAME", dilation=(1, 1)):
    """Of each channel by itself if the kernel has one input."""
    groups = x.shape[-1] // kernel.shape[2]
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": groups}
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, rhs_dilation=dilation, **options)


def channelwise(size, kernel_size, features=(1, 3)):
    """Two images of three channels, and a kernel for each channel, or one of these inputs and outputs."""
    normal = np.random.default_rng(0).standard_normal
    return jnp.asarray(normal((2, *size, 3)), jnp.float32), jnp.asarray(normal((*kernel_size, *features)), jnp.float32)


GEOMETRIES = [
    ((6, 7), (3, 3), (1, 1), "SAME", (1, 1)),
    ((1, 2), (3, 3), (1, 1), "SAME", (1, 1)),
    ((4, 4), (1, 1), (1, 1), "SAME", (1, 1)),
    ((6, 7), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1)),
    ((6, 7), (5, 5), (2, 2), "SAME", (1, 1)),
    ((9, 8), (2, 3), (2, 3), ((0, 2), (3, 1)), (1, 1)),
    ((7, 5), (1, 2), (3, 1), "VALID", (1, 1)),  # some rows are read by none
    ((6, 7), (3, 3), (1, 1), "SAME", (2, 2)),
    ((2, 9), (5, 3), (1, 1), ((4, 4), (4, 4)), (2, 4)),  # higher than the image
    ((9, 8), (3, 3), (2, 2), "SAME", (2, 2)),  # half of the rows are read by none
    ((9, 8), (2, 3), (2, 3), ((0, 2), (3, 1)), (3, 2)),
]


@pytest.mark.parametrize(
    ("size", "kernel_size", "strides", "padding", "dilation"), slow_but(GEOMETRIES, GEOMETRIES[-1])
)
@pytest.mark.parametrize("features", [(1, 3), (3, 4)])
def test_a_convolution_and_its_first_and_second_gradients_are_the_usual_ones(
    size, kernel_size, strides, padding, dilation, features
):
    x, kernel = channelwise(size, kernel_size, features)
    usual = partial(usual_conv, strides=strides, padding=padding, dilation=dilation)
    layout = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 3 // features[0]}
    ours = lambda x, kernel: conv_general_dilated(x, kernel, strides, padding, rhs_dilation=dilation, **layout)

    def penalty(conv):
        """A function of the gradients by both arguments, as losses on input gradients are."""
        value = lambda x, kernel: jnp.sin(conv(x, kernel)).sum()
        total = lambda tree: sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree))
        return lambda x, kernel: value(x, kernel) + total(jax.grad(value, argnums=(0, 1))(x, kernel))

    np.testing.assert_allclose(ours(x, kernel), usual(x, kernel), atol=1e-5)
    actual = jax.jit(jax.grad(penalty(ours), argnums=(0, 1)))(x, kernel)
    expected = jax.jit(jax.grad(penalty(usual), argnums=(0, 1)))(x, kernel)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("size", "kernel_size", "strides", "padding", "dilation"), [GEOMETRIES[3], GEOMETRIES[-1]])
def test_on_accelerators_gradients_are_the_convolutions_that_xla_knows(
    monkeypatch, size, kernel_size, strides, padding, dilation
):
    x, kernel = channelwise(size, kernel_size, (3, 4))
    usual = partial(usual_conv, strides=strides, padding=padding, dilation=dilation)
    layout = {"rhs_dilation": dilation, "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    ours = lambda x, kernel: conv_general_dilated(x, kernel, strides, padding, **layout)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    gradients = lambda conv: jax.jit(jax.grad(lambda x, kernel: jnp.sin(conv(x, kernel)).sum(), argnums=(0, 1)))
    for mine, theirs in zip(gradients(ours)(x, kernel), gradients(usual)(x, kernel), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
    layouts = lambda conv: {
        str(equation.params["dimension_numbers"])
        for equation in equations(jax.make_jaxpr(gradients(conv))(x, kernel).jaxpr)
        if equation.primitive.name == "conv_general_dilated"
    }
    assert layouts(ours) == layouts(usual) and len(layouts(ours)) == 3


@pytest.mark.parametrize("step", [1, 2])
def test_within_a_loop_too_gradients_are_convolutions_of_the_form_that_cpus_run_fast(step):
    """As parts of a batch are worked through; the gradient by the images, which nobody asks for, is not among them."""
    parts, kernels = jnp.ones((2, 3, 9, 9, 4)), [jnp.ones((3, 3, 4, 5)), jnp.ones((3, 3, 5, 6))]
    layout = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}

    def loss(kernels, x):
        for kernel in kernels:
            x = conv_general_dilated(x, kernel, (step, step), "SAME", **layout)
        return jnp.square(x).sum()

    add = lambda total, part: (jax.tree.map(jnp.add, total, jax.grad(loss)(kernels, part)), None)
    everything = lambda kernels, parts: jax.lax.scan(add, jax.tree.map(jnp.zeros_like, kernels), parts)[0]
    program = jax.jit(everything).lower(kernels, parts).compile().as_text()
    assert " while(" in program
    assert re.findall(r" convolution\(.*dim_labels=(\S+?),", program) == ["b01f_01io->b01f"] * 5


def test_a_depthwise_convolution_of_smaller_dtypes_sums_in_float32():
    x, kernel = (array.astype(jnp.bfloat16) for array in channelwise((8, 8), (5, 5)))
    exact = usual_conv(x.astype(jnp.float32), kernel.astype(jnp.float32))
    found, gradients = jax.value_and_grad(lambda *a: depthwise_conv(*a).astype(jnp.float32).sum(), (0, 1))(x, kernel)
    assert {leaf.dtype for leaf in gradients} == {jnp.dtype("bfloat16")}
    np.testing.assert_array_equal(depthwise_conv(x, kernel), exact.astype(jnp.bfloat16))
    assert found == pytest.approx(float(exact.sum()), rel=0.02, abs=0.5)


@pytest.mark.parametrize(
    ("changes", "is_ours"),
    [
        ({"padding": 1}, True),
        ({"padding": "SAME"}, True),
        ({"padding": "VALID"}, True),
        ({"padding": 1, "strides": 2}, True),
        ({"padding": "SAME", "strides": 2}, True),
        ({"padding": 2, "kernel_dilation": 2}, True),
        ({"padding": "SAME", "kernel_dilation": 2, "strides": 2}, True),
        ({"padding": 2, "input_dilation": 2}, False),
        ({"padding": 1, "features": 12}, False),
        ({"padding": 1, "feature_group_count": 2}, False),
    ],
)
def test_only_what_convolves_every_channel_by_itself_becomes_shifts(changes, is_ours):
    x = np.random.default_rng(0).standard_normal((2, 7, 6, 4)).astype(np.float32)
    settings = {"features": 4, "kernel_size": (3, 3), "feature_group_count": 4, **changes}
    ours = nn.Conv(**settings, conv_general_dilated=conv_general_dilated)
    variables = ours.init(jax.random.key(0), x)
    np.testing.assert_allclose(ours.apply(variables, x), nn.Conv(**settings).apply(variables, x), atol=1e-5)
    has_convolution = "conv_general_dilated" in str(jax.make_jaxpr(ours.apply)(variables, x))
    assert has_convolution != is_ours


@pytest.mark.slow
def test_devices_exchange_only_the_kernels_gradient_of_a_depthwise_convolution():
    mesh = jax.make_mesh((2,), ("batch",))
    x, kernel = channelwise((4, 4), (3, 3))
    gradient = jax.grad(lambda kernel, x: jnp.square(depthwise_conv(x, kernel)).sum())
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
    everywhere = NamedSharding(mesh, PartitionSpec())
    arguments = jax.device_put(kernel, everywhere), spread
    compiled = jax.jit(gradient, out_shardings=everywhere).lower(*arguments).compile()
    np.testing.assert_allclose(compiled(*arguments), gradient(kernel, x), rtol=1e-5, atol=1e-5)
    sent = find_collectives(compiled.as_text())
    assert [(each.operation, each.result_bytes) for each in sent] == [("all-reduce", kernel.nbytes)]


@pytest.mark.slow
def test_a_densenet_may_have_a_block_of_an_odd_number_of_channels():
    model = DenseNet(num_classes=2, depths=(1, 1), growth=2)  # 4 + 2 channels, of which the transition keeps 3
    output, variables = model.init_with_output(jax.random.key(0), random_images(1, 32), train=False)
    assert variables["params"]["denseblock2_denselayer1"]["norm1"]["scale"].shape == (3,)
    assert output.features.shape[-1] == 5
