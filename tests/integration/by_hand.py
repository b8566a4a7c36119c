"""Three tasks on one trunk, and the loop one would write by hand, which all integrations equal.

The loop shares no line with the library: gradients from ``torch.autograd.grad``, PCGrad on float64
vectors as the paper writes it, the bare optimizer's step on what was put into ``.grad``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

from gradsurgery import GradientSurgery, PCGrad
from tests import oracles
from tests.gradsurgery.problems import same

TASKS = ("a", "b", "c")
GOALS = {"a": 1.0, "b": -1.0, "c": 0.5}  # the tasks want different things: they conflict
SEED = 5

#: ``(model, step, task) -> loss``
Loss = Callable[[nn.Module, int, str], Tensor]


class Net(nn.Module):
    """A trunk, and a head per task."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
        self.heads = nn.ModuleDict({task: nn.Linear(16, 1) for task in TASKS})

    def forward(self, x: Tensor, task: str) -> Tensor:
        out: Tensor = self.heads[task](self.trunk(x))
        return out


def fresh_model() -> Net:
    torch.manual_seed(0)
    return Net()


def batch(step: int, task: str) -> Tensor:
    generator = torch.Generator().manual_seed(10 * step + TASKS.index(task))
    return torch.randn(6, 8, generator=generator)


def distance(out: Tensor, task: str) -> Tensor:
    return (out.float() - GOALS[task]).square().mean()


def separate(model: nn.Module, step: int, task: str) -> Tensor:
    """A batch and a forward of the task's own."""
    return distance(model(batch(step, task), task), task)


def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.02)


def momentum(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Linear in the gradients, so that rounding stays rounding."""
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def wrapped(base: torch.optim.Optimizer) -> GradientSurgery:
    return GradientSurgery(base, PCGrad(seed=SEED), tasks=TASKS)


def train(
    model: nn.Module, optimizer: GradientSurgery, steps: range, loss: Loss = separate
) -> nn.Module:
    """Train task by task, and make sure that surgery had something to do."""
    for step in steps:
        for task in TASKS:
            with optimizer.task(task):
                loss(model, step, task).backward()
        optimizer.combine()
        optimizer.step()
        optimizer.zero_grad()
    assert optimizer.conflicts.summary()["gradients"]["altered"] > 0
    return model


def train_by_hand(
    model: nn.Module, base: torch.optim.Optimizer, steps: range, loss: Loss = separate
) -> nn.Module:
    """Train the bare optimizer on the paper's update."""
    for step, order in zip(steps, orders(), strict=False):
        write_update(model, [loss(model, step, task) for task in TASKS], order)
        base.step()
        base.zero_grad()
    return model


def orders() -> Iterable[np.ndarray]:
    """The visiting orders [K, K] of each step, from the seed."""
    generator = torch.Generator().manual_seed(SEED)
    while True:
        draws = torch.rand(len(TASKS), len(TASKS), dtype=torch.float64, generator=generator)
        yield draws.argsort(dim=1).numpy()


def write_update(model: nn.Module, losses: list[Tensor], order: np.ndarray) -> None:
    """Put PCGrad's update into ``.grad``; a head has one task, whose gradient it keeps."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = [
        torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        for loss in losses
    ]
    columns = list(zip(*rows, strict=True))
    counts = [sum(grad is not None for grad in column) for column in columns]
    shared = [index for index, count in enumerate(counts) if count > 1]
    vectors = [torch.cat([row[index].flatten().double() for index in shared]) for row in rows]
    update = torch.from_numpy(oracles.pcgrad(torch.stack(vectors).numpy(), order).update)
    pieces = update.split([parameters[index].numel() for index in shared])
    for parameter, column in zip(parameters, columns, strict=True):
        parameter.grad = next((grad for grad in column if grad is not None), None)
    for index, piece in zip(shared, pieces, strict=True):
        parameter = parameters[index]
        parameter.grad = piece.view_as(parameter).to(parameter.dtype)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def furthest(model: nn.Module, other: nn.Module) -> float:
    """The largest difference between two models' weights."""
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def same_bits(model: nn.Module, other: nn.Module) -> bool:
    return same(list(model.parameters()), list(other.parameters()))
