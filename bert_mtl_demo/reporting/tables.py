"""Markdown tables, and texts that cannot break them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


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


def cell(text: object) -> str:
    """A text that cannot break a table or the page.

    >>> cell("a|b <i> \\n c")
    'a\\\\|b &lt;i&gt; c'
    """
    line = " ".join(str(text).split())
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "\\|")
