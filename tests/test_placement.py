"""One step, several ways to run it: the same update, and nothing sent but what has to be."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiled_program import find_collectives
from eight_devices import CASES, OPTIMIZED, WIDTHS
from jax.sharding import PartitionSpec
from test_steps import BATCH, PREPROCESS, SIZE, make_batch, make_model, make_state, run_steps
from tiny_manifest import write_manifest
from tiny_run import tiny_config

from tfcam_jax import steps
from tfcam_jax import training as train
from tfcam_jax.devices.placement import AXIS, Placement, fetch, make_placement
from tfcam_jax.errors import ConfigError
from tfcam_jax.inference import restore
from tfcam_jax.models import SmallCNN
from tfcam_jax.models.initialization import Initialization
from tfcam_jax.strategies import make_strategy

MANY = [name for name in CASES if name not in ("jit 1", "mesh 1", "pmap 1")]


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """What tests/eight_devices.py leaves: arrays by "case:path", and metrics and collectives by case."""
    out = tmp_path_factory.mktemp("eight") / "out.npz"
    script = Path(__file__).with_name("eight_devices.py")
    devices = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
    flags = {"XLA_FLAGS": devices, "PYTHONPATH": str(script.parents[1])}
    environment = {**os.environ, **flags}
    done = subprocess.run([sys.executable, script, out], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(np.load(out)), json.loads(out.with_suffix(".json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_five_steps_are_the_same_in_every_way(eight, case):
    """Parameters, batch statistics and momentum: uneven maps, synchronised BatchNorm, clipping, a padded last batch."""
    arrays, _ = eight
    names = [key.split(":")[1] for key in arrays if key.startswith("jit 1:")]
    assert {name.split("/")[0] for name in names} == {"params", "batch_stats", "opt_state"}
    for name in names:
        np.testing.assert_allclose(arrays[f"{case}:{name}"], arrays[f"jit 1:{name}"], atol=1e-6, rtol=0, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_metrics_are_those_of_the_whole_batch(eight, case):
    _, collected = eight
    here, expected = collected[case], collected["jit 1"]
    assert here["correct"] == expected["correct"] and [count for _, count in here["correct"]] == [13] * 4 + [5]
    for name in ("terms", "grad_norm"):
        np.testing.assert_allclose(here[name], expected[name], rtol=1e-5)


@pytest.mark.slow
def test_one_device_sends_nothing(eight):
    assert eight[1]["jit 1"]["collectives"] == []


@pytest.mark.slow
@pytest.mark.parametrize("case", MANY)
def test_only_gradients_statistics_and_metrics_are_sent(eight, case):
    """From the compiled program: all-reduce alone, of nothing that has the shape of features or maps, in total no more
    than the gradient (the head's twice: logits and maps), two statistics forth and back per BatchNorm, and numbers."""
    arrays, collected = eight
    squeezed = lambda shape: tuple(sorted(size for size in shape if size > 1))
    params = [value.shape for key, value in arrays.items() if key.startswith("jit 1:params")]
    allowed = {squeezed(shape) for shape in params} | {squeezed((width,)) for width in WIDTHS} | {()}
    sent = {"all-reduce": [], "all-gather": []}
    for operation, shapes, size in collected[case]["collectives"]:
        sent[operation] += shapes
        assert size == 4 * sum(map(math.prod, shapes)), "of four bytes an element"
    assert all(squeezed(shape) in allowed for shapes in sent.values() for shape in shapes)
    elements = sum(map(math.prod, sent["all-reduce"]))
    gradient, head = sum(map(math.prod, params)), WIDTHS[-1] * 2
    assert gradient <= elements <= gradient + head + 4 * sum(WIDTHS) + 2 * (3 + 2 * len(WIDTHS)) + 5
    gathered = {squeezed(shape) for shape in sent["all-gather"]}
    large = {squeezed(shape) for shape in params if math.prod(shape) >= 64}
    assert gathered == (large if case == "mesh 8 sharded" else set())


@pytest.mark.slow
def test_sharded_state_lies_in_parts(eight):
    _, collected = eight
    assert collected["mesh 8 sharded"]["smallest_share_of_a_parameter"] == 1 / 8
    assert collected["mesh 8"]["smallest_share_of_a_parameter"] == 1
    assert set(OPTIMIZED) <= set(MANY)


def test_sharded_parameters_travel_rather_than_features():
    """Where parameters outweigh the activations a partitioner would gather the latter, unless told what to gather."""
    widths, rows = (64, 512), 6
    where = Placement("mesh", make_placement("mesh").mesh, shard_state=True, smallest_sharded=64)
    model, tx = SmallCNN(num_classes=2, widths=widths), optax.sgd(0.1, momentum=0.9)
    step = steps.make_train_step(
        model, tx, make_strategy("difference"), PREPROCESS, gather=where.gather, scatter=where.scatter
    )
    create = lambda variables: steps.create_train_state(variables, tx)
    state = where.abstract_state(jax.eval_shape(create, Initialization(model, SIZE).abstract))
    placed = where.put_batch({name: value[:rows] for name, value in make_batch().items()})
    text = where.compile_train_step(step, state).lower(state, placed).compile().as_text()
    squeezed = lambda shape: tuple(sorted(size for size in shape if size > 1))
    allowed = {squeezed(leaf.shape) for leaf in jax.tree.leaves(state.params)} | {(width,) for width in widths} | {()}
    found = find_collectives(text)
    assert {operation for operation, _, _ in found} == {"all-reduce", "all-gather"}
    assert all(squeezed(shape) in allowed for _, shapes, _ in found for shape in shapes)


def test_modes_and_devices():
    assert (make_placement().mode, make_placement().num_devices) == ("mesh", 2)
    assert (make_placement(devices=1).mode, make_placement("jit").num_devices) == ("jit", 1)
    assert make_placement("pmap").axis_name == AXIS and make_placement("mesh").axis_name is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("jot",), r"parallel.mode is 'jot'. Did you mean 'jit'\? Known: auto, jit, mesh, pmap"),
        (("mesh", 3), "parallel.devices is 3; there are 2 devices"),
        (("mesh", 0), "parallel.devices is 0"),
        (("jit", 2), "runs on one device, not 2"),
        (("pmap", 2, True), "shard_state needs parallel.mode=mesh, not pmap"),
        (("jit", 1, True), "shard_state needs parallel.mode=mesh, not jit"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        make_placement(*arguments)


def test_batch_is_padded_and_spread():
    batch = {"mask": np.ones(5, np.float32), "label": np.arange(1, 6), "index": np.arange(5)}
    placed = make_placement("mesh").put_batch(batch, accumulate_steps=4)
    np.testing.assert_array_equal(placed["label"], [1, 2, 3, 4, 5, 0, 0, 0])
    np.testing.assert_array_equal(placed["mask"], [1] * 5 + [0] * 3)
    np.testing.assert_array_equal(placed["index"], [0, 1, 2, 3, 4, -1, -1, -1])
    assert placed["mask"].sharding.spec == PartitionSpec(AXIS) and len(placed["mask"].sharding.device_set) == 2
    np.testing.assert_array_equal(fetch(placed)["label"], placed["label"])
    assert make_placement("pmap").put_train_batch(batch)["label"].shape == (2, 3)
    assert make_placement("pmap").put_batch(batch)["label"].shape == (6,)
    assert make_placement("jit").put_batch(batch)["label"].shape == (5,)


@pytest.mark.parametrize("mode", ["jit", "mesh", "pmap"])
def test_step_takes_its_state_and_leaves_the_source(mode):
    """The compiled step donates its state; what that was copied from is still there."""
    where, tx = make_placement(mode), optax.sgd(0.1)
    source = make_state(tx)
    before = jax.device_get(source)
    step = steps.make_train_step(make_model(where.axis_name), tx, make_strategy("cyborg"), PREPROCESS, where.axis_name)
    state = where.put_state(source)
    where.compile_train_step(step, source)(state, where.put_train_batch(make_batch()))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(source), before)


