"""split: one batch of several tasks, as a loss for each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradsurgery import Sum, split
from tests.gradsurgery.problems import wrap

TASKS = ("a", "b", "c")
IDS = [0, 2, 0, 2, 2, 0]


def examples(seed: int = 0) -> tuple[nn.Linear, Tensor]:
    """A model and the losses of six examples."""
    torch.manual_seed(seed)
    model = nn.Linear(3, 2).double()
    return model, model(torch.randn(6, 3, dtype=torch.float64)).square().sum(1)


@pytest.mark.parametrize(
    "ids",
    [
        IDS,
        tuple(IDS),
        ["a", "c", "a", "c", "c", "a"],
        torch.tensor(IDS),
        torch.tensor(IDS, dtype=torch.int8),
        np.array(IDS),
    ],
    ids=["list", "tuple", "names", "int64", "int8", "numpy"],
)
def test_each_tasks_own_examples(ids: Any) -> None:
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0, 9.0, 2.0])
    means = split(losses, ids, TASKS)
    assert {task: loss.item() for task, loss in means.items()} == {"a": 2.0, "c": 5.0}
    summed = split(losses, ids, TASKS, reduction="sum")
    assert {task: loss.item() for task, loss in summed.items()} == {"a": 6.0, "c": 15.0}
    assert list(means) == ["a", "c"]  # the order of tasks, whatever the batch's is
    assert all(loss.shape == () for loss in means.values())


def test_the_sum_divided_by_the_batch_is_its_mean() -> None:
    model, losses = examples()
    wrapped = wrap(list(model.parameters()), Sum(), tasks=TASKS)
    joined = wrapped.join(split(losses, IDS, TASKS, reduction="sum")) / len(losses)
    joined.backward()
    update = model.weight.grad
    other, losses = examples()
    losses.mean().backward()
    assert joined.item() == pytest.approx(losses.mean().item(), rel=1e-14)
    assert torch.allclose(update, other.weight.grad, rtol=1e-13, atol=0)


def test_with_sum_it_is_the_plain_loss_of_the_tasks_means() -> None:
    model, losses = examples()
    wrap(list(model.parameters()), Sum(), tasks=TASKS).join(split(losses, IDS, TASKS)).backward()
    update = model.weight.grad
    other, losses = examples()
    (losses[[0, 2, 5]].mean() + losses[[1, 3, 4]].mean()).backward()
    assert torch.allclose(update, other.weight.grad, rtol=1e-13, atol=0)


def test_it_is_a_batch_for_each_task() -> None:
    """With surgery: the update of one mixed batch is that of separate batches."""
    updates = []
    for mixed in (True, False):
        torch.manual_seed(1)
        model, x = nn.Linear(3, 2).double(), torch.randn(6, 3, dtype=torch.float64)
        signs = torch.tensor([1.0, 0, 1, -1, -1, 1]).double()
        optimizer = wrap(list(model.parameters()), tasks=TASKS)

        batches = [list(range(6))] if mixed else [[0, 2, 5], [1, 3, 4]]
        losses = [(model(x[rows]).sum(1) - 5 * signs[rows]).square() for rows in batches]
        if mixed:
            optimizer.join(split(losses[0], IDS, TASKS)).backward()
        else:
            optimizer.join({"a": losses[0].mean(), "c": losses[1].mean()}).backward()
        assert optimizer.conflicts.summary()["gradients"]["altered"] == 2
        updates.append(model.weight.grad)
    assert torch.allclose(*updates, rtol=1e-13, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_order_of_the_examples_does_not_matter(reduction: str) -> None:
    _, losses = examples()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(5))
    plain = split(losses, torch.tensor(IDS), TASKS, reduction)
    shuffled = split(losses[order], torch.tensor(IDS)[order], TASKS, reduction)
    assert plain.keys() == shuffled.keys()
    assert all(torch.allclose(plain[t], shuffled[t], rtol=1e-14) for t in plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_it_keeps_the_dtype(dtype: torch.dtype) -> None:
    for loss in split(torch.ones(6, dtype=dtype), IDS, TASKS).values():
        assert loss.dtype == dtype
        assert loss == 1


def test_a_task_sees_nothing_of_the_others() -> None:
    """Neither their values nor, in its gradient, their overflows."""
    losses = torch.tensor([1.0, float("inf"), 3.0, float("nan")], requires_grad=True)
    by_task = split(losses, ["a", "b", "a", "c"], TASKS)
    assert by_task["a"].item() == 2
    by_task["a"].backward()
    assert losses.grad.tolist() == [0.5, 0, 0.5, 0]


def test_an_empty_batch_has_no_task() -> None:
    assert split(torch.empty(0), [], TASKS) == {}
    with pytest.raises(ValueError, match="no loss given"):
        wrap([nn.Parameter(torch.ones(1))]).join(split(torch.empty(0), [], TASKS))


def test_losses_without_a_graph_are_told_of_by_join() -> None:
    """To log them, one may split them all the same."""
    model, losses = examples()
    with pytest.raises(ValueError, match="'a' does not require grad"):
        wrap(list(model.parameters())).join(split(losses.detach(), IDS, TASKS))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"losses": [1.0]}, TypeError, "not a list"),
        ({"losses": torch.ones(())}, ValueError, r"shape \[\].*reduction='none'"),
        ({"losses": torch.ones(6, 2)}, ValueError, r"shape \[6, 2\].*one number per example"),
        ({"losses": torch.ones(6, dtype=torch.int64)}, ValueError, "dtype torch.int64"),
        ({"task_ids": IDS[:5]}, ValueError, "5 task_ids for 6 examples"),
        ({"task_ids": torch.tensor(IDS)[:, None]}, ValueError, r"shape \[6, 1\].*6 examples"),
        ({"task_ids": torch.zeros(6)}, ValueError, "dtype torch.float32"),
        ({"task_ids": [0, 1, 3, 0, 0, 0]}, ValueError, r"task id 3 at position 2.*3 tasks \(a, b"),
        ({"task_ids": [0, -1, 0, 0, 0, 0]}, ValueError, "task id -1 at position 1"),
        ({"task_ids": torch.ones(6, dtype=torch.bool)}, ValueError, r"torch.bool.*mask.long\(\)"),
        ({"task_ids": [True] * 6}, ValueError, "task id True"),
        ({"task_ids": torch.ones(6, dtype=torch.complex64)}, ValueError, "dtype torch.complex64"),
        ({"task_ids": ["a", "z", "a", "a", "a", "a"]}, ValueError, "'z' at position 1.*a, b, c"),
        ({"task_ids": [0, 0.5, 0, 0, 0, 0]}, TypeError, "0.5 at position 1"),
        ({"task_ids": "abcabc"}, TypeError, "the name 'abcabc'"),
        ({"tasks": "abc"}, ValueError, "different names, not 'abc'"),
        ({"tasks": ("a", "a", "b")}, ValueError, "different names"),
        ({"reduction": "none"}, ValueError, "mean, sum, not 'none'"),
    ],
)
def test_what_cannot_be_split(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    usual = {"losses": torch.ones(6), "task_ids": IDS, "tasks": TASKS}
    with pytest.raises(error, match=message):
        split(**{**usual, **arguments})
