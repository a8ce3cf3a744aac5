"""Networks that others wrote: called as by their library, trained as ours, refused where they break the contract."""

import functools
import json
import os
import signal
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export as jax_export
from test_train import make_config
from tiny_manifest import write_manifest

from tfcam_jax import restore, steps
from tfcam_jax import training as train
from tfcam_jax.devices.placement import make_placement
from tfcam_jax.errors import ConfigError
from tfcam_jax.evaluation import evaluate
from tfcam_jax.experiment import resolve
from tfcam_jax.explanation import explain
from tfcam_jax.export import export_model
from tfcam_jax.metrics.faithfulness import _redraw
from tfcam_jax.models import ModelOutput, adapters, check_contract
from tfcam_jax.models.contract import ContractError, NetworkError
from tfcam_jax.models.initialization import initialize
from tfcam_jax.models.lookup import find_network
from tfcam_jax.optimizers import make_optimizer
from tfcam_jax.run.checkpoints import Checkpoints
from tfcam_jax.run.interruption import StoppedError
from tfcam_jax.strategies import make_strategy

pytest.importorskip("equinox")
from foreign_networks import KINDS, Across, AcrossNnx, forget, own_forward, running_mean, write_networks

SIZE, HALF = 32, (0.5, 0.5, 0.5)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """A folder on Python's path with README's networks."""
    folder = tmp_path_factory.mktemp("networks")
    write_networks(folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(folder)
        yield folder
    forget(path.stem for path in folder.glob("*.py"))


@functools.cache
def made(kind, **fields):
    model = find_network(f"my_{kind}:cnn").make(num_classes=2, **fields)
    return model, initialize(model, jax.random.key(0), SIZE)


def some_images(n, seed=0):
    return jax.random.normal(jax.random.key(seed), (n, SIZE, SIZE, 3))


def in_training(model, variables, images, mask=None, draw=None):
    draw = jnp.arange(len(images), dtype=jnp.uint32) if draw is None else draw
    return _train(model)(variables, images, jnp.ones(len(images)) if mask is None else mask, draw)


@functools.cache
def _train(model):
    forward = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    return jax.jit(lambda variables, images, mask, draw: forward(variables, images, mask=mask, draw=draw))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_statistics_are_the_librarys_own(kind):
    model, variables = made(kind)
    images = some_images(5)
    output, changed = in_training(model, variables, images)
    logits, mean = own_forward(kind, variables, images, train=True)
    np.testing.assert_allclose(output.logits, logits, atol=1e-6)
    np.testing.assert_allclose(running_mean(kind, changed["batch_stats"]), mean, atol=1e-6)
    moved = {**variables, "batch_stats": changed["batch_stats"]}
    plain, unchanged = jax.jit(
        functools.partial(model.apply, train=False, mutable=["batch_stats"]),
    )(moved, images)
    jax.tree.map(np.testing.assert_array_equal, unchanged["batch_stats"], moved["batch_stats"])
    if kind == "linen":
        np.testing.assert_allclose(plain.logits, own_forward(kind, moved, images, train=False)[0], atol=1e-6)
    assert plain.features.shape == (5, 8, 8, 32) and plain.kernel.shape == (32, 2)
    np.testing.assert_allclose(plain.features.mean((1, 2)) @ plain.kernel + plain.bias[None], plain.logits, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_drawn_from_the_examples_numbers_alone(kind):
    model, variables = made(kind, dropout=0.5)
    images, draw = some_images(4), jnp.asarray([3, 1, 4, 1], jnp.uint32)
    logits = lambda draw: np.asarray(in_training(model, variables, images, draw=draw)[0].logits)
    np.testing.assert_array_equal(logits(draw), logits(draw))
    assert not np.allclose(logits(draw), logits(draw + 1))
    other = draw.at[3].set(7)
    same = (logits(draw) == logits(other)).all(1)
    assert same.tolist() == [kind == "equinox"] * 3 + [False]  # there each image has a key of its own
    with pytest.raises(ValueError, match="`draw`"):
        model.apply(variables, images, train=True, mutable=["batch_stats"])


@pytest.mark.parametrize("kind", KINDS)
def test_padding_becomes_real_images_and_no_image_changes_nothing(kind):
    model, variables = made(kind)
    images = some_images(3)
    padded = jnp.concatenate([images, jnp.full((2, SIZE, SIZE, 3), 1e3)])
    _, changed = in_training(model, variables, padded, mask=jnp.asarray([1.0, 1, 1, 0, 0]))
    _, expected = in_training(model, variables, padded[jnp.asarray([0, 1, 2, 0, 1])])
    means = [running_mean(kind, each["batch_stats"]) for each in (changed, expected)]
    np.testing.assert_allclose(*means, rtol=1e-5)
    _, kept = in_training(model, variables, padded, mask=jnp.zeros(5))
    jax.tree.map(np.testing.assert_array_equal, kept["batch_stats"], variables["batch_stats"])


@pytest.mark.slow
def test_a_seed_draws_the_weights_but_of_a_module_that_brings_them():
    for kind in KINDS:
        model, variables = made(kind)
        other = initialize(model, jax.random.key(1), SIZE)
        assert not all(jax.tree.leaves(jax.tree.map(lambda a, b: (a == b).all(), variables["params"], other["params"])))
    layer = nnx.Conv(3, 2, (1, 1), rngs=nnx.Rngs(0))
    model = adapters.nnx(layer)
    for seed in range(2):
        np.testing.assert_array_equal(
            model.init(jax.random.key(seed), some_images(1))["params"]["kernel"], layer.kernel[...]
        )


@pytest.mark.slow
def test_redrawn_weights_of_a_module_that_brings_them_are_its_own_shuffled():
    model = adapters.nnx(AcrossNnx(2, rngs=nnx.Rngs(0)))
    kernel = model.init(jax.random.key(0), some_images(1))["params"]["conv"]["kernel"]
    redrawn = _redraw(model, jax.random.key(0), SIZE)["params"]["conv"]["kernel"]
    assert not np.allclose(redrawn, kernel)
    np.testing.assert_array_equal(np.sort(redrawn, axis=None), np.sort(kernel, axis=None))


def take_steps(name, mode, devices, local=False, **fields):
    """Three steps on eight images, the last on one alone: of two devices, one has none then."""
    where = make_placement(mode, devices)
    groups = where.num_devices if local else 1
    model = find_network(name).make(num_classes=2, axis_name=where.axis_name, batch_norm_groups=groups, **fields)
    tx = make_optimizer("sgd", lambda step: 0.1, momentum=0.9, weight_decay=1e-3, clip_norm=0.5)
    prepare = functools.partial(steps.standardize, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    step = steps.make_train_step(model, tx, make_strategy("difference"), prepare, axis_name=where.axis_name)
    variables = initialize(find_network(name).make(num_classes=2, **fields), jax.random.key(0), SIZE)
    state = where.put_state(steps.create_train_state(variables, tx))
    compiled, rng = where.compile_train_step(step, state), np.random.default_rng(0)
    for real in (8, 8, 1):
        batch = {
            "image": rng.integers(0, 256, (8, SIZE, SIZE, 3), dtype=np.uint8),
            "saliency": rng.uniform(size=(8, SIZE, SIZE)).astype(np.float32),
            "label": rng.integers(0, 2, 8, dtype=np.int32),
            "mask": np.float32(np.arange(8) < real),
            "weight": np.float32(np.arange(8) < real),
            "draw": rng.integers(2**32, size=8, dtype=np.uint32),
        }
        state, metrics = compiled(state, where.put_train_batch(batch))
    assert np.isfinite(metrics.grad_norm)
    return jax.device_get((state.params, state.batch_stats))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("foreign_networks:across", {}),
        ("foreign_networks:AcrossNnx", {}),
        ("my_equinox:cnn", {"dropout": 0.3}),
    ],
)
def test_two_devices_make_the_update_of_one(name, fields):
    one, two, mesh = (take_steps(name, *each, **fields) for each in (("jit", 1), ("pmap", 2), ("mesh", 2)))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, one, mesh)
    jax.tree.map(close, one, two)


