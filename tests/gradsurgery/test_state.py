"""The state of surgery: where checkpoints carry it, and which of them are refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
)

from gradsurgery import GradientSurgery, GradVac, Method, PCGrad
from tests.gradsurgery.problems import (
    TwoHeads,
    same,
    state_of,
    through_distributed_checkpoint,
    train_heads,
    two_heads,
)
from tests.methods import METHODS, every_method

Groups = list[dict[str, Any]]


def wrapped(
    model: nn.Module, method: Method | None = None, grouping: str = "layer", **options: Any
) -> GradientSurgery:
    """Two groups: weights, and biases."""
    named = list(model.named_parameters())
    groups = [
        {"params": [pair for pair in named if pair[0].endswith(end)]} for end in ("weight", "bias")
    ]
    base = torch.optim.AdamW(groups, lr=0.05)
    method = method or GradVac(beta=0.2, seed=5)
    return GradientSurgery(base, method, tasks=("a", "b"), grouping=grouping, **options)


def heads(**options: Any) -> tuple[TwoHeads, GradientSurgery]:
    torch.manual_seed(0)
    model = TwoHeads()
    model.spare.requires_grad_(False)  # torch's tools expect moments of what is trained
    return model, wrapped(model, **options)


# ------------------------------------------------------------------ plain values


@every_method
def test_parameter_groups_are_plain_values(name: str) -> None:
    """For JSON, comparisons and loggers they are as those of the bare base."""
    model, optimizer = two_heads(METHODS[name].make(0))
    train_heads(model, optimizer, range(2))
    live = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    assert live == copy.deepcopy(live)
    json.dumps(live)
    saved = optimizer.state_dict()["param_groups"]
    assert saved == json.loads(json.dumps(saved)) or "betas" in saved[0]  # tuples become lists
    assert saved[0]["surgery"] == json.loads(json.dumps(saved[0]["surgery"], allow_nan=False))


class Task(str, Enum):
    A = "a"
    B = "b"


@pytest.mark.parametrize("names", [(Task.A, Task.B), np.array(["a", "b"]), ("a", Task.B)])
def test_names_of_another_type_are_saved_as_plain_strings(names: Any, tmp_path: Path) -> None:
    model = TwoHeads()
    optimizer = GradientSurgery(
        torch.optim.SGD(model.named_parameters(), lr=0.1), GradVac(), tasks=names
    )
    train_heads(model, optimizer, range(1))
    with optimizer.task(names[0]):
        model.lower.weight.sum().backward()
    optimizer.discard()
    window = optimizer.conflicts
    assert [type(task) for task in (*optimizer.tasks, *window.tasks)] == 4 * [str]
    file = tmp_path / "state.pt"
    torch.save([optimizer.state_dict(), window.state_dict()], file)
    loaded, _ = torch.load(file, weights_only=True)
    assert loaded["param_groups"][0]["surgery"]["tasks"] == ["a", "b"]


# ------------------------------------------------------------------ groups of a live optimizer


def without(group: dict[str, Any]) -> dict[str, Any]:
    """A group as users rebuild it, with torch's keys."""
    return {key: group[key] for key in group if key != "surgery"}


def deleted(groups: Groups) -> None:
    del groups[0]


def emptied_and_inserted(groups: Groups) -> None:
    first = without(groups.pop(0))
    groups.insert(0, first)


def rebuilt(groups: Groups) -> None:
    groups[:] = [without(group) for group in groups]


EDITS = [deleted, list.reverse, emptied_and_inserted, rebuilt]


