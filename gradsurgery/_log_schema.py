"""The shape of a conflict log's line: the types are those of ``Line``, the bounds those of counts.

Sums of counts and cosines can only be trusted if what goes into them could have been counted: no
pair conflicts more often than it met, and no cosine is 2.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from gradsurgery.summary import Line

_LARGEST = sys.float_info.max
_ROUNDING = sys.float_info.epsilon  # relative, of one addition of cosines

Check = Callable[[Any], None]


class LineError(Exception):
    """A part of a line that is not what it has to be; its arguments are the keys and the fault."""

    def within(self, key: str) -> LineError:
        """Return the same error of a part of a larger value."""
        return LineError(key, *self.args)

    def __str__(self) -> str:
        *path, fault = self.args
        return f"{'.'.join(path) or 'the line'} {fault}"


def check(line: Any) -> None:
    """Check a line as read from JSON.

    Raises:
        LineError: names the key, and the value that was read.

    Example:
        >>> check([1])
        Traceback (most recent call last):
        gradsurgery._log_schema.LineError: the line is [1], not an object
    """
    _LINE(line)
    window, tasks, segments = line["window"], line["tasks"], line["segments"]
    _demand(len(set(tasks)) == len(tasks), "tasks", "names a task twice")
    _demand(window >= 0, "window", f"is {window}, less than no step")
    _demand(segments >= 1, "segments", f"is {segments}, and there is at least 1")
    _demand(0 <= line["nonfinite"] <= window, "nonfinite", _of(line["nonfinite"], window))
    unmeasured = line.get("unmeasured", 0)
    _demand(0 <= unmeasured <= window, "unmeasured", _of(unmeasured, window))
    _counts(line["gradients"], window * len(tasks), "gradients")
    _pairs(line["pairs"], tasks, window, segments, "pairs")
    for n, part in enumerate(line.get("by_segment", ())):
        _pairs(part["pairs"], tasks, window, 1, f"by_segment.{n}.pairs")


def _pairs(
    rows: Sequence[Mapping[str, Any]],
    tasks: Sequence[str],
    window: int,
    segments: int,
    key: str,
) -> None:
    names, seen = set(tasks), set()
    for n, row in enumerate(rows):
        pair = i, j = row["i"], row["j"]
        if i not in names or j not in names or i == j or pair in seen:
            raise LineError(key, str(n), f"is of {i!r} and {j!r}, not a new pair of {list(tasks)}")
        seen.add(pair)
        _counts(row, window * segments, f"{key}.{n}")
        conflicts, possible = row["conflicts"], row["possible"]
        _demand(0 <= conflicts <= possible, f"{key}.{n}.conflicts", _of(conflicts, possible))
        _cosine(row["cosine"], row["possible"], f"{key}.{n}.cosine")
        if "evidence" in row:
            _sums(row["evidence"]["sums"], window, f"{key}.{n}.evidence.sums")


def _counts(row: Mapping[str, Any], most: int, key: str) -> None:
    """A method may call altered what another has not met, so possible does not bound it."""
    for name in ("possible", "altered"):
        count = row[name]
        if count is not None and not 0 <= count <= most:
            raise LineError(f"{key}.{name}", _of(count, most))


def _cosine(cosine: Mapping[str, Any], possible: int, key: str) -> None:
    low, mean, high = cosine["min"], cosine["mean"], cosine["max"]
    if not possible:
        _demand(low is mean is high is None, key, f"is {dict(cosine)}, though the pair never met")
    else:
        slack = possible * _ROUNDING  # of a sum of that many cosines, none larger than 1
        ordered = None not in (low, mean, high) and (
            low >= -1 and low - slack <= mean <= high + slack and high <= 1
        )
        _demand(ordered, key, f"is {dict(cosine)}, not -1 <= min <= mean <= max <= 1")


def _sums(sums: Sequence[float], window: int, key: str) -> None:
    """Check what :class:`~gradsurgery.evidence.Evidence` adds up."""
    _demand(len(sums) == 6, key, f"has {len(sums)} numbers, not 6")
    batches, s, n, s_s, s_n, n_n = sums
    more = 1 + n * _ROUNDING
    possible = (
        0 <= batches <= n <= window
        and abs(s) <= n * more
        and 0 <= s_s <= n_n * more
        and abs(s_n) <= n_n * more
        and n <= n_n <= n * n
    )
    _demand(possible, key, f"is {list(sums)}, which no cosines of {window} steps add up to")


def _of(count: int | None, most: int) -> str:
    return f"is {count}, not between 0 and {most}"


def _demand(condition: bool, key: str, fault: str) -> None:
    if not condition:
        raise LineError(key, fault)


def _compiled(kind: Any, null: bool = False) -> Check:
    """The check that a value is of a type as ``Line``'s annotations name it."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        (kind,) = (argument for argument in arguments if argument is not type(None))
        return _compiled(kind, null=True)
    if is_typeddict(kind):
        hints = get_type_hints(kind)
        return _object({k: _compiled(v) for k, v in hints.items()}, kind.__required_keys__)
    if origin is list:
        return _list(_compiled(arguments[0]))
    if origin is dict and get_origin(arguments[0]) is Literal:
        keys = get_args(arguments[0])
        return _object(dict.fromkeys(keys, _compiled(arguments[1])), frozenset(keys))
    if origin is dict:
        return _mapping(_compiled(arguments[1]))
    if origin is Literal:
        return _scalar(lambda value: value in arguments, f"one of {list(arguments)}", null)
    accepts, name = _SCALARS[kind]
    return _scalar(accepts, name, null)


def _object(parts: Mapping[str, Check], required: frozenset[str]) -> Check:
    """Keys that are not known are those of a later version, and stay."""
    checks = [(key, key in required, part) for key, part in parts.items()]

    def check(value: Any) -> None:
        if type(value) is not dict:
            raise LineError(f"is {_short(value)}, not an object")
        key = ""
        try:
            for key, needed, part in checks:
                if key in value:
                    part(value[key])
                elif needed:
                    raise LineError("is missing")
        except LineError as error:
            raise error.within(key) from None

    return check


def _mapping(part: Check) -> Check:
    def check(value: Any) -> None:
        if type(value) is not dict:
            raise LineError(f"is {_short(value)}, not an object")
        key = ""
        try:
            for key, item in value.items():  # noqa: B007
                part(item)
        except LineError as error:
            raise error.within(key) from None

    return check


def _list(part: Check) -> Check:
    def check(value: Any) -> None:
        if type(value) is not list:
            raise LineError(f"is {_short(value)}, not a list")
        n = 0
        try:
            for n, item in enumerate(value):  # noqa: B007
                part(item)
        except LineError as error:
            raise error.within(str(n)) from None

    return check


def _scalar(accepts: Callable[[Any], bool], name: str, null: bool) -> Check:
    def check(value: Any) -> None:
        if not (accepts(value) or (null and value is None)):
            raise LineError(f"is {_short(value)}, not {name}{' or null' if null else ''}")

    return check


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


_SCALARS: dict[Any, tuple[Callable[[Any], bool], str]] = {
    str: (lambda value: type(value) is str, "a text"),
    int: (lambda value: type(value) is int and abs(value) < 1 << 63, "a whole number"),
    float: (
        lambda value: type(value) in (int, float) and -_LARGEST <= value <= _LARGEST,
        "a finite number",
    ),
}
_LINE = _compiled(Line)