def test_statistics_that_stay_local_are_averaged():
    params, statistics = take_steps("my_nnx:cnn", "pmap", 2, local=True)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((params, statistics)))


def cut_at(monkeypatch, call):
    """Asks a run to stop at its so-many-th step."""
    original, calls = train.MetricWindow.add, []

    def add(*arguments):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(train.MetricWindow, "add", add)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_from_training_to_export(kind, tmp_path, monkeypatch):
    """A run that is stopped in the middle comes to the same bits; what is exported says what was trained."""
    options = {"model.name": f"my_{kind}:cnn", "model.dropout": 0.3, "epochs": 2, "strategy": "difference"}
    config = make_config(write_manifest(tmp_path / "data"), **options)
    train.train(config, tmp_path / "whole")
    with monkeypatch.context() as patched:
        cut_at(patched, 4)
        with pytest.raises(StoppedError, match="saved after step 4"):
            train.train(config, tmp_path / "cut")
    train.train(config, tmp_path / "cut")
    like = resolve(config).abstract_state(2)
    states = []
    for name in ("whole", "cut"):
        with Checkpoints(tmp_path / name, read_only=True) as checkpoints:
            placed = make_placement("jit").abstract_state(like)
            states.append(jax.device_get(checkpoints.restore(6, placed)[0]))
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "cut/metrics.jsonl").read_bytes()

    network = json.loads((tmp_path / "cut/run.json").read_text())["network"]
    assert network["file"].endswith(f"my_{kind}.py") and len(network["sha256"]) == 64
    results = evaluate(tmp_path / "cut", faithfulness_images=1)
    assert {"T", "|U|", "D"} <= results["faithfulness"]["maps"].keys()
    assert explain(tmp_path / "cut").exists()
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    expected = restore(tmp_path / "cut").predict(images)
    exported = export_model(tmp_path / "cut", tmp_path / "model", platforms=("cpu",))
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, f"my_{kind}", None)
        with pytest.raises(NetworkError, match=rf"'my_{kind}:cnn', and there is no module"):
            restore(tmp_path / "cut")
    logits, true_map, *_ = jax_export.deserialize(bytearray(exported.read_bytes())).call(images)
    np.testing.assert_allclose(logits, expected.logits, atol=1e-5)
    np.testing.assert_allclose(true_map, expected.true_map, atol=1e-4)


