"""ConvNeXt and vision transformers: what their maps are, and that every setting does what it says or is refused."""

import functools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from flax import traverse_util
from tiny_manifest import write_manifest
from tiny_run import tiny_config

import tfcam_jax
from configs import default
from tfcam_jax import cams, steps
from tfcam_jax.errors import ConfigError
from tfcam_jax.experiment import open_dataset, resolve
from tfcam_jax.export import export_model
from tfcam_jax.models import MODEL_CARDS, MODELS, ConvNeXt, ViT, cam_size, convnext, vit
from tfcam_jax.models.normed import LayerNorm, Perceptron, inverse_deviation, layer_norm, normed_linear_logits
from tfcam_jax.models.vit import class_token_logits, resample_positions
from tfcam_jax.models.weights import WeightsError, load_pretrained, rename
from tfcam_jax.strategies import make_strategy

SIZE, CLASSES = 32, 3
# Models that compile fast and yet have every kind of block; maps of 4x4 and 2x2 places.
TINY = {
    "convnext": partial(ConvNeXt, depths=(1, 1), widths=(6, 8)),
    "vit_token": partial(ViT, patch=8, width=12, depth=2, heads=2),
    "vit_mean": partial(ViT, patch=8, width=12, depth=2, heads=2, pool="mean"),
}
EXACT = ("convnext", "vit_mean")
over_tiny = pytest.mark.parametrize("name", TINY)


@cache
def variables_of(name, size=SIZE):
    """Parameters of a usual size, none of them zero or one."""
    model, random = TINY[name](num_classes=CLASSES), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False))

    def draw(path, leaf):
        if path[-1].key == "kernel":
            return (random.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))).astype(np.float32)
        is_factor = path[-1].key in ("scale", "gamma")
        return (random.uniform(0.5, 1.5, leaf.shape) if is_factor else random.normal(0, 0.3, leaf.shape)).astype("f4")

    return jax.tree_util.tree_map_with_path(draw, shapes)


def some_images(count=4, size=SIZE):
    return jnp.asarray(np.random.default_rng(1).normal(size=(count, size, size, 3)), jnp.float32)


@cache
def apply(name, train=False, **settings):
    model = TINY[name](num_classes=CLASSES, **settings)
    return jax.jit(lambda v, x, draw=None: model.apply(v, x, train=train, draw=draw))


def maps_of(output):
    """Means of the maps of all classes, [batch, K]."""
    return np.stack([np.asarray(output.class_map(k)).mean((1, 2)) for k in range(CLASSES)], axis=-1)


@pytest.mark.parametrize(("name", "dtype"), [("convnext", "float32"), ("vit_mean", "bfloat16")])
def test_given_the_deviation_maps_decompose_the_logits(name, dtype):
    """What their means leave of the logits is the same for every image: what shift and bias say."""
    variables = variables_of(name)
    output = apply(name, dtype=dtype)(variables, some_images())
    assert {leaf.dtype for leaf in jax.tree.leaves(output)} == {jnp.dtype(jnp.float32)}
    params = variables["params"]
    constant = params["norm"]["bias"] @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(maps_of(output) + constant, output.logits, atol=1e-5)
    labels = jnp.array([0, 2, 1, 1])
    parts = output.decompose_margin(labels)
    others = [[k for k in range(CLASSES) if k != y] for y in labels.tolist()]
    weights = [jax.nn.softmax(z[jnp.array(rest)]) for z, rest in zip(output.logits, others, strict=True)]
    bias = [constant[y] - w @ constant[np.array(r)] for y, w, r in zip(labels.tolist(), weights, others, strict=True)]
    np.testing.assert_allclose(parts.bias_difference, bias, atol=1e-5)
    assert np.ptp(np.asarray(output.logits), axis=0).min() > 0.1


@pytest.mark.parametrize("name", EXACT)
def test_maps_of_the_exact_gradient_would_say_nothing_of_the_logit(name):
    """LayerNorm is homogeneous of degree 0, but for epsilon: why the deviation is held."""
    variables = variables_of(name)
    output, params = apply(name)(variables, some_images()), jax.tree.map(jnp.asarray, variables["params"])

    def exact(features):
        normed = layer_norm(features.mean((1, 2)), *(params["norm"][key] for key in ("scale", "bias")))
        return normed @ params["head"]["kernel"] + params["head"]["bias"][None]

    np.testing.assert_allclose(exact(output.features), output.logits, atol=1e-5)
    one_hot = jnp.broadcast_to(jax.nn.one_hot(0, CLASSES), output.logits.shape)
    found = cams.gradient_class_activation_maps(exact, output.features, one_hot)
    assert np.abs(found.mean((1, 2))).max() < 1e-3 < 0.1 < np.abs(maps_of(output)[:, 0]).max()


