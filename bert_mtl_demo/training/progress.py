"""Progress of a run and the current window of its log: the small state beside the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any


@dataclass
class Progress:
    """Progress of a run; plain values, part of the checkpoint.

    >>> Progress(step=7).nonfinite
    0
    """

    step: int = 0  # steps taken, skipped ones included
    evaluated: int = -1  # the step after which dev was last scored
    nonfinite: int = 0  # steps skipped because a loss or gradient was not finite
    in_a_row: int = 0  # of those, the ones since the last good step
    best_score: float = -math.inf  # of the overall score that selects
    best_epoch: int = 0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Progress:
        """The progress in a checkpoint; one of 0.1.0 says `best_mean`.

        >>> Progress.from_dict({"step": 7, "best_mean": 0.5}).best_score
        0.5
        """
        names = {"best_mean": "best_score"}
        return cls(**{names.get(name, name): value for name, value in values.items()})


@dataclass
class Window:
    """Totals for the next line of the log; in the checkpoint, as a window may be interrupted."""

    steps: int = 0
    loss: dict[str, list[float]] = field(default_factory=dict)  # task -> [sum, count]
    norm: list[float] = field(default_factory=lambda: [0.0, 0])  # [sum, count]
    nonfinite: int = 0
    lr: float | None = None  # of the last step that was taken

    def add_loss(self, task: str, value: float) -> None:
        """Count one finite loss."""
        total = self.loss.setdefault(task, [0.0, 0])
        total[0] += value
        total[1] += 1

    def summary(self) -> dict[str, Any]:
        """Means, and None where nothing was counted."""
        return {
            "lr": self.lr,
            "loss": {task: total / count for task, (total, count) in self.loss.items()},
            "grad_norm": self.norm[0] / self.norm[1] if self.norm[1] else None,
            "nonfinite": self.nonfinite,
        }


def window_line(row: Mapping[str, Any], goal: int) -> str:
    """A window of the log in one line: step, losses, learning rate, speed and time left.

    >>> row = {"step": 25, "loss": {"sst": 1.6, "sts": 2.0}, "lr": 1e-5, "steps_per_second": 0.5}
    >>> window_line(row, goal=100)
    'step 25/100  sst 1.600  sts 2.000  lr 1.0e-05  0.50 steps/s  0:02:30 left'
    """
    speed = row["steps_per_second"]
    left = timedelta(seconds=round((goal - row["step"]) / speed))
    rate = "" if row["lr"] is None else f"lr {row['lr']:.1e}  "
    return (
        f"step {row['step']}/{goal}  {losses_line(row['loss'])}  {rate}"
        f"{speed:.2f} steps/s  {left} left"
    )


def losses_line(losses: Mapping[str, float]) -> str:
    """Losses by task in one line.

    >>> losses_line({"sst": 1.6, "sts": 2.0})
    'sst 1.600  sts 2.000'
    """
    return "  ".join(f"{task} {loss:.3f}" for task, loss in losses.items())


def score_line(scores: Mapping[str, float], mean: float, leaderboard: float) -> str:
    """Scores in one line.

    >>> score_line({"sst": 0.5, "sts": 0.75}, 0.625, 0.6875)
    'sst .500  sts .750  mean .625  leaderboard .688'
    """
    named = {**scores, "mean": mean, "leaderboard": leaderboard}
    return "  ".join(f"{name} {short(value)}" for name, value in named.items())


def short(value: float) -> str:
    """A score with three decimals and no leading zero, as the papers print it.

    >>> short(0.4986), short(-0.05), short(1.0)
    ('.499', '-.050', '1.000')
    """
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 0.9995 else f"{value:.3f}"
