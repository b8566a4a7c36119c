"""torch.func: gradients of one's own, combined by gradsurgery.functional, are the optimizer's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vmap

from gradsurgery import functional as F
from tests.integration.by_hand import GOALS, TASKS, Net, batch, fresh_model, orders, wrapped

#: One list of gradients per task, in the order of the trunk's parameters.
TaskGrads = list[list[Tensor]]
Trunk = dict[str, Tensor]


def trunk_of(model: Net) -> Trunk:
    return {n: p.detach() for n, p in model.named_parameters() if n.startswith("trunk")}


def heads_of(model: Net) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if n.startswith("heads")}


def loss_of(model: Net, trunk: Trunk, x: Tensor, task: str) -> Tensor:
    out = functional_call(model, {**heads_of(model), **trunk}, (x, task))
    return (out - GOALS[task]).square().mean()


def by_grad(model: Net) -> TaskGrads:
    trunk = trunk_of(model)
    by_task = [grad(lambda t, k=k: loss_of(model, t, batch(0, k), k))(trunk) for k in TASKS]
    return [list(grads.values()) for grads in by_task]


def by_jacrev(model: Net) -> TaskGrads:
    """All K at once, each a row of the Jacobian: views of one tensor per parameter."""
    trunk = trunk_of(model)

    def losses(t: Trunk) -> Tensor:
        return torch.stack([loss_of(model, t, batch(0, k), k) for k in TASKS])

    rows = jacrev(losses)(trunk)
    return [[rows[name][index] for name in trunk] for index in range(len(TASKS))]


def by_vmap(model: Net) -> TaskGrads:
    """One head for all, a batch and a goal per task: vectorised over the tasks."""
    trunk = trunk_of(model)

    def loss(t: Trunk, weight: Tensor, bias: Tensor, x: Tensor, goal: Tensor) -> Tensor:
        head = {"heads.a.weight": weight, "heads.a.bias": bias}
        return (functional_call(model, {**t, **head}, (x, "a")) - goal).square().mean()

    heads = [torch.stack([getattr(model.heads[k], n) for k in TASKS]) for n in ("weight", "bias")]
    batches = torch.stack([batch(0, k) for k in TASKS])
    goals = torch.tensor([GOALS[k] for k in TASKS])
    over = vmap(grad(loss), in_dims=(None, 0, 0, 0, 0))
    rows = over(trunk, *(h.detach() for h in heads), batches, goals)
    return [[rows[name][index] for name in trunk] for index in range(len(TASKS))]


@pytest.mark.parametrize("gradients", [by_grad, by_jacrev, by_vmap])
def test_the_optimizer_does_the_same(gradients: Callable[[Net], TaskGrads]) -> None:
    model = fresh_model()
    optimizer = wrapped(torch.optim.SGD(model.parameters(), lr=1.0))
    losses = [(model(batch(0, k), k) - GOALS[k]).square().mean() for k in TASKS]
    optimizer.join(losses).backward()
    assert optimizer.conflicts.summary()["gradients"]["altered"] > 0

    rows = gradients(model)
    kept = [[g.clone() for g in row] for row in rows]
    order = torch.from_numpy(next(iter(orders())))
    verdict = F.pcgrad(F.gram(rows)[0], order)
    update = F.combine(rows, verdict.weights)
    for combined, parameter in zip(update, model.trunk.parameters(), strict=True):
        assert torch.allclose(combined, parameter.grad, atol=1e-7)
    # The gradients are the caller's: nothing was written to them.
    assert all(
        torch.equal(a, b) for k in range(len(TASKS)) for a, b in zip(rows[k], kept[k], strict=True)
    )


def test_torch_func_gives_zeros_where_autograd_gives_nothing() -> None:
    """A zero makes a head look shared, and its gradient is weighted: differentiate the trunk."""
    model = fresh_model()
    everything = {n: p.detach() for n, p in model.named_parameters()}
    rows = [
        list(grad(lambda t, k=k: loss_of(model, t, batch(0, k), k))(everything).values())
        for k in TASKS
    ]
    assert not any(row is None for grads in rows for row in grads)
    weights = F.pcgrad(F.gram(rows)[0], torch.from_numpy(next(iter(orders())))).weights
    named = dict(zip(everything, F.combine(rows, weights), strict=True))
    head = dict(zip(everything, rows[0], strict=True))["heads.a.bias"]
    assert weights[0] != 1
    assert torch.allclose(named["heads.a.bias"], weights[0].float() * head)
