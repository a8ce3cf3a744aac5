"""From a listing to a data set that can be trained on: files opened, checked, and told of."""

from __future__ import annotations

from collections.abc import Sequence

from absl import logging

from ..errors import ConfigError
from .checks.inspection import Inspection, inspect, usable_rows
from .checks.outcomes import CONSTANT, EMPTY, USABLE, Outcomes
from .decode import check_channels
from .listing import Listing, by_split, listed_sources
from .source import Dataset


def open_listing(
    listing: Listing,
    channels: int = 3,
    progress: bool = True,
    skip_unreadable: bool = False,
    known: Outcomes | None = None,
) -> Dataset:
    """Opens and checks every file of a listing. A map that is constant counts as absent; the notes say how many.

    Args:
      listing: what to open.
      channels: 3 for RGB, 1 for grey.
      progress: show a bar if checking takes more than a few seconds.
      skip_unreadable: leave out rows whose files can't be read; `Dataset.skipped` lists them.
      known: outcomes of an earlier opening (`Dataset.checked`): unchanged files are not decoded again.

    Raises:
      ConfigError: channels that can't be had.
      DataError: with every problem found, each naming file, row and remedy.
    """
    check_channels(channels)
    usable, skipped = usable_rows(inspect(listing, known, progress), skip_unreadable)
    notes = (*usable.remarks, *_note_maps(usable))
    sources = listed_sources(usable.listing, usable.outcomes, channels)
    drawn = listing.draw is not None
    return Dataset(listing.name, listing.class_names, sources, skipped, notes, drawn, usable.checked)


def check_labels(labels: Sequence[str]) -> None:
    """Raises ConfigError where a class is named twice."""
    if len(set(labels)) < len(labels):
        raise ConfigError(f"labels names a class twice: {', '.join(labels)}")


def _note_maps(opened: Inspection) -> list[str]:
    """Logs how many images and maps each split has; returns a line for each whose maps are not all of use."""
    notes = []
    place = opened.listing.rows[0].list
    for split, _, found in by_split(opened.listing.rows, opened.outcomes):
        usable = sum(outcome.map == USABLE for outcome in found)
        logging.info("%s: %s has %d images, %d with a human map", place, split, len(found), usable)
        if useless := sum(outcome.map in (EMPTY, CONSTANT) for outcome in found):
            notes.append(f"{useless} maps of {split} are empty or constant; they count as absent")
    return notes
