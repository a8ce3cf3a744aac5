"""The train step and the eval step, against losses written out by hand, alone and over two devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from slow_params import slow_but

from tfcam_jax import steps
from tfcam_jax.devices.placement import make_placement
from tfcam_jax.models import SmallCNN
from tfcam_jax.models.initialization import initialize
from tfcam_jax.strategies import STRATEGIES, make_strategy
from tfcam_jax.terms import Term

SIZE, CLASSES, BATCH = 16, 2, 8
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
PREPROCESS = functools.partial(steps.standardize, mean=MEAN, std=STD)


def make_model(axis_name=None):
    return SmallCNN(num_classes=CLASSES, widths=(4, 8), axis_name=axis_name)


def make_batch(seed=0, batch=BATCH):
    """Random batch; examples 0 and 5 have no map, the last one is padding."""
    rng = np.random.default_rng(seed)
    human = rng.uniform(size=(batch, SIZE, SIZE)).astype(np.float32)
    human[[0, 5]] = 0
    mask = np.ones(batch, np.float32)
    mask[-1] = 0
    return {
        "image": rng.integers(0, 256, (batch, SIZE, SIZE, 3), dtype=np.uint8),
        "saliency": human,
        "label": rng.integers(0, CLASSES, batch, dtype=np.int32),
        "mask": mask,
        "weight": np.ones(batch, np.float32),
        "draw": rng.integers(2**32, size=batch, dtype=np.uint32),
    }


@functools.cache
def make_variables(seed):
    return initialize(make_model(), jax.random.key(seed), SIZE)


def make_state(tx, seed=0):
    return steps.create_train_state(make_variables(seed), tx)


def run_steps(strategy, batches, tx=None, seed=0):
    tx = tx or optax.sgd(0.1)
    step = jax.jit(steps.make_train_step(make_model(), tx, strategy, PREPROCESS))
    state, history = make_state(tx, seed), []
    for batch in batches:
        state, metrics = step(state, batch)
        history.append(jax.device_get(metrics))
    return state, history


def minmax(x):
    return (x - x.min((1, 2), keepdims=True)) / (x.max((1, 2), keepdims=True) - x.min((1, 2), keepdims=True))


def test_update_is_the_gradient_of_the_loss_written_out():
    """`difference` at alpha = 0.3, from the equations alone: plain formulas, no masks, only the rows that count."""
    batch, alpha = make_batch(), 0.3
    state = make_state(optax.sgd(1.0))
    images = jnp.asarray((batch["image"] / 255 - np.array(MEAN)) / np.array(STD), jnp.float32)

    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        output, _ = make_model().apply(variables, images[:7], train=True, mutable=["batch_stats"])
        labels = batch["label"][:7]
        log_p = output.logits - jnp.log(jnp.exp(output.logits).sum(-1, keepdims=True))
        cross_entropy = -log_p[np.arange(7), labels].mean()
        sign = np.where(labels == 1, 1.0, -1.0).astype(np.float32)[:, None, None]
        difference = sign * (output.features @ (output.kernel[:, 1] - output.kernel[:, 0]))
        human = minmax(jax.image.resize(jnp.asarray(batch["saliency"][:7]) + 1e-9, difference.shape, "linear"))
        per_example = ((minmax(difference) - human) ** 2).mean((1, 2))
        return alpha * cross_entropy + (1 - alpha) * per_example[np.array([1, 2, 3, 4, 6])].mean()

    # Row 0 and 5 have no map: their min-max is 0/0 here, and they are left out by the row numbers above.
    expected = jax.grad(loss)(state.params)
    updated, _ = run_steps(make_strategy("difference", alpha=alpha), [batch], optax.sgd(1.0))
    actual = jax.tree.map(jnp.subtract, state.params, updated.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), actual, expected)


@pytest.mark.slow
def test_weights_weigh_the_cross_entropy_alone():
    """An example of weight 2 counts as the same example twice, for cross-entropy; guidance does not see weights."""
    batch, strategy = make_batch(), make_strategy("cyborg", alpha=0.5)
    weighed = batch | {"weight": np.array([2, 1, 0, 1, 1, 1, 1, 0], np.float32)}
    plain, heavy = (run_steps(strategy, [b])[1][0].terms for b in (batch, weighed))
    np.testing.assert_array_equal(heavy["cyborg"], plain["cyborg"])
    logits, _ = make_model().apply(
        make_variables(0),
        PREPROCESS(jnp.asarray(batch["image"])),
        train=True,
        mask=jnp.asarray(batch["mask"]),
        mutable=["batch_stats"],
    )
    log_p = np.asarray(jax.nn.log_softmax(logits.logits))[np.arange(BATCH), batch["label"]]
    np.testing.assert_allclose(heavy["cross_entropy"].sum, -(log_p * weighed["weight"])[:7].sum(), rtol=1e-5)
    assert heavy["cross_entropy"].count == 7


@pytest.mark.parametrize(
    "name", slow_but(sorted(set(STRATEGIES) - {"cross_entropy"}), "cyborg", "difference", "input_gradient")
)
def test_alpha_one_compiles_to_the_plain_step(name):
    """Fact 6: equal to cross-entropy exactly, and no CAM work in the compiled step."""
    tx = optax.sgd(0.1)
    texts = []
    for strategy in (make_strategy("cross_entropy"), make_strategy(name, alpha=1.0)):
        step = steps.make_train_step(make_model(), tx, strategy, PREPROCESS)
        texts.append(jax.jit(step).lower(make_state(tx), make_batch()).as_text())
    assert texts[0] == texts[1]


def test_guidance_changes_the_program():
    """The test above would pass if lowering forgot the strategy."""
    tx = optax.sgd(0.1)
    lowered = [
        jax.jit(steps.make_train_step(make_model(), tx, make_strategy(name), PREPROCESS))
        .lower(make_state(tx), make_batch())
        .as_text()
        for name in ("cross_entropy", "cyborg")
    ]
    assert lowered[0] != lowered[1]


@pytest.mark.parametrize("name", slow_but(sorted(STRATEGIES), "cross_entropy", "difference", "feature_map", "order"))
def test_every_strategy_learns_one_batch(name):
    """Thirty steps on one batch: every term of the loss is finite and the loss falls."""
    strategy = make_strategy(name)
    _, history = run_steps(strategy, [make_batch()] * 30, optax.adam(3e-3))
    assert all(np.isfinite(total.sum) for metrics in history for total in metrics.terms.values())

    def loss(metrics):
        return sum(total.sum / max(total.count, 1) for total in metrics.terms.values())

    assert loss(history[-1]) < loss(history[0])
    guided = {"entropy": 7, "hard_negative": 7, "consistency": 7}.get(name, 5)
    assert {key: total.count for key, total in history[0].terms.items()} == (
        {"cross_entropy": 7} | ({} if name == "cross_entropy" else {name: guided})
    )


@pytest.mark.parametrize(
    "name",
    slow_but(["cyborg", "opposed", "difference", "contrast", "energy", "input_gradient"], "cyborg", "difference"),
)
def test_batch_without_any_map_gives_alpha_times_cross_entropy(name):
    batch = make_batch()
    batch["saliency"] = np.zeros_like(batch["saliency"])
    start = make_state(optax.sgd(1.0))
    guided, history = run_steps(make_strategy(name, alpha=0.25), [batch], optax.sgd(1.0))
    plain, _ = run_steps(make_strategy("cross_entropy"), [batch], optax.sgd(1.0))
    assert history[0].terms[name].count == 0
    jax.tree.map(
        lambda s, g, p: np.testing.assert_allclose(g - s, 0.25 * (p - s), atol=1e-6),
        start.params,
        guided.params,
        plain.params,
    )


@pytest.mark.parametrize("name", slow_but(["opposed", "input_gradient"], "opposed"))
def test_padding_changes_nothing(name):
    batch = make_batch()
    garbage = {k: v.copy() for k, v in batch.items()}
    garbage["image"][-1], garbage["saliency"][-1], garbage["label"][-1] = 255, 7.0, 1
    short = {key: value[:-1] for key, value in batch.items()}
    runs = [run_steps(make_strategy(name), [b]) for b in (batch, garbage, short)]
    assert len({(int(history[0].correct.sum), int(history[0].correct.count)) for _, history in runs}) == 1
    states = [state for state, _ in runs]
    for other in states[1:]:
        for tree in ("params", "batch_stats"):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), getattr(states[0], tree), getattr(other, tree)
            )


@pytest.mark.parametrize("parts", slow_but([1, 2], 2))
def test_the_rest_of_an_epoch_is_a_smaller_batch(parts):
    """Of 11 examples in batches of 8 the last 3 are averaged over 3, and normalised among themselves: by hand."""
    batch, rest, alpha = make_batch(), 3, 0.5
    batch["mask"][:], batch["image"][rest:], batch["saliency"][0] = np.arange(BATCH) < rest, 0, 1 - batch["saliency"][1]
    state, freeze = make_state(optax.sgd(1.0)), parts > 1
    model = make_model().clone(freeze_batch_norm=freeze)  # parts of a batch are normalised each by itself
    images = PREPROCESS(jnp.asarray(batch["image"]))[:rest]

    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        output, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
        log_p = jax.nn.log_softmax(output.logits)[jnp.arange(rest), batch["label"][:rest]]
        maps = minmax(jnp.einsum("bhwc,cb->bhw", output.features, output.kernel[:, batch["label"][:rest]]))
        human = minmax(jax.image.resize(jnp.asarray(batch["saliency"][:rest]), maps.shape, "linear"))
        return -alpha * log_p.sum() / rest + (1 - alpha) * ((maps - human) ** 2).mean()

    expected = jax.grad(loss)(state.params)
    step = steps.make_train_step(
        model, optax.sgd(1.0), make_strategy("cyborg", alpha=alpha), PREPROCESS, accumulate_steps=parts
    )
    updated, metrics = jax.jit(step)(state, batch)
    assert {total.count.item() for total in metrics.terms.values()} == {rest}
    actual = jax.tree.map(jnp.subtract, state.params, updated.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), actual, expected)


@pytest.mark.slow
def test_dropout_is_decided_by_the_batchs_draws_alone():
    """The same draws: the same update, in parts and on two devices too; other draws: another; none in evaluation."""
    tx, strategy, batch = optax.sgd(0.1), make_strategy("cyborg"), make_batch()
    model = frozen(make_model()).clone(dropout=0.4)
    step = lambda model=model, **options: steps.make_train_step(model, tx, strategy, PREPROCESS, **options)
    whole, _ = jax.jit(step())(make_state(tx), batch)
    parts, _ = jax.jit(step(accumulate_steps=4))(make_state(tx), batch)
    halves = {k: v.reshape(2, BATCH // 2, *v.shape[1:]) for k, v in batch.items()}
    mapped = step(frozen(make_model("devices")).clone(dropout=0.4), axis_name="devices")
    devices, _ = jax.pmap(mapped, axis_name="devices", in_axes=(None, 0), out_axes=None)(make_state(tx), halves)
    for other in (parts, devices):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=0), whole.params, other.params)
    redrawn, _ = jax.jit(step())(make_state(tx), batch | {"draw": batch["draw"][::-1]})
    plain, _ = jax.jit(step(frozen(make_model())))(make_state(tx), batch)
    kernel = lambda state: state.params["head"]["kernel"]
    assert np.abs(kernel(whole) - kernel(redrawn)).max() > 1e-3 < np.abs(kernel(whole) - kernel(plain)).max()
    evaluate = lambda model: jax.jit(steps.make_eval_step(model, PREPROCESS))(whole.params, whole.batch_stats, batch)
    jax.tree.map(np.testing.assert_array_equal, evaluate(model), evaluate(frozen(make_model())))


def frozen(model):
    """Without batch statistics in training, parts of a batch can equal the whole."""
    return model.clone(freeze_batch_norm=True)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("difference", 4),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (("cross_entropy", 4), ("entropy", 2), ("input_gradient", 2))
        ),
    ],
)
def test_parts_of_a_batch_equal_the_whole(name, parts):
    """Three steps; maps and padding fall unevenly on the parts, and the divisors are those of the whole batch."""
    tx, strategy = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1, momentum=0.9)), make_strategy(name)
    states, histories = {}, {}
    for count in (1, parts):
        step = jax.jit(steps.make_train_step(frozen(make_model()), tx, strategy, PREPROCESS, accumulate_steps=count))
        states[count], histories[count] = make_state(tx), []
        for seed in range(3):
            states[count], metrics = step(states[count], make_batch(seed))
            histories[count].append(jax.device_get(metrics))
    for one, other in zip(histories[1], histories[parts], strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), one, other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=0), states[1], states[parts])


@pytest.mark.slow
def test_parts_on_two_devices_equal_the_whole():
    tx, strategy = optax.sgd(0.1), make_strategy("opposed")
    step = steps.make_train_step(
        frozen(make_model("devices")), tx, strategy, PREPROCESS, axis_name="devices", accumulate_steps=2
    )
    halves = {k: v.reshape(2, BATCH // 2, *v.shape[1:]) for k, v in make_batch().items()}
    mapped = jax.pmap(step, axis_name="devices", in_axes=(None, 0), out_axes=None)
    state, metrics = mapped(make_state(tx), halves)
    whole = jax.jit(steps.make_train_step(frozen(make_model()), tx, strategy, PREPROCESS))
    expected, history = whole(make_state(tx), make_batch())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-5), (state, metrics), (expected, history)
    )


@functools.cache
def written_out_shares():
    """Gradient of `(C^2 + G^2) / (C + G)` for `cyborg`, from the equations alone; rows 0 and 5 have no map."""
    batch, state = make_batch(), make_state(optax.sgd(1.0))

    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        output, _ = frozen(make_model()).apply(
            variables, PREPROCESS(jnp.asarray(batch["image"])), train=True, mutable=["batch_stats"]
        )
        rows = np.array([1, 2, 3, 4, 6])
        log_p = jax.nn.log_softmax(output.logits)[jnp.arange(7), batch["label"][:7]]
        maps = minmax(jnp.einsum("bhwc,cb->bhw", output.features, output.kernel[:, batch["label"]])[rows])
        human = minmax(jax.image.resize(jnp.asarray(batch["saliency"])[rows], maps.shape, "linear"))
        cross_entropy, guidance = -log_p.mean(), ((maps - human) ** 2).mean()
        return (cross_entropy**2 + guidance**2) / (cross_entropy + guidance)

    return jax.jit(jax.grad(loss))(state.params)


@pytest.mark.parametrize(
    ("mode", "parts"),
    slow_but([("jit", 1), ("jit", 4), ("mesh", 1), ("mesh", 2), ("pmap", 1), ("pmap", 2)], ("pmap", 2)),
)
def test_shared_losses_are_those_of_the_whole_batch(mode, parts):
    """Maps and padding fall unevenly on devices and parts; alpha is one number, and the gradient goes through it."""
    where, tx = make_placement(mode), optax.sgd(1.0)
    step = steps.make_train_step(
        frozen(make_model(where.axis_name)),
        tx,
        make_strategy("cyborg", weighting="loss_share"),
        PREPROCESS,
        axis_name=where.axis_name,
        accumulate_steps=parts,
    )
    start = jax.device_get(make_state(tx))
    state = where.put_state(start)
    updated, metrics = where.compile_train_step(step, state)(state, where.put_train_batch(make_batch(), parts))
    actual = jax.tree.map(np.subtract, start.params, jax.device_get(updated.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), actual, written_out_shares())
    assert [float(total.count) for total in metrics.terms.values()] == [7, 5]


@pytest.mark.parametrize("parts", slow_but([1, 2], 1))
def test_a_schedule_is_the_number_of_the_step_and_compiles_once(parts):
    """Four steps of `linear_down` are four with an alpha of their own, each by a program of its own."""
    tx, batches = optax.sgd(0.1, momentum=0.9), [make_batch(seed) for seed in range(4)]
    make = lambda strategy, **options: jax.jit(
        steps.make_train_step(frozen(make_model()), tx, strategy, PREPROCESS, accumulate_steps=parts, **options)
    )
    scheduled = make(make_strategy("difference", alpha=0.2, schedule="linear_down"), total_steps=4)
    state = expected = make_state(tx)
    for batch, alpha in zip(batches, (0.2, 0.4, 0.6, 0.8), strict=True):
        state, _ = scheduled(state, batch)
        expected, _ = make(make_strategy("difference", alpha=alpha))(expected, batch)
    assert scheduled._cache_size() == 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state, expected)


def test_a_schedule_needs_the_length_of_training():
    with pytest.raises(ValueError, match="make_train_step needs total_steps"):
        run_steps(make_strategy("difference", schedule="early"), [make_batch()])


@pytest.mark.parametrize(("mode", "parts"), slow_but([("jit", 1), ("pmap", 2)], ("jit", 1)))
def test_the_norms_of_terms_are_those_of_their_own_gradients(mode, parts):
    """Each term alone, with its weight, gives a gradient of that norm; the update is that of all together."""
    where, tx, start = make_placement(mode), optax.sgd(1.0), jax.device_get(make_state(optax.sgd(1.0)))

    def updated(strategy, **options):
        model, options = frozen(make_model(where.axis_name)), options | {"accumulate_steps": parts}
        step = steps.make_train_step(model, tx, strategy, PREPROCESS, axis_name=where.axis_name, **options)
        state = where.put_state(start)
        state, metrics = where.compile_train_step(step, state)(state, where.put_train_batch(make_batch(), parts))
        return jax.tree.map(np.subtract, start.params, jax.device_get(state.params)), jax.device_get(metrics)

    norm = lambda tree: np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(tree)))
    strategy = make_strategy("difference", alpha=0.3)
    plain, metrics = updated(strategy)
    together, told = updated(strategy, term_norms=True)
    assert metrics.term_norms == {} and list(told.term_norms) == ["cross_entropy", "difference"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), plain, together)
    np.testing.assert_allclose(told.grad_norm, metrics.grad_norm, rtol=1e-5)
    for name in told.term_norms:
        alone, _ = updated(lambda evidence, name=name: {name: strategy(evidence)[name]})
        np.testing.assert_allclose(told.term_norms[name], norm(alone), rtol=1e-4)


def test_parts_of_padding_leave_batch_statistics_alone():
    """Of four parts two hold no example: parameters and statistics are those of a step over the other two."""
    tx, strategy, batch = optax.sgd(0.1), make_strategy("cyborg"), make_batch()
    batch["mask"] = np.array([1, 1, 0, 0, 1, 1, 0, 0], np.float32)  # part i takes rows i and i + 4
    parted = lambda count: jax.jit(
        steps.make_train_step(make_model(), tx, strategy, PREPROCESS, accumulate_steps=count)
    )
    kept = {name: value[[0, 1, 4, 5]] for name, value in batch.items()}
    four, _ = parted(4)(make_state(tx), batch)
    two, _ = parted(2)(make_state(tx), kept)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), four, two)


def test_accumulation_looks_twice_only_where_it_must():
    """Counts that don't depend on the forward pass cost none: plain cross-entropy has as many convolutions as ever."""

    def convolutions(name, parts):
        step = steps.make_train_step(make_model(), optax.sgd(0.1), make_strategy(name), PREPROCESS, None, parts)
        text = jax.jit(step).lower(make_state(optax.sgd(0.1)), make_batch()).compile().as_text()
        return len(re.findall(r" convolution\(", text))

    assert convolutions("cross_entropy", 2) == convolutions("cross_entropy", 1) < convolutions("difference", 2)


