"""Images and groups that stand where they must not: in two splits, or under two labels."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from ..listing import Row
from .outcomes import Outcome


def find_conflicts(
    columns: Mapping[str, Sequence[str]], values: Sequence[Hashable], ranks: Sequence[int] = ()
) -> list[tuple[int, int, str]]:
    """Rows that share a key with another one and differ in their value: `(row, holder, kind)`, each row once, in order.

    `columns` are the rows' keys by their kinds, "" being none; a row is told with the first kind that applies. A key's
    holder, that its other rows are compared with, is the first row of highest rank.
    """
    holders: dict[tuple[str, str], int] = {}
    for kind, column in columns.items():
        for row, key in enumerate(column):
            before = holders.setdefault((kind, key), row)
            if ranks and ranks[row] > ranks[before]:
                holders[kind, key] = row
    found = []
    for row, value in enumerate(values):
        for kind, column in columns.items():
            other = holders[kind, column[row]]
            if column[row] and values[other] != value:
                found.append((row, other, kind))
                break
    return found


def check_leakage(rows: Sequence[Row], outcomes: Sequence[Outcome]) -> list[str]:
    """Images (by path or by pixels) and groups that stand in two splits, images that have two labels."""
    images = {"path": [row.image for row in rows], "pixels": [outcome.digest for outcome in outcomes]}
    groups = {"group": [row.group for row in rows]}
    splits, labels = [row.split for row in rows], [row.label for row in rows]
    pairs = lambda columns, values: [(rows[row], rows[other]) for row, other, _ in find_conflicts(columns, values)]
    problems = []
    for row, first in pairs(images, splits):
        what = f"image {row.image} is also in split {first.split} ({_where(first, row)}: {first.image})"
        problems.append(f"{row.place}: {what}; keep it in one split only")
    for row, first in pairs(images, labels):
        what = f"image {row.image} has label {row.label!r} here and {first.label!r} in {_where(first, row)}"
        problems.append(f"{row.place}: {what}; keep one of them")
    for row, first in pairs(groups, splits):
        what = f"group {row.group} is also in split {first.split} ({_where(first, row)})"
        problems.append(f"{row.place}: {what}; keep a group in one split")
    return problems


def _where(first: Row, other: Row) -> str:
    return f"row {first.number}" if first.number and first.list == other.list else first.place
