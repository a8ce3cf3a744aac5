"""Tables as rows of text: what a cell says of a figure, and how the rows are set."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import visible

# What Markdown takes for more than text; "_" only at the end of a word, "<" and "&" before a tag or an entity.
_MARKDOWN = re.compile(
    r"[\\`\[\]|~$]|(?<=\S)\*|\*(?=\S)|<(?=[A-Za-z/!?])|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=\bwww)\.|(?<=\s)#(?=#*$)"
)
# At the beginning of a line, as of a list or a heading.
_BLOCK = re.compile(r"^(?P<number>\d*)(?P<sign>(?<!\d)[#>]|(?<!\d)[-+=*](?=[\s=-]|$)|(?<=\d)[.)](?=\s|$))")


def decimal(value: float | None, form: str = ".4f") -> str:
    """Four decimals, or another format; a dash for a figure that does not exist."""
    return "-" if value is None else format(value, form)


def percent(value: float | None, form: str = ".1f") -> str:
    """A rate in [0, 1] in percent, or a dash."""
    return "-" if value is None else format(100 * value, form)


def interval(bounds: Sequence[float] | None, form: str = ".3f") -> str:
    """Bounds with three decimals, or another format; or a dash."""
    return "-" if bounds is None else "..".join(format(bound, form) for bound in bounds)


def probability(p: float | None) -> str:
    """A p-value with two significant digits, down to 0.001; or a dash."""
    if p is not None and p < 0.001:
        return "< 0.001"
    return decimal(p, ".2f" if p is None or p >= 0.0995 else ".3f")


class Table(NamedTuple):
    """Rows of text; the first column is a name, all others are figures."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def text(self) -> str:
        """Title and aligned rows."""
        return "\n".join([visible(self.title), *align([self.header, *self.rows])])

    def markdown(self) -> str:
        """Title and rows as Markdown."""
        line = lambda cells: f"| {' | '.join(map(_markdown, cells))} |"
        rule = "| --- |" + " ---: |" * (len(self.header) - 1)
        return "\n".join([f"### {markdown_text(self.title)}", "", line(self.header), rule, *map(line, self.rows)])


def markdown_text(text: Any) -> str:
    """Text in one line that Markdown shows as it is: no link, code, formula, emphasis, HTML or end of a cell."""
    return _BLOCK.sub(r"\g<number>\\\g<sign>", _markdown(text))


def _markdown(text: Any) -> str:
    """The same within a line, as in a cell, where a list or heading can't begin."""
    return _MARKDOWN.sub(r"\\\g<0>", visible(" ".join(str(text).split())))


Cell = Callable[[Any], str]


def tabulate(title: str, first: str, items: Iterable[tuple[str, Any]], shown: Iterable[tuple[str, Cell]]) -> Table:
    """A table with a row for each pair of a name, which stands below the head `first`, and an item.

    `shown` are the further columns: their head, which may repeat, and what they say of an item.
    """
    heads, cells = zip(*shown, strict=True)
    return Table(title, (first, *heads), [(name, *(cell(item) for cell in cells)) for name, item in items])


def columns(cell: Cell, heads: Mapping[str, str]) -> list[tuple[str, Cell]]:
    """Columns that bring values of an item to text in one way, their heads by the key of the value.

    Slashes lead deeper: `{"auroc/mean": "AUROC"}`, `{"interval/0": "low"}`. What is below None is None.
    """
    return [(head, lambda item, path=path: cell(_value(item, path))) for path, head in heads.items()]


def _value(item: Any, path: str) -> Any:
    for key in path.split("/"):
        item = None if item is None else item[int(key) if isinstance(item, list | tuple) else key]
    return item


def align(rows: list[tuple[str, ...]]) -> list[str]:
    """Lines of a table: first column to the left, the others to the right."""
    rows = [tuple(map(visible, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = lambda cells: (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
    return ["  ".join([first.ljust(widths[0]), *aligned(cells)]).rstrip() for first, *cells in rows]
