"""join: the drop-in for sum(losses).backward()."""

from __future__ import annotations

import gc
import re
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradsurgery import GradVac, PCGrad, Sum, SurgeryWarning
from gradsurgery.join import shared
from tests.gradsurgery.problems import (
    Fails,
    TwoHeads,
    linear_losses,
    losses_of,
    state_of,
    vectors,
    wrap,
)
from tests.methods import METHODS


def test_it_is_the_sum_of_the_losses() -> None:
    w = nn.Parameter(torch.ones(2))
    optimizer = wrap([w])
    joined = optimizer.join([w.sum(), 2 * w.sum(), w.prod()])
    assert joined.item() == 7
    assert joined.shape == ()
    assert joined.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_it_has_the_dtype_of_the_losses(dtype: torch.dtype) -> None:
    w = nn.Parameter(torch.ones(2))
    joined = wrap([w], Sum()).join([w.sum().to(dtype)] * 3)
    assert joined.dtype == dtype
    joined.backward()
    assert w.grad.tolist() == [3, 3]
    assert w.grad.dtype == torch.float32


def test_both_ways_of_capturing_give_the_same_bits() -> None:
    torch.manual_seed(0)
    model = TwoHeads()
    optimizer = wrap(list(model.parameters()), GradVac(target=0.5), tasks=("a", "b"))
    start = optimizer.state_dict()
    optimizer.join(losses_of(model)).backward()
    joined = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    optimizer.load_state_dict(start)
    optimizer.zero_grad()
    for task, loss in losses_of(model).items():
        with optimizer.task(task):
            loss.backward()
    optimizer.combine()
    for name, parameter in model.named_parameters():
        if name in joined:
            assert torch.equal(parameter.grad, joined[name])


def test_sum_is_bitwise_the_plain_sum_of_losses() -> None:
    torch.manual_seed(0)
    model = TwoHeads()
    optimizer = wrap(list(model.parameters()), Sum(), tasks=("a", "b"))
    optimizer.join(losses_of(model)).backward()
    joined = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    optimizer.zero_grad()
    for loss in losses_of(model).values():
        loss.backward()
    plain = [p.grad for p in model.parameters()]
    assert all(
        torch.equal(a, b) if a is not None else b is None
        for a, b in zip(joined, plain, strict=True)
    )


def test_one_shared_forward() -> None:
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    trunk = w.exp()  # saves its result: freed too early, the second backward would fail
    optimizer = wrap([w], Sum())
    optimizer.join([trunk[0], trunk[1], trunk.sum()]).backward()
    assert torch.allclose(w.grad, 2 * w.detach().exp())


@pytest.mark.parametrize("factor", [0.5, 1024.0])
def test_a_factor_reaches_every_task(factor: float) -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], tasks=("a", "b"))
    (optimizer.join(linear_losses([w], vectors((1, 0), (-1, 1)))) * factor).backward()
    assert w.grad.tolist() == [0.5 * factor, 1.5 * factor]


def test_an_auxiliary_loss_may_be_added() -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], tasks=("a", "b"))
    joined = optimizer.join(linear_losses([w], vectors((1, 0), (-1, 1))))
    (joined + 10 * w.sum()).backward()
    assert w.grad.tolist() == [10.5, 11.5]


def test_accumulation_is_the_large_batch() -> None:
    torch.manual_seed(0)
    model = TwoHeads()
    optimizer = wrap(list(model.parameters()), tasks=("a", "b"))
    for last, seed in ((False, 0), (True, 1)):
        (optimizer.join(losses_of(model, seed), combine=last) / 2).backward()
        assert (model.lower.weight.grad is not None) is last
    parts = [p.grad.clone() for p in model.lower.parameters()]
    optimizer.zero_grad()
    optimizer = wrap(list(model.parameters()), tasks=("a", "b"))
    halves = [losses_of(model, seed) for seed in (0, 1)]
    optimizer.join({t: (halves[0][t] + halves[1][t]) / 2 for t in ("a", "b")}).backward()
    for part, parameter in zip(parts, model.lower.parameters(), strict=True):
        assert torch.allclose(part, parameter.grad, atol=1e-6)


