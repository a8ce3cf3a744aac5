"""The window between two lines of metrics: exact over a restart, and quick to see a NaN."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from tfcam_jax.run import metric_window
from tfcam_jax.run.metric_window import MetricWindow, NonFiniteError, summarize, summarize_shares, summarize_weights
from tfcam_jax.steps import StepMetrics
from tfcam_jax.terms import Total

IDS = [f"image{i}.png" for i in range(30)]


def metrics(value, grad_norm=1.0, **term_norms):
    total = Total(jnp.float32(value), jnp.float32(3))
    norms = {name: jnp.float32(norm) for name, norm in term_norms.items()}
    return StepMetrics({"cross_entropy": total}, Total(jnp.int32(2), jnp.int32(3)), jnp.float32(grad_norm), norms)


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


def test_known_weights_are_those_of_each_step():
    """Cross-entropy by alpha, all else by what is left of it; steps count from where training stands."""
    terms = {name: Total(3.0 * mean, 3.0) for name, mean in {"cross_entropy": 0.6, "b": 0.2, "c": 0.4}.items()}
    step = StepMetrics(terms, *[Total(0, 1)] * 2)
    assert summarize_weights([step, step], [1.0, 0.5]) == {
        "train/alpha": 0.75,
        "train/loss": pytest.approx((0.6 + 0.3 + 0.1 + 0.2) / 2),
    }
    asked = []
    window = MetricWindow(IDS, 7, alpha_at=lambda done: asked.append(done) or 0.5)
    for _ in range(2):
        window.add(metrics(1.0), np.arange(3))
        window.add(metrics(1.0), np.arange(3))
        assert window.close()["train/alpha"] == 0.5
    assert asked == [7, 8, 9, 10]  # steps that were done before each


def test_a_window_goes_on_to_the_same_bits():
    values = np.random.default_rng(0).lognormal(0, 5, 6)
    whole, cut = (MetricWindow(IDS, 0, alpha_at=lambda step: step / 7) for _ in range(2))
    for number, value in enumerate(values):
        whole.add(metrics(value, value / 3, cross_entropy=value / 5), np.arange(3))
        if number == 4:
            cut = MetricWindow(IDS, 4, json.loads(json.dumps(cut.as_json())), alpha_at=lambda step: step / 7)
        cut.add(metrics(value, value / 3, cross_entropy=value / 5), np.arange(3))
    assert len(whole) == len(cut) == 6
    scalars = whole.close()
    assert json.dumps(scalars) == json.dumps(cut.close())
    assert len(whole) == 0
    assert scalars["train/grad_norm_cross_entropy"] == pytest.approx(values.mean() / 5)


def test_a_window_of_a_run_of_before_has_no_norms_of_terms():
    window = MetricWindow(IDS, 0)
    window.add(metrics(1.0), np.arange(3))
    (entry,) = window.as_json()
    del entry["term_norms"]
    assert set(MetricWindow(IDS, 1, [entry]).close()) == set(window.close())


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
