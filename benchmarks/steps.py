"""Training steps to compare: one BERT, a head per task, AdamW, with surgery and without.

Two ways to feed K tasks. With *own* batches each task has its own tokens and its own forward; with
a *shared* batch there is one forward and K losses. ``sum(losses).backward()`` is the plain step in
both; "loss by loss" makes the K backward passes that any surgery needs, and no surgery.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import backward
from torch.optim import AdamW

from benchmarks import workloads
from gradsurgery import GradientSurgery, GradVac, Method, PCGrad, Sum

TASKS = ("sst", "para", "sts")

METHODS: dict[str, Callable[[], Method]] = {"sum": Sum, "pcgrad": PCGrad, "gradvac": GradVac}

PLAIN, EACH = "plain, sum(losses).backward()", "plain, loss by loss"

OWN, SHARED = "own", "shared"

#: What the ways of feeding are called in tables.
FEEDS = {OWN: "one batch per task", SHARED: "one shared batch"}

Step = Callable[[], object]


class Size(NamedTuple):
    """Encoder, sentences per batch, tokens per sentence."""

    encoder: str
    batch: int
    length: int


#: The sizes measured, by device; "quick" for smoke runs.
SIZES = {
    "cpu": Size("minilm", 8, 48),
    "cuda": Size("bert-base", 32, 128),
    "quick": Size("mini", 2, 8),
}


class MultiTask(nn.Module):
    """An encoder and a linear head per task.

    The first two heads start out opposed, so that their tasks conflict from the first step on and
    surgery has something to do.
    """

    def __init__(self, size: str, dropout: float) -> None:
        super().__init__()
        self.encoder = workloads.encoder(size, dropout)
        width = workloads.ENCODERS[size]["hidden_size"]
        heads = [nn.Linear(width, 1) for _ in TASKS]
        heads[1].weight.data.sub_(heads[0].weight.data)
        self.heads = nn.ModuleDict(dict(zip(TASKS, heads, strict=True)))

    def features(self, tokens: Tensor) -> Tensor:
        """Return the last hidden states of ``tokens`` ([batch, length])."""
        hidden: Tensor = self.encoder(tokens).last_hidden_state
        return hidden

    def loss(self, task: str, features: Tensor) -> Tensor:
        """Return a task's loss on the encoder's output."""
        loss: Tensor = (self.heads[task](features.mean(1)) - 1).square().mean()
        return loss

    def forward(self, task: str, tokens: Tensor) -> Tensor:
        """Return a task's loss on its own tokens."""
        return self.loss(task, self.features(tokens))

    def losses(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return all tasks' losses on shared tokens."""
        features = self.features(tokens)
        return {task: self.loss(task, features) for task in TASKS}


class Opposed(nn.Module):
    """An encoder and K linear heads; every second starts out opposed to the one before."""

    def __init__(self, size: str, tasks: int) -> None:
        super().__init__()
        self.encoder = workloads.encoder(size)
        width = workloads.ENCODERS[size]["hidden_size"]
        heads = [nn.Linear(width, 1) for _ in range(tasks)]
        for one, other in zip(heads[::2], heads[1::2], strict=False):
            other.weight.data.copy_(-one.weight.data)
        self.heads = nn.ModuleList(heads)


class Problem(NamedTuple):
    """A model and its batches; a shared batch is the first task's.

    Attributes:
        model: on its device.
        batches: tokens by task.
        autocast: entered around each forward.
    """

    model: MultiTask
    batches: dict[str, Tensor]
    autocast: Callable[[], AbstractContextManager[None]]

    @property
    def tokens(self) -> Tensor:
        """The shared batch."""
        return self.batches[TASKS[0]]

    def loss(self, task: str) -> Tensor:
        """A task's loss on its own batch."""
        with self.autocast():
            loss: Tensor = self.model(task, self.batches[task])
        return loss

    def losses(self) -> dict[str, Tensor]:
        """The tasks' losses on the shared batch."""
        with self.autocast():
            return self.model.losses(self.tokens)


def problem(size: Size, device: torch.device, bf16: bool = False, dropout: float = 0.1) -> Problem:
    """Build a model and its batches, the same at each call."""
    torch.manual_seed(0)
    model = MultiTask(size.encoder, dropout).to(device)
    vocabulary = workloads.ENCODERS[size.encoder].get("vocab_size", 30522)
    shape = (size.batch, size.length)
    batches = {task: torch.randint(0, vocabulary, shape).to(device) for task in TASKS}
    return Problem(model, batches, lambda: torch.autocast(device.type, torch.bfloat16, bf16))


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """The base optimizer. Each step has one of its own, so that no state is shared."""
    return AdamW(model.named_parameters(), lr=1e-5)


def plain(task: Problem, feed: str) -> Step:
    """Sum of the losses, one backward."""
    optimizer = adamw(task.model)

    def step() -> None:
        losses = task.losses() if feed == SHARED else {name: task.loss(name) for name in TASKS}
        backward(torch.stack(list(losses.values())).sum())
        optimizer.step()
        optimizer.zero_grad()

    return step


def each(task: Problem, feed: str) -> Step:
    """Loss by loss, and no surgery; own batches free each graph before the next forward."""
    optimizer = adamw(task.model)

    def step() -> None:
        losses = task.losses() if feed == SHARED else None
        for name in TASKS:
            loss = task.loss(name) if losses is None else losses[name]
            backward(loss, retain_graph=losses is not None and name != TASKS[-1])
        optimizer.step()
        optimizer.zero_grad()

    return step


def surgery(task: Problem, feed: str, optimizer: GradientSurgery) -> Step:
    """Surgery: ``join`` on a shared batch, task after task on own ones."""

    def step() -> None:
        if feed == SHARED:
            backward(optimizer.join(task.losses()))
        else:
            for name in TASKS:
                with optimizer.task(name):
                    backward(task.loss(name))
            optimizer.combine()
        optimizer.step()
        optimizer.zero_grad()

    return step


def build(kind: str, task: Problem, feed: str) -> Step:
    """Return the step called ``kind``: :data:`PLAIN`, :data:`EACH`, or one of :data:`METHODS`."""
    if kind == PLAIN:
        return plain(task, feed)
    if kind == EACH:
        return each(task, feed)
    return surgery(task, feed, wrapped(kind, task.model))


def wrapped(method: str, model: nn.Module) -> GradientSurgery:
    """Return AdamW with surgery around it."""
    return GradientSurgery(adamw(model), METHODS[method](), tasks=TASKS)
