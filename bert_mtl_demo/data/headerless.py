"""Rows of tables without a header: JSON lines, and columns that go by their numbers.

Quotes are text in a table without a header between tabs or ` ||| `, as in the STS benchmark and in
the course of CMU; between commas they are those of `csv`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence

from bert_mtl_demo.data.records import UnreadableError, decoded

JSON_LINES = (".jsonl", ".ndjson", ".json")
SEPARATORS = ("\t", " ||| ")

Row = tuple[int, "tuple[str, ...] | str"]


def objects(file: str, lines: Sequence[bytes], keys: Sequence[str]) -> Iterator[Row]:
    """The values of some keys in each line, or what is wrong with it.

    >>> list(objects("some.jsonl", [b'{"text": "It rains.", "label": 1}'], ["text", "label"]))
    [(1, ('It rains.', '1'))]
    """
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(decoded(line))
        except (UnreadableError, ValueError, RecursionError) as error:
            yield number, f"no JSON ({error})"
            continue
        if not isinstance(values, dict):
            yield number, "no JSON object"
        elif missing := [key for key in keys if key not in values]:
            has = ", ".join(map(repr, values)) or "none"
            yield number, f"no key {missing[0]!r} (the object has {has})"
        else:
            yield number, tuple(_text(values[key]) for key in keys)


def _text(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def keys_of(line: bytes) -> list[str]:
    """The keys of a line's object; none if it is no object."""
    try:
        values = json.loads(decoded(line))
    except (UnreadableError, ValueError, RecursionError):
        return []
    return list(values) if isinstance(values, dict) else []


def positions(lines: Sequence[bytes], columns: Sequence[int]) -> Iterator[Row]:
    """The fields at some positions, from 1, of each line, or what is wrong with it.

    >>> list(positions([b"3 ||| A quiet joy .", b"4"], [2, 1]))
    [(1, ('A quiet joy .', '3')), (2, '1 field where column 2 is wanted')]
    """
    last = max(columns)
    for number, line in enumerate(lines, start=1):
        try:
            fields = split_line(line)
        except (UnreadableError, csv.Error) as error:
            yield number, str(error)
            continue
        if min(columns) < 1 or len(fields) < last:
            plural = "" if len(fields) == 1 else "s"
            yield number, f"{len(fields)} field{plural} where column {last} is wanted"
        else:
            yield number, tuple(fields[column - 1].strip() for column in columns)


def split_line(line: bytes) -> list[str]:
    """The fields of a line without a header above it.

    Raises:
        UnreadableError: when it is no text.
    """
    text = decoded(line).removesuffix("\r")
    for separator in SEPARATORS:
        if separator in text:
            return text.split(separator)
    return next(csv.reader([text]), [])
