"""Every method in training: segments, tasks that sit out, mixed precision, checkpoints."""

from __future__ import annotations

import copy
from itertools import islice

import pytest
import torch
from torch import Tensor, nn

from gradsurgery import GradientSurgery
from tests.methods import METHODS, every_method

TASKS = ("a", "b", "c")
#: Which tasks run in each step.
STEPS = ["abc", "abc", "ab", "c", "bc", "abc"]


def build(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.ModuleDict, GradientSurgery]:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh())
    model = nn.ModuleDict({"trunk": trunk, **{task: nn.Linear(6, 1) for task in TASKS}}).to(dtype)
    kind = torch.optim.AdamW if dtype == torch.float32 else torch.optim.SGD  # fp16 has no 1e-8
    base = kind(model.named_parameters(), lr=1e-2)  # type: ignore[operator]
    method = METHODS[name].make(0)
    return model, GradientSurgery(base, method, tasks=TASKS, grouping="layer")


def train(model: nn.ModuleDict, optimizer: GradientSurgery, first: int, last: int) -> list[Tensor]:
    """Steps ``first`` to ``last``; returns the parameters."""
    dtype = next(model.parameters()).dtype
    for number, tasks in islice(enumerate(STEPS), first, last):
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(8, 4, generator=generator).to(dtype)
        outputs = {task: model[task](model["trunk"](x)) for task in tasks}
        losses = {t: (y - TASKS.index(t)).square().mean() for t, y in outputs.items()}
        optimizer.join(losses).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().clone() for p in model.parameters()]


@every_method
def test_a_resumed_run_is_the_run_that_never_stopped(name: str) -> None:
    model, optimizer = build(name)
    train(model, optimizer, 0, 3)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    expected = train(model, optimizer, 3, len(STEPS))
    resumed, other = build(name)
    resumed.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    resumed_parameters = train(resumed, other, 3, len(STEPS))
    for one, two in zip(expected, resumed_parameters, strict=True):
        assert torch.equal(one, two)
        assert one.isfinite().all()


@every_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_half_precision_are_combined(name: str, dtype: torch.dtype) -> None:
    model, optimizer = build(name, dtype)
    before = [p.detach().clone() for p in model.parameters()]
    after = train(model, optimizer, 0, len(STEPS))
    assert all(p.isfinite().all() for p in after)
    assert any(not torch.equal(*pair) for pair in zip(before, after, strict=True))


@pytest.mark.parametrize("name", [name for name in METHODS if not name.startswith("throwaway")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gram_matrix_that_is_not_finite_raises_nothing(name: str, value: float) -> None:
    """On a GPU nobody looks first: the step falls back on the plain sum afterwards."""
    gram = torch.eye(3, dtype=torch.float64)
    gram[0, 1] = gram[1, 0] = gram[2, 2] = value
    weights = METHODS[name].decide(gram, torch.arange(3).expand(3, -1)).weights
    assert weights.shape == (1, 3)
