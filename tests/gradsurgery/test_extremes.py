"""Gradients at the ends of their dtype's range, and the weights that belong to them."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from gradsurgery import GradientSurgery, Method, PCGrad, Sum, Verdict
from gradsurgery.methods import State
from tests.gradsurgery.problems import linear_losses, state_of
from tests.methods import METHODS, every_method, every_method_of_gradients

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TASKS = ("a", "b", "c")


def sizes(dtype: torch.dtype) -> list[float]:
    """From small ones down to the smallest subnormal number."""
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    steps = [1e-5, 1e-20, 1e-37, 1e-41]
    return [size for size in steps if size > tiny] + [tiny]


def rows(size: float, dtype: torch.dtype) -> list[Tensor]:
    """Three gradients in conflict, the second of them tiny."""
    whole = torch.tensor([[2.0, 1.0, -1.0, 0.0], [-1.0, 2.0, 3.0, -2.0], [1.0, -2.0, 1.0, 1.0]])
    return list((whole.double() * torch.tensor([[1.0], [size], [1.0]]).double()).to(dtype))


def combined(
    method: Method, grads: list[Tensor], big: bool
) -> tuple[Tensor, Tensor, GradientSurgery]:
    """``.grad`` after one step, and what its weights give in float64."""
    shape = (4, 5000) if big else (4, 1)  # a tensor by itself, or with others
    parameter = nn.Parameter(torch.zeros(shape, dtype=grads[0].dtype))
    optimizer = GradientSurgery(
        torch.optim.SGD([parameter], lr=1.0), method, tasks=TASKS[: len(grads)]
    )
    for task, grad in zip(optimizer.tasks, grads, strict=True):
        with optimizer.task(task, loss=1.0):
            parameter.grad = grad[:, None].repeat(1, shape[1])
    optimizer.combine()
    weights = optimizer.conflicts.summary()["weights"]
    expected = sum(
        weights[task] * grad.double() if weights[task] is not None else grad.double()
        for task, grad in zip(optimizer.tasks, grads, strict=True)
    )
    assert parameter.grad is not None
    return parameter.grad[:, 0], expected, optimizer


@every_method_of_gradients
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tiny_gradient_in_conflict_has_a_finite_and_right_update(
    name: str, dtype: torch.dtype
) -> None:
    for size in sizes(dtype):
        for order in permutations(range(3)):
            grads = [rows(size, dtype)[k] for k in order]
            for big in (False, True):
                update, expected, optimizer = combined(METHODS[name].make(0), grads, big)
                assert optimizer.conflicts.summary()["nonfinite"] == 0
                assert update.isfinite().all(), (size, order, update)
                scale = expected.abs().max() + torch.finfo(dtype).smallest_normal
                error = (update.double() - expected).abs().max() / scale
                assert error <= 4 * torch.finfo(dtype).eps, (size, order, update, expected)


@every_method
def test_one_task_of_a_saturated_loss(name: str) -> None:
    """Binary cross-entropy at a logit of -87: its gradient is 1e-38, its loss 1e-38, too."""
    w = nn.Parameter(torch.tensor([1.0, 1.0]))
    optimizer = GradientSurgery(
        torch.optim.SGD([w], lr=0.1), METHODS[name].make(0), tasks=("easy", "hard")
    )
    for first, second in (("easy", "hard"), ("hard", "easy")):
        losses = {
            "easy": nn.functional.binary_cross_entropy_with_logits(
                -43.5 * w.sum(), torch.zeros(()), reduction="sum"
            ),
            "hard": (w * torch.tensor([-1.0, 0.5])).sum().square() + 1,
        }
        optimizer.join({first: losses[first], second: losses[second]}).backward()
        assert w.grad is not None
        assert w.grad.isfinite().all(), w.grad
        optimizer.zero_grad()
    assert optimizer.conflicts.summary()["nonfinite"] == 0


@pytest.mark.parametrize("exponent", [-200, -130, -101, 101, 130, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_of_any_size(dtype: torch.dtype, exponent: int) -> None:
    """What one weight takes from a gradient, the gradient has: their product is ordinary."""

    class Fixed(Method):
        def __call__(self, gram: Tensor, *, state: State) -> Verdict:
            weights = torch.tensor([[2.0**exponent, 1.0]], dtype=torch.float64)
            return Verdict(weights, None, state)

        def __repr__(self) -> str:
            return "Fixed()"

    size = 2.0 ** max(min(-exponent, 120), -126)
    product = size * 2.0**exponent
    for order in ((0, 1), (1, 0)):
        fixed = Fixed()
        grads = [torch.tensor([size, -size]), torch.tensor([0.5, 0.25]) * product]
        parameter = nn.Parameter(torch.zeros(2, dtype=dtype))
        tasks = [("a", "b")[k] for k in order]
        optimizer = GradientSurgery(torch.optim.SGD([parameter], lr=1.0), fixed, tasks=("a", "b"))
        for task, k in zip(tasks, order, strict=True):
            with optimizer.task(task):
                parameter.grad = grads[k].to(dtype)
        optimizer.combine()
        expected = torch.tensor([1.5, -0.75], dtype=torch.float64) * product
        assert torch.allclose(
            parameter.grad.double(), expected.to(dtype).double(), rtol=1e-2, atol=0
        )


class NotANumber(Method):
    """Fails in arithmetic."""

    def init(self, segments: int, tasks: int) -> State:
        return {"steps": torch.zeros(1, dtype=torch.float64)}

    def __call__(self, gram: Tensor, *, state: State) -> Verdict:
        return Verdict(
            torch.full_like(gram[..., 0], torch.nan), None, {"steps": state["steps"] + 1}
        )

    def __repr__(self) -> str:
        return "NotANumber()"


def test_weights_that_are_no_numbers_are_a_step_that_is_not_finite() -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = GradientSurgery(torch.optim.SGD([w], lr=1.0), NotANumber(), tasks=("a", "b"))
    optimizer.join(linear_losses([w], [[torch.tensor([1.0, 0.0])], [torch.tensor([-1.0, 1.0])]]))
    before = state_of(optimizer)
    optimizer.join(
        linear_losses([w], [[torch.tensor([1.0, 0.0])], [torch.tensor([-1.0, 1.0])]])
    ).backward()
    assert w.grad.tolist() == [0.0, 1.0]  # the plain sum
    assert optimizer.conflicts.summary()["nonfinite"] == 1
    assert torch.equal(state_of(optimizer)["steps"], before["steps"])


def test_an_update_beyond_the_dtype_is_infinite_as_without_surgery() -> None:
    grads = [torch.tensor([6e4], dtype=torch.float16)] * 2
    for method in (Sum(), PCGrad()):
        w = nn.Parameter(torch.zeros(1, dtype=torch.float16))
        optimizer = GradientSurgery(torch.optim.SGD([w], lr=1.0), method, tasks=("a", "b"))
        for task, grad in zip(("a", "b"), grads, strict=True):
            with optimizer.task(task):
                w.grad = grad.clone()
        optimizer.combine()
        assert w.grad.isinf().all()


# ------------------------------------------------------------------ float64


SCALES = [1e-300, 1e-200, 1e-160, 1e-150, 1e150, 1e160, 1e200, 1e300]


def stepped(name: str, scale: float, head: bool = True) -> tuple[Tensor, GradientSurgery]:
    """``.grad`` over the scale, after one step on gradients of that scale."""
    w = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    own = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = GradientSurgery(
        torch.optim.SGD([w, own], lr=1.0), METHODS[name].make(0), tasks=TASKS
    )
    grads = [row.double() * scale for row in rows(0.5, torch.float32)]
    for task, grad in zip(TASKS, grads, strict=True):
        with optimizer.task(task, loss=1.0):
            w.grad = grad.clone()
            if task == "b" and head:
                own.grad = torch.ones(2, dtype=torch.float64) * scale
    optimizer.combine()
    assert w.grad is not None
    return w.grad, optimizer


@every_method_of_gradients
@pytest.mark.parametrize("scale", SCALES)
def test_float64_gradients_whose_squares_leave_float64(name: str, scale: float) -> None:
    """Up to rounding, the update of ordinary gradients, times the power of the scale."""
    expected, ordinary = stepped(name, 1.0)
    update, optimizer = stepped(name, scale)
    degree = optimizer.method.degree
    if abs((degree - 1) * math.log10(scale)) > 300:
        return  # weights, which grow with the power degree - 1, leave float64 themselves
    factor = scale**degree
    torch.testing.assert_close(update / factor, expected, rtol=1e-9, atol=1e-12)
    found, wanted = (o.conflicts.summary() for o in (optimizer, ordinary))
    assert found["nonfinite"] == 0
    assert found["pairs"][0]["cosine"] == pytest.approx(wanted["pairs"][0]["cosine"], rel=1e-12)
    for task in TASKS:
        assert found["norms"][task] == pytest.approx(wanted["norms"][task] * scale, rel=1e-12)


@pytest.mark.parametrize("sizes", [(1e160, 1.0, 1e-120), (1e-200, 1e-170, 1e-190)])
def test_float64_gradients_of_different_sizes(sizes: tuple[float, ...]) -> None:
    w = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = GradientSurgery(torch.optim.SGD([w], lr=1.0), PCGrad(), tasks=TASKS)
    grads = [row.double() * size for row, size in zip(rows(0.5, torch.float32), sizes, strict=True)]
    for task, grad in zip(TASKS, grads, strict=True):
        with optimizer.task(task):
            w.grad = grad.clone()
    optimizer.combine()
    summary = optimizer.conflicts.summary()
    assert [pair["possible"] for pair in summary["pairs"]] == [1] * 6
    units = [grad / grad.abs().max() for grad in grads]
    for pair in summary["pairs"]:
        i, j = TASKS.index(pair["i"]), TASKS.index(pair["j"])
        cosine = float(units[i] @ units[j] / units[i].norm() / units[j].norm())
        assert pair["cosine"]["mean"] == pytest.approx(cosine, rel=1e-12)


def test_float64_gradients_that_are_not_finite_or_zero_are_what_they_are() -> None:
    w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = GradientSurgery(torch.optim.SGD([w], lr=1.0), PCGrad(), tasks=("a", "b"))
    for value, nonfinite in ((torch.inf, 1), (torch.nan, 2), (0.0, 2)):
        for task, number in (("a", 1.0), ("b", value)):
            with optimizer.task(task):
                w.grad = torch.full((2,), number, dtype=torch.float64)
        optimizer.combine()
        assert optimizer.conflicts.summary()["nonfinite"] == nonfinite
        assert optimizer.conflicts.summary()["pairs"][0]["possible"] == 0
        w.grad = None


def test_smoothing_counts_what_it_cannot_average() -> None:
    w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = GradientSurgery(
        torch.optim.SGD([w], lr=1.0), PCGrad(), tasks=("a", "b"), smoothing=0.9
    )
    for task, number in (("a", 1e200), ("b", 1.0)):
        with optimizer.task(task):
            w.grad = torch.full((2,), number, dtype=torch.float64)
    optimizer.combine()
    assert optimizer.conflicts.summary()["nonfinite"] == 1
    assert w.grad.tolist() == [1e200, 1e200]