@pytest.mark.parametrize("save", ["wrapper", "base"])
@pytest.mark.parametrize("edit", EDITS)
def test_a_checkpoint_has_the_state_whatever_became_of_the_groups(
    edit: Callable[[Groups], None], save: str
) -> None:
    model, optimizer = heads()
    if edit is not deleted:  # torch's state_dict() fails where moments have no group
        train_heads(model, optimizer, range(3))
    before = state_of(optimizer)
    edit(optimizer.param_groups)
    saver = optimizer if save == "wrapper" else optimizer.base
    groups = saver.state_dict()["param_groups"]
    for group in groups:
        assert torch.equal(torch.tensor(group["surgery"]["target"]), before["target"].float())
    assert same(state_of(optimizer), before)
    train_heads(model, optimizer, range(3, 4))
    resumed = wrapped(model)
    edit(resumed.param_groups)
    resumed.load_state_dict(optimizer.state_dict())
    assert same(state_of(resumed), state_of(optimizer))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("edit", [list.reverse, rebuilt])
def test_distributed_checkpoint_carries_it_through_edited_groups(
    edit: Callable[[Groups], None], flatten: bool, tmp_path: Path
) -> None:
    model, optimizer = heads()
    train_heads(model, optimizer, range(3))
    edit(optimizer.param_groups)
    resumed, second = heads()
    if not flatten:
        # The moments that are loaded into are made while the groups are as they were built.
        get_optimizer_state_dict(resumed, second)
        edit(second.param_groups)
    through_distributed_checkpoint((model, optimizer), (resumed, second), tmp_path, flatten)
    for run in ((model, optimizer), (resumed, second)):
        train_heads(*run, range(3, 6))
    assert same(list(model.parameters()), list(resumed.parameters()))


def test_a_base_that_is_saved_and_loaded_by_itself_carries_the_state() -> None:
    """Also of a copy; and of a base that was wrapped again, the later wrapper's."""
    optimizer = copy.deepcopy(heads()[1])
    other = GradientSurgery(optimizer.base, GradVac(seed=8), tasks=("x", "y", "z"))
    assert optimizer.base.state_dict()["param_groups"][0]["surgery"]["tasks"] == ["x", "y", "z"]
    assert optimizer.state_dict()["param_groups"][0]["surgery"]["tasks"] == ["a", "b"]
    del other
    assert optimizer.base.state_dict()["param_groups"][0]["surgery"]["tasks"] == ["a", "b"]
    model, second = heads()
    train_heads(model, second, range(2))
    optimizer.base.load_state_dict(copy.deepcopy(second.base.state_dict()))
    assert same(state_of(optimizer), state_of(second))


# ------------------------------------------------------------------ what is refused


def test_segments_are_found_by_name() -> None:
    """Parameters in another order number the segments otherwise."""
    model, optimizer = heads()
    train_heads(model, optimizer, range(3))
    saved = optimizer.state_dict()
    pairs = list(model.named_parameters())[::-1]
    other = GradientSurgery(
        torch.optim.SGD(pairs, lr=0.1), GradVac(), tasks=("a", "b"), grouping="layer"
    )
    sgd = other.state_dict()
    sgd["param_groups"][0]["surgery"] = saved["param_groups"][0]["surgery"]
    other.load_state_dict(sgd)
    mine, theirs = state_of(optimizer), state_of(other)
    assert theirs["segments"] == [*dict.fromkeys(name.rpartition(".")[0] for name, _ in pairs)]
    for number, segment in enumerate(theirs["segments"]):
        place = mine["segments"].index(segment)
        assert torch.equal(theirs["target"][number], mine["target"][place])
    assert mine["target"].count_nonzero() > 0


def test_names_that_a_wrapper_around_the_module_adds_do_not_matter() -> None:
    model, optimizer = heads()
    train_heads(model, optimizer, range(2))
    around = nn.Module()
    around.module = nn.Module()
    around.module._orig_mod = model
    other = wrapped(around)
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(state_of(other)["target"], state_of(optimizer)["target"])
    optimizer.load_state_dict(other.state_dict())


def test_another_grouping_of_as_many_segments_is_refused() -> None:
    model, optimizer = heads()
    train_heads(model, optimizer, range(2))
    names = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    other = wrapped(model, grouping=lambda name: "x" + name.rpartition(".")[0])
    assert len(state_of(other)["target"]) == len(names)
    with pytest.raises(ValueError, match=r"'target' of 6 segments \(lower, .*6 \(xlower.*grouping"):
        other.load_state_dict(optimizer.state_dict())


