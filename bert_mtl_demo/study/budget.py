"""How much of a published row is trained: data, encoder, and the part of its budget that is spent.

A row's settings are the published ones. A budget changes where they run (data, encoder, device) and
how long (epochs, steps), and says so on the page; everything that tells two rows apart stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bert_mtl_demo.config import ALTERNATING, Config
from bert_mtl_demo.model.encoder import PACKAGED
from bert_mtl_demo.study.published import Row


@dataclass(frozen=True)
class Budget:
    """What is spent on every row.

    Args:
        data, encoder: as in `Config`.
        epochs: at most so many; None leaves the row's own.
        steps: batches of each task in an epoch; None leaves the row's own. A scheme that gives a
            step one task takes as many times more steps, so that all rows see as much data.
        lr_scale: factor on the rows' learning rates. A small encoder trained for a hundredth of
            the steps wants a larger one.
        settings: any other fields of `Config`, over the row's.
    """

    data: str = "sample"
    encoder: str = PACKAGED
    epochs: int | None = None
    steps: int | None = None
    lr_scale: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def configs(self, row: Row, seed: int) -> list[Config]:
        """The runs of a row: one, or one per task if it trains them separately.

        >>> naive = Row("some", "naive", "Table 1", {}, {"batching": "round_robin", "epochs": 10})
        >>> (config,) = Budget(epochs=2, steps=100).configs(naive, seed=0)
        >>> config.epochs, config.steps_per_epoch
        (2, 300)
        """
        whole = self._config(dict(row.settings), seed)
        if not row.separate:
            return [whole]
        return [self._config({**row.settings, "tasks": (name,)}, seed) for name in whole.tasks]

    def _config(self, settings: dict[str, Any], seed: int) -> Config:
        plain = Config.from_mapping(settings)  # the row's own, with every default in place
        changes: dict[str, Any] = {
            "data": self.data,
            "encoder": self.encoder,
            "seed": seed,
            "lr": min(1.0, plain.lr * self.lr_scale),
            "checkpoint_every": max(1000, plain.checkpoint_every),
        }
        if self.epochs is not None:
            changes["epochs"] = min(plain.epochs, self.epochs)
        if self.steps is not None:
            wanted = self.steps * turns(plain)
            changes["steps_per_epoch"] = min(plain.steps_per_epoch or wanted, wanted)
        if self.encoder == PACKAGED and plain.pooling == "pooler":
            changes["pooling"] = "mean"
        return Config.from_mapping({**settings, **changes, **self.settings})

    def substitutions(self) -> list[str]:
        """What a page has to say about rows that could not be run as published."""
        if self.encoder != PACKAGED:
            return []
        return [
            "all-MiniLM-L6-v2 was trained under mean pooling and its pooler never was, so rows "
            "that take the pooler's output take the mean here.",
            "all-MiniLM-L6-v2 has seen Quora's duplicate questions in its own training, so its "
            "paraphrase scores are not clean.",
        ]


def turns(config: Config) -> int:
    """Steps in which every trained task has had a batch of its own, about.

    >>> turns(Config(batching="zipped")), turns(Config(batching="round_robin"))
    (1, 3)
    """
    alone = config.batching in ALTERNATING or config.batching == "uniform_partial"
    return len(config.trained) if alone else 1
