"""Times of several contestants that take turns, and the ratios between them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95  # of the intervals
FEWEST_ROUNDS, MOST_ROUNDS = 6, 1000  # with fewer than six, no interval of a median has this level


class Ratio(NamedTuple):
    """Median over rounds of one contestant's time divided by another's in the same round, and its interval."""

    median: float
    low: float
    high: float


def take_turns(
    contestants: Mapping[str, Callable[[], float]], seconds: float, fewest: int = FEWEST_ROUNDS, seed: int = 0
) -> dict[str, list[float]]:
    """Asks every contestant for one time per round, in a new random order each round.

    What else the machine does falls on all alike, and none always follows the same neighbour.

    Args:
      contestants: functions that do the work once and return the seconds it took.
      seconds: after which no new round starts, once `fewest` are done.
      fewest: rounds that are run in any case; at most 1000 are.
      seed: of the orders.

    Returns:
      Seconds by contestant, a value for each round.
    """
    names, rng = list(contestants), np.random.default_rng(seed)
    times: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    for done in range(max(MOST_ROUNDS, fewest)):
        if done >= fewest and time.perf_counter() - start > seconds:
            break
        for i in rng.permutation(len(names)):
            times[names[i]].append(contestants[names[i]]())
    return times


def clocked(work: Callable[[], object]) -> Callable[[], float]:
    """`work` as a contestant of `take_turns`: seconds of wall clock for one call."""

    def timed() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return timed


def ratio(times: list[float], reference: list[float]) -> Ratio:
    """Compares two contestants round by round.

    Args:
      times: seconds of one, by round.
      reference: of the other, in the same rounds.

    Returns:
      The median of the quotients with its distribution-free interval of order statistics at 95 %; the interval is NaN
      where there are too few rounds for one.
    """
    quotients = np.asarray(times) / np.asarray(reference)
    interval = stats.quantile_test(quotients, q=1.0, p=0.5).confidence_interval(LEVEL)
    return Ratio(float(np.median(quotients)), float(interval.low), float(interval.high))


def median(times: list[float]) -> float:
    return float(statistics.median(times))
