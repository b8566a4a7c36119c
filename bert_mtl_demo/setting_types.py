"""Types of settings: how a value from a flag, a file or Python becomes a checked one.

A type is a function from what the user wrote to the value the program uses; it raises a ValueError
that states the rule. Flags arrive as text, JSON and TOML as typed values; both go
through the same function, so both get the same message.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, field
from decimal import Decimal
from itertools import pairwise
from typing import Any

from bert_mtl_demo.errors import unknown

Parser = Callable[[Any], Any]
MOST = 2**63 - 1  # what torch's generators and index types hold
LONGEST = 200  # characters of a value that a message quotes


def setting(
    default: Any, parse: Parser, help: str, *, rare: bool = False, before: Any = MISSING
) -> Any:
    """A dataclass field that checks its value and has its help for the command line.

    Args:
        default: its value if nothing is set.
        parse: its type.
        help: one line.
        rare: whether only a published row needs it; `--help-all` shows it, `--help` does not.
        before: for a setting that came later, the value that says what runs did before it; keys of
            finished runs leave it out there, so that they are found again.

    >>> from dataclasses import dataclass, fields
    >>> @dataclass
    ... class Oven:
    ...     heat: int = setting(180, integer(low=0), "degrees")
    >>> fields(Oven)[0].metadata["parse"]("200")
    200
    """
    metadata = {"parse": parse, "help": help, "rare": rare}
    if before is not MISSING:
        metadata["before"] = before
    return field(default=default, metadata=metadata)


def integer(low: int, high: int = MOST) -> Parser:
    """A whole number from `low` to `high`, exactly as it is written.

    >>> integer(1)("8"), integer(0)("1e3")
    (8, 1000)
    """
    rule = f"must be a whole number of at least {low}"

    def parse(value: Any) -> int:
        number = _decimal(value, rule)
        if number > high:
            raise ValueError(f"must be at most {high}")
        # Compared first: the integer of 1e999999999 would fill the memory.
        if number < low or number != int(number):
            raise ValueError(rule)
        return int(number)

    return parse


def real(low: float, high: float = math.inf, *, open_low: bool = False) -> Parser:
    """A finite number in [low, high], or in (low, high] with `open_low`.

    >>> real(0, 1)("0.25")
    0.25
    """
    above = f"above {low:g}" if open_low else f"of at least {low:g}"
    most = f" and at most {high:g}" if math.isfinite(high) else ""
    rule = f"must be a number {above}{most}"

    def parse(value: Any) -> float:
        number = float(_decimal(value, rule))
        finite = math.isfinite(number)
        if not finite or number < low or number > high or (open_low and number == low):
            raise ValueError(rule)
        return number

    return parse


@dataclass(frozen=True)
class Choice:
    """One of some names, or several joined by plus signs, each at most once.

    >>> Choice(("sum", "pcgrad"))("sum"), Choice(("mean", "cnn"), several=True)("mean+cnn")
    ('sum', 'mean+cnn')
    """

    names: tuple[str, ...]
    several: bool = False

    def __call__(self, value: Any) -> str:
        """The value, if it is one."""
        parts = str(value).split("+") if self.several else [str(value)]
        for part in parts:
            if part not in self.names:
                raise ValueError(unknown("name", part, self.names))
        if len(set(parts)) != len(parts):
            raise ValueError("must not name anything twice")
        return str(value)


def choice(*names: str) -> Choice:
    """One of the given names."""
    return Choice(names)


def text(value: Any) -> str:
    """Any text but the empty one, and one that a file can be named by.

    >>> text("sample")
    'sample'
    """
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be a text that is not empty")
    if not is_writable(value):
        raise ValueError("must be a text in UTF-8 without NUL characters")
    return value


def is_writable(value: str) -> bool:
    """Whether files can be named by a text, and messages show it.

    >>> is_writable("café"), is_writable("\\udce9")
    (True, False)
    """
    return "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)


def switch(value: Any) -> bool:
    """True or false.

    >>> switch("true"), switch(False)
    (True, False)
    """
    words = {"true": True, "yes": True, "false": False, "no": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def optional(parse: Parser) -> Parser:
    """A type that also allows nothing (`null` in a file, `none` in a flag).

    >>> optional(integer(1))("none") is None
    True
    """
    return lambda value: None if _is_none(value) else parse(value)


def names(value: Any) -> tuple[str, ...]:
    """Names, as a list or as a text with commas or blanks between them; `none` for no name.

    >>> names("sst,sts"), names(["sst", "sts"]), names("none")
    (('sst', 'sts'), ('sst', 'sts'), ())
    """
    if _is_none(value):
        return ()
    parts: Iterable[Any] = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or (isinstance(value, str) and not parts):
        raise ValueError("must be one or more names, or none")
    unique = tuple(str(part) for part in parts)
    if len(set(unique)) != len(unique):
        raise ValueError("must not name anything twice")
    return unique


def layers(value: Any) -> tuple[int, ...]:
    """Numbers of layers from 0, rising, as a list or a text; `none` for no number.

    >>> layers("0,2,5"), layers([0, 2]), layers("none")
    ((0, 2, 5), (0, 2), ())
    """
    rule = "must be numbers of layers from 0, each above the one before"
    parts = names(value) if isinstance(value, str) or value is None else value
    if not isinstance(parts, list | tuple):
        raise ValueError(rule)
    numbers = tuple(integer(0)(part) for part in parts)
    if any(low >= high for low, high in pairwise(numbers)):
        raise ValueError(rule)
    return numbers


def default_of(entry: Any) -> Any:
    """The default of a dataclass field (every setting has one)."""
    assert entry.default is not MISSING
    return entry.default


def _is_none(value: Any) -> bool:
    # Compared only if it is text: an array would answer for each of its entries.
    return value is None or (isinstance(value, str) and value == "none")


def quoted(value: Any) -> str:
    """A value as messages show it: in one line, and not longer than that.

    >>> quoted("pcgrad"), quoted([1]), quoted("two\\nlines")
    ('pcgrad', '[1]', "'two\\\\nlines'")
    """
    try:
        plain = isinstance(value, float) or (isinstance(value, str) and value.isprintable())
        written = str(value) if plain else repr(value)
    except Exception:  # a number of more digits than Python prints, or anything else's own error
        written = f"a value of type {type(value).__name__}"
    written = written if written.isprintable() else ascii(written)
    return written if len(written) <= LONGEST else f"{written[:LONGEST]}..."


def _decimal(value: Any, rule: str) -> Decimal:
    """A number exactly as it is written; a float would round whole numbers above 2^53."""
    # bool is an int in Python; `epochs = true` in a file is a slip, not one epoch.
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(rule)
    try:
        number = Decimal(value)
    except ArithmeticError:
        raise ValueError(rule) from None
    if not number.is_finite():
        raise ValueError(rule)
    return number