class Broken(nn.Module):
    """A network with one thing wrong."""

    wrong: str
    classes: int = 2

    @nn.compact
    def __call__(self, x, train: bool = False):
        features = nn.relu(nn.Conv(3, (3, 3), strides=4)(x))
        head = nn.Dense(self.classes + (self.wrong == "classes"), bias_init=nn.initializers.normal(1.0))
        pooled = features.max((1, 2)) if "max" in self.wrong else features.mean((1, 2))
        if self.wrong == "dropout":
            pooled = nn.Dropout(0.5, deterministic=False)(pooled)
        if self.wrong == "norm":
            features = nn.BatchNorm(use_running_average=False)(features)
            pooled = features.mean((1, 2))
        logits = head(pooled)
        kernel = head.variables["params"]["kernel"]
        if self.wrong == "layers":
            logits = jax.nn.gelu(3 * logits)
        if self.wrong == "constant":
            features = jnp.broadcast_to(
                features[:1] * 0 + self.param("shift", nn.initializers.ones, ()), features.shape
            )
            logits = features.mean((1, 2)) @ kernel
        if self.wrong == "nan":
            features = features / (features - features)
        if self.wrong == "half":
            features = features.astype(jnp.bfloat16)
        return {
            "logits alone": logits,
            "pair": (logits, features),
            "pooled": (logits, pooled, kernel),
            "transposed": (logits, features, kernel.T),
            "channels first": (logits, jnp.moveaxis(features, -1, 1), kernel),
            "no head": ModelOutput(logits, features, None, None),
            "max": (logits, features, kernel, head.variables["params"]["bias"]),
        }.get(self.wrong, (logits, features, kernel))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("logits alone", r"returns ModelOutput, or \(logits, features, kernel\).*not an array of shape \(1, 2\)"),
        ("pair", "not a tuple of 2.*name its head"),
        ("pooled", r"features are \[batch, h, w, channels\].*before its mean over places"),
        ("transposed", r"\(3, 2\) here; got \(2, 3\)\. It is transposed.*weight\.T"),
        ("channels first", r"the kernel is \[channels, classes\], \(8, 2\) here; got \(3, 2\).*channels first"),
        ("no head", "neither the kernel of a linear head nor a head"),
        ("half", r"features is bfloat16.*astype\(jnp\.float32\)"),
        ("classes", "it has 3 logits; the data have 2 classes"),
        ("dropout", "called in evaluation, raised InvalidRngError.*turn dropout off"),
        ("max", "mean.M. . b is off the logits.*global max pool"),
        ("max, bias left out", "mean.M. . b is off the logits.*pools otherwise"),
        ("layers", "is off the logits.*more layers"),
        ("constant", "features are the same for every image"),
        ("nan", "features are NaN or infinite in training"),
    ],
)
def test_a_network_that_breaks_the_contract_is_named_with_the_remedy(wrong, message):
    with pytest.raises(ContractError, match=f"(?s)theirs.*{message}"):
        check_contract(adapters.linen(Broken(wrong)), image_size=SIZE, num_classes=2, name="theirs")


