"""Messages of averaging: what goes out, when, and from which memory; and what is let go."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from gradsurgery import GradientSurgery, Sum
from gradsurgery.distributed import collectives, consistency
from gradsurgery.distributed.collectives import PendingAverages
from tests.integration.shards import averaged, push

WORLD = 2


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A group of two whose other rank sends nothing: what one rank does by itself."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=WORLD)
    monkeypatch.setattr(consistency, "unanimous", lambda total, ranks: True)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.fixture
def sent(nobody: None, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many gradients each message had a place for."""
    places: list[int] = []
    original = collectives.Exchange.average

    def average(self: Any, parameters: Any, positions: Any, grads: Any) -> PendingAverages:
        places.extend([len(positions)] * bool(positions))
        return original(self, parameters, positions, grads)

    monkeypatch.setattr(collectives.Exchange, "average", average)
    return places


def warm(parameters: list[nn.Parameter]) -> GradientSurgery:
    """Three steps that reach everything, after which gradients go out early."""
    optimizer = averaged(parameters)
    for _ in range(3):
        for task in optimizer.tasks:
            with optimizer.task(task):
                sum(p.sum() for p in parameters).backward()  # type: ignore[union-attr]
        optimizer.combine()
        optimizer.zero_grad()
    return optimizer


def failing(optimizer: GradientSurgery, weight: Tensor) -> None:
    with contextlib.suppress(KeyError), optimizer.task("a"):
        weight.sum().backward()
        raise KeyError


def unfinished(optimizer: GradientSurgery, weight: Tensor) -> None:
    with optimizer.task("a", sync=False):
        weight.sum().backward()


@pytest.mark.parametrize("begun", [failing, unfinished])
def test_a_step_that_began_is_dropped_with_its_messages(
    begun: Callable[[GradientSurgery, Tensor], None],
    sent: list[int],
) -> None:
    """The other ranks may have sent theirs, and wait for this one's."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = warm([weight])
    sent.clear()
    begun(optimizer, weight)
    optimizer.zero_grad()
    assert len(sent) == len(optimizer.tasks)
    optimizer.zero_grad()  # nothing began
    assert len(sent) == len(optimizer.tasks)


def test_what_was_copied_into_a_message_is_let_go(nobody: None) -> None:
    parameters = [nn.Parameter(torch.ones(10)) for _ in range(3)]
    optimizer = warm(parameters)
    with optimizer.task("a"):
        sum(p.sum() for p in parameters).backward()  # type: ignore[union-attr]
        captured = [weakref.ref(p.grad) for p in parameters]
    assert [kept() for kept in captured] == [None] * 3


def test_after_combine_one_gradient_is_left(nobody: None) -> None:
    trunk, heads = nn.Parameter(torch.ones(10_000)), [nn.Parameter(torch.ones(2)) for _ in "ab"]
    optimizer = averaged([trunk, *heads])
    for _ in range(3):
        optimizer.zero_grad()
        optimizer.join([trunk.sum() * head.sum() for head in heads]).backward()
    storages = {
        p.grad.untyped_storage().data_ptr(): p.grad.untyped_storage().nbytes()
        for p in (trunk, *heads)
        if p.grad is not None
    }
    assert sum(storages.values()) < 1.5 * 4 * trunk.numel()


def test_what_went_out_twice_goes_out_early(sent: list[int]) -> None:
    """In the third step alike, in the order of the tasks; after a change, two steps later."""
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    optimizer = averaged([first, second])
    early = []
    for step in range(7):
        optimizer.zero_grad()
        sent.clear()
        push(optimizer, "b", first)
        assert not sent  # a's turn is before
        push(optimizer, "a", second if step == 3 else first)
        early.append(list(sent))
        optimizer.combine()
    assert early == [[], [], [1, 1], [1, 1], [], [], [1, 1]]


def test_a_task_that_goes_on_is_not_sent(sent: list[int]) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = warm([weight])
    sent.clear()
    for last in (False, True):
        with optimizer.task("a", sync=last):
            weight.sum().backward()
        assert len(sent) == last


def test_a_dropped_step_leaves_nothing_to_wait_for(sent: list[int]) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = warm([weight])
    push(optimizer, "a", weight)
    sent.clear()
    optimizer.discard()
    assert sent == [1]  # b's, which the others may have sent
    optimizer.zero_grad()
    assert sent == [1]
    optimizer.step()


@pytest.mark.parametrize("grad", [torch.randn(3, 4).t(), torch.randn(4, 3).double()])
def test_a_large_gradient_laid_out_otherwise_is_copied(
    grad: Tensor, nobody: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not sent from where it lies. The other rank sends nothing: the average is half of it."""
    monkeypatch.setattr(collectives, "LARGE", 1)
    parameter, before = nn.Parameter(torch.ones(4, 3)), grad.clone()
    average = (
        collectives.Exchange(dist.group.WORLD).average([parameter], [0], {0: grad}).averages[0]
    )
    assert torch.equal(grad, before)
    assert average.dtype == parameter.dtype
    assert average.stride() == parameter.stride()
    torch.testing.assert_close(average, before.float() / WORLD)


@pytest.mark.skipif(not hasattr(Tensor, "grad_dtype"), reason="of newer versions of torch")
def test_gradients_wider_than_their_parameter_stay_so(nobody: None) -> None:
    parameter = nn.Parameter(torch.ones(3).bfloat16())
    parameter.grad_dtype = torch.float32
    exchange = collectives.Exchange(dist.group.WORLD)
    pending = exchange.average([parameter], [0], {0: torch.full((3,), 1.001)})
    assert pending.averages[0].dtype == torch.float32


def test_gradients_arrive_laid_out_as_their_parameters(nobody: None) -> None:
    """As autograd would have left them, so that optimizers walk both side by side."""
    values = torch.ones(2, 3, 2, 2).to(memory_format=torch.channels_last), torch.ones(3, 4).t()
    parameters = [nn.Parameter(value) for value in values]
    optimizer = warm(parameters)
    optimizer.join([sum(p.sum() for p in parameters)] * 2).backward()  # type: ignore[list-item]
    assert [p.grad.stride() for p in parameters if p.grad is not None] == [
        p.stride() for p in parameters
    ]


def test_a_parameter_group_can_go(nobody: None) -> None:
    """While gradients go out early."""
    stays, goes = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    base = torch.optim.SGD([{"params": [stays]}, {"params": [goes]}], lr=0.1)
    optimizer = GradientSurgery(base, Sum(), tasks=("a", "b"), process_group=dist.group.WORLD)
    for step in range(5):
        if step == 3:
            optimizer.param_groups.pop()
        for task in optimizer.tasks:
            push(optimizer, task, torch.stack([group["params"][0] for group in base.param_groups]))
        optimizer.combine()
        assert stays.grad is not None
        optimizer.zero_grad()
