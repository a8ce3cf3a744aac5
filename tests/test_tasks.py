"""Decisions other than one class of several: one logit, many labels, volumes; all through the same losses."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from slow_params import slow_but

from tfcam_jax import cams, losses, saliency, steps
from tfcam_jax.divergences import DIVERGENCES
from tfcam_jax.errors import ConfigError
from tfcam_jax.models import ModelOutput, SmallCNN
from tfcam_jax.models.initialization import initialize
from tfcam_jax.models.tasks import MultiLabel, OneLogit, one_logit
from tfcam_jax.strategies import STRATEGIES, make_strategy

SIZE, BATCH, LABELS = 16, 6, 3
PREPROCESS = functools.partial(steps.standardize, mean=(0.5,) * 3, std=(0.25,) * 3)
small = functools.partial(SmallCNN, widths=(4, 8))


def draw_batch(labels, saliency_shape):
    random = np.random.default_rng(0)
    return {
        "image": random.integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8),
        "saliency": random.uniform(size=saliency_shape).astype(np.float32),
        "label": labels.astype(np.int32),
        "mask": np.array([1] * (BATCH - 1) + [0], np.float32),
        "weight": np.ones(BATCH, np.float32),
        "draw": np.zeros(BATCH, np.uint32),
    }


def train_once(model, strategy, batch):
    tx = optax.sgd(0.1)
    state = steps.create_train_state(initialize(model, jax.random.key(0), SIZE), tx)
    state, metrics = jax.jit(steps.make_train_step(model, tx, strategy, PREPROCESS))(state, batch)
    return jax.device_get((state.params, metrics))


def apply_in_training(model, batch):
    variables = initialize(model, jax.random.key(0), SIZE)
    batch = jax.tree.map(jnp.asarray, batch)
    rest = {"mask": batch["mask"], "draw": batch["draw"], "mutable": ["batch_stats"]}
    return model.apply(variables, PREPROCESS(batch["image"]), train=True, **rest)[0]


@pytest.mark.slow
def test_one_logit_trains_by_binary_cross_entropy_and_its_own_map():
    labels = np.array([0, 1, 1, 0, 1, 0])
    batch, network = draw_batch(labels, (BATCH, SIZE, SIZE)), small(num_classes=1)
    inner = apply_in_training(network, batch)
    z, real = np.asarray(inner.logits[:, 0], np.float64), slice(BATCH - 1)
    binary = np.log1p(np.exp(-np.where(labels == 1, z, -z)))[real].mean()
    one_map = (inner.features @ inner.kernel[:, 0]) * jnp.where(jnp.asarray(labels) == 1, 1, -1)[:, None, None]
    human, _ = saliency.to_cam_resolution(jnp.asarray(batch["saliency"]), one_map.shape[1:])
    guided = losses.cyborg_loss(one_map, human)[real].mean()  # D = 2 T is the logit's own map, and N(2 T) = N(T)
    for strategy in ("cyborg", "difference"):
        _, metrics = train_once(OneLogit(network), make_strategy(strategy), batch)
        assert metrics.terms["cross_entropy"].sum / (BATCH - 1) == pytest.approx(binary, rel=1e-5)
        assert metrics.terms[strategy].sum / (BATCH - 1) == pytest.approx(float(guided), rel=1e-4)


def test_one_logit_is_for_two_classes():
    assert isinstance(one_logit(small, num_classes=2), OneLogit)
    assert isinstance(one_logit(small, num_classes=1), SmallCNN)
    with pytest.raises(ConfigError, match=r"model\.one_logit.*two classes.*3"):
        one_logit(small, num_classes=3)
    with pytest.raises(ValueError, match="one logit; this one has 2"):
        apply_in_training(OneLogit(small(num_classes=2)), draw_batch(np.zeros(BATCH), (BATCH, SIZE, SIZE)))


def test_a_head_that_is_a_function_becomes_two_columns_too():
    features = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 3, 4)), jnp.float32)

    class Network:
        def apply(self, variables, images, train):
            head = jax.tree_util.Partial(lambda f: jnp.tanh(f.mean((1, 2)).sum(-1, keepdims=True)))
            return ModelOutput(head(features), features, None, None, head=head)

        def init(self, key, images, train):
            return {}

    output = OneLogit(Network()).apply({}, features, train=False)
    true_map, false_map = output.true_false_maps(jnp.array([1, 0]))
    own = cams.gradient_class_activation_maps(
        Network().apply({}, features, train=False).head, features, jnp.ones((2, 1))
    )
    np.testing.assert_allclose(true_map, own / 2 * jnp.array([1, -1])[:, None, None], atol=1e-6)
    np.testing.assert_allclose(false_map, -true_map, atol=1e-6)


def test_each_label_is_a_binary_task_of_its_own():
    """T and U of label l are those of a head of one logit, that label's column, alone."""
    random = np.random.default_rng(0)
    features, kernel = random.normal(size=(4, 3, 5, 7)), random.normal(size=(7, LABELS))
    features, kernel = jnp.asarray(features, jnp.float32), jnp.asarray(kernel, jnp.float32)
    labels = jnp.asarray(random.integers(0, 2, (4, LABELS)))
    found = cams.present_absent_maps(cams.class_activation_maps(features, kernel), labels)
    for label in range(LABELS):
        columns = cams.two_columns(kernel[:, label : label + 1])
        expected = cams.true_false_maps(features, columns, labels[:, label])
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one[:, label], other, atol=1e-5)
    unknown, _ = cams.present_absent_maps(cams.class_activation_maps(features, kernel), jnp.full((4, LABELS), -1))
    assert not unknown.any()