def test_a_task_left_out_is_absent() -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], GradVac(beta=0.5))
    optimizer.join({"a": w[0], "c": w[1] - w[0]}).backward()
    target = state_of(optimizer)["target"][0]
    assert w.grad.tolist() == [0.5, 1.5]
    assert target[0, 2] == target[2, 0] == pytest.approx(-0.5 / 2**0.5)
    assert target[1].abs().sum() == target[:, 1].abs().sum() == 0


def test_without_grad_it_is_a_plain_sum() -> None:
    """An evaluation loop calls the same function."""
    w = nn.Parameter(torch.ones(2))
    with torch.no_grad():
        joined = wrap([w]).join([w.sum()] * 3)
    assert (joined.item(), joined.requires_grad) == (6, False)


@pytest.mark.parametrize(
    ("losses", "error", "message"),
    [
        (lambda w: {"z": w.sum()}, ValueError, r"'z'.*a, b, c"),
        (lambda w: [w.sum()], ValueError, r"1 losses for 3 tasks \(a, b, c\)"),
        (lambda w: {}, ValueError, "no loss.*a, b, c"),
        (lambda w: {"a": w}, ValueError, r"'a' has shape \[2\].*mean"),
        (lambda w: {"a": w.detach().sum()}, ValueError, "'a' does not require grad"),
        (lambda w: {"a": 1.5}, TypeError, "'a' is a float"),
    ],
)
def test_losses_that_cannot_be_used(losses: Any, error: type[Exception], message: str) -> None:
    w = nn.Parameter(torch.ones(2))
    optimizer = wrap([w])
    with pytest.raises(error, match=message):
        optimizer.join(losses(w))
    optimizer.step()  # nothing waits


def test_a_loss_of_one_element_is_a_scalar() -> None:
    w = nn.Parameter(torch.ones(1))
    wrap([w], Sum(), tasks=("a",)).join([w * 2]).backward()
    assert w.grad.tolist() == [2]


# torch warns once per process that such a backward leaks.
@pytest.mark.filterwarnings("ignore:Using backward")
def test_double_backward_is_refused() -> None:
    w = nn.Parameter(torch.ones(2))
    joined = wrap([w], tasks=("a",)).join([w.square().sum()])
    with pytest.raises(RuntimeError, match=r"differentiated twice.*create_graph=True"):
        joined.backward(create_graph=True)
    assert w.grad is None


def test_a_second_backward_is_refused() -> None:
    w = nn.Parameter(torch.ones(2))
    joined = wrap([w], tasks=("a",)).join([w.square().sum()])
    joined.backward()
    with pytest.raises(RuntimeError, match=r"second time.*join\(\) again"):
        joined.backward()
    assert w.grad.tolist() == [2, 2]


def test_a_failing_backward_leaves_nothing_behind() -> None:
    w = nn.Parameter(torch.ones(2))
    w.grad = torch.tensor([5.0, 5.0])
    optimizer = wrap([w], tasks=("a", "b"))
    with pytest.raises(MemoryError, match="task b"):
        optimizer.join([w.sum(), Fails.apply(w).sum()]).backward()
    assert w.grad.tolist() == [5, 5]
    with pytest.warns(SurgeryWarning, match="no combine"):
        optimizer.step()  # nothing waits, and what is there is no task's
    assert w.tolist() == [0.5, 0.5]


