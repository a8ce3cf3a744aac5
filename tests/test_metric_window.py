"""The window between two lines of metrics: exact over a restart, and quick to see a NaN."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from tfcam_jax.run import metric_window
from tfcam_jax.run.metric_window import MetricWindow, NonFiniteError, summarize, summarize_shares
from tfcam_jax.steps import StepMetrics
from tfcam_jax.terms import Total

IDS = [f"image{i}.png" for i in range(30)]


def metrics(value, grad_norm=1.0):
    total = Total(jnp.float32(value), jnp.float32(3))
    return StepMetrics({"cross_entropy": total}, Total(jnp.int32(2), jnp.int32(3)), jnp.float32(grad_norm))


def test_means_over_steps_add_before_they_divide():
    entries = [
        StepMetrics({"a": Total(6.0, 4.0), "b": Total(0.0, 0.0)}, Total(3, 4), 1.0),
        StepMetrics({"a": Total(4.0, 1.0), "b": Total(0.0, 0.0)}, Total(1, 1), 2.0),
    ]
    assert summarize(entries) == {
        "train/a": 2.0,
        "train/a_examples": 5.0,
        "train/b": None,
        "train/b_examples": 0.0,
        "train/accuracy": 0.8,
        "train/grad_norm": 1.5,
    }


def test_shares_are_of_each_step():
    """Alpha and loss of a step's own means, then the mean over steps; without a map alpha is 1, at 0 and 0 it is 0."""
    step = lambda a, b, maps=2.0: StepMetrics(
        {"cross_entropy": Total(a * 4, 4.0), "b": Total(b * maps, maps)}, *[0] * 2
    )
    two = [step(0.6, 0.2), step(0.3, 0.3)]
    assert summarize_shares(two) == {"train/alpha": pytest.approx(0.625), "train/loss": pytest.approx(0.4)}
    assert summarize_shares([step(0.6, 0.2, 0.0)]) == {"train/alpha": 1.0, "train/loss": pytest.approx(0.6)}
    assert summarize_shares([step(0.0, 0.0)]) == {"train/alpha": 0.0, "train/loss": 0.0}


def test_a_window_goes_on_to_the_same_bits():
    values = np.random.default_rng(0).lognormal(0, 5, 6)
    whole, cut = MetricWindow(IDS, 0), MetricWindow(IDS, 0)
    for number, value in enumerate(values):
        whole.add(metrics(value, value / 3), np.arange(3))
        if number == 4:
            cut = MetricWindow(IDS, 4, json.loads(json.dumps(cut.as_json())))
        cut.add(metrics(value, value / 3), np.arange(3))
    assert len(whole) == len(cut) == 6
    assert json.dumps(whole.close()) == json.dumps(cut.close())
    assert len(whole) == 0


@pytest.mark.parametrize("end", [MetricWindow.close, MetricWindow.as_json])
def test_a_nan_names_step_term_and_images(end):
    window = MetricWindow(IDS, 10)
    window.add(metrics(1.0), np.array([0, 1]))
    window.add(metrics(np.nan), np.array([7, 8, -1]))
    window.add(metrics(np.nan), np.array([3]))
    with pytest.raises(
        NonFiniteError, match=r"step 12: the term 'cross_entropy' of the loss is nan.*image7.png, image8"
    ) as told:
        end(window)
    assert str(told.value).endswith("images: image7.png, image8.png")


def test_an_infinite_gradient_is_seen():
    window = MetricWindow(IDS, 0, [])
    window.add(metrics(1.0, np.inf), np.arange(30))
    with pytest.raises(NonFiniteError, match=r"step 1: the norm of the gradient is inf.*image23.png, \.\.\."):
        window.close()


def test_slow_steps_are_looked_at_before_the_window_closes(monkeypatch):
    """After two seconds all but the last two, which may still be computed."""
    now = [0.0]
    monkeypatch.setattr(metric_window.time, "monotonic", lambda: now[0])
    window = MetricWindow(IDS, 0)
    for value in (np.nan, 1.0):
        window.add(metrics(value), np.array([5]))
    now[0] = 2.5
    with pytest.raises(NonFiniteError, match=r"step 1: .*image5"):
        window.add(metrics(1.0), np.array([6]))
