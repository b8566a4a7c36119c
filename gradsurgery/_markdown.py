"""Names and other foreign text, made safe for a terminal and for a Markdown table."""

from __future__ import annotations

import re

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_MARKUP = str.maketrans({**_ENTITIES, **{c: f"\\{c}" for c in "|["}})
#: A backslash that Markdown would read together with the punctuation after it.
_ESCAPE = re.compile(r"\\(?=[!-/:-@\[-`{-~])")


def visible(text: object) -> str:
    r"""Return the text with a code for every character that a terminal does not show as itself.

    >>> print(visible("a\x1b[31m\nb"))
    a\x1b[31m\nb
    """
    line = str(text)
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def cell(text: object) -> str:
    r"""Return the text as it can stand in a Markdown table, a page and a terminal.

    >>> cell("a|b <i> \n c")
    'a\\|b &lt;i&gt; c'
    >>> print(cell("\x1b[2J"))
    \x1b\[2J
    """
    line = visible(" ".join(str(text).split()))
    return _ESCAPE.sub(r"\\\\", line).translate(_MARKUP)
