"""The visiting order: fair, fresh at each step, independent from task to task, and reproducible."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn

from gradsurgery import GradVac, Method, PCGrad, Sum
from gradsurgery.methods.order import initial_rng, visiting_order
from tests.gradsurgery.problems import linear_losses, state_of, vectors, wrap


def draws(count: int, tasks: int = 3) -> list[torch.Tensor]:
    rng, found = initial_rng(0), []
    for _ in range(count):
        order, rng = visiting_order(rng, tasks)
        found.append(order)
    return found


def test_each_task_visits_in_every_order_equally_often() -> None:
    orders = draws(6000)
    for task in range(3):
        counts = Counter(tuple(order[task].tolist()) for order in orders)
        assert len(counts) == 6
        assert all(850 < count < 1150 for count in counts.values())  # 1000 +- 5 sigma


def test_the_tasks_draw_independently() -> None:
    pairs = Counter(tuple(order[:2].flatten().tolist()) for order in draws(6000))
    assert len(pairs) == 36


def test_a_seed_gives_the_same_orders_and_another_seed_others() -> None:
    assert all(torch.equal(a, b) for a, b in zip(draws(5, 8), draws(5, 8), strict=True))
    other = visiting_order(initial_rng(1), 8)[0]
    assert not torch.equal(draws(1, 8)[0], other)


def drawn(method: Method) -> bool:
    """Whether a step moves the generator."""
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], method)
    before = state_of(optimizer)["rng"].clone()
    optimizer.join(linear_losses([w], vectors((1, 0), (-1, 1), (0, -1)))).backward()
    return not torch.equal(state_of(optimizer)["rng"], before)


def test_every_step_draws_afresh_where_the_order_matters() -> None:
    assert drawn(PCGrad())
    assert drawn(GradVac())
    assert not drawn(Sum())