def test_the_head_says_of_other_features_what_the_network_would():
    variables, images = variables_of("convnext"), some_images()
    output = apply("convnext")(variables, images)
    np.testing.assert_allclose(output.at(output.features[::-1]).logits, output.logits[::-1], atol=1e-5)
    np.testing.assert_allclose(output.at(3 * output.features).logits, output.logits, atol=1e-4)


def test_losses_on_maps_get_their_gradient_through_the_deviation_too():
    """Against finite differences of the maps that a network with these features would have."""
    random = np.random.default_rng(2)
    features, weights = random.normal(size=(2, 2, 3, 4)), random.normal(size=(2, 3))
    leaves = [random.normal(size=shape) for shape in ((4,), (4,), (4, 3), (3,))]
    with jax.enable_x64(True):

        @jax.jit
        def loss(features):
            held = inverse_deviation(features.mean((1, 2)))
            head = jax.tree_util.Partial(normed_linear_logits, held, *map(jnp.asarray, leaves))
            return jnp.sin(cams.gradient_class_activation_maps(head, features, jnp.asarray(weights))).sum()

        found = jax.grad(loss)(jnp.asarray(features))
        for place in [(0, 0, 0, 0), (0, 1, 2, 3), (1, 1, 0, 2)]:
            step = np.zeros_like(features)
            step[place] = 1e-6
            expected = (loss(features + step) - loss(features - step)) / 2e-6
            np.testing.assert_allclose(found[place], expected, atol=1e-6)


@pytest.mark.slow
def test_the_class_token_gets_what_the_whole_block_would_give_it():
    """What is computed for one token alone is what the modules make of all, for these features and for others."""
    output = apply("vit_token")(variables_of("vit_token"), some_images())
    params = jax.tree.map(jnp.asarray, variables_of("vit_token")["params"])
    last, (token, normed_token) = params["block1"], output.head.args[3:]
    norm = lambda params, x: LayerNorm().apply({"params": params}, x)

    def logits(features):
        normed = jnp.concatenate([normed_token[:, None], features.reshape(4, 16, 12)], axis=1)
        x = token + vit.Attention(2, jnp.float32).apply({"params": last["attn"]}, normed)[:, 0]
        x = x + Perceptron(48).apply({"params": last["mlp"]}, norm(last["norm2"], x))
        return norm(params["norm"], x) @ params["head"]["kernel"] + params["head"]["bias"][None]

    np.testing.assert_allclose(logits(output.features), output.logits, atol=1e-5)
    other = output.features[::-1] + 0.3
    np.testing.assert_allclose(logits(other), output.at(other).logits, atol=1e-5)
    assert np.abs(logits(other) - output.logits).max() > 0.1


@pytest.mark.slow
def test_maps_of_the_class_token_are_its_gradient_by_finite_differences():
    output = apply("vit_token")(variables_of("vit_token"), some_images(2))
    with jax.enable_x64(True):
        leaves = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), output.head.args)
        logit = jax.jit(lambda f: class_token_logits(*leaves, f)[:, 1])
        features = np.asarray(output.features, np.float64)
        # All places moved together: the sum over places of the gradient by each channel.
        moved = lambda channel, by: np.asarray(logit(features + by * np.eye(12)[channel]))
        gradient = np.stack([(moved(c, 1e-6) - moved(c, -1e-6)) / 2e-6 for c in range(12)], axis=-1)
    expected = np.einsum("bhwc,bc->bhw", features, gradient)
    np.testing.assert_allclose(output.class_map(1), expected, atol=1e-4)
    assert np.abs(expected).max() > 0.1


def some_batch():
    random = np.random.default_rng(3)
    human = random.uniform(size=(4, SIZE, SIZE)).astype(np.float32)
    human[1] = 0  # nobody annotated it
    return {
        "image": random.integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8),
        "saliency": human,
        "label": np.array([0, 1, 2, 1], np.int32),
        "mask": np.array([1, 1, 1, 0], np.float32),
        "weight": np.ones(4, np.float32),
        "draw": random.integers(2**32, size=4, dtype=np.uint32),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_token", *EXACT])
