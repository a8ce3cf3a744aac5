"""A network whose first part is frozen: what is trained, what is computed, and that kept features change nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from slow_params import slow_but
from test_backbones import SMALL_MODELS, random_images, random_variables
from test_normed_networks import TINY
from test_steps import PREPROCESS, SIZE, make_batch
from tiny_manifest import write_manifest
from tiny_run import tiny_config

from tfcam_jax import steps, training
from tfcam_jax.data.kept_features import KeptFeatures, keep_maps
from tfcam_jax.data.pipeline import eval_batches, train_batches
from tfcam_jax.data.transforms import Augment, Resize, apply
from tfcam_jax.errors import ConfigError
from tfcam_jax.evaluation import evaluate
from tfcam_jax.experiment import build_experiment, open_dataset, resolve
from tfcam_jax.inference import restore
from tfcam_jax.metrics.scores import read_scores
from tfcam_jax.models import MODELS, SmallCNN
from tfcam_jax.models.frozen import TrainedPart, apply_frozen, find_frozen
from tfcam_jax.models.initialization import Initialization
from tfcam_jax.optimizers import make_optimizer
from tfcam_jax.run.progress import Progress
from tfcam_jax.strategies import make_strategy
from tfcam_jax.study.worker import ExperimentCache

CUTS = {
    "convnext": ("downsample1", "stage1_0", "head"),
    "densenet": ("denseblock1", "transition1", "denseblock2", "norm5", "head"),
    "efficientnet": ("block1_1", "last", "head"),
    "inception": ("fork", "head"),
    "mobilenet": ("block0_0", "block1_0", "block1_1", "last", "head"),
    "resnet_basic": ("layer2_0", "head"),
    "resnet_bottleneck": ("layer1_0", "layer2_0", "head"),
    "small_cnn": ("Conv_1", "head"),
    "vit_mean": ("block0", "block1", "head"),
    "vit_token": ("block0", "block1"),
    "xception": ("block1", "conv3", "conv4", "head"),
}
QUICK = [("small_cnn", "Conv_1"), ("small_cnn", "head")]
EVERY = [(name, cut) for name, cuts in CUTS.items() for cut in cuts]
LAYERS = 4  # of small_cnn


def make_small(name, **settings):
    return {**SMALL_MODELS, **TINY}[name](num_classes=2, **settings)


@functools.cache
def small_variables(name):
    variables = random_variables(make_small(name), 48) if name in SMALL_MODELS else _normed_variables(name)
    return jax.tree.map(jnp.asarray, variables)


def _normed_variables(name):
    variables = make_small(name).init(jax.random.key(0), jnp.zeros((1, 48, 48, 3)), train=False)
    random = np.random.default_rng(0)  # none of them zero: neither layer scale nor head
    noisy = lambda leaf: (leaf + 0.3 * random.normal(size=leaf.shape)).astype(np.float32)
    return {"params": jax.tree.map(noisy, variables["params"]), "batch_stats": {}}


@pytest.mark.parametrize(("name", "cut"), slow_but(EVERY, *QUICK))
def test_both_parts_one_after_the_other_are_the_network(name, cut):
    """Frozen as it is in evaluation, trained as it is in training; what is frozen is all that has no gradient."""
    variables, images = small_variables(name), random_images(4, 48)
    model, plain = make_small(name, train_from=cut), make_small(name)
    frozen = find_frozen(model, name, 48)
    mask = jnp.array([1, 1, 1, 0], jnp.float32)

    @jax.jit
    def run(variables, images):
        apply = functools.partial(model.apply, train=True, mask=mask, mutable=["batch_stats"])
        at_cut = apply_frozen(model, variables, images)
        behind = TrainedPart(model).apply(variables, at_cut, train=True, mask=mask, mutable=["batch_stats"])
        loss = lambda params: jnp.square(apply({**variables, "params": params}, images)[0].logits[:3]).sum()
        whole = apply(variables, images)
        return at_cut, behind, whole, jax.grad(loss)(variables["params"])

    at_cut, (behind, stats_behind), (whole, stats), gradient = run(variables, images)
    assert at_cut.nbytes == 4 * frozen.bytes_of_image
    np.testing.assert_allclose(behind.logits, whole.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(behind.features, whole.features, rtol=1e-4, atol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, stats_behind, stats)
    for module, values in stats.get("batch_stats", {}).items():
        same = jax.tree.map(np.array_equal, values, variables["batch_stats"][module])
        assert all(jax.tree.leaves(same)) == (module in frozen.modules), module
    evaluated = plain.apply(variables, images, train=False).logits
    np.testing.assert_allclose(model.apply(variables, images, train=False).logits, evaluated, rtol=1e-4, atol=1e-5)
    assert set(variables["params"]) - frozen.modules >= {"head"} and frozen.modules < set(gradient)


@pytest.mark.parametrize("name", CUTS)
def test_cut_points_are_the_parts_in_their_order(name):
    assert tuple(each for each in make_small(name).cut_points if each in CUTS[name]) == CUTS[name]


@pytest.mark.parametrize("name", MODELS)
def test_an_error_names_the_cut_points(name):
    model = MODELS[name](num_classes=2)
    with pytest.raises(ConfigError, match=f"'blok'.*cut points: {', '.join(model.cut_points)}"):
        find_frozen(model.clone(train_from="blok"), name, 64)


def count_convolutions(program):
    """Convolutions in a jaxpr and in those that it calls."""
    called = [getattr(value, "jaxpr", value) for each in program.eqns for value in each.params.values()]
    inner = sum(count_convolutions(each) for each in called if hasattr(each, "eqns"))
    return inner + sum(each.primitive.name == "conv_general_dilated" for each in program.eqns)


@pytest.mark.parametrize("cut", range(1, LAYERS + 1))
def test_a_step_has_no_backward_pass_before_the_cut(cut):
    """Of each trained layer two convolutions more, but for the first one, whose input needs no gradient."""
    model = SmallCNN(num_classes=2, train_from=f"Conv_{cut}" if cut < LAYERS else "head")
    frozen, tx = find_frozen(model, "small_cnn", 64).modules, optax.sgd(0.1)
    strategy = make_strategy("cyborg")
    make = functools.partial(steps.make_train_step, tx=tx, strategy=strategy, frozen=frozen)
    create = lambda variables: steps.create_train_state(variables, tx, frozen)
    state = jax.eval_shape(create, Initialization(model, SIZE).abstract)
    batch = make_batch()
    program = jax.make_jaxpr(make(model, preprocess=PREPROCESS))(state, batch)
    backward = max(0, 2 * (LAYERS - cut) - 1)
    assert count_convolutions(program.jaxpr) == LAYERS + backward
    look = lambda variables, images: apply_frozen(model, variables, PREPROCESS(images))
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    at_cut = jax.eval_shape(look, variables, batch["image"])
    kept = jax.make_jaxpr(make(TrainedPart(model), preprocess=lambda x: x))(state, {**batch, "image": at_cut})
    assert count_convolutions(kept.jaxpr) == LAYERS - cut + backward


def test_frozen_parameters_get_neither_update_nor_decay_nor_optimiser_state():
    """And the others the update that they get beside it in a network that is trained whole."""
    tx = make_optimizer("adam", lambda step: 0.1, weight_decay=0.5)
    model = SmallCNN(num_classes=2, widths=(4, 8), freeze_batch_norm=True)
    cut = model.clone(train_from="Conv_1")
    frozen = find_frozen(cut, "small_cnn", SIZE).modules
    assert frozen == {"Conv_0", "BatchNorm_0"}
    variables = random_variables(model, SIZE)

    def after(model, frozen):
        step = jax.jit(steps.make_train_step(model, tx, make_strategy("opposed"), PREPROCESS, frozen=frozen))
        return step(steps.create_train_state(variables, tx, frozen), make_batch())[0]

    whole, part = after(model, frozenset()), after(cut, frozen)
    for name, before in variables["params"].items():
        expected = before if name in frozen else whole.params[name]
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), part.params[name], expected)
    jax.tree.map(np.testing.assert_array_equal, part.batch_stats, variables["batch_stats"])
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(part.opt_state)]
    names = {key.key for path in paths for key in path if hasattr(key, "key")}
    assert "Conv_1" in names and not frozen & names


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_manifest(tmp_path_factory.mktemp("data"))


def cut_config(manifest, weights, **overrides):
    config = tiny_config(manifest)
    config.epochs, config.model.weights, config.model.train_from = 2, str(weights), "Conv_2"
    config.augment.flip = 0.5
    for key, value in overrides.items():
        *sections, name = key.split(".")
        functools.reduce(getattr, sections, config)[name] = value
    return config


@pytest.mark.parametrize("map_size", [None, 4])
def test_maps_are_mirrored_along_by_the_same_draws(manifest, map_size):
    """Features that are the images themselves: every batch has the bits of one that is read from the images."""
    config = tiny_config(manifest)
    source = keep_maps(open_dataset(resolve(config)), ("train",)).splits["train"]
    images = [apply(source[row], Resize(32))[0] for row in range(len(source))]
    kept = KeptFeatures(source, np.stack([(image, image[:, ::-1]) for image in images]))
    augment = Augment(flip=0.5, map_blur=(0.1, 2.0))
    options = {"epoch": 1, "seed": 3, "batch_size": 5, "image_size": 32, "map_size": map_size, "augment": augment}
    pairs = zip(train_batches(source, **options), train_batches(kept, **options), strict=True)
    of_evaluation = {"batch_size": 5, "image_size": 32}
    pairs = [*pairs, *zip(eval_batches(source, **of_evaluation), eval_batches(kept, **of_evaluation), strict=True)]
    assert len(pairs) == 6
    for expected, actual in pairs:
        jax.tree.map(np.testing.assert_array_equal, actual, expected)
        assert jax.tree.map(lambda x: x.dtype, actual) == jax.tree.map(lambda x: x.dtype, expected)


def test_the_other_view_comes_along_where_it_is_asked_for(manifest):
    """Also without augmentation; of images as they are the step mirrors them itself."""
    source = open_dataset(resolve(tiny_config(manifest))).splits["train"]
    views = np.arange(2 * len(source), dtype=np.float32).reshape(len(source), 2, 1)
    options = {"epoch": 1, "seed": 3, "batch_size": 5, "image_size": 32, "mirrored": True}
    for augment, drawn in ((Augment(), {0}), (Augment(flip=0.5), {0, 1})):
        batches = list(train_batches(KeptFeatures(source, views), augment=augment, **options))
        image, mirrored = (np.concatenate([b[key][b["mask"] > 0] for b in batches]) for key in ("image", "mirrored"))
        assert set((image % 2).ravel()) == drawn
        np.testing.assert_array_equal(image // 2, mirrored // 2)
        np.testing.assert_array_equal(image % 2 + mirrored % 2, 1)
    assert "mirrored" not in next(iter(train_batches(source, **options)))


def test_a_strategy_that_looks_at_mirror_images_keeps_both_views(manifest, trained_run):
    """Without flips too, and a step on kept features is that on images but for rounding."""
    overrides = {"strategy": "place_and_consistency", "augment.flip": 0.0}
    experiment, kept, state = both_ways(cut_config(manifest, trained_run, **overrides))
    assert kept.dataset.splits["train"].views.shape[1] == 2 and kept.dataset.splits["val"].views.shape[1] == 1
    expected, actual = train_steps(experiment, state), train_steps(kept, state)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), actual, expected)


def quiet(recipe):
    return Progress(recipe.strategy_name, recipe.epochs, recipe.alpha, recipe.select_by, quiet=True)


def both_ways(config):
    """The experiment without and with kept features, and its state."""
    experiment = build_experiment(resolve(config))
    state = training.initial_state(experiment).state
    kept = training.keep_features(experiment, state, quiet(experiment.recipe))
    assert isinstance(kept.dataset.splits["train"], KeptFeatures)
    return experiment, kept, state


def train_steps(experiment, state):
    state = jax.tree.map(jnp.copy, state)  # it is donated
    for batch in experiment.train_epoch(0):
        state, metrics = experiment.train_step(state, put(experiment, batch))
    return jax.device_get((state, metrics))


def put(experiment, batch):
    return experiment.put_batch({name: array for name, array in batch.items() if name != "index"})


MANY = {"model.dropout": 0.3, "model.one_logit": True, "accumulate_steps": 2, "model.rematerialize": True}
WAYS = {
    "plain": {},
    "settings": {**MANY, "model.freeze_batch_norm": True, "augment.map_blur": (0.1, 2.0)},
    "head": {"model.train_from": "head", "model.keep_head": True, "data.maps.resize": "straight"},
    "mesh": {"parallel.mode": "mesh", "parallel.devices": 2},
    "sharded": {"parallel.mode": "mesh", "parallel.devices": 2, "parallel.shard_state": True},
    "pmap": {"parallel.mode": "pmap", "parallel.devices": 2, "parallel.batch_norm": "local"},
    "bfloat16": {"model.dtype": "bfloat16"},
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_kept_features_give_what_images_give(manifest, trained_run, way):
    """After an epoch parameters, statistics and metrics agree but for rounding, and so does what evaluation sees."""
    experiment, kept, state = both_ways(cut_config(manifest, trained_run, **WAYS[way]))
    expected, actual = train_steps(experiment, state), train_steps(kept, state)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-2 if way == "bfloat16" else 1e-5)
    jax.tree.map(close, actual, expected)
    first = lambda params, name: jax.tree.leaves(params[name])[0]
    moved = {
        name for name in state.params if not np.array_equal(first(state.params, name), first(actual[0].params, name))
    }
    assert moved == set(state.params) - experiment.recipe.frozen_modules
    seen, kept_seen = (training.evaluate_source(each, state, each.dataset.splits["val"]) for each in (experiment, kept))
    jax.tree.map(close, kept_seen, seen)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"augment.rotate": 10.0}, "augment.rotate makes other pixels"),
        ({"strategy": "input_gradient"}, "input_gradient asks for the gradient by the image"),
        ({"data.num_workers": 2}, "each of 2 processes that read"),
        ({"data.kept_megabytes": 0}, "1 MiB would be needed, data.kept_megabytes is 0"),
    ],
)
def test_what_needs_images_in_each_step_is_told(manifest, trained_run, capsys, overrides, reason):
    experiment = build_experiment(resolve(cut_config(manifest, trained_run, **overrides)))
    recipe = experiment.recipe
    aloud = Progress(recipe.strategy_name, recipe.epochs, recipe.alpha, recipe.select_by)
    assert training.keep_features(experiment, training.initial_state(experiment).state, aloud) is experiment
    told = capsys.readouterr().out
    assert reason in told and "Trained from Conv_2 on (92,802 of 97,938 parameters)" in told


@pytest.mark.slow
def test_input_gradient_goes_through_the_frozen_part(manifest, trained_run):
    """Its guidance is that of the network that is trained whole, and not zero."""
    overrides = {"strategy": "input_gradient", "model.keep_head": True, "model.freeze_batch_norm": True}
    losses = []
    for cut in ("Conv_2", ""):
        overrides["model.train_from"] = cut
        experiment = build_experiment(resolve(cut_config(manifest, trained_run, **overrides)))
        batch = next(iter(experiment.train_epoch(0)))
        state = training.initial_state(experiment).state
        losses.append(experiment.train_step(state, put(experiment, batch))[1].terms["input_gradient"])
    np.testing.assert_allclose(losses[0].sum, losses[1].sum, rtol=1e-4)
    assert losses[0].sum > 0


@pytest.mark.slow
def test_the_runs_of_a_study_share_features_but_not_maps(manifest, trained_run, monkeypatch, caplog):
    """Seeds, strategies and placebos see the same features; other weights and cuts others."""
    computed, compute = [], training._compute_features
    monkeypatch.setattr(training, "_compute_features", lambda *of: computed.append(1) or compute(*of))
    cache, found = ExperimentCache(1024), []
    for overrides in (
        {},
        {"seed": 1},
        {"strategy": "cross_entropy"},
        {"data.maps.placebo": "inverted"},
        {"model.train_from": "Conv_3"},
    ):
        recipe = resolve(cut_config(manifest, trained_run, **overrides))
        experiment = cache.experiment(recipe)
        kept = training.keep_features(experiment, training.initial_state(experiment).state, quiet(recipe))
        found.append(kept.dataset.splits["train"])
    assert len(computed) == 2
    assert found[0].views is found[1].views is found[2].views is found[3].views
    for _ in range(2):
        cache.experiment(resolve(cut_config(manifest, trained_run, **{"augment.rotate": 10.0})))
    messages = [record.getMessage() for record in caplog.records]
    told = [message for message in messages if "train_from=Conv_2 runs in each step" in message]
    assert len(told) == 1 and "augment.rotate makes other pixels of an image each time" in told[0]
    map_of = lambda source: source.read(0, Resize(32), Augment(), None)[1]
    assert map_of(found[0]) is map_of(found[1]), "seeds share finished maps too"
    np.testing.assert_allclose(map_of(found[3]), 1 - map_of(found[0]), atol=1e-6)


@pytest.mark.slow
def test_a_run_on_kept_features_resumes_exactly(manifest, trained_run, tmp_path, monkeypatch):
    """Cut off before its second validation; and its checkpoint is a whole network, which evaluates from images."""
    config = cut_config(manifest, trained_run)
    whole = training.train(config, tmp_path / "whole")

    class Cut(BaseException):
        pass

    validate, calls = training.validate, []

    def cut(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise Cut
        validate(*arguments)

    monkeypatch.setattr(training, "validate", cut)
    with pytest.raises(Cut):
        training.train(config, tmp_path / "cut")
    monkeypatch.setattr(training, "validate", validate)
    assert training.train(config, tmp_path / "cut") == whole
    lines = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("whole", "cut")]
    assert lines[0] == lines[1]
    variables, cut_off, begun = (restore(run).variables for run in (tmp_path / "whole", tmp_path / "cut", trained_run))
    jax.tree.map(np.testing.assert_array_equal, variables, cut_off)
    for name in ("Conv_0", "Conv_1"):
        np.testing.assert_array_equal(variables["params"][name]["kernel"], begun["params"][name]["kernel"])
    evaluate(tmp_path / "whole", faithfulness_images=0)
    of_run, evaluated = (read_scores(tmp_path / "whole" / name)[0] for name in ("scores.csv", "evaluation/scores.csv"))
    np.testing.assert_allclose(of_run.logits, evaluated.logits, rtol=1e-3, atol=1e-4)


def own_network(num_classes):
    return SmallCNN(num_classes=num_classes)


def test_what_does_not_fit_a_cut_is_refused(manifest, trained_run):
    refused = [
        ({"model.weights": ""}, "train_from would keep random values"),
        ({"model.train_from": "Conv_0"}, "can't be cut there.*Conv_1, Conv_2, Conv_3, head"),
        (
            {"model.train_from": "head", "model.freeze_batch_norm": True},
            "freeze_batch_norm is True, which does nothing",
        ),
        ({"model.train_from": "head", "model.rematerialize": True}, "rematerialize is True, which does nothing"),
        (
            {"model.name": f"{__name__}:own_network", "data.mean": (0.5,) * 3, "data.std": (0.5,) * 3},
            "of your own, whose",
        ),
        (
            {"strategy": "cyborg", "guidance.cam_features": "hooked", "model.train_from": "head"},
            "train_from=head freezes",
        ),
    ]
    for overrides, message in refused:
        with pytest.raises(ConfigError, match=message):
            resolve(cut_config(manifest, trained_run, **overrides))