@pytest.mark.parametrize(
    "name",
    slow_but(["cross_entropy", "opposed", "contrast", "entropy", "input_gradient"], "cross_entropy", "opposed"),
)
def test_two_devices_equal_one(name):
    """pmap with an axis name, maps and padding spread unevenly: means are over all devices, not means of means."""
    batches = [make_batch(seed) for seed in range(3)]
    tx, strategy = optax.sgd(0.1, momentum=0.9), make_strategy(name)
    single, history = run_steps(strategy, batches, tx)
    step = jax.pmap(
        steps.make_train_step(make_model("devices"), tx, strategy, PREPROCESS, axis_name="devices"), axis_name="devices"
    )
    state = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), make_state(tx))
    for batch, expected in zip(batches, history, strict=True):
        state, metrics = step(state, {k: v.reshape(2, BATCH // 2, *v.shape[1:]) for k, v in batch.items()})
        for term, total in expected.terms.items():
            np.testing.assert_allclose(metrics.terms[term].sum, [total.sum] * 2, rtol=1e-5)
            np.testing.assert_array_equal(metrics.terms[term].count, [total.count] * 2)
        np.testing.assert_allclose(metrics.grad_norm, [expected.grad_norm] * 2, rtol=1e-5)
        np.testing.assert_array_equal(metrics.correct.sum, [expected.correct.sum] * 2)
    for tree in ("params", "batch_stats"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, jnp.stack([b, b]), atol=1e-6),
            getattr(state, tree),
            getattr(single, tree),
        )


def test_input_gradient_is_that_of_the_log_probabilities():
    """Central differences of `sum_k log p_k`, summed over the batch as in RRR, along its steepest direction."""
    batch, state = make_batch(), make_state(optax.sgd(0.1))
    images = PREPROCESS(jnp.asarray(batch["image"]))

    @jax.jit
    def total(x):
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        output, _ = make_model().apply(
            variables, x, train=True, mask=jnp.asarray(batch["mask"]), mutable=["batch_stats"]
        )
        return jax.nn.log_softmax(output.logits)[:7].sum()

    direction = jax.grad(total)(images)
    direction = direction / jnp.linalg.norm(direction)

    def along_direction(evidence):
        slopes = (evidence.input_gradient() * direction).sum((1, 2, 3))
        return {"slope": Term(1.0, slopes, jnp.ones_like(evidence.mask))}

    _, history = run_steps(along_direction, [batch])
    h = 0.05
    slope = (total(images + h * direction) - total(images - h * direction)) / (2 * h)
    np.testing.assert_allclose(history[0].terms["slope"].sum, slope, rtol=2e-2)


def test_mirrored_is_what_the_model_makes_of_the_mirror_image():
    """In training, as of the images; of the batch's own mirrored images where it has them. Statistics know nothing."""
    batch, state = make_batch(), make_state(optax.sgd(0.1))
    seen = {}

    def look(evidence):
        features = evidence.mirrored().features
        return {"seen": Term(1.0, features.reshape(BATCH, -1)[:, 0], jnp.ones_like(evidence.mask))}

    def expected(images):
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        options = {"train": True, "mask": jnp.asarray(batch["mask"]), "mutable": ["batch_stats"]}
        output, _ = make_model().apply(variables, PREPROCESS(jnp.asarray(images)), **options)
        return output.features.reshape(BATCH, -1)[:, 0].sum()

    mirror, other = batch["image"][:, :, ::-1], make_batch(1)["image"]
    for name, given, images in (("flipped", {}, mirror), ("given", {"mirrored": other}, other)):
        seen[name], history = run_steps(look, [batch | given])
        np.testing.assert_allclose(history[0].terms["seen"].sum, expected(images), rtol=1e-4, err_msg=name)
    plain, _ = run_steps(make_strategy("cross_entropy"), [batch])
    for ended in seen.values():
        jax.tree.map(np.testing.assert_array_equal, ended.batch_stats, plain.batch_stats)
    with pytest.raises(ValueError, match="images needs a row for each; got mirrored"):
        run_steps(look, [batch | {"mirrored": other[:1]}])


def test_eval_step_gives_each_example_what_it_would_get_alone():
    batch, state = make_batch(), make_state(optax.sgd(0.1))
    step = jax.jit(steps.make_eval_step(make_model(), PREPROCESS))
    together = step(state.params, state.batch_stats, batch)
    alone = [step(state.params, state.batch_stats, {k: v[i : i + 1] for k, v in batch.items()}) for i in range(BATCH)]
    jax.tree.map(lambda t, *a: np.testing.assert_allclose(t, np.concatenate(a), atol=1e-5), together, *alone)
    np.testing.assert_array_equal(together.usable, [False, True, True, True, True, False, True, True])
    margin = together.logits[:, 1] - together.logits[:, 0]
    sign = np.where(batch["label"] == 1, 1, -1)
    np.testing.assert_allclose((together.true_map - together.false_map).mean((1, 2)), sign * margin, atol=1e-5)


def test_eval_step_weighs_the_false_classes_by_the_logits():
    model = SmallCNN(num_classes=3, widths=(4, 8))
    state, batch = (
        steps.create_train_state(initialize(model, jax.random.key(0), SIZE), optax.sgd(0.1)),
        make_batch(),
    )
    output = jax.jit(steps.make_eval_step(model, PREPROCESS))(state.params, state.batch_stats, batch)
    maps = model.apply(
        {"params": state.params, "batch_stats": state.batch_stats}, PREPROCESS(jnp.asarray(batch["image"])), train=False
    )
    for i, label in enumerate(batch["label"]):
        others = [k for k in range(3) if k != label]
        weights = np.exp(output.logits[i, others]) / np.exp(output.logits[i, others]).sum()
        expected = np.asarray(maps.features[i]) @ np.asarray(maps.kernel)[:, others] @ weights
        np.testing.assert_allclose(output.false_map[i], expected, atol=1e-5)


def test_standardize_repeats_gray_and_scales():
    gray = np.arange(0, 256, 51, dtype=np.uint8).reshape(1, 2, 3, 1)
    expected = (np.repeat(gray, 3, -1) / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(PREPROCESS(jnp.asarray(gray)), expected, atol=1e-6)
