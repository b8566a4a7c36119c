"""Kinds of settings: how a value from a flag, a file or Python becomes a checked one.

A kind is a function from whatever the user wrote to the value the program uses, or a ValueError
that says what would have been right. Flags arrive as text, JSON and TOML as typed values; both go
through the same function, so both get the same message.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import MISSING, field
from typing import Any

from bert_mtl_demo.errors import unknown

Kind = Callable[[Any], Any]


def setting(default: Any, kind: Kind, says: str) -> Any:
    """A dataclass field that can check itself, and explain itself on the command line.

    >>> from dataclasses import dataclass, fields
    >>> @dataclass
    ... class Oven:
    ...     heat: int = setting(180, integer(low=0), "degrees")
    >>> fields(Oven)[0].metadata["kind"]("200")
    200
    """
    return field(default=default, metadata={"kind": kind, "says": says})


def integer(low: int) -> Kind:
    """A whole number of at least `low`.

    >>> integer(1)("8")
    8
    """

    def parse(value: Any) -> int:
        whole = _number(value, f"a whole number of at least {low}")
        if whole != int(whole) or whole < low:
            raise ValueError(f"must be a whole number of at least {low}")
        return int(whole)

    return parse


def real(low: float, high: float = math.inf, *, open_low: bool = False) -> Kind:
    """A finite number in [low, high], or in (low, high] with `open_low`.

    >>> real(0, 1)("0.25")
    0.25
    """
    above = f"above {low:g}" if open_low else f"of at least {low:g}"
    rule = f"a number {above}" + (f" and at most {high:g}" if math.isfinite(high) else "")

    def parse(value: Any) -> float:
        number = _number(value, rule)
        if number < low or number > high or (open_low and number == low):
            raise ValueError(f"must be {rule}")
        return number

    return parse


def choice(*names: str) -> Kind:
    """One of the given names.

    >>> choice("sum", "pcgrad")("sum")
    'sum'
    """

    def parse(value: Any) -> str:
        if value not in names:
            raise ValueError(unknown("name", str(value), names))
        return str(value)

    return parse


def text(value: Any) -> str:
    """Any text but the empty one.

    >>> text("sample")
    'sample'
    """
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be a text that is not empty")
    return value


def switch(value: Any) -> bool:
    """True or false.

    >>> switch("true"), switch(False)
    (True, False)
    """
    table = {"true": True, "yes": True, "false": False, "no": False}
    if isinstance(value, str) and value.lower() in table:
        return table[value.lower()]
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def optional(kind: Kind) -> Kind:
    """The same kind, or nothing (`null` in a file, `none` in a flag).

    >>> optional(integer(1))("none") is None
    True
    """

    def parse(value: Any) -> Any:
        return None if value is None or value == "none" else kind(value)

    return parse


def names(value: Any) -> tuple[str, ...]:
    """One or more names, as a list or as a text with commas or blanks between them.

    >>> names("sst,sts"), names(["sst", "sts"])
    (('sst', 'sts'), ('sst', 'sts'))
    """
    parts: Iterable[Any] = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not parts:
        raise ValueError("must be one or more names")
    found = tuple(str(part) for part in parts)
    if len(set(found)) != len(found):
        raise ValueError("must not name anything twice")
    return found


def any_names(value: Any) -> tuple[str, ...]:
    """Names as in `names`, or none at all (`none` in a flag, an empty list in a file).

    >>> any_names("none"), any_names("nli,simcse")
    ((), ('nli', 'simcse'))
    """
    empty = value is None or value == "none" or (isinstance(value, list | tuple) and not value)
    return () if empty else names(value)


def joined(*parts: str) -> Kind:
    """Some of the given names with plus signs between them, each at most once.

    >>> joined("mean", "cnn")("mean+cnn")
    'mean+cnn'
    """

    def parse(value: Any) -> str:
        found = str(value).split("+")
        for name in found:
            if name not in parts:
                raise ValueError(unknown("name", name, parts))
        if len(set(found)) != len(found):
            raise ValueError("must not name anything twice")
        return str(value)

    return parse


def default_of(entry: Any) -> Any:
    """The default of a dataclass field (every setting has one)."""
    assert entry.default is not MISSING
    return entry.default


def _number(value: Any, rule: str) -> float:
    # bool is an int in Python; `epochs = true` in a file is a slip, not one epoch.
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"must be {rule}")
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"must be {rule}") from None
    if not math.isfinite(number):
        raise ValueError(f"must be {rule}")
    return number