def test_a_norm_that_never_evaluates_is_named():
    class Statistics(nnx.Module):
        def __init__(self, rngs):
            self.conv, self.head = nnx.Conv(3, 4, (3, 3), rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.conv((x - x.mean()) / x.std()))
            return self.head(x.mean((1, 2))), x, self.head.kernel[...]

    with pytest.raises(ContractError, match="features of an image depend on the others of its batch in evaluation"):
        check_contract(adapters.nnx(Statistics), image_size=SIZE)


def test_a_network_that_keeps_the_contract_is_described():
    report = check_contract(adapters.linen(Across()), image_size=SIZE, num_classes=2)
    assert (report.cam_side, report.channels, report.num_classes, report.linear) == (8, 4, 2, True)
    assert report.parameters == 3 * 3 * 3 * 4 + 4 + 8 + 4 * 2 + 2 and report.error < 1e-5
    assert "mean(CAM) + bias is the logit to" in str(report)


def test_a_head_that_begins_at_zero_is_looked_at_all_the_same():
    class Zero(nn.Module):
        pool: str

        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(8, (3, 3), strides=4)(x))
            head = nn.Dense(2, kernel_init=nn.initializers.zeros)
            logits, params = head(getattr(x, self.pool)((1, 2))), head.variables["params"]
            return logits, x, params["kernel"], params["bias"]

    assert check_contract(adapters.linen(Zero("mean")), image_size=SIZE).linear
    with pytest.raises(ContractError, match="global max pool"):
        check_contract(adapters.linen(Zero("max")), image_size=SIZE)


class Deep(nnx.Module):
    """Behind the pool come a norm and two layers: maps are those of the gradient."""

    def __init__(self, rngs, wrong=False):
        self.conv, self.norm = nnx.Conv(3, 4, (3, 3), strides=4, rngs=rngs), nnx.LayerNorm(4, rngs=rngs)
        self.inner, self.outer, self.wrong = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs), wrong

    def head(self, x):
        return self.outer(nnx.gelu(self.inner(self.norm(x.mean((1, 2))))))

    def __call__(self, x):
        x = nnx.relu(self.conv(x))
        return self.head(x), x**2 if self.wrong else x


