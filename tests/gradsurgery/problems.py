"""Small problems with known task gradients, for tests of the optimizer around the maths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from gradsurgery import GradientSurgery, Method, PCGrad

TASKS = ("a", "b", "c")


def linear_losses(parameters: Sequence[Tensor], grads: Sequence[Sequence[Tensor | None]]) -> list:
    """Losses whose gradients are ``grads[k][p]``; None keeps the parameter out of the graph."""
    return [
        sum((p * g).sum() for p, g in zip(parameters, task, strict=True) if g is not None)
        for task in grads
    ]


def vectors(*rows: Sequence[float], dtype: torch.dtype = torch.float32) -> list[list[Tensor]]:
    """One parameter, one gradient vector per task."""
    return [[torch.tensor(row, dtype=dtype)] for row in rows]


def wrap(
    parameters: Sequence[Tensor],
    method: Method | None = None,
    tasks: Sequence[str] = TASKS,
    base: type[torch.optim.Optimizer] = torch.optim.SGD,
    lr: float = 0.1,
    **options: object,
) -> GradientSurgery:
    """A wrapped SGD over ``parameters``."""
    built = base(parameters, lr=lr)  # type: ignore[call-arg]
    return GradientSurgery(built, method or PCGrad(), tasks=tasks, **options)  # type: ignore[arg-type]


class Fails(torch.autograd.Function):
    """Passes its input on, and has a backward that raises."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise MemoryError("out of memory in task b")


class TwoHeads(nn.Module):
    """A trunk, a head per task, and an adapter of task a's declared in the middle of the trunk."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.lower = nn.Linear(3, width)
        self.adapter = nn.Linear(width, width)  # task a only
        self.upper = nn.Linear(width, width)
        self.heads = nn.ModuleDict({task: nn.Linear(width, 1) for task in ("a", "b")})
        self.spare = nn.Linear(width, width)  # nobody's

    def forward(self, x: Tensor, task: str) -> Tensor:
        hidden = self.lower(x).tanh()
        if task == "a":
            hidden = hidden + self.adapter(hidden)
        out: Tensor = self.heads[task](self.upper(hidden).tanh())
        return out


def losses_of(model: TwoHeads, seed: int = 0) -> dict[str, Tensor]:
    """Squared outputs on a batch per task."""
    generator = torch.Generator().manual_seed(seed)
    batches = {task: torch.randn(8, 3, generator=generator) for task in ("a", "b")}
    signs = {"a": 1.0, "b": -1.0}
    return {t: (model(x, t) - signs[t]).square().mean() for t, x in batches.items()}


def two_heads(method: Method, grouping: str = "layer") -> tuple[TwoHeads, GradientSurgery]:
    """A model without its spare layer, and AdamW around which surgery is."""
    torch.manual_seed(0)
    model = TwoHeads()
    # torch's distributed checkpoint cannot carry Adam's state of a parameter that is never used.
    del model.spare
    base = torch.optim.AdamW(model.named_parameters(), lr=0.05)
    return model, GradientSurgery(base, method, tasks=("a", "b"), grouping=grouping)


def train_heads(model: TwoHeads, optimizer: GradientSurgery, steps: range) -> None:
    """Train, with the batches of these steps."""
    for seed in steps:
        optimizer.join(losses_of(model, seed)).backward()
        optimizer.step()
        optimizer.zero_grad()


def task_gradients(model: nn.Module, losses: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Each task's gradients by parameter name, through ``torch.autograd.grad``."""
    named = dict(model.named_parameters())
    by_task = {}
    for task, loss in losses.items():
        grads = torch.autograd.grad(
            loss, list(named.values()), retain_graph=True, allow_unused=True
        )
        by_task[task] = {n: g for n, g in zip(named, grads, strict=True) if g is not None}
    return by_task


def through_distributed_checkpoint(
    saved: tuple[nn.Module, GradientSurgery],
    resumed: tuple[nn.Module, GradientSurgery],
    folder: Path,
    flatten: bool,
) -> None:
    """Carry a model's weights and its optimizer's state over, the latter by torch's checkpoint."""
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    state = {"optimizer": get_optimizer_state_dict(*saved, options=options)}
    dcp.save(state, checkpoint_id=folder / "dcp", no_dist=True)
    resumed[0].load_state_dict(saved[0].state_dict())
    blank = {"optimizer": get_optimizer_state_dict(*resumed, options=options)}
    dcp.load(blank, checkpoint_id=folder / "dcp", no_dist=True)
    set_optimizer_state_dict(*resumed, blank["optimizer"], options=options)


def state_of(optimizer: GradientSurgery) -> dict[str, Any]:
    """The state of surgery in a checkpoint, which each group carries, as tensors again.

    Example:
        >>> state_of(wrap([nn.Parameter(torch.zeros(1))])).keys()
        dict_keys(['tasks', 'segments', 'rng'])
    """
    saved, *others = (group["surgery"] for group in optimizer.state_dict()["param_groups"])
    assert all(other == saved for other in others)
    numbers = {
        name: torch.tensor(value, dtype=torch.float64)
        for name, value in saved.items()
        if isinstance(value, list) and name not in ("tasks", "segments")
    }
    rng = torch.tensor(list(bytes.fromhex(saved["rng"])), dtype=torch.uint8)
    return {**saved, **numbers, "rng": rng}


def same(a: object, b: object) -> bool:
    """Whether two nests of dicts, lists and tensors are equal to the bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
