"""A row of a published table: the scores it printed, and the settings that train it again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bert_mtl_demo.errors import ConfigError, unknown

# What the papers have in common, mostly from their course's starter code; none of the five says
# that it schedules its learning rate or clips.
STARTER: dict[str, Any] = {
    "method": "sum",
    "pooling": "pooler",
    "dropout": 0.3,
    "lr": 1e-5,
    "schedule": "constant",
    "warmup": 0.0,
    "weight_decay": 0.0,
    "clip": 0.0,
    "batch_size": 8,
    "epochs": 10,
}
SCORES = ("sst", "para", "sts", "mean", "leaderboard")


@dataclass(frozen=True)
class Row:
    """One row.

    Args:
        paper: the paper's short name.
        name: the row's, unique within its paper.
        table: where it stands in the paper.
        published: score name -> value on dev, for the columns that the paper fills.
        settings: fields of `Config` that differ from the defaults, at the published budget.
        note: where the paper's text leaves something open, and what was taken instead.
        separate: train every task by itself; the row shows their scores side by side.
        control: the row of the same paper that differs from this one in one thing only.

    >>> row = Row("pals_gradvac", "Naive", "Table 1", {"sst": 0.498}, {"batch_size": 8})
    >>> row.slug
    'naive'
    """

    paper: str
    name: str
    table: str
    published: Mapping[str, float]
    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    separate: bool = False
    control: str | None = None

    def __post_init__(self) -> None:
        for score in self.published:
            if score not in SCORES:
                raise ValueError(f"{self.name!r} publishes {score!r}; it is one of {SCORES}")

    @property
    def slug(self) -> str:
        """The name as a file name."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True)
class Paper:
    """The rows of one paper.

    Args:
        name: its short name.
        title: of the paper.
        rows: in the order of its tables.
        baseline: the row that the others are compared with.
        test_scores: what it published on test sets, whose labels nobody else has.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    baseline: str
    test_scores: tuple[tuple[str, Mapping[str, float]], ...] = ()

    def row(self, name: str) -> Row:
        """The row of that name."""
        rows = {row.name: row for row in self.rows}
        if name not in rows:
            raise ConfigError(f"rows = {name}: {unknown('row', name, rows)}")
        return rows[name]

    def select(self, names: Sequence[str]) -> tuple[Row, ...]:
        """The rows of those names; without names, all of them."""
        return tuple(self.row(name) for name in names) or self.rows


def scores(
    sst: float | None = None,
    para: float | None = None,
    sts: float | None = None,
    *,
    mean: float | None = None,
    leaderboard: float | None = None,
) -> dict[str, float]:
    """The columns that are filled.

    >>> scores(0.516, sts=0.361, mean=0.553)
    {'sst': 0.516, 'sts': 0.361, 'mean': 0.553}
    """
    columns = {"sst": sst, "para": para, "sts": sts, "mean": mean, "leaderboard": leaderboard}
    return {name: value for name, value in columns.items() if value is not None}
