"""The checks that every list goes through before anything is trained on it, whoever's layout it has.

A problem names the list, the row and a remedy. All are collected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ...errors import did_you_mean
from ..listing import Listing
from ..source import SPLITS, DataError
from .files import check_files
from .leakage import check_leakage
from .outcomes import Outcome


@dataclass(frozen=True)
class Inspection:
    """A listing after its files were opened.

    Attributes:
      listing: what was inspected.
      outcomes: one per row.
      problems: all that must be put right: of the lists, the rows, their files, and leakage between splits.
      unreadable: those of them that concern single rows' files, which `skip_unreadable` leaves out.
      checked: outcomes of sound rows, for the next opening.
    """

    listing: Listing
    outcomes: tuple[Outcome, ...]
    problems: tuple[str, ...]
    unreadable: tuple[str, ...]
    checked: Mapping[str, Outcome]


def inspect(
    listing: Listing, known: Mapping[str, Outcome] | None = None, progress: bool = True, closely: bool = False
) -> Inspection:
    """Checks the lists, opens every file, looks for leakage; raises nothing. Arguments as of `check_files`."""
    return _judge(listing, *check_files(listing, known, progress, closely))


def _judge(listing: Listing, outcomes: Sequence[Outcome], checked: Mapping[str, Outcome]) -> Inspection:
    unreadable = tuple(problem for outcome in outcomes for problem in outcome.problems)
    problems = (*listing.problems, *check_table(listing), *unreadable, *check_leakage(listing.rows, outcomes))
    return Inspection(listing, tuple(outcomes), problems, unreadable, checked)


def usable_rows(inspection: Inspection, skip_unreadable: bool) -> tuple[Inspection, tuple[str, ...]]:
    """What to go on with, free of problems, and a line for each unreadable row left out.

    Raises DataError for any problem; with `skip_unreadable`, for any but those of single rows' files.
    """
    skipped = inspection.unreadable if skip_unreadable else ()
    if skipped:
        listing, outcomes = inspection.listing, inspection.outcomes
        rows = tuple(row for row, outcome in zip(listing.rows, outcomes, strict=True) if not outcome.problems)
        sound = tuple(outcome for outcome in outcomes if not outcome.problems)
        # Judged once more, as a split may have lost a class.
        inspection = _judge(replace(listing, rows=rows), sound, inspection.checked)
    if inspection.problems:
        raise DataError([*inspection.problems, *skipped])
    return inspection, skipped


def check_table(listing: Listing) -> list[str]:
    """Problems that show without opening an image: names of splits, labels, and what each split holds."""
    problems = []
    for row in listing.rows:
        if row.split not in SPLITS:
            problems.append(f"{row.place}: unknown split {row.split!r}; use one of {', '.join(SPLITS)}")
        if not row.label:
            problems.append(f"{row.place}: no label given; name one or delete the row")
        elif listing.class_names and row.label not in listing.class_names:
            hint = did_you_mean(row.label, listing.class_names) or " Correct it, or give the full list of labels."
            problems.append(f"{row.place}: label {row.label!r} is none of {', '.join(listing.class_names)}.{hint}")
    place = listing.rows[0].list if listing.rows else listing.name
    for split in SPLITS:
        found = {row.label for row in listing.rows if row.split == split}
        if not found and split != "test":
            problems.append(f"{place}: no row has split {split}; training needs train and val")
        if split == "train" and found:
            never = [name for name in listing.class_names if name not in found]
            problems += [f"{place}: label {name!r} never occurs in split train; add rows or drop it" for name in never]
        if len(found) == 1:
            problems.append(f"{place}: split {split} holds only class {found.pop()!r}; add rows of another class")
    return problems
