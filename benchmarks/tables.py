"""Tables: a column is a heading and a function from a row to text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

#: Figures of one measured row, by name, as the result files have them.
Row = dict[str, Any]

Columns = Sequence[tuple[str, Callable[[Row], str]]]


@dataclass(frozen=True)
class Table:
    """A table with a title; cells are text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return title and table."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join([f"## {self.title}", "", *(f"| {' | '.join(line)} |" for line in lines)])


def table(title: str, columns: Columns, rows: Iterable[Row]) -> Table:
    """Return the table of all rows."""
    cells = [[text(row) for _, text in columns] for row in rows]
    return Table(title, [heading for heading, _ in columns], cells)


def tables(title: str, columns: Columns, rows: Iterable[Row]) -> list[Table]:
    """Return a table for each title, which is a format of the rows' fields.

    Example:
        >>> rows = [{"tasks": 2, "ms": 5}, {"tasks": 3, "ms": 7}, {"tasks": 3, "ms": 8}]
        >>> for group in tables("{tasks} tasks", [("ms", field("ms"))], rows):
        ...     print(group.title, group.rows)
        2 tasks [['5']]
        3 tasks [['7'], ['8']]
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        formatted = title.format(**row)
        groups.setdefault(formatted[:1].upper() + formatted[1:], []).append(row)
    return [table(name, columns, group) for name, group in groups.items()]


def field(path: str, text: Callable[[Any], str] = str) -> Callable[[Row], str]:
    """Return the cell that shows one field; a field that is missing or None is an empty cell.

    Args:
        path: name, or names of nested dictionaries joined by dots.
        text: writes the value.
    """

    def cell(row: Row) -> str:
        value: Any = row
        for name in path.split("."):
            value = None if value is None else value.get(name)
        return "" if value is None else text(value)

    return cell


def decimals(count: int) -> Callable[[float], str]:
    """Return the writer of numbers with so many decimals."""
    return f"{{:.{count}f}}".format


def milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds."""
    return digits(1000 * seconds)


def digits(value: float) -> str:
    """Return a positive number with three significant digits, or all before the point.

    Example:
        >>> [digits(x) for x in (0.01234, 1.234, 12.34, 1234.0)]
        ['0.0123', '1.23', '12.3', '1234']
    """
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


TIMES: Columns = [
    ("median ms", field("seconds.median", milliseconds)),
    ("p20", field("seconds.p20", milliseconds)),
    ("p80", field("seconds.p80", milliseconds)),
]
ROUNDS = ("rounds", field("rounds"))