@pytest.mark.parametrize("own_maps", slow_but([False, True], True))
@pytest.mark.parametrize("strategy", slow_but(["difference", "energy"], "difference"))
def test_many_labels_train_by_the_same_losses(strategy, own_maps):
    """Terms are means over the labels that are known, each computed here label by label with plain formulas."""
    labels = np.array([[0, 1, -1], [1, 1, 0], [0, 0, 0], [-1, 1, 1], [1, 0, 1], [1, 1, 1]])
    shape = (BATCH, LABELS, SIZE, SIZE) if own_maps else (BATCH, SIZE, SIZE)
    batch, network = draw_batch(labels, shape), small(num_classes=LABELS)
    batch["saliency"][1] = 0  # nobody annotated it
    inner = apply_in_training(network, batch)
    cross_entropy, guidance = [], []
    for i, label in np.argwhere(labels[: BATCH - 1] >= 0):
        sign = 1.0 if labels[i, label] else -1.0
        cross_entropy.append(np.log1p(np.exp(-sign * float(inner.logits[i, label]))))
        own = sign * (inner.features[i] @ inner.kernel[:, label])
        human = batch["saliency"][i, label] if own_maps else batch["saliency"][i]
        human, usable = saliency.to_cam_resolution(jnp.asarray(human), own.shape)
        value = losses.difference_loss(own, -own, human) if strategy == "difference" else losses.energy_loss(own, human)
        if usable and (strategy == "difference" or (own > 0).any()):
            guidance.append(float(value))
    params, metrics = train_once(MultiLabel(network), make_strategy(strategy), batch)
    for name, values in (("cross_entropy", cross_entropy), (strategy, guidance)):
        total = metrics.terms[name]
        assert int(total.count) == len(values)
        assert float(total.sum / total.count) == pytest.approx(np.mean(values), rel=1e-4)
    assert int(metrics.correct.count) == len(cross_entropy)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.slow
def test_what_a_masked_row_holds_plays_no_part_and_a_label_that_is_no_class_is_refused():
    """The last row is masked: NaN and labels beyond the classes there change no bit of the update."""
    labels = np.random.default_rng(1).integers(0, 2, (BATCH, LABELS))
    model, strategy = MultiLabel(small(num_classes=LABELS)), make_strategy("difference")
    batch = draw_batch(labels, (BATCH, SIZE, SIZE))
    odd = {name: x.copy() for name, x in batch.items()}
    odd["label"][-1], odd["weight"][-1], odd["saliency"][-1] = 7, np.nan, np.nan
    jax.tree.map(np.testing.assert_array_equal, train_once(model, strategy, odd), train_once(model, strategy, batch))
    batch["label"][1, 2] = 2
    step = steps.make_train_step(model, tx := optax.sgd(0.1), strategy, PREPROCESS)
    state = steps.create_train_state(initialize(model, jax.random.key(0), SIZE), tx)
    batch = jax.tree.map(jnp.asarray, batch)
    begin = lambda: jnp.zeros(())
    with jax.disable_jit(), pytest.raises(ValueError, match=r"labels lie in 0\.\.1; got 2"):
        steps._forward(model, strategy, PREPROCESS, begin, state.params, state.batch_stats, batch)
    for name, x in batch.items():
        with pytest.raises(ValueError, match=r"a batch of .* images needs a row for each; got .*"):
            jax.eval_shape(step, state, batch | {name: x[:1]})


