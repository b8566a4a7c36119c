"""A row of a published table: the scores it printed, and the settings that train it again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from bert_mtl_demo.config import Config
from bert_mtl_demo.errors import ConfigError, unknown

# Every setting of a run, as the defaults were when the first results were published. A row is read
# on top of these, so that neither it nor the key of its finished runs changes when a default of the
# demo does. A later setting is pinned by its own `before`.
PINNED: dict[str, Any] = {
    "data": "sample",
    "encoder": "minilm",
    "seed": 0,
    "output": None,
    "cache": None,
    "bad_rows": "skip",
    "tasks": ("sst", "para", "sts"),
    "untrained": (),
    "max_length": 128,
    "train_limit": None,
    "dev_limit": None,
    "freeze_encoder": False,
    "encoder_layers": (),
    "cache_features": False,
    "trim_vocabulary": False,
    "encoder_dropout": None,
    "adapter": "none",
    "adapter_size": None,
    "layer_decay": 1.0,
    "pretrain": (),
    "pretrain_epochs": 1,
    "pretrain_steps": None,
    "pretrain_batch_size": 16,
    "pretrain_accumulation": 1,
    "pretrain_lr": 1e-5,
    "temperature": 0.05,
    "pooling": "mean",
    "pairs": "siamese",
    "hidden_layers": 0,
    "para_head": "concat",
    "sts_head": "cosine",
    "dropout": 0.3,
    "para_loss": "cross_entropy",
    "sts_loss": "mse",
    "weighting": "none",
    "method": "pcgrad",
    "grouping": "model",
    "gradvac_beta": 0.01,
    "gradvac_update": "always",
    "gradvac_target": None,
    "batching": "zipped",
    "batch_size": 8,
    "partial_batch": 4,
    "epochs": 2,
    "steps_per_epoch": None,
    "max_steps": None,
    "lr": 1e-4,
    "warmup": 0.1,
    "schedule": "linear",
    "weight_decay": 0.01,
    "clip": 1.0,
    "amp": "off",
    "device": "auto",
    "log_every": 25,
    "checkpoint_every": 100,
    "max_nonfinite": 20,
    **{
        entry.name: entry.metadata["before"]
        for entry in fields(Config)
        if "before" in entry.metadata
    },
}

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
ADDED = "not in the report"  # the table of a row that is ours: a control, or a part by itself
SURGERY = ("method", "gradvac_beta", "gradvac_update", "gradvac_target")  # settings of surgery
UNTRAINED = "untrained"
SCORES = ("sst", "para", "sts", "mean", "leaderboard")


def unpinned(config: Config) -> dict[str, Any]:
    """The settings of a run that differ from `PINNED`, as plain values: what a result keeps.

    >>> unpinned(Config.from_mapping({**PINNED, "seed": 3}))
    {'seed': 3}
    """
    pinned = Config.from_mapping(PINNED).to_dict()
    return {name: v for name, v in config.to_dict().items() if v != pinned.get(name)}


@dataclass(frozen=True)
class Row:
    """One row.

    Args:
        paper: the paper's short name.
        name: the row's, unique within its paper.
        table: where it stands in the paper; `ADDED` for a row of ours.
        published: score name -> value on dev, for the columns that the paper fills.
        settings: fields of `Config` that differ from `PINNED`, at the published budget.
        note: where the paper's text leaves something open, and what was taken instead.
        separate: train every task by itself; the row shows their scores side by side.
        control: the row of the same paper that differs from this one in one thing only. For a row
            with surgery that is the same batches with the plain sum.

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
    def added(self) -> bool:
        """Whether it is ours and not the paper's."""
        return self.table == ADDED

    def config(self, **changes: Any) -> Config:
        """The settings of its run, whatever the demo's defaults are.

        >>> Row("some", "naive", "Table 1", {}, {"lr": 1e-5}).config(seed=3).lr
        1e-05
        """
        return Config.from_mapping({**PINNED, **self.settings, **changes})

    def plain_sum(self, name: str) -> Row:
        """The control of a row with surgery: the same batches, the plain sum.

        >>> row = Row("some", "surgery", "Table 1", {"sst": 0.5}, {"method": "gradvac"})
        >>> row.plain_sum("control").settings
        {'method': 'sum'}
        """
        settings = {key: value for key, value in self.settings.items() if key not in SURGERY}
        note = f"Control of {self.name}: the same batches, the plain sum."
        return Row(self.paper, name, ADDED, {}, {**settings, "method": "sum"}, note, self.separate)

    @classmethod
    def untrained(cls, paper: str, settings: Mapping[str, Any]) -> Row:
        """The row of a paper's model before its first step, for what scores are to be told from.

        >>> Row.untrained("some", {"dropout": 0.3}).settings
        {'dropout': 0.3, 'max_steps': 0}
        """
        note = "The model before its first step: heads as they were drawn, the encoder as it came."
        return cls(paper, UNTRAINED, ADDED, {}, {**settings, "max_steps": 0}, note)

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
        deviations: sentences about what is done otherwise here, in all of its rows.

    Raises:
        ValueError: when the control of a row is no row.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    baseline: str
    test_scores: tuple[tuple[str, Mapping[str, float]], ...] = ()
    deviations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = {row.name for row in self.rows}
        for row in self.rows:
            if row.control is not None and row.control not in names - {row.name}:
                raise ValueError(f"{row.name!r} has the control {row.control!r}, which is no row")

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