def test_a_head_of_another_kind_gives_maps_from_gradients():
    model = adapters.nnx(Deep, head="head")
    assert not check_contract(model, image_size=SIZE).linear
    variables, images = initialize(model, jax.random.key(0), SIZE), some_images(2)
    net = Deep(nnx.Rngs(jax.random.key(0)))

    @jax.jit
    def compare(variables, images):
        output = model.apply(variables, images, train=False)
        gradient = jax.grad(lambda x: net.head(x)[:, 0].sum())(output.features)
        expected = jnp.einsum("bhwc,bc->bhw", output.features, gradient.sum((1, 2)))
        return output.class_map(0), expected, output.decompose_margin(jnp.asarray([0, 1]))

    found, expected, parts = compare(variables, images)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(parts.difference.mean((1, 2)) + parts.bias_difference, parts.margin, atol=1e-5)
    with pytest.raises(ContractError, match=r"logits off by .* the very tensor that the head takes"):
        check_contract(adapters.nnx(functools.partial(Deep, wrong=True), head="head"), image_size=SIZE)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.name": "no_such_nets:cnn"}, "no module 'no_such_nets' on Python's path.*PYTHONPATH"),
        ({"model.name": "my_linen:cn"}, "my_linen.py has no 'cn'. Did you mean 'cnn'"),
        ({"model.name": "my_linen:"}, "package.module:function"),
        ({"model.name": "my_linen.cnn"}, "Known: .*A network of your own: package.module:function"),
        ({"model.name": "broken_nets:build"}, "importing broken_nets raised SyntaxError"),
        ({"model.name": "needing_nets:build"}, "it needs surely_absent, which is not installed"),
        ({"model.name": "other_nets:constant"}, "a int, no function"),
        ({"model.name": "other_nets:nothing", "data.mean": HALF, "data.std": HALF}, "returned a NoneType"),
        ({"model.name": "other_nets:raises", "data.mean": HALF, "data.std": HALF}, "raised ZeroDivisionError"),
        ({"model.name": "other_nets:fixed"}, "it has 2 logits; the data have 3 classes"),
        ({"model.name": "other_nets:silent", "data.image_size": None}, "--config.data.image_size=.*build.image_size"),
        ({"model.name": "other_nets:silent"}, "--config.data.mean=.*build.mean"),
        (
            {"model.name": "my_linen:cnn", "model.rematerialize": True},
            "config.model.rematerialize is True.*no 'remater",
        ),
        ({"model.name": "my_linen:cnn", "model.dtype": "bfloat16"}, "config.model.dtype is bfloat16.*takes no 'dtype'"),
        ({"model.name": "my_linen:cnn", "parallel.mode": "pmap"}, "takes no 'axis_name'.*batch_norm=local"),
        ({"model.name": "my_nnx:cnn", "parallel.batch_norm": "local", "parallel.mode": "mesh"}, "'batch_norm_groups'"),
        ({"model.name": "my_linen:cnn", "epochs": 0}, "config.epochs is 0"),
        ({"model.name": "my_linen:cnn", "model.weights": "imagenet"}, "load the weights in that function"),
    ],
)
def test_a_name_that_gives_no_network_is_refused_before_anything_is_written(folder, tmp_path, overrides, message):
    (folder / "broken_nets.py").write_text("def build(:\n")
    (folder / "needing_nets.py").write_text("import surely_absent\n")
    (folder / "other_nets.py").write_text(
        "import foreign_networks\nconstant = 3\ndef nothing(n): pass\ndef raises(n): 1 / 0\n"
        "def silent(n): return foreign_networks.Across()\n"
        "def fixed(n): return foreign_networks.Across()\nfixed.mean = fixed.std = (0.5, 0.5, 0.5)\n"
    )
    config = make_config(write_manifest(tmp_path / "data"), **{"batch_size": 4, **overrides})
    with pytest.raises(ConfigError if "weights" not in str(overrides) else ValueError, match=f"(?s){message}"):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_broken_network_leaves_nothing_behind(folder, tmp_path):
    (folder / "max_nets.py").write_text(
        "from test_foreign_models import Broken\ndef build(num_classes): return Broken('max', num_classes)\n"
        "build.mean = build.std = (0.5, 0.5, 0.5)\n"
    )
    config = make_config(write_manifest(tmp_path / "data"), **{"model.name": "max_nets:build"})
    with pytest.raises(ContractError, match=r"max_nets:build.*global max pool"):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
