"""Tables: Markdown in pages, with texts that cannot break it, and aligned columns in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gradsurgery.report import cell

__all__ = ["aligned", "cell", "table"]


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


def aligned(heading: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """A table for a terminal: the first column to the left, the others to the right.

    >>> print(aligned(["pair", "steps"], [["sst, sts", 4], ["a, b", 1200]]))
    pair      steps
    sst, sts      4
    a, b       1200
    """
    cells = [[str(value) for value in row] for row in (heading, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for first, *others in cells:
        columns = [first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]
        lines.append("  ".join(columns).rstrip())
    return "\n".join(lines)
