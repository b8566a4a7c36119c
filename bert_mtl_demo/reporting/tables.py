"""Markdown tables, and texts that cannot break them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bert_mtl_demo.printing import printable

# As characters of a text, not as marks of Markdown or HTML; without "[" there is no link or image.
_PLAIN = str.maketrans(
    {"\\": "\\\\", "&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "\\|", "[": "\\["}
)


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
    return printable(" ".join(str(text).split())).translate(_PLAIN)