def changed(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda saved: saved.update(values)


def dropped(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda saved: saved.pop(name)


def target(value: float) -> Callable[[dict[str, Any]], None]:
    def change(saved: dict[str, Any]) -> None:
        saved["target"][0][0][1] = value

    return change


DAMAGE: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (dropped("tasks"), "of tasks"),
    (dropped("rng"), "'rng'.*generator"),
    (changed(rng=None), "'rng'.*generator"),
    (changed(rng="00ff"), "'rng'.*generator"),
    (changed(rng="no digits"), "'rng'.*generator"),
    (changed(rng="00" * 5056), "'rng'.*generator"),
    (changed(rng=torch.zeros(3)), "'rng'.*generator"),
    (changed(rng=torch.zeros(5056, dtype=torch.uint8)), "'rng'.*generator"),
    (changed(unmeasured=-1), "'unmeasured'.*-1"),
    (changed(unmeasured="2"), "'unmeasured'.*'2'"),
    (target(float("nan")), "finite.*nan|cosines.*nan"),
    (target(7.0), r"cosines.*7\.0"),
    (changed(target=[[[0.0] * 3] * 3] * 6), r"'target' of shape \[6, 3, 3\].*\[6, 2, 2\]"),
    (changed(target=[[[0.0] * 2] * 2] * 5), "'target' of 5 segments"),
    (changed(target=[[0.0, [1.0]]]), "'target' is no tensor"),
    (changed(target="zero"), "'target' is no tensor"),
    (changed(target=None), "'target' is no tensor"),
    (changed(segments=["lower"] * 6), "segments"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_damaged_state_is_refused_and_nothing_is_loaded(
    damage: Callable[[dict[str, Any]], Any], message: str
) -> None:
    _, source = heads()
    train_heads(_, source, range(3))
    saved = copy.deepcopy(source.state_dict())
    surgery = copy.deepcopy(saved["param_groups"][0]["surgery"])
    damage(surgery)
    for group in saved["param_groups"]:
        group["surgery"] = surgery
    model, optimizer = heads()
    train_heads(model, optimizer, range(1))
    before = copy.deepcopy(optimizer.state_dict())
    with optimizer.task("a"):
        model.lower.weight.sum().backward()
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    assert same(optimizer.state_dict(), before)
    optimizer.combine()  # what was captured is still there
    assert (model.lower.weight.grad == 1).all()


def test_a_state_that_the_base_refuses_leaves_captures_alone() -> None:
    _, source = two_heads(GradVac())
    model, optimizer = heads(method=PCGrad(), grouping="model")
    with optimizer.task("a"):
        model.lower.weight.sum().backward()
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict(source.state_dict())
    assert same(optimizer.state_dict(), before)
    optimizer.combine()


def test_what_was_loaded_into_the_base_is_looked_at_by_the_next_step() -> None:
    model, optimizer = heads()
    saved = copy.deepcopy(optimizer.base.state_dict())
    saved["param_groups"][0]["surgery"]["target"][0][0][1] = 7.0
    optimizer.base.load_state_dict(saved)
    with pytest.raises(ValueError, match=r"cosines.*7\.0"):
        train_heads(model, optimizer, range(1))


@every_method
def test_every_method_takes_its_own_state_and_refuses_numbers_that_are_not(name: str) -> None:
    model, optimizer = two_heads(METHODS[name].make(0))
    train_heads(model, optimizer, range(3))
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    surgery = saved["param_groups"][0]["surgery"]
    for key in optimizer.method.init(1, 2):
        damaged = copy.deepcopy(saved)
        flat = torch.tensor(surgery[key], dtype=torch.float64)
        flat.view(-1)[0] = float("nan")
        damaged["param_groups"][0]["surgery"][key] = flat.tolist()
        with pytest.raises(ValueError, match="nan"):
            optimizer.load_state_dict(damaged)
