"""The one table of a stress study: what was tried, and what came of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

from tqdm import tqdm

from tfcam_jax.metrics.tables import align

REFUSED, RIGHT, WRONG, HUNG, UNCLEAR = "refused", "right", "wrong", "hung", "unclear"
OUTCOMES = {
    REFUSED: "stopped with a message that names the file, key or folder, and nothing half-written",
    RIGHT: "the result that it should have, to the bit where that is to be",
    WRONG: "another result without a word, or something half-written",
    HUNG: "no end in time",
    UNCLEAR: "a traceback, or an error that names nothing",
}
# Those that must not come.
FAILURES = (WRONG, HUNG, UNCLEAR)
# A process that needs more is a failure too.
MOST_MEGABYTES = 2048.0


def trials(count: int, what: str, until: float) -> Iterator[int]:
    """Numbers of so many trials, with a bar, as long as `until` of `time.monotonic` has not passed."""
    for number in tqdm(range(count), desc=what, disable=None):
        if time.monotonic() > until:
            return
        yield number


@dataclasses.dataclass
class Tally:
    """Counts by kind and outcome.

    Attributes:
      counts: kind to outcome to number.
      peak: kind to the most memory that a process had resident, MiB.
      notes: a line for each failure.
    """

    counts: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    peak: dict[str, float] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    def add(self, kind: str, outcome: str, what: str, told: str = "", peak: float = 0.0) -> None:
        """Counts one trial; `what` was tried and `told` was said, for the note of a failure."""
        self.counts.setdefault(kind, dict.fromkeys(OUTCOMES, 0))[outcome] += 1
        self.peak[kind] = max(self.peak.get(kind, 0.0), peak)
        if outcome in FAILURES:
            self.notes.append(f"{kind}, {outcome}: {what}: {told}")
        elif peak > MOST_MEGABYTES:
            self.notes.append(f"{kind}, {peak:.0f} MiB: {what}")

    def tried(self, kind: str) -> int:
        """How many trials of a kind there were."""
        return sum(self.counts.get(kind, {}).values())

    def join(self, other: Tally) -> None:
        """Adds what another one counted, of other kinds."""
        self.counts |= other.counts
        self.peak |= other.peak
        self.notes += other.notes

    def table(self) -> list[str]:
        """Aligned lines: a row per kind and their sum, then what the columns mean, then the failures."""
        rows = [
            (kind, str(self.tried(kind)), *map(str, by.values()), _size(self.peak[kind])) for kind, by in self._kinds()
        ]
        total = [sum(by[outcome] for _, by in self._kinds()) for outcome in OUTCOMES]
        rows.append(("all", str(sum(total)), *map(str, total), _size(max(self.peak.values(), default=0.0))))
        return [
            *align([("", "tried", *OUTCOMES, "MiB"), *rows]),
            *(f"{name}: {meaning}{' (must not be)' if name in FAILURES else ''}" for name, meaning in OUTCOMES.items()),
            f"MiB: the most that a process had resident; {MOST_MEGABYTES:.0f} may be",
            *(f"  ! {note}" for note in self.notes),
        ]

    def _kinds(self) -> list[tuple[str, dict[str, int]]]:
        return list(self.counts.items())


def _size(megabytes: float) -> str:
    return f"{megabytes:.0f}" if megabytes else "-"
