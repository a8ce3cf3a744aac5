"""What variables are at first: their distributions, which stream each has, and that no program is compiled for it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_backbones import SMALL_MODELS
from test_normed_networks import TINY

from tfcam_jax.models import MODELS, SmallCNN, initializers
from tfcam_jax.models.initialization import Initialization, initialize
from tfcam_jax.models.tasks import MultiLabel, OneLogit

SIZE = 64
SHAPE = (3, 3, 24, 96)
# Flax's own, as independent references.
REFERENCES = {
    "he_fan_out": nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    "he_normal": nn.initializers.he_normal(),
    "lecun_normal": nn.initializers.lecun_normal(),
    "truncated_normal": nn.initializers.truncated_normal(0.02),
    "normal": nn.initializers.normal(1e-6),
    "uniform": lambda key, shape: jax.random.uniform(key, shape, minval=-0.3, maxval=0.3),
    "zeros": nn.initializers.zeros_init(),
    "ones": nn.initializers.ones_init(),
    "constant": nn.initializers.constant(0.7),
}
ARGUMENTS = {"truncated_normal": 0.02, "normal": 1e-6, "uniform": 0.3, "constant": 0.7}


def ours(name):
    made = getattr(initializers, name)
    return made(ARGUMENTS[name]) if name in ARGUMENTS else made


def described(initializer, shape=SHAPE):
    with initializers.describe():
        return jax.eval_shape(lambda: initializer(None, shape))


def on_host(name, seed=0, shape=SHAPE):
    return initializers.draw({"kernel": described(ours(name), shape)}, jax.random.key(seed))["kernel"]


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("shape", [SHAPE, (5, 5, 1, 864), (864, 24)])
def test_distributions_are_those_of_flax(name, shape):
    """Mean, deviation, range and quantiles, of the values drawn on the host and of those drawn in JAX."""
    expected = np.asarray(REFERENCES[name](jax.random.key(1), shape))
    spread = max(float(expected.std()), 1e-12)
    shares = np.linspace(0.02, 0.98, 25)
    for values in (on_host(name, shape=shape), np.asarray(ours(name)(jax.random.key(2), shape))):
        assert values.shape == shape and values.dtype == np.float32
        assert abs(values.mean() - expected.mean()) < 0.05 * spread + 1e-9
        assert abs(values.std() - expected.std()) < 0.03 * spread + 1e-9
        difference = np.quantile(values, shares) - np.quantile(expected, shares)
        assert np.abs(difference).max() < 0.1 * spread + 1e-6 * np.abs(expected).max()
        if "truncated" in ours(name).standard or ours(name).standard == "uniform":
            assert np.abs(values).max() <= np.abs(expected).max() * 1.02


def test_streams_are_of_the_key_and_the_path_alone():
    key, kernel = jax.random.key(3), described(initializers.normal(1.0))
    drawn = initializers.draw({"first": {"kernel": kernel}, "second": {"kernel": kernel}}, key)
    alone = initializers.draw({"second": {"kernel": kernel}}, key)
    np.testing.assert_array_equal(drawn["second"]["kernel"], alone["second"]["kernel"])
    other = initializers.draw({"second": {"kernel": kernel}}, jax.random.key(4))
    flat = [each.ravel() for each in (drawn["first"]["kernel"], drawn["second"]["kernel"], other["second"]["kernel"])]
    correlation = np.corrcoef(flat) - np.eye(3)
    assert np.abs(correlation).max() < 5 / np.sqrt(flat[0].size)  # five standard errors


compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
)


SMALL = {**SMALL_MODELS, **TINY}


@pytest.mark.parametrize("name", SMALL)
def test_our_networks_are_drawn_without_a_program(name):
    """The same paths, shapes and dtypes as by the network's own `init`, and values that follow the seed."""
    model = SMALL[name](num_classes=3, head_init="pytorch")
    keys = [jax.random.key(seed) for seed in (0, 0, 1)]
    begin = len(compiled)
    first, again, other = (initialize(model, key, SIZE) for key in keys)
    assert not compiled[begin:]
    images = jnp.zeros((1, SIZE, SIZE, 3))
    own = jax.eval_shape(lambda: model.init(keys[0], images, train=False))
    shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), tree)
    assert shapes(first) == shapes(own) == shapes(Initialization(model, SIZE).abstract)
    equal = lambda a, b: jax.tree.map(lambda x, y: bool((x == y).all()), a, b)
    assert jax.tree.all(equal(first, again))
    assert not equal(first, other)["params"]["head"]["kernel"]


def test_a_network_is_drawn_like_by_its_own_init():
    """Of each kernel the same deviation up to chance, and the rest the same."""
    model, key = MODELS["small_cnn"](num_classes=2), jax.random.key(5)
    drawn, own = initialize(model, key, SIZE), model.init(key, jnp.zeros((1, SIZE, SIZE, 3)), train=False)

    def check(path, ours, theirs):
        deviations = float(ours.std()), float(theirs.std())
        assert deviations == pytest.approx(deviations[::-1], rel=6 / np.sqrt(2 * ours.size), abs=0), path
        if not deviations[0]:
            np.testing.assert_array_equal(ours, theirs)

    jax.tree_util.tree_map_with_path(check, drawn, own)


def test_tasks_draw_what_their_network_draws_and_rematerialisation_changes_nothing():
    make, key = MODELS["small_cnn"], jax.random.key(2)
    plain = initialize(make(num_classes=1), key, SIZE)
    others = OneLogit(make(num_classes=1)), MultiLabel(make(num_classes=1)), make(num_classes=1, rematerialize=True)
    for model in others:
        jax.tree.map(np.testing.assert_array_equal, plain, initialize(model, key, SIZE))


class Foreign(nn.Module):
    """Partly of our initialisers: then its own `init` draws all of it."""

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(4, (3, 3), kernel_init=initializers.he_fan_out)(images)
        return nn.Dense(2)(x.mean((1, 2)))


@pytest.mark.parametrize("model", [Foreign(), SmallCNN(num_classes=2, kernel_init=nn.initializers.normal(0.5))])
def test_a_network_with_initialisers_of_others_is_drawn_by_its_own_init(model):
    key = jax.random.key(0)
    expected = jax.jit(lambda: model.init(key, jnp.zeros((1, SIZE, SIZE, 3)), train=False))()
    jax.tree.map(np.testing.assert_array_equal, initialize(model, key, SIZE), expected)


def test_what_is_drawn_may_be_donated_and_drawn_again():
    model, key = MODELS["small_cnn"](num_classes=2), jax.random.key(0)
    draw = Initialization(model, SIZE)
    first = draw(key)
    kept = jax.tree.map(np.array, first)
    jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)(first)
    jax.tree.map(np.testing.assert_array_equal, draw(key), kept)
