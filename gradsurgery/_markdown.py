"""Names and other foreign text, made safe for a terminal and for a Markdown table."""

from __future__ import annotations

import re
import unicodedata

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_MARKUP = str.maketrans({**_ENTITIES, **{c: f"\\{c}" for c in "|[`"}})
#: A backslash that Markdown would read together with the punctuation after it.
_ESCAPE = re.compile(r"\\(?=[!-/:-@\[-`{-~])")
#: Control characters, formats such as right-to-left marks, lone surrogates.
_HIDDEN = frozenset({"Cc", "Cf", "Cs"})


def visible(text: object) -> str:
    r"""Return the text with a code for every character that a terminal does not show as itself.

    >>> print(visible("a\x1b[31m\nb"))
    a\x1b[31m\nb
    """
    line = str(text)
    if line.isascii() and line.isprintable():
        return line
    return "".join(_code(c) if unicodedata.category(c) in _HIDDEN else c for c in line)


def cell(text: object) -> str:
    r"""Return the text as it can stand in a Markdown table, a page and a terminal.

    >>> cell("a|b <i> \n c")
    'a\\|b &lt;i&gt; c'
    >>> print(cell("\x1b[2J"))
    \x1b\[2J
    """
    line = visible(" ".join(str(text).split()))
    return _ESCAPE.sub(r"\\\\", line).translate(_MARKUP)


def _code(character: str) -> str:
    return ascii(character)[1:-1]
