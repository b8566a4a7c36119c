"""Markdown tables, and texts that cannot break them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gradsurgery.report import cell

__all__ = ["cell", "table"]


def table(heading: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table.

    >>> print(table(["a", "b"], [["1", 2]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (heading, *rows)]
    lines = [line.replace("|  |", "| |") for line in lines]
    return "\n".join([lines[0], "|" + "---|" * len(heading), *lines[1:]])