@pytest.mark.parametrize("shard_state", [False, True])
def test_every_example_is_evaluated_once_and_in_order(shard_state):
    """Five rows on two devices: what comes back is what one device says of each, and the padding tells itself."""
    mesh = make_placement("mesh").mesh
    where, state, batch = (
        Placement("mesh", mesh, shard_state, smallest_sharded=8),
        make_state(optax.sgd(0.1)),
        make_batch(),
    )
    batch = {name: value[:5] for name, value in batch.items()}
    step = steps.make_eval_step(make_model(), PREPROCESS)
    placed, spread = where.put_state(state), where.put_batch(batch)
    output, mask = fetch((where.compile_eval_step(step)(placed.params, placed.batch_stats, spread), spread["mask"]))
    expected = jax.jit(step)(state.params, state.batch_stats, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[mask > 0], b, atol=1e-6), output, expected)
    sharded = [leaf for leaf in jax.tree.leaves(placed.params) if not leaf.is_fully_replicated]
    assert bool(sharded) == shard_state


@pytest.mark.slow
def test_local_statistics_are_those_of_each_device():
    """Over a mesh and under pmap alike: the update is that of a network which normalises each half by itself."""
    tx, batches = optax.sgd(0.1, momentum=0.9), [make_batch(seed) for seed in range(3)]
    states = {}
    for mode in ("mesh", "pmap"):
        where = make_placement(mode)
        model = make_model(where.axis_name).clone(batch_norm_groups=where.num_devices)
        step = steps.make_train_step(model, tx, make_strategy("difference"), PREPROCESS, where.axis_name)
        state = where.put_state(make_state(tx))
        compiled = where.compile_train_step(step, state)
        for batch in batches:
            state, _ = compiled(state, where.put_train_batch(batch))
        states[mode] = jax.device_get(state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), states["mesh"], states["pmap"])
    synchronized, _ = run_steps(make_strategy("difference"), batches, tx)
    differences = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), states["mesh"].params, synchronized.params)
    assert max(jax.tree.leaves(differences)) > 1e-4
    assert BATCH % 2 == 0


@pytest.mark.slow
def test_run_continues_on_other_devices(trained_run, tmp_path, monkeypatch):
    """An epoch by pmap on two, in two parts a step, the next sharded over a mesh: one device's whole run."""
    config = tiny_config(write_manifest(tmp_path / "data", train=14))
    config.epochs, config.model.weights, config.model.freeze_batch_norm = 2, str(trained_run), True
    config.parallel.mode = "jit"
    train.train(config, tmp_path / "whole")
    original = train.train_one_epoch

    def stop_after_one(run, state, epoch, *rest):
        if epoch == 1:
            raise KeyboardInterrupt
        return original(run, state, epoch, *rest)

    config.accumulate_steps, config.parallel.mode = 2, "pmap"
    monkeypatch.setattr(train, "train_one_epoch", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        train.train(config, tmp_path / "moved")
    config.parallel.mode, config.parallel.shard_state = "mesh", True
    monkeypatch.setattr("tfcam_jax.devices.placement.SMALLEST_SHARDED", 64)
    monkeypatch.setattr(train, "train_one_epoch", original)
    train.train(config, tmp_path / "moved")
    moved, whole = (restore(tmp_path / name) for name in ("moved", "whole"))
    assert moved.epoch == whole.epoch == 2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=0), moved.state, whole.state)
