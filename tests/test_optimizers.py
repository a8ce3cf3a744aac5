"""Optimisers and schedules against their recurrences written out, as PyTorch states them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tfcam_jax.optimizers import make_optimizer, make_schedule

GRADIENTS = [np.array([0.5, -1.0, 2.0]), np.array([0.1, 0.3, -0.2]), np.array([-3.0, 0.0, 1.0])]
START = np.array([1.0, -2.0, 0.5])


def trajectory(tx):
    params, state = jnp.asarray(START, jnp.float32), None
    state = tx.init(params)
    for gradient in GRADIENTS:
        updates, state = tx.update(jnp.asarray(gradient, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(params)


def test_sgd_adds_weight_decay_before_momentum():
    """torch.optim.SGD: g += wd * w; v = m v + g; w -= lr v."""
    rates, weights, velocity = [0.1, 0.05, 0.02], START.copy(), np.zeros(3)
    for rate, gradient in zip(rates, GRADIENTS, strict=True):
        velocity = 0.8 * velocity + gradient + 0.01 * weights
        weights = weights - rate * velocity
    schedule = lambda step: jnp.asarray(rates)[step]
    tx = make_optimizer("sgd", schedule, momentum=0.8, weight_decay=0.01)
    np.testing.assert_allclose(trajectory(tx), weights, rtol=1e-5)


def test_default_momentum_is_the_recipes():
    explicit, default = (make_optimizer("sgd", optax.constant_schedule(0.1), momentum=m) for m in (0.9, None))
    np.testing.assert_array_equal(trajectory(explicit), trajectory(default))


@pytest.mark.parametrize("decoupled", [False, True])
def test_adam_couples_and_adamw_decouples_weight_decay(decoupled):
    weights, m, v = START.copy(), np.zeros(3), np.zeros(3)
    for step, gradient in enumerate(GRADIENTS, start=1):
        g = gradient if decoupled else gradient + 0.1 * weights
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        direction = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        weights = weights - 0.02 * (direction + (0.1 * weights if decoupled else 0))
    tx = make_optimizer("adamw" if decoupled else "adam", optax.constant_schedule(0.02), weight_decay=0.1)
    np.testing.assert_allclose(trajectory(tx), weights, rtol=1e-4)


def test_clipping_bounds_the_gradients_norm_before_anything_else():
    rate = optax.constant_schedule(0.1)
    plain, clipped = (make_optimizer("sgd", rate, momentum=0.0, weight_decay=0.0, clip_norm=c) for c in (0.0, 0.5))
    expected = START - 0.1 * sum(g * min(1, 0.5 / np.linalg.norm(g)) for g in GRADIENTS)
    np.testing.assert_allclose(trajectory(clipped), expected, rtol=1e-5)
    np.testing.assert_allclose(trajectory(plain), START - 0.1 * sum(GRADIENTS), rtol=1e-5)


def rates(schedule, steps):
    return np.asarray(jax.vmap(schedule)(jnp.arange(steps)))


def test_step_schedule_is_the_cyborg_recipe():
    """Times 0.1 every 12 epochs."""
    schedule = make_schedule("step", 0.005, steps_per_epoch=7, epochs=50)
    np.testing.assert_allclose(rates(schedule, 350), 0.005 * 0.1 ** (np.arange(350) // 7 // 12), rtol=1e-5)


def test_schedules_follow_their_options():
    step = make_schedule("step", 1.0, steps_per_epoch=2, epochs=9, step_epochs=3, step_factor=0.5)
    np.testing.assert_allclose(rates(step, 18), 0.5 ** (np.arange(18) // 6), rtol=1e-6)
    cosine = make_schedule("cosine", 2.0, steps_per_epoch=5, epochs=4, warmup_epochs=1.0)
    expected = [*(2.0 * np.arange(5) / 5), *(1 + np.cos(np.pi * np.arange(16) / 15))]
    np.testing.assert_allclose(rates(cosine, 21), expected, atol=1e-6)
    np.testing.assert_array_equal(rates(make_schedule("constant", 0.25, steps_per_epoch=5, epochs=4), 20), 0.25)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_momentum_of_an_optimiser_without_it_is_refused(name):
    with pytest.raises(ValueError, match="no option 'momentum'"):
        make_optimizer(name, optax.constant_schedule(0.1), momentum=0.9)


@pytest.mark.parametrize("name", ["cosine", "constant"])
@pytest.mark.parametrize("option", ["step_epochs", "step_factor"])
def test_options_of_another_schedule_are_refused(name, option):
    with pytest.raises(ValueError, match=f"{name}.*no option '{option}'"):
        make_schedule(name, 0.1, steps_per_epoch=1, epochs=1, **{option: 2})