def test_a_guided_step_on_two_devices_is_that_on_one(name):
    tx, batch, settings = optax.sgd(0.1), some_batch(), {"num_classes": CLASSES, "dropout": 0.3}
    preprocess = functools.partial(steps.standardize, mean=(0.5,) * 3, std=(0.5,) * 3)
    strategy = make_strategy("difference")
    state = steps.create_train_state(variables_of(name), tx)
    alone = jax.jit(steps.make_train_step(TINY[name](**settings), tx, strategy, preprocess))
    shared = TINY[name](**settings, axis_name="devices")
    mapped = jax.pmap(steps.make_train_step(shared, tx, strategy, preprocess, "devices"), "devices")
    one, metrics = alone(state, batch)
    both, _ = mapped(
        jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state),
        {key: value.reshape(2, 2, *value.shape[1:]) for key, value in batch.items()},
    )
    assert metrics.terms["difference"].count == 2 and metrics.terms["difference"].sum > 0
    for before, after, pair in zip(*map(jax.tree.leaves, (state.params, one.params, both.params)), strict=True):
        assert np.isfinite(after).all() and not np.array_equal(before, after)
        np.testing.assert_allclose(pair, np.stack([after, after]), atol=2e-6)


@pytest.mark.slow
@over_tiny
def test_dropout_thins_the_logits_in_training_and_no_map(name):
    variables, images, draw = variables_of(name), some_images(), jnp.arange(4, dtype=jnp.uint32)
    plain, thinned = (apply(name, train=True, dropout=rate)(variables, images, draw) for rate in (0.0, 0.5))
    assert np.abs(plain.logits - thinned.logits).max() > 0.05
    np.testing.assert_allclose(plain.class_map(1), thinned.class_map(1), atol=1e-6)
    np.testing.assert_array_equal(apply(name, dropout=0.5)(variables, images).logits, plain.logits)
    with pytest.raises(ValueError, match="dropout needs a number for each example"):
        apply(name, train=True, dropout=0.5)(variables, images)


@pytest.mark.slow
@over_tiny
def test_rematerialisation_keeps_less_and_changes_no_gradient(name):
    variables, images = variables_of(name), some_images()

    def loss(params, rematerialize):
        model = TINY[name](num_classes=CLASSES, rematerialize=rematerialize)
        return jnp.square(model.apply({"params": params}, images, train=True).logits).sum()

    gradients = [jax.jit(jax.grad(loss), static_argnums=1)(variables["params"], flag) for flag in (False, True)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *gradients)
    pull_back = lambda flag: lambda params: jax.vjp(lambda p: loss(p, flag), params)[1]
    shapes = lambda flag: jax.tree.leaves(jax.eval_shape(pull_back(flag), variables["params"]))
    kept = lambda flag: sum(leaf.size for leaf in shapes(flag))
    assert kept(True) < kept(False)


@over_tiny
def test_half_precision_is_computed_in(name):
    """All products but those of the head, where they are many: patches, attention, perceptrons."""
    model = TINY[name](num_classes=CLASSES, dtype=jnp.bfloat16)
    text = str(jax.make_jaxpr(partial(model.apply, train=False))(variables_of(name), some_images(1)))
    products = [line for line in text.splitlines() if "= dot_general" in line or "= conv_general_dilated" in line]
    assert sum(":bf16[" in line.split("=")[0] for line in products) >= 5
    exact, rounded = (apply(name, dtype=dtype)(variables_of(name), some_images()) for dtype in ("float32", "bfloat16"))
    np.testing.assert_allclose(rounded.logits, exact.logits, atol=0.1)


def test_sizes():
    assert cam_size(TINY["convnext"](num_classes=2), (39, 32)) == (4, 4)  # what is left over is not looked at
    assert cam_size(TINY["vit_mean"](num_classes=2), (40, 24)) == (5, 3)
    with pytest.raises(ConfigError, match=r"36x32 px do not fall into patches of 8 px; use a multiple of 8"):
        cam_size(TINY["vit_token"](num_classes=2), (36, 32))
    with pytest.raises(ConfigError, match="images of 3x32 px are too small for ConvNeXt"):
        cam_size(TINY["convnext"](num_classes=2), (3, 32))