def test_separate_graphs_are_freed_as_the_backward_goes() -> None:
    """The caller's loss still lives: what its graph saved must not."""
    w, saved = nn.Parameter(torch.ones(2)), []

    class Saves(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            kept = x * 2
            saved.append(weakref.ref(kept))
            ctx.save_for_backward(kept)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            _ = ctx.saved_tensors
            return grad

    losses = [Saves.apply(w).sum() for _ in range(3)]
    assert all(ref() is not None for ref in saved)
    wrap([w], Sum()).join(losses).backward()
    gc.collect()
    assert [ref() for ref in saved] == [None] * 3


def test_casts_that_autocast_shares_hold_no_graph() -> None:
    """One block around the forward passes of separate batches."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = [model(torch.randn(2, 3)).float().mean() for _ in range(3)]
        hidden = model[0](torch.randn(2, 3))  # and a cast in the middle of a shared trunk
        common = [model[1](hidden.float()).mean(), model[1](hidden.float()).sum()]
    assert shared(losses) == [False, False, False]
    assert shared(common) == [True, False]


def test_no_global_generator_is_touched() -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], PCGrad(seed=7))
    before = torch.get_rng_state()
    for _ in range(3):
        optimizer.join(linear_losses([w], vectors((1, 0), (-1, 1), (0, -1)))).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- engine options, and mixtures


def shared_forward(w: Tensor) -> dict[str, Tensor]:
    """Two losses in conflict over one nonlinear trunk: their gradients are (2, 0) and (-2, 2)."""
    trunk = w.exp()
    return {"a": 2 * trunk[0], "b": 2 * trunk[1] - 2 * trunk[0]}


def double(*sizes: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*sizes, dtype=torch.float64))


@pytest.mark.parametrize("combine", [True, False])
def test_a_backward_for_some_inputs_reaches_these_alone(combine: bool) -> None:
    """A GAN that spares its discriminator."""
    w, spared = double(2), double(2)
    optimizer = wrap([w, spared], tasks=("a", "b"))
    losses = [loss + spared.sum() for loss in shared_forward(w).values()]
    optimizer.join(losses, combine=combine).backward(inputs=iter([w]))
    if not combine:
        optimizer.combine()
    assert w.grad.tolist() == [1, 3]
    assert spared.grad is None


@pytest.mark.parametrize("name", ["uncertainty", "geometric"])
def test_a_weighted_backward_for_some_inputs_reaches_these_alone(name: str) -> None:
    grads = []
    for inputs in (False, True):
        w, spared = double(2), double(2)
        optimizer = wrap([w, spared], METHODS[name].make(0), tasks=("a", "b"))
        losses = [2 + loss + spared.sum() for loss in shared_forward(w).values()]
        optimizer.join(losses).backward(inputs=[w] if inputs else None)
        grads.append(w.grad)
    assert torch.equal(*grads)
    assert spared.grad is None


def test_inputs_reach_what_was_added_in_place() -> None:
    w = double(2)
    optimizer = wrap([w], tasks=("a", "b"))
    joined = optimizer.join(shared_forward(w))
    joined += 10 * w.sum()
    joined.backward(inputs=w)
    assert w.grad.tolist() == [11, 13]


def test_autograd_grad_of_a_joined_loss_says_what_to_do() -> None:
    w = double(2)
    joined = wrap([w], tasks=("a", "b")).join(shared_forward(w))
    with pytest.raises(RuntimeError, match=r"writes to .grad.*backward\(\)"):
        torch.autograd.grad(joined, [w])


def test_what_is_computed_from_it_is_a_plain_tensor() -> None:
    w = double(2)
    joined = wrap([w], tasks=("a", "b")).join(shared_forward(w))
    for value in (joined / 2, joined.detach(), joined + 1, torch.stack([joined])):
        assert type(value) is Tensor


@pytest.mark.parametrize("name", ["pcgrad", "geometric"])  # without a state
def test_a_retained_graph_serves_again(name: str) -> None:
    """The next loss of the graph, and the joined loss itself."""
    w = double(2)
    optimizer = wrap([w], METHODS[name].make(0), tasks=("a", "b"))
    losses = {task: 3 + loss for task, loss in shared_forward(w).items()}
    joined = optimizer.join(losses)
    joined.backward(retain_graph=True)
    once = w.grad.clone()
    optimizer.zero_grad()
    joined.backward(retain_graph=True)
    assert torch.equal(w.grad, once)
    losses["a"].backward()
    assert torch.equal(w.grad, once + torch.tensor([2.0, 0.0]))


def test_a_retained_graph_serves_again_with_features() -> None:
    w = double(2)
    optimizer = wrap([w], tasks=("a", "b"))
    trunk = w.exp()
    joined = optimizer.join([2 * trunk[0], 2 * trunk[1] - 2 * trunk[0]], features=trunk)
    for times in (1, 2):
        joined.backward(retain_graph=times == 1)
        assert w.grad.tolist() == [times, 3 * times]


@pytest.mark.parametrize("first", ["joined", "penalty"])
def test_a_penalty_on_a_shared_layer_may_be_added(first: str) -> None:
    w = double(2)
    optimizer = wrap([w], tasks=("a", "b"))
    trunk = w.exp()
    squares = trunk.square()  # keeps the trunk
    losses = {"a": squares[0], "b": squares[1] - squares[0]}
    if first == "penalty":
        penalty = 5 * squares.sum()
        joined = optimizer.join(losses)
    else:
        joined = optimizer.join(losses)
        penalty = 5 * squares.sum()
    (joined + penalty).backward()
    assert w.grad.tolist() == [11, 13]


def test_two_joins_over_one_forward_may_be_added() -> None:
    w = double(2)
    optimizer = wrap([w], Sum(), tasks=("a", "b"))
    losses = shared_forward(w)
    parts = [optimizer.join({task: loss}, combine=task == "a") for task, loss in losses.items()]
    (parts[0] + parts[1]).backward()
    assert w.grad.tolist() == [0, 2]


def test_two_backward_passes_over_one_forward_name_what_to_write() -> None:
    w = double(2)
    optimizer = wrap([w], Sum(), tasks=("a", "b"))
    losses = shared_forward(w)
    parts = [optimizer.join({task: loss}, combine=task == "b") for task, loss in losses.items()]
    parts[0].backward()
    with pytest.raises(RuntimeError, match=r"share a forward.*retain_graph=True.*join all losses"):
        parts[1].backward()
    losses = shared_forward(w)
    parts = [optimizer.join({task: loss}, combine=task == "b") for task, loss in losses.items()]
    parts[0].backward(retain_graph=True)
    parts[1].backward()
    assert w.grad.tolist() == [0, 2]


def test_features_do_not_go_with_inputs() -> None:
    w = double(2)
    optimizer = wrap([w], tasks=("a", "b"))
    trunk = w.exp()
    joined = optimizer.join([trunk[0], trunk[1] - trunk[0]], features=trunk)
    with pytest.raises(NotImplementedError, match=r"inputs=.*features="):
        joined.backward(inputs=[w])


class Once(torch.autograd.Function):
    """A node whose backward works once, as those of offloaded activations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.stored = [2.0]
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        assert ctx.stored, "untracked tensor"
        return ctx.stored.pop() * grad


def test_a_graph_that_can_be_walked_once_names_the_ways() -> None:
    w = double(2)
    optimizer = wrap([w], tasks=("a", "b"))
    trunk = Once.apply(w)
    with pytest.raises(AssertionError, match="untracked") as raised:
        optimizer.join([trunk[0], trunk[1] - trunk[0]]).backward()
    if hasattr(raised.value, "add_note"):  # since Python 3.11
        assert re.search(r"walked only once.*task\(name\).*features=", raised.value.__notes__[0])
    trunk = Once.apply(w)
    optimizer.join([trunk[0], trunk[1] - trunk[0]], features=trunk).backward()
    assert w.grad.tolist() == [1, 3]  # 2 * (0.5, 1.5)