@pytest.mark.slow
@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - {"input_gradient"}))
def test_every_strategy_takes_many_labels(strategy):
    batch = draw_batch(np.random.default_rng(1).integers(-1, 2, (BATCH, LABELS)), (BATCH, SIZE, SIZE))
    before = initialize(small(num_classes=LABELS), jax.random.key(0), SIZE)["params"]
    params, _ = train_once(MultiLabel(small(num_classes=LABELS)), make_strategy(strategy), batch)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert not np.allclose(params["head"]["kernel"], before["head"]["kernel"])


def test_the_input_gradient_of_many_labels_is_refused():
    batch = draw_batch(np.zeros((BATCH, LABELS)), (BATCH, SIZE, SIZE))
    with pytest.raises(ConfigError, match="one decision an image"):
        train_once(MultiLabel(small(num_classes=LABELS)), make_strategy("input_gradient"), batch)


def test_the_eval_step_decomposes_every_labels_margin():
    labels = np.random.default_rng(1).integers(-1, 2, (BATCH, LABELS))
    batch, model = draw_batch(labels, (BATCH, SIZE, SIZE)), MultiLabel(small(num_classes=LABELS))
    variables = initialize(model, jax.random.key(0), SIZE)
    variables["params"]["head"]["bias"] = jnp.arange(LABELS, dtype=jnp.float32)
    output = jax.jit(steps.make_eval_step(model, PREPROCESS))(variables["params"], variables["batch_stats"], batch)
    z = np.asarray(output.logits[..., 1] - output.logits[..., 0])
    expected = np.where(labels < 0, np.abs(z), np.where(labels > 0, z, -z))  # of an unknown one: what is predicted
    np.testing.assert_allclose(output.margin, expected, atol=1e-5)
    np.testing.assert_allclose(output.difference.mean((-2, -1)) + output.bias_difference, output.margin, atol=1e-5)


@pytest.mark.slow
def test_a_volume_folded_has_the_maps_and_losses_of_its_places():
    """Shuffling the places of a volume changes no loss: they are a set, folded or not."""
    random = np.random.default_rng(0)
    features, kernel = random.normal(size=(2, 3, 4, 5, 6)), random.normal(size=(6, 2))
    human, labels = random.uniform(size=(2, 3, 4, 5)), jnp.array([0, 1])
    folded = cams.fold_depth(jnp.asarray(features, jnp.float32), channels=True)
    true_map, false_map = cams.true_false_maps(folded, jnp.asarray(kernel, jnp.float32), labels)
    assert true_map.shape == (2, 12, 5)
    logits = features.mean((1, 2, 3)) @ kernel
    np.testing.assert_allclose(true_map.mean((1, 2)), logits[[0, 1], [0, 1]], atol=1e-5)
    maps = (true_map, false_map, cams.fold_depth(jnp.asarray(human, jnp.float32)))
    shuffle = random.permutation(60)
    moved = [each.reshape(2, 60)[:, shuffle].reshape(2, 4, 15) for each in maps]
    tried = [losses.contrast_loss, lambda t, u, s: losses.energy_loss(t - u, s)]
    for loss, divergence in itertools.product((losses.opposed_loss, losses.difference_loss), DIVERGENCES.values()):
        tried.append(functools.partial(loss, divergence=divergence))
    for loss in tried:
        np.testing.assert_allclose(loss(*maps), loss(*moved), rtol=1e-4)


def test_human_volumes_are_resized_along_all_three_sides():
    random = np.random.default_rng(0)
    human = jnp.asarray(random.uniform(size=(3, 8, 12, 10)), jnp.float32).at[1].set(0)
    found, usable = saliency.volumes_to_cam_resolution(human, (4, 6, 5))
    expected = np.asarray(jax.image.resize(human, (3, 4, 6, 5), "linear", antialias=True))
    low, high = expected.min((1, 2, 3), keepdims=True), expected.max((1, 2, 3), keepdims=True)
    expected = np.where(high > low, (expected - low) / np.where(high > low, high - low, 1), 0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert usable.tolist() == [True, False, True]
    flat, _ = saliency.to_cam_resolution(human[:, :1][:, 0], (6, 5))
    same, _ = saliency.volumes_to_cam_resolution(human[:, :1], (1, 6, 5))
    np.testing.assert_allclose(same[:, 0], flat, atol=1e-6)


def test_the_border_of_a_volume_is_a_shell():
    shell = np.asarray(saliency.border_ring((5, 5, 5)))
    assert shell.shape == (5, 5, 5) and shell[0].all() and shell[:, :, -1].all() and not shell[2, 2, 2]
    for axes in ((1, 0, 2), (2, 1, 0)):
        np.testing.assert_array_equal(shell, shell.transpose(axes))