def test_positions_are_resampled():
    positions = jnp.asarray(np.random.default_rng(0).normal(size=(1, 17, 3)), jnp.float32)
    assert resample_positions(positions, 4) is positions
    larger = resample_positions(positions, 8)
    np.testing.assert_array_equal(larger[:, 0], positions[:, 0])
    # Of a plane, bicubic interpolation gives the same plane, but near the edges.
    plane = np.add.outer(np.arange(4.0), 10 * np.arange(4.0))
    plane = jnp.asarray(np.concatenate([[7.0], plane.ravel()]), jnp.float32).reshape(1, 17, 1)
    middle = np.asarray(resample_positions(plane, 8))[0, 1:, 0].reshape(8, 8)[3:5, 3:5]
    at = (np.arange(3, 5) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(middle, np.add.outer(at, 10 * at), atol=1e-5)


@pytest.fixture
def tiny_card(monkeypatch):
    monkeypatch.setitem(MODEL_CARDS, "tiny", MODEL_CARDS["vit_small_patch16"])


def vit_file(path, variables, **changed):
    """Parameters under the names of timm and DINO."""
    flat = {".".join(key): np.asarray(leaf) for key, leaf in traverse_util.flatten_dict(variables["params"]).items()}
    arrays = {}
    for key, leaf in flat.items():
        module, _, kind = key.rpartition(".")
        module = {"patch_embed": ""}.get(module, module.replace("block", "blocks."))
        kind = {"kernel": "weight", "scale": "weight"}.get(kind, kind)
        axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(leaf.ndim) if kind == "weight" else None
        arrays[f"{module}.{kind}".lstrip(".")] = np.ascontiguousarray(leaf.transpose(axes) if axes else leaf)
    safetensors.numpy.save_file(arrays | changed, path)
    return path


@pytest.mark.slow
def test_weights_of_another_image_size_are_taken(tiny_card, tmp_path):
    """Either pool takes either kind; positions are resampled, all else is as it was."""
    theirs, ours = variables_of("vit_token"), variables_of("vit_mean", 48)
    loaded = load_pretrained("tiny", vit_file(tmp_path / "vit.safetensors", theirs), ours, keep_head=True)
    expected = traverse_util.flatten_dict(theirs)
    for key, leaf in traverse_util.flatten_dict(loaded).items():
        wanted = resample_positions(jnp.asarray(expected[key]), 6) if key[-1] == "pos_embed" else expected[key]
        np.testing.assert_array_equal(leaf, wanted)
    assert loaded["params"]["patch_embed"]["pos_embed"].shape == (1, 37, 12)
    odd = vit_file(tmp_path / "odd.safetensors", theirs, pos_embed=np.zeros((1, 16, 12), np.float32))
    with pytest.raises(WeightsError, match=r"pos_embed: \(1, 16, 12\) in the weights, \(1, 37, 12\) in the model"):
        load_pretrained("tiny", odd, ours)


def test_every_name_that_convnext_goes_by_finds_its_place():
    """torchvision's, the authors' and timm's."""
    same = {
        "stem.kernel": ("features.0.0.weight", "downsample_layers.0.0.weight", "stem.0.weight"),
        "stem_norm.bias": ("features.0.1.bias", "downsample_layers.0.1.bias", "stem.1.bias"),
        "downsample2_norm.bias": ("features.4.0.bias", "downsample_layers.2.0.bias", "stages.2.downsample.0.bias"),
        "downsample3.bias": ("features.6.1.bias", "downsample_layers.3.1.bias", "stages.3.downsample.1.bias"),
        "stage0_2.gamma": ("features.1.2.layer_scale", "stages.0.2.gamma", "stages.0.blocks.2.gamma"),
        "stage2_26.conv_dw.x": ("features.5.26.block.0.x", "stages.2.26.dwconv.x", "stages.2.blocks.26.conv_dw.x"),
        "stage3_0.norm.x": ("features.7.0.block.2.x", "stages.3.0.norm.x", "stages.3.blocks.0.norm.x"),
        "stage3_0.mlp.fc1.x": ("features.7.0.block.3.x", "stages.3.0.pwconv1.x", "stages.3.blocks.0.mlp.fc1.x"),
        "stage3_0.mlp.fc2.x": ("features.7.0.block.5.x", "stages.3.0.pwconv2.x", "stages.3.blocks.0.mlp.fc2.x"),
        "norm.bias": ("classifier.0.bias", "norm.bias", "head.norm.bias"),
        "head.bias": ("classifier.2.bias", "head.bias", "head.fc.bias"),
    }
    for ours, names in same.items():
        module = ours.rpartition(".")[0]
        assert {rename(name, convnext.TORCH_NAMES).rpartition(".")[0] for name in names} == {module}


def vit_config(**changes):
    config = default.get_config()
    config.model.name, config.data.manifest = "vit_small_patch16", "any.csv"
    for key, value in changes.items():
        *sections, leaf = key.split("__")
        functools.reduce(getattr, sections, config)[leaf] = value
    return config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model__freeze_batch_norm": True},
            "freeze_batch_norm is True.*does nothing for vit_small_patch16.*no BatchN",
        ),
        ({"model__batch_norm_momentum": 0.8}, "batch_norm_momentum is 0.8.*no BatchNorm; leave it at 0.9"),
        ({"parallel__batch_norm": "local"}, "batch_norm is local.*does nothing for vit_small_patch16"),
        ({"model__pool": "max"}, "model.pool is 'max'.*token, mean"),
        ({"model__name": "small_cnn", "model__pool": "mean"}, "pool is mean.*does nothing for small_cnn.*by the mean"),
        ({"strategy": "cyborg", "guidance__cam_features": "hooked"}, "cam_features is hooked, and vit_small.*no such"),
        ({"data__image_size": 100}, "100x100 px do not fall into patches of 16 px"),
    ],
)
def test_what_would_do_nothing_is_refused_at_once(changes, message):
    with pytest.raises(ConfigError, match=message):
        resolve(vit_config(**changes))


