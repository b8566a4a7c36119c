"""Theme ``trunk``: K losses of one shared forward, with surgery the exact way and at the features.

One encoder, K linear heads on one batch. The joint backward of ``sum(losses)`` goes through the
encoder once; surgery the exact way needs K passes, as "loss by loss" without surgery does; with
``features=`` each loss's backward ends at the encoder's output, and one goes on. Both the backward
alone (the forward is not timed) and the whole step are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import backward

from benchmarks import steps, workloads
from benchmarks.harness import Candidate, Times, alternate, ratio, seconds, spread
from benchmarks.options import Setting
from benchmarks.results import Result, Table, milliseconds
from gradsurgery import GradientSurgery, PCGrad

TASKS = (2, 3, 8)

JOINT, EACH = "plain, sum(losses).backward()", "plain, loss by loss"
EXACT, FEATURES = "pcgrad, exact", "pcgrad, features"
KINDS = (JOINT, EACH, EXACT, FEATURES)

COLUMNS = ("what", "median ms", "p20", "p80", "to sum(losses)", "to loss by loss", "rounds")


class Trunk(steps.Opposed):
    """One batch for all tasks."""

    def forward(self, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the features and the tasks' losses on ``tokens`` ([batch, length])."""
        features: Tensor = self.encoder(tokens).last_hidden_state
        pooled = features.mean(1)
        return features, [(head(pooled) - 1).square().mean() for head in self.heads]


class Step:
    """A training step of one kind, in two parts, with an optimizer of its own.

    Args:
        kind: one of :data:`KINDS`.
        model: shared by the kinds.
        tokens: the batch.
    """

    def __init__(self, kind: str, model: Trunk, tokens: Tensor) -> None:
        self.kind, self.model, self.tokens = kind, model, tokens
        names = [f"task {k}" for k in range(len(model.heads))]
        base = steps.adamw(model)
        self.surgery = GradientSurgery(base, PCGrad(), tasks=names)
        self.optimizer = self.surgery if kind in (EXACT, FEATURES) else base

    def forward(self) -> None:
        """Run the forward, on gradients that are gone."""
        self.optimizer.zero_grad()
        self.features, self.losses = self.model(self.tokens)

    def backward(self) -> None:
        """Run the backward, surgery included; losses are let go as they would be in a loop."""
        losses, features = self.losses, self.features
        del self.losses, self.features
        if self.kind == JOINT:
            backward(torch.stack(losses).sum())
        elif self.kind == EACH:
            for k, loss in enumerate(losses):
                backward(loss, retain_graph=k < len(losses) - 1)
        elif self.kind == EXACT:
            backward(self.surgery.join(losses))
        else:
            backward(self.surgery.join(losses, features=features))

    def whole(self) -> None:
        """Run a whole step."""
        self.forward()
        self.backward()
        self.optimizer.step()


def candidates(kinds: dict[str, Step]) -> dict[str, dict[str, Candidate]]:
    """Return what is timed, by part."""
    return {
        "backward": {name: Candidate(step.backward, step.forward) for name, step in kinds.items()},
        "whole step": {name: Candidate(step.whole) for name, step in kinds.items()},
    }


def measure(setting: Setting, tasks: int) -> list[dict[str, Any]]:
    """Return the figures for one number of tasks."""
    size = steps.SIZES["quick" if setting.quick else setting.device.type]
    torch.manual_seed(0)
    model = Trunk(size.encoder, tasks).to(setting.device)
    vocabulary = workloads.ENCODERS[size.encoder].get("vocab_size", 30522)
    tokens = torch.randint(0, vocabulary, (size.batch, size.length)).to(setting.device)
    kinds = {kind: Step(kind, model, tokens) for kind in KINDS}
    rows = []
    for part, timed in candidates(kinds).items():
        effort = setting.effort(31, 60 if setting.device.type == "cpu" else 10)
        times = alternate(timed, effort, setting.device, f"{part}, K = {tasks}")
        rows += [{"tasks": tasks, "part": part, **row} for row in figures(times)]
    return rows


def figures(times: Times) -> list[dict[str, Any]]:
    """Return a row for each kind."""
    taken = {kind: seconds(times[kind]) for kind in KINDS}
    return [
        {
            "kind": kind,
            "rounds": len(taken[kind]),
            "seconds": spread(taken[kind])._asdict(),
            "to_joint": ratio(taken[kind], taken[JOINT]),
            "to_loss_by_loss": ratio(taken[kind], taken[EACH]),
        }
        for kind in KINDS
    ]


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the table of one number of tasks and one part."""
    lines = []
    for row in rows:
        ratios = (row["to_joint"], row["to_loss_by_loss"])
        texts = [*milliseconds(row["seconds"].values()), *(f"{figure:.2f}" for figure in ratios)]
        lines.append([row["kind"], *texts, str(row["rounds"])])
    return Table(f"{rows[0]['tasks']} tasks, {rows[0]['part']}", COLUMNS, lines)


def run(setting: Setting) -> Result:
    """Measure the theme."""
    result = Result(
        "trunk",
        "with features: the joint backward, once through the encoder; exact: loss by loss, K times",
    )
    size = steps.SIZES["quick" if setting.quick else setting.device.type]
    result.parameters = {"tasks": list(TASKS), **size._asdict()}
    for tasks in TASKS:
        if setting.late:
            result.notes.append(f"{tasks} tasks: out of time")
            continue
        rows = measure(setting, tasks)
        result.figures += rows
        for part in dict.fromkeys(row["part"] for row in rows):
            result.tables.append(table([row for row in rows if row["part"] == part]))
    result.notes.append("backward: with surgery, and without the forward and AdamW.")
    return result
