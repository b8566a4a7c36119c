"""Parameter groups: added, reversed, rebuilt or deleted by users, who keep the state of surgery."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradsurgery import GradientSurgery, GradVac, PCGrad
from tests.gradsurgery.problems import (
    TwoHeads,
    linear_losses,
    same,
    state_of,
    train_heads,
    vectors,
    wrap,
)

NAMES = ("lower", "upper", "a", "b")
Edit = Callable[[GradientSurgery], GradientSurgery]


def test_parameter_groups_added_later_take_part() -> None:
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = wrap([first], GradVac(beta=1.0), tasks=("a", "b"), grouping="tensor")
    optimizer.join([first.sum(), -first.sum()]).backward()
    optimizer.zero_grad()
    optimizer.add_param_group({"params": [second], "lr": 0.5})
    optimizer.join([first.sum() + second.sum(), second.sum() - first.sum()]).backward()
    target = state_of(optimizer)["target"]
    assert target[:, 0, 1].tolist() == pytest.approx([-1, 1])
    assert optimizer.conflicts.summary()["segments"] == 2


def test_a_checkpoint_right_after_adding_a_group_loads() -> None:
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = wrap([first], GradVac(target=0.5), tasks=("a", "b"), grouping="tensor")
    optimizer.add_param_group({"params": [second]})
    optimizer.load_state_dict(optimizer.state_dict())
    assert state_of(optimizer)["target"].shape == (2, 2, 2)


def test_a_group_without_the_names_it_needs_is_not_added() -> None:
    model = TwoHeads()
    named = model.named_parameters()
    optimizer = wrap(
        list(model.parameters()), tasks=("a", "b"), grouping="layer", named_parameters=named
    )
    with pytest.raises(ValueError, match="has none"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    assert len(optimizer.param_groups) == 1
    train_heads(model, optimizer, range(1))


def test_assigned_groups_keep_the_state_of_surgery() -> None:
    """Accelerate assigns ``param_groups``; FSDP2 swaps the tensors in them."""
    w, swapped = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], PCGrad(seed=4), tasks=("a", "b"))
    rng = state_of(optimizer)["rng"]
    optimizer.param_groups = [{"params": [swapped], "lr": 1.0}]
    assert torch.equal(state_of(optimizer)["rng"], rng)
    optimizer.join(linear_losses([swapped], vectors((1, 0), (-1, 1)))).backward()
    assert swapped.grad.tolist() == [0.5, 1.5]


def four_groups() -> GradientSurgery:
    """A parameter each; every tensor is a segment."""
    named = [(name, nn.Parameter(torch.zeros(3))) for name in NAMES]
    base = torch.optim.SGD([{"params": [pair]} for pair in named], lr=0.1)
    method = GradVac(beta=0.5, seed=3)
    return GradientSurgery(base, method, tasks=("x", "y", "z"), grouping="tensor")


def weights(optimizer: GradientSurgery) -> dict[str, Tensor]:
    return {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    }


def train(optimizer: GradientSurgery, steps: range) -> None:
    """Train on gradients of every step's own, whatever the weights are."""
    parameters = weights(optimizer)
    for step in steps:
        rows = torch.randn(3, len(NAMES), 3, generator=torch.Generator().manual_seed(step))
        columns = [rows[:, NAMES.index(name)] for name in parameters]
        grads = [[column[task] for column in columns] for task in range(3)]
        optimizer.join(linear_losses(list(parameters.values()), grads)).backward()
        optimizer.step()
        optimizer.zero_grad()


def plain(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "surgery"}


def untouched(optimizer: GradientSurgery) -> GradientSurgery:
    return optimizer


def reversed_in_place(optimizer: GradientSurgery) -> GradientSurgery:
    optimizer.param_groups.reverse()
    return optimizer


def rebuilt(optimizer: GradientSurgery) -> GradientSurgery:
    optimizer.param_groups = [plain(group) for group in optimizer.param_groups[::-1]]
    return optimizer


def rebuilt_in_the_base(optimizer: GradientSurgery) -> GradientSurgery:
    optimizer.base.param_groups = [plain(group) for group in optimizer.param_groups]
    return optimizer


def merged(optimizer: GradientSurgery) -> GradientSurgery:
    pairs = weights(optimizer)
    optimizer.param_groups = [
        plain(optimizer.param_groups[0])
        | {"params": list(pairs.values()), "param_names": list(pairs)}
    ]
    return optimizer


def split(optimizer: GradientSurgery) -> GradientSurgery:
    """Merged, and taken apart again by copying the group: each copy carries the state."""
    (group,) = merged(optimizer).param_groups
    optimizer.param_groups = [
        group | {"params": [parameter], "param_names": [name]}
        for name, parameter in weights(optimizer).items()
    ]
    return optimizer


def emptied_and_filled(optimizer: GradientSurgery) -> GradientSurgery:
    pairs, groups = weights(optimizer), optimizer.param_groups
    optimizer.param_groups = []
    for pair, group in zip(reversed(pairs.items()), groups[::-1], strict=True):
        optimizer.add_param_group({"params": [pair], "lr": group["lr"]})
    return optimizer


def reversed_and_pickled(optimizer: GradientSurgery) -> GradientSurgery:
    optimizer.param_groups.reverse()
    twin: GradientSurgery = pickle.loads(pickle.dumps(optimizer))
    twin.param_groups.reverse()
    return twin


EDITS: list[Edit] = [
    reversed_in_place,
    rebuilt,
    rebuilt_in_the_base,
    merged,
    split,
    emptied_and_filled,
    reversed_and_pickled,
]


@pytest.mark.parametrize("again", [untouched, reversed_in_place, rebuilt, split])
@pytest.mark.parametrize("edit", EDITS)
def test_parameter_groups_in_another_shape_change_no_bit(edit: Edit, again: Edit) -> None:
    plain_run, edited = four_groups(), four_groups()
    train(plain_run, range(6))
    for steps, change in ((range(2), edit), (range(2, 4), again), (range(4, 6), untouched)):
        train(edited, steps)
        edited = change(edited)
    assert same(weights(edited), weights(plain_run))
    assert same(state_of(edited), state_of(plain_run))
    assert edited.conflicts.summary() == plain_run.conflicts.summary()


@pytest.mark.parametrize("number", range(4))
def test_a_deleted_group_leaves_the_others_their_state(number: int) -> None:
    """Also where it is the group that carries it; and finds its own when it comes back."""
    plain_run, edited = four_groups(), four_groups()
    train(plain_run, range(6))
    train(edited, range(2))
    target = state_of(edited)["target"][number]
    group = edited.param_groups.pop(number)
    train(edited, range(2, 6))
    left = [index for index in range(4) if index != number]
    assert same(weights(edited), {NAMES[index]: weights(plain_run)[NAMES[index]] for index in left})
    assert torch.equal(state_of(edited)["rng"], state_of(plain_run)["rng"])
    assert torch.equal(state_of(edited)["target"][left], state_of(plain_run)["target"][left])
    edited.add_param_group({"params": [(NAMES[number], group["params"][0])]})
    assert torch.equal(state_of(edited)["target"][number], target)
    edited.load_state_dict(edited.state_dict())
    train(edited, range(6, 7))
