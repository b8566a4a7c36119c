"""Text for a terminal: what a file or a name holds may not move the cursor or colour the screen."""

from __future__ import annotations

import textwrap

WIDTH = 80  # columns of a terminal


def printable(text: object) -> str:
    """A text whose control characters, but for line ends and tabs, are written as escapes.

    >>> printable("a\\x1b[2Jb\\n")
    'a\\\\x1b[2Jb\\n'
    """
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else ascii(letter)[1:-1]
        for letter in str(text)
    )


def wrapped(text: str) -> str:
    """Prose broken into the lines of a terminal; its own line ends stay.

    >>> wrapped("- one\\n- two")
    '- one\\n- two'
    """
    return "\n".join(
        textwrap.fill(line, WIDTH, break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n")
    )
