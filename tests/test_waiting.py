"""The share of training's time that was spent waiting for data, on a clock that the test moves."""

import pytest

from tfcam_jax.run import waiting
from tfcam_jax.run.waiting import Waiting


class Clock:
    """A clock, batches that take so long each to come, and steps that take so long each on a device of one stream."""

    def __init__(self, monkeypatch, batch, step):
        self.now, self.batch, self.step, self.busy_until = 100.0, batch, step, 0.0
        monkeypatch.setattr(waiting.time, "monotonic", lambda: self.now)

    def batches(self):
        while True:
            self.now += self.batch
            yield self.now

    def start(self):
        self.busy_until = max(self.now, self.busy_until) + self.step
        return Step(self, self.busy_until)

    def wait(self):
        self.now = max(self.now, self.busy_until)


class Step:
    def __init__(self, clock, end):
        self.clock, self.end = clock, end

    def is_ready(self):
        return self.clock.now >= self.end


def train(clock, epochs=3, steps=10, validation=50.0):
    timed = Waiting()
    for _ in range(epochs):
        batches = clock.batches()
        timed.resume()
        for _ in range(steps):
            timed.next(batches)
            timed.note(clock.start())
        clock.wait()
        timed.pause()
        clock.now += validation
    return timed


def test_slow_data_is_waited_for(monkeypatch):
    timed = train(Clock(monkeypatch, batch=3.0, step=1.0))
    # From the first step on, and without validation. The step that ends within a wait is not told from it.
    assert timed.waited == pytest.approx(29 * 3) and timed.seconds == pytest.approx(29 * 3 + 3 * 1)
    assert timed.share == pytest.approx(29 / 30)
    assert "were spent waiting for data" in timed.describe()


def test_data_that_come_while_the_device_is_busy_are_not_waited_for(monkeypatch):
    timed = train(Clock(monkeypatch, batch=1.0, step=3.0))
    assert timed.waited == pytest.approx(2 * 1.0)  # the first batch of each later epoch: no step is under way
    assert timed.seconds == pytest.approx(30 * 3 + 2 * 1.0)


def test_nothing_is_told_of_nothing():
    timed = Waiting()
    timed.resume()
    timed.pause()
    assert timed.share == 0 and timed.describe() == ""
