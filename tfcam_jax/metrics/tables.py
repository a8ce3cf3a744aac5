"""Aligned tables of text."""

from __future__ import annotations

from collections.abc import Sequence


def decimal(value: float | None) -> str:
    """Four decimals, or a dash for a figure that does not exist."""
    return "-" if value is None else f"{value:.4f}"


def percent(value: float | None) -> str:
    """A rate in [0, 1] in percent with one decimal, or a dash."""
    return "-" if value is None else f"{100 * value:.1f}"


def interval(bounds: Sequence[float] | None) -> str:
    """Bounds with three decimals, or a dash."""
    return "-" if bounds is None else f"{bounds[0]:.3f}..{bounds[1]:.3f}"


def align(rows: list[tuple[str, ...]]) -> list[str]:
    """Lines of a table: first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
