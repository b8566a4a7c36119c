"""What a misuse is told: what was wanted, what was given, and what to write instead."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradsurgery import GradientSurgery, GradVac
from gradsurgery import functional as F
from tests.gradsurgery.problems import TwoHeads, losses_of, same, wrap

TASKS = ("a", "b")


@dataclasses.dataclass
class Output:
    a: Tensor
    b: Tensor


class Keyed:
    """Like a TensorDict: keys and items, and neither a truth nor a Mapping."""

    def __init__(self, items: dict[str, Tensor]) -> None:
        self._items = items

    def keys(self) -> Iterator[str]:
        return iter(self._items)

    def __getitem__(self, name: str) -> Tensor:
        return self._items[name]

    def __bool__(self) -> bool:
        raise ValueError("has no truth value")


def named(w: Tensor) -> dict[str, Tensor]:
    return {"b": -w[0], "a": w.sum()}


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (lambda w: (loss for loss in [w[0], w[1]]), r"not a generator: pass list\(losses\)"),
        (lambda w: map(torch.sum, [w, w]), r"not a map: pass list\(losses\)"),
        (lambda w: w.sum(), r"not a tensor of shape \[\].* before you sum them"),
        (lambda w: named(w).values(), "not a dict_values: pass the dict itself"),
        (lambda w: set(named(w).values()), "in the order of a, b, not a set"),
        (lambda w: Output(w[0], w[1]), r"not a Output: pass vars\(losses\)"),
        (lambda w: None, "not a NoneType"),
        (lambda w: "ab", "not a str"),
    ],
)
def test_what_is_neither_a_mapping_nor_a_sequence(losses: Any, message: str) -> None:
    w = nn.Parameter(torch.ones(2))
    optimizer = wrap([w], tasks=TASKS)
    with pytest.raises(TypeError, match=rf"losses is a mapping .*{message}"):
        optimizer.join(losses(w))
    optimizer.step()  # nothing waits


@pytest.mark.parametrize(
    "losses",
    [
        lambda w: Keyed(named(w)),
        lambda w: vars(Output(named(w)["a"], named(w)["b"])),
        lambda w: torch.stack([named(w)["a"], named(w)["b"]]),
    ],
)
def test_what_has_keys_or_an_order_is_taken(losses: Any) -> None:
    w, plain = (nn.Parameter(torch.ones(2)) for _ in range(2))
    wrap([w], tasks=TASKS).join(losses(w)).backward()
    wrap([plain], tasks=TASKS).join(named(plain)).backward()
    assert same(w.grad, plain.grad)


def test_a_complex_loss() -> None:
    w = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"'a' is complex \(torch.complex64\).*real part"):
        wrap([w], tasks=TASKS).join({"a": w.sum() * 1j})


def test_a_task_that_reaches_no_parameter_under_join() -> None:
    w, other = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = wrap([w], tasks=TASKS)
    with pytest.raises(RuntimeError, match=r"task\('b'\).*depends on none of them.*leave the task"):
        optimizer.join({"a": w.sum(), "b": other.sum()}).backward()
    optimizer.step()  # nothing waits


def test_a_layout_without_a_gradient() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, on a layout in beta state
        csr = nn.Parameter(torch.ones(1, 2).to_sparse_csr())
    with pytest.raises(ValueError, match=r"parameter 0 .*\[1, 2\].*sparse_csr.*values\(\)"):
        wrap([csr], tasks=TASKS)
    optimizer = wrap([nn.Parameter(torch.ones(2))], tasks=TASKS)
    with pytest.raises(ValueError, match="sparse_csr"):
        optimizer.add_param_group({"params": [csr]})
    assert len(optimizer.param_groups) == 1


# ---------------------------------------------------------------------- a context that is kept


def test_a_kept_task_adds_up_like_a_new_one() -> None:
    w, plain = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = wrap([w], tasks=TASKS)
    kept = {task: optimizer.task(task) for task in TASKS}

    @optimizer.task("a")
    def more() -> None:
        (2 * w.sum()).backward()

    with pytest.raises(RuntimeError, match="entered inside"), kept["a"], kept["a"]:
        pass
    for _ in range(2):
        for sign, task in zip((1, -1), TASKS, strict=True):
            with kept[task]:
                (sign * w[0]).backward()
        more()
    optimizer.combine()
    again = wrap([plain], tasks=TASKS)
    again.join([2 * plain[0] + 4 * plain.sum(), -2 * plain[0]]).backward()
    assert same(w.grad, plain.grad)


def test_a_kept_loss_is_refused() -> None:
    w = nn.Parameter(torch.ones(2))
    kept = wrap([w], tasks=TASKS).task("a", loss=w.sum())
    with kept:
        w.sum().backward()
    with pytest.raises(RuntimeError, match=r"task\('a', loss=...\) was entered a second time"):
        kept.__enter__()


# ---------------------------------------------------------------------- joined losses, summed


@pytest.mark.parametrize("first", [True, False])
def test_joined_losses_that_are_summed_run_last_first(first: bool) -> None:
    w = nn.Parameter(torch.ones(2))
    optimizer = wrap([w], tasks=TASKS)
    early = optimizer.join({"a": w.sum()}, combine=first)
    late = optimizer.join({"b": -w[0]}, combine=not first)
    if first:
        (early + late).backward()
        assert w.grad is not None
        assert optimizer.conflicts.summary()["window"] == 1
        return
    with pytest.raises(RuntimeError, match=r"joined loss of a was added.*the\s+first made alone"):
        (early + late).backward()
    optimizer.zero_grad()
    optimizer.join({"a": w.sum()}, combine=False).backward()
    optimizer.join({"b": -w[0]}).backward()
    assert optimizer.conflicts.summary()["window"] == 2


def test_two_surgeries_in_one_backward_are_refused() -> None:
    w = nn.Parameter(torch.ones(2))
    optimizer = wrap([w], tasks=TASKS)
    summed = optimizer.join({"a": w.sum()}) + optimizer.join({"b": -w[0]})
    with pytest.raises(RuntimeError, match="joined loss of a was added"):
        summed.backward()


def test_two_optimizers_may_combine_in_one_backward() -> None:
    v, w = (nn.Parameter(torch.ones(2)) for _ in range(2))
    first, second = (wrap([p], tasks=TASKS) for p in (v, w))
    (first.join([v.sum(), -v[0]]) + second.join([w.sum(), -w[0]])).backward()
    assert same(v.grad, w.grad)


# ---------------------------------------------------------------------- checkpoints


def trained(tasks: tuple[str, ...] = TASKS, groups: int = 1) -> tuple[TwoHeads, GradientSurgery]:
    torch.manual_seed(0)
    model = TwoHeads()
    named = list(model.named_parameters())
    base = torch.optim.AdamW(named[:4], lr=0.05)
    if groups == 2:
        base.add_param_group({"params": named[4:]})
    optimizer = GradientSurgery(base, GradVac(), tasks=tasks, grouping="tensor")
    for step in range(2):
        optimizer.join(losses_of(model, step)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def test_a_forgotten_group_is_called_one() -> None:
    state = trained(groups=2)[1].state_dict()
    _, other = trained()
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=r"groups of \[4, 8\] parameters and this .* of \[4\]"):
        other.load_state_dict(state)
    assert same(other.state_dict(), before)


def test_another_task_keeps_the_moments_by_the_way_that_the_message_names() -> None:
    _, optimizer = trained()
    state = copy.deepcopy(optimizer.state_dict())
    model, other = trained(("a", "b", "c"))
    with pytest.raises(ValueError, match=r"group.pop\('surgery', None\)"):
        other.load_state_dict(state)
    for group in state["param_groups"]:
        group.pop("surgery", None)
    other.load_state_dict(state)
    assert same(other.state_dict()["state"], optimizer.state_dict()["state"])
    other.join(losses_of(model)).backward()
    other.step()


@pytest.mark.parametrize("other", ["tasks", "segments"])
def test_what_the_base_loaded_past_the_wrapper_is_found(other: str) -> None:
    model, optimizer = trained()
    if other == "tasks":
        state = trained(("a", "b", "c"))[1].state_dict()
    else:
        state = copy.deepcopy(optimizer.state_dict())
        target = state["param_groups"][0]["surgery"]["target"]
        state["param_groups"][0]["surgery"]["target"] = target + target
    optimizer.base.load_state_dict(state)
    with pytest.raises(ValueError, match=f"{'is of tasks' if other == 'tasks' else '8 segments'}"):
        optimizer.join(losses_of(model)).backward()
    optimizer.zero_grad()
    optimizer.step()


def test_what_the_base_loaded_of_the_same_kind_is_taken() -> None:
    (model, optimizer), (_, other) = trained(), trained()
    optimizer.base.load_state_dict(other.state_dict())
    assert same(optimizer.state_dict(), other.state_dict())
    optimizer.join(losses_of(model)).backward()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (torch.ones(4), r"\[3\] torch.float32 on cpu; \[4\] torch.float32 on cpu"),
        (torch.ones(3).double(), r"\[3\] torch.float64 on cpu"),
        (torch.ones(3, device="meta"), r"\[3\] torch.float32 on meta"),
    ],
    ids=["shape", "dtype", "device"],
)
def test_functional_refuses_gradients_of_one_parameter_that_differ(
    other: Tensor, said: str
) -> None:
    """Kernels would read beyond the shorter."""
    for call in (F.gram, lambda grads: F.combine(grads, torch.ones(3))):
        with pytest.raises(ValueError, match=f"for parameter 1 differ .*{said}"):
            call([[None, torch.ones(3)], [torch.ones(2), None], [torch.ones(2), other]])


def test_a_parameter_that_is_cast_between_the_tasks_of_a_step() -> None:
    weight, bias = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(1))
    optimizer = GradientSurgery(torch.optim.SGD([weight, bias], lr=0.1), GradVac(), tasks=TASKS)
    with optimizer.task("a"):
        (weight.square().sum() + bias.sum()).backward()
    weight.data = weight.data.double()
    with optimizer.task("b"):
        (weight.sum() + bias.sum()).backward()
    with pytest.raises(
        ValueError, match=r"\[3\] have several dtypes \(torch.float32, torch.float6"
    ):
        optimizer.combine()
