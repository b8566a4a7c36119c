"""Torch's default device and dtype, which users set for their models, change nothing of surgery."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._device import _device_constructors

import gradsurgery
from gradsurgery import GradientSurgery, split
from gradsurgery import functional as F
from tests.methods import METHODS, every_method

ROOT = Path(gradsurgery.__file__).parent
FACTORIES = {function.__name__ for function in _device_constructors()} | {"Generator"}
#: Their dtype does not depend on the default one.
INTEGERS = {"arange", "triu_indices", "randperm", "Generator"}
TASKS = ("a", "b", "c")


def unsaid(path: Path) -> Iterator[str]:
    """The factory calls of a file that leave their device or dtype to torch."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
        name = node.func.attr
        if of_torch and name in FACTORIES:
            needed = {"device"} if name in INTEGERS else {"device", "dtype"}
            missing = needed - {keyword.arg for keyword in node.keywords}
            if missing:
                yield f"{path.name}:{node.lineno}: torch.{name} without {sorted(missing)}"


def test_every_factory_call_says_its_device_and_dtype() -> None:
    assert [call for path in sorted(ROOT.rglob("*.py")) for call in unsaid(path)] == []


def steps(name: str) -> list[Tensor]:
    """The weights after three steps in every way there is, and the figures of their conflicts."""
    # Tensors of the caller's say where they are; the library gets no help.
    cpu = {"dtype": torch.float32, "device": "cpu"}
    rng = torch.Generator("cpu").manual_seed(0)
    weight = nn.Parameter(torch.zeros(5, 2, **cpu))
    table = nn.Parameter(torch.ones(7, 2, **cpu))
    half = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16, device="cpu"))
    base = torch.optim.SGD([weight, half, table], lr=0.1)
    optimizer = GradientSurgery(base, METHODS[name].make(1), tasks=TASKS)
    for step in range(3):
        rows = torch.randn(3, 5, 2, generator=rng, **cpu)
        losses = {}
        for k, task in enumerate(TASKS):
            looked_up = nn.functional.embedding(
                torch.arange(k, k + 4, device="cpu"), table, sparse=True
            )
            losses[task] = (
                2 + (weight * rows[k]).sum() + half.sum().float() + looked_up.square().mean()
            ).square()
        if step == 1:  # a task is absent
            del losses["b"]
        if step == 2:
            for task, loss in losses.items():
                with optimizer.task(task, loss=loss.detach()):
                    loss.backward(retain_graph=True)
            optimizer.combine()
        else:
            optimizer.join(losses).backward()
        optimizer.step()
        optimizer.zero_grad()
    saved, window = optimizer.state_dict(), optimizer.conflicts.state_dict()
    optimizer.load_state_dict(saved)
    optimizer.conflicts.load_state_dict(window)
    figures = list(optimizer.conflicts.scalars().values())
    figures = torch.tensor(figures, dtype=torch.float64, device="cpu")
    return [weight.detach(), table.detach(), half.detach(), figures]


@every_method
def test_another_default_device_changes_nothing(name: str) -> None:
    expected = steps(name)
    with torch.device("meta"):
        torch.testing.assert_close(steps(name), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@every_method
def test_another_default_dtype_changes_nothing(name: str, dtype: torch.dtype) -> None:
    expected = steps(name)
    torch.set_default_dtype(dtype)
    try:
        torch.testing.assert_close(steps(name), expected, rtol=1e-6, atol=1e-9)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("tasks", [3, 12])
@pytest.mark.parametrize("native", ["0", "1"])
def test_functions_under_another_default_device(
    tasks: int, native: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADSURGERY_NATIVE", native)
    rng = torch.Generator().manual_seed(0)
    grads = [[torch.randn(20, generator=rng), torch.randn(9, generator=rng)] for _ in range(tasks)]
    order = torch.arange(tasks).repeat(tasks, 1)
    losses = torch.tensor([1.0, 2.0, 3.0])
    with torch.device("meta"):
        gram = F.gram(grads)
        update = F.combine(grads, F.pcgrad(gram, order).weights)
        mixed = split(losses, [0, 1, 0], TASKS)
    assert {gram.device.type, update[0].device.type, mixed["a"].device.type} == {"cpu"}
    assert torch.equal(gram, F.gram(grads))


def test_smoothing_features_and_means_under_another_default_device() -> None:
    weight = nn.Parameter(torch.ones(4))
    optimizer = GradientSurgery(
        torch.optim.SGD([weight], lr=0.1),
        METHODS["gradvac"].make(0),
        tasks=TASKS,
        smoothing=0.9,
        reduction="mean",
    )
    rows = torch.eye(4)
    with torch.device("meta"):
        for _ in range(2):
            trunk = weight * 2
            losses = [(trunk * row).sum() - trunk.mean() for row in rows[:3]]
            optimizer.join(losses, features=trunk).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert weight.device.type == "cpu"
    assert weight.isfinite().all()