def test_the_pool_is_a_key_of_the_config():
    recipe = resolve(vit_config(model__pool="mean", data__image_size=160))
    assert recipe.make_model(num_classes=2).pool == "mean" and recipe.cam_side == 10
    assert resolve(vit_config(data__image_size=160)).make_model(num_classes=2).pool == "token"


def correlations(some, others):
    """Pearson's, of each image's maps; their median over the images."""
    pairs = zip(np.asarray(some), np.asarray(others), strict=True)
    return float(np.median([np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in pairs]))


def print_errors(name, variables, images):
    """Of D: what its mean leaves of the margin, and what maps of another definition would be, on a trained network."""
    output, labels = apply_trained(name)(variables, images), jnp.zeros(len(images), jnp.int32)
    parts, params = output.decompose_margin(labels), variables["params"]
    sign = jnp.stack([jnp.ones(len(images)), -jnp.ones(len(images))], axis=1)
    left = float(np.median(np.abs(parts.margin - parts.difference.mean((1, 2))) / np.abs(parts.margin)))
    print(f"\n{name}: mean(D) leaves {left:.1%} of the margin", end="")
    if name in EXACT:
        norm, head = params["norm"], params["head"]
        exact = lambda f: layer_norm(f.mean((1, 2)), norm["scale"], norm["bias"]) @ head["kernel"] + head["bias"][None]
        other, what = cams.gradient_class_activation_maps(exact, output.features, sign), "exact gradient"
    else:
        by_place = functools.partial(cams.gradient_class_activation_maps, per_place=True)
        other, what = by_place(output.head, output.features, sign), "gradient place by place"
    share = float(np.median(np.abs(other.mean((1, 2))) / np.abs(parts.margin)))
    print(f"; {what}: correlation {correlations(parts.difference, other):.3f}, mean {share:.1%} of the margin")
    return left, share


@cache
def apply_trained(name):
    return jax.jit(partial(TINY[name](num_classes=2).apply, train=False))


@pytest.mark.slow
@over_tiny
def test_a_run_from_training_to_export(name, tmp_path, monkeypatch):
    model = "convnext_tiny" if name == "convnext" else "vit_small_patch16"
    monkeypatch.setitem(MODELS, model, TINY[name])
    config = tiny_config(write_manifest(tmp_path / "data", train=24))
    config.model.name, config.epochs = model, 8
    config.optimizer.name, config.optimizer.learning_rate = "adam", 0.01
    tfcam_jax.train(config, tmp_path / "run")
    found = tfcam_jax.evaluate(tmp_path / "run", faithfulness_images=2)
    assert found["sets"]["all"]["images"] == 12 and found["faithfulness"]["images"] == 2
    tfcam_jax.explain(tmp_path / "run")
    trained = tfcam_jax.restore(tmp_path / "run")
    test = open_dataset(trained.recipe).splits["test"]
    images = np.stack([test[i].image for i in range(12)])
    left, share = print_errors(name, trained.variables, trained.recipe.preprocess(jnp.asarray(images)))
    assert name not in EXACT or (share < 0.01 and left < 0.5)
    predicted = trained.predict(images)
    exported = jax.export.deserialize(bytearray(export_model(tmp_path / "run", tmp_path / "model").read_bytes()))
    for one, other in zip(exported.call(images), (predicted.logits, predicted.true_map), strict=False):
        np.testing.assert_allclose(one, other, atol=1e-4)
    config.model.weights, config.data.image_size, config.epochs = str(tmp_path / "run"), 64, 1
    tfcam_jax.train(config, tmp_path / "larger")
