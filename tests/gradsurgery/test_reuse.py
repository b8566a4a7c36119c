"""``every=R``: one backward pass with the last measured step's weights, against K passes."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradsurgery import (
    FAMO,
    MGDA,
    ConflictLog,
    Constant,
    GradientSurgery,
    GradVac,
    LossWeighting,
    Method,
    PCGrad,
    RandomWeights,
    SurgeryWarning,
    report,
)
from gradsurgery.kept import SHARED, Kept
from tests.gradsurgery.problems import (
    TwoHeads,
    losses_of,
    same,
    state_of,
    task_gradients,
    through_distributed_checkpoint,
    wrap,
)
from tests.gradsurgery.test_one_backward import passes, shared_forward
from tests.methods import METHODS

TASKS = ("a", "b")
SURGERY = [n for n, row in METHODS.items() if not isinstance(row.make(0), LossWeighting)]


def fresh(method: Method | None = None, **options: Any) -> tuple[TwoHeads, GradientSurgery]:
    torch.manual_seed(0)
    model = TwoHeads()
    options = {"every": 3, "tasks": TASKS} | options
    return model, wrap(list(model.parameters()), method or PCGrad(), **options)


def step(optimizer: GradientSurgery, losses: dict[str, Tensor], factor: float = 1.0) -> None:
    (optimizer.join(losses) * factor).backward()
    optimizer.step()
    optimizer.zero_grad()


def train(optimizer: GradientSurgery, model: TwoHeads, steps: range) -> None:
    for seed in steps:
        step(optimizer, losses_of(model, seed))


def last_weights(optimizer: GradientSurgery) -> dict[str, float]:
    return optimizer.conflicts.summary()["weights"]


def weighted_sum(
    model: TwoHeads, losses: dict[str, Tensor], weights: dict[str, float], plain: bool = True
) -> dict[str, Tensor]:
    """The update by the definition: gradients from ``torch.autograd.grad``, one by one."""
    by_task, update = task_gradients(model, losses), {}
    for name, _ in model.named_parameters():
        users = [task for task in losses if name in by_task[task]]
        shared = len(users) > 1 or not plain
        parts = [(weights[task] if shared else 1.0) * by_task[task][name] for task in users]
        if parts:
            update[name] = sum(parts[1:], parts[0])
    return update


def check_update(model: nn.Module, expected: dict[str, Tensor], factor: float = 1.0) -> None:
    for name, parameter in model.named_parameters():
        if name in expected:
            wanted = factor * expected[name]
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-6 * factor)
        else:
            assert parameter.grad is None


def test_a_cycle_is_one_measured_step_and_one_backward_in_each_of_the_others() -> None:
    model, optimizer = fresh(Constant([0.5, 2.0]))
    for expected in (2, 1, 1, 2, 1, 1):
        with passes(expected):
            optimizer.join(shared_forward(model)).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", SURGERY)
@pytest.mark.parametrize("task_only", ["plain", "weighted"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_reused_step_is_the_sum_of_weighted_gradients(
    name: str, task_only: str, reduction: str
) -> None:
    method = METHODS[name].make(0)
    model, optimizer = fresh(method, task_only=task_only, reduction=reduction)
    step(optimizer, losses_of(model, 0))
    weights = last_weights(optimizer)
    if min(map(abs, weights.values())) == 0:
        pytest.skip("a weight of zero, which has the next step measured")
    optimizer.conflicts.reset()
    losses = losses_of(model, 1)
    expected = weighted_sum(model, losses, weights, task_only == "plain")
    if reduction == "mean":
        by_task = task_gradients(model, losses)
        for key in expected:
            if all(key in by_task[task] for task in TASKS):
                expected[key] = expected[key] / 2
    optimizer.join(losses).backward()
    check_update(model, expected)
    assert optimizer.conflicts.summary()["unmeasured"] == 1
    assert last_weights(optimizer) == pytest.approx(weights)


@pytest.mark.parametrize("name", SURGERY)
def test_a_measured_step_is_bitwise_that_of_every_step(name: str) -> None:
    """From the same weights, moments and method's state, whatever was reused before."""
    model, optimizer = fresh(METHODS[name].make(0))
    other_model, other = fresh(METHODS[name].make(0), every=1)
    for cycle in range(2):
        other_model.load_state_dict(model.state_dict())
        seed = 3 * cycle
        for trained, surgery in ((model, optimizer), (other_model, other)):
            surgery.join(losses_of(trained, seed)).backward()
        grads = [[p.grad for p in m.parameters()] for m in (model, other_model)]
        assert same(*grads)
        for surgery in (optimizer, other):
            surgery.step()
            surgery.zero_grad()
        train(optimizer, model, range(seed + 1, seed + 3))
    states = [state_of(surgery) for surgery in (optimizer, other)]
    assert all(same(states[0][key], value) for key, value in states[1].items())


@pytest.mark.parametrize("factor", [1024.0, 0.5])
@pytest.mark.parametrize("name", ["pcgrad", "nash_mtl", "imtl_g", "gradnorm"])
def test_a_loss_scale_reaches_a_reused_step_once(name: str, factor: float) -> None:
    """Also of methods whose update does not grow with the losses."""
    model, optimizer = fresh(METHODS[name].make(0))
    step(optimizer, losses_of(model, 0), factor)
    weights = last_weights(optimizer)
    losses = losses_of(model, 1)
    expected = weighted_sum(model, losses, weights)
    (optimizer.join(losses) * factor).backward()
    check_update(model, expected, factor)


def test_grad_scaler_skips_an_overflow_in_a_reused_step() -> None:
    model, optimizer = fresh(Constant([0.5, 2.0]))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for seed in range(3):
        losses = losses_of(model, seed)
        if seed == 1:
            losses["a"] = losses["a"] * math.inf
        before = [p.clone() for p in model.parameters()]
        scaler.scale(optimizer.join(losses)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert same(before, list(model.parameters())) is (seed == 1)
    summary = optimizer.conflicts.summary()
    assert (summary["window"], summary["nonfinite"], summary["unmeasured"]) == (3, 1, 1)


def test_a_step_that_is_not_finite_leaves_no_weights() -> None:
    model, optimizer = fresh(Constant([0.5, 2.0]))
    losses = losses_of(model, 0)
    optimizer.join({**losses, "a": losses["a"] * math.inf}).backward()
    optimizer.zero_grad()
    with passes(2):
        optimizer.join(shared_forward(model)).backward()


def test_a_weight_of_zero_has_the_step_measured_where_its_task_has_parameters() -> None:
    model, optimizer = fresh(Constant([0.0, 1.0]))
    train(optimizer, model, range(3))
    assert "unmeasured" not in optimizer.conflicts.summary()
    model, optimizer = fresh(Constant([0.0, 1.0]), task_only="weighted")
    train(optimizer, model, range(3))
    assert optimizer.conflicts.summary()["unmeasured"] == 2
    w = nn.Parameter(torch.ones(2))
    optimizer = wrap([w], Constant([0.0, 1.0]), tasks=TASKS, every=3)
    for _ in range(3):
        step(optimizer, {"a": w[0] * 1, "b": w[1] * 1})
    assert optimizer.conflicts.summary()["unmeasured"] == 2


def test_negative_weights_are_divided_out() -> None:
    model, optimizer = fresh(Constant([-0.5, 2.0]))
    step(optimizer, losses_of(model, 0))
    losses = losses_of(model, 1)
    expected = weighted_sum(model, losses, {"a": -0.5, "b": 2.0})
    optimizer.join(losses).backward()
    check_update(model, expected)


def test_other_tasks_than_were_measured_have_the_step_measured() -> None:
    model, optimizer = fresh(Constant([0.5, 2.0]))
    step(optimizer, losses_of(model, 0))
    only = {"a": losses_of(model, 1)["a"]}
    step(optimizer, only)
    step(optimizer, {"a": losses_of(model, 2)["a"]})  # the same task alone: reused
    step(optimizer, losses_of(model, 3))
    assert optimizer.conflicts.summary()["unmeasured"] == 1


def test_micro_batches_have_one_backward_each() -> None:
    model, optimizer = fresh(Constant([0.5, 2.0]))
    whole, other = fresh(Constant([0.5, 2.0]))
    for number in range(3):
        expected = 2 if number == 0 else 1
        for last in (False, True):
            with passes(expected):
                optimizer.join(shared_forward(model), combine=last).backward()
        optimizer.step()
        optimizer.zero_grad()
        halves = [shared_forward(whole), shared_forward(whole)]
        step(other, {task: halves[0][task] + halves[1][task] for task in TASKS})
    torch.testing.assert_close(list(model.parameters()), list(whole.parameters()))
    assert optimizer.conflicts.summary()["unmeasured"] == 2


def test_micro_batches_with_a_task_each_have_the_step_measured() -> None:
    model, optimizer = fresh(Constant([0.5, 2.0]))
    for seed in range(3):
        losses = losses_of(model, seed)
        optimizer.join({"a": losses["a"]}, combine=False).backward()
        optimizer.join({"b": losses["b"]}).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert "unmeasured" not in optimizer.conflicts.summary()


def test_a_combine_of_its_own_ends_micro_batches() -> None:
    model, optimizer = fresh(Constant([0.5, 2.0]))
    step(optimizer, losses_of(model, 0))
    losses = losses_of(model, 1)
    expected = weighted_sum(model, losses, {"a": 0.5, "b": 2.0})
    optimizer.join(losses, combine=False).backward()
    optimizer.combine()
    check_update(model, expected)


def test_a_step_of_two_ways_is_refused() -> None:
    model, optimizer = fresh()
    step(optimizer, losses_of(model, 0))
    optimizer.join(losses_of(model, 1), combine=False).backward()
    with pytest.raises(RuntimeError, match=r"every=3.* the same way"), optimizer.task("a"):
        pass
    optimizer.zero_grad()
    step(optimizer, {"a": losses_of(model, 2)["a"]})
    optimizer.join({"a": losses_of(model, 3)["a"]}, combine=False).backward()
    with pytest.raises(RuntimeError, match=r"task 'b' joined .*every=3"):
        optimizer.join(losses_of(model, 4)).backward()
    optimizer.zero_grad()
    train(optimizer, model, range(2))


def test_tasks_captured_apart_are_measured() -> None:
    model, optimizer = fresh()
    for seed in range(3):
        for task, loss in losses_of(model, seed).items():
            with optimizer.task(task):
                loss.backward()
        optimizer.combine()
        optimizer.step()
        optimizer.zero_grad()
    assert "unmeasured" not in optimizer.conflicts.summary()


def test_an_unfrozen_or_added_parameter_has_the_step_measured() -> None:
    model, optimizer = fresh(Constant([0.5, 2.0]))
    model.lower.requires_grad_(False)
    step(optimizer, losses_of(model, 0))
    step(optimizer, losses_of(model, 1))
    assert optimizer.conflicts.summary()["unmeasured"] == 1
    model.lower.requires_grad_(True)
    step(optimizer, losses_of(model, 2))
    assert optimizer.conflicts.summary()["unmeasured"] == 1
    step(optimizer, losses_of(model, 3))
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    step(optimizer, losses_of(model, 4))
    assert optimizer.conflicts.summary()["unmeasured"] == 2


def test_a_parameter_first_used_in_a_reused_step_is_told_of_and_measured_next() -> None:
    model, optimizer = fresh(Constant([0.5, 2.0]))
    step(optimizer, losses_of(model, 0))
    losses = losses_of(model, 1)
    losses["a"] = losses["a"] + model.spare.weight.sum()
    with pytest.warns(SurgeryWarning, match=r"1 of the parameters .*every=3"):
        optimizer.join(losses).backward()
    torch.testing.assert_close(model.spare.weight.grad, torch.full((4, 4), 0.5))
    optimizer.step()
    optimizer.zero_grad()
    losses = losses_of(model, 2)
    losses["a"] = losses["a"] + model.spare.weight.sum()
    optimizer.join(losses).backward()
    torch.testing.assert_close(model.spare.weight.grad, torch.ones(4, 4))


def test_sparse_gradients_of_one_task_are_plain() -> None:
    table, trunk = nn.Embedding(4, 2, sparse=True), nn.Parameter(torch.ones(2))
    optimizer = wrap([table.weight, trunk], Constant([0.5, 2.0]), tasks=TASKS, every=2)
    for _ in range(2):
        rows = table(torch.tensor([1, 1, 3]))
        optimizer.join({"a": (rows * trunk).sum(), "b": trunk.sum()}).backward()
        assert table.weight.grad is not None
        assert table.weight.grad.is_sparse
        torch.testing.assert_close(table.weight.grad.to_dense()[1], 2 * trunk.detach())
        optimizer.zero_grad()
    assert optimizer.conflicts.summary()["unmeasured"] == 1


def test_smoothing_and_targets_stay_between_measured_steps() -> None:
    for method, options in ((GradVac(), {}), (PCGrad(), {"smoothing": 0.5})):
        model, optimizer = fresh(method, **options)
        step(optimizer, losses_of(model, 0))
        before = {k: v for k, v in state_of(optimizer).items() if k not in ("unmeasured",)}
        step(optimizer, losses_of(model, 1))
        after = {k: v for k, v in state_of(optimizer).items() if k not in ("unmeasured",)}
        assert same(before, after)


def through_state(optimizer: GradientSurgery, other: GradientSurgery) -> GradientSurgery:
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return other


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
@pytest.mark.parametrize("method", [PCGrad, GradVac, RandomWeights, MGDA])
def test_a_run_resumed_in_mid_cycle_is_bitwise_the_one_that_never_stopped(
    method: Callable[[], Method], stop: int
) -> None:
    model, optimizer = fresh(method())
    train(optimizer, model, range(6))
    first_model, first = fresh(method())
    train(first, first_model, range(stop))
    second_model, second = fresh(method())
    second_model.load_state_dict(first_model.state_dict())
    saved = json.loads(json.dumps(first.state_dict()))  # plain values
    second.load_state_dict(saved)
    second.conflicts.load_state_dict(first.conflicts.state_dict())
    train(second, second_model, range(stop, 6))
    assert same(list(model.parameters()), list(second_model.parameters()))
    assert second.conflicts.summary() == optimizer.conflicts.summary()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("flatten", [False, True])
def test_a_distributed_checkpoint_in_mid_cycle(tmp_path: Path, flatten: bool) -> None:
    def made() -> tuple[TwoHeads, GradientSurgery]:
        torch.manual_seed(0)
        model = TwoHeads()
        del model.spare
        base = torch.optim.AdamW(model.named_parameters(), lr=0.05)
        return model, GradientSurgery(base, GradVac(), tasks=TASKS, every=3)

    saved, resumed = made(), made()
    train(saved[1], saved[0], range(2))
    train(resumed[1], resumed[0], range(1))  # its states and shapes are there
    through_distributed_checkpoint(saved, resumed, tmp_path, flatten)
    for model, optimizer in (saved, resumed):
        train(optimizer, model, range(2, 4))
    assert same(list(saved[0].parameters()), list(resumed[0].parameters()))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_goes_on_in_mid_cycle(copied: Callable[[Any], Any]) -> None:
    model, optimizer = fresh()
    train(optimizer, model, range(2))
    other_model, other = copied((model, optimizer))
    for trained, surgery in ((model, optimizer), (other_model, other)):
        train(surgery, trained, range(2, 6))
    assert same(list(model.parameters()), list(other_model.parameters()))


def test_states_without_kept_weights_load_and_are_measured() -> None:
    model, optimizer = fresh(every=1)
    train(optimizer, model, range(2))
    other_model, other = fresh()
    through_state(optimizer, other)
    train(other, other_model, range(2))
    assert other.conflicts.summary()["unmeasured"] == 1
    through_state(other, optimizer)  # and the other way round
    train(optimizer, model, range(2))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("values", [1.0]),
        ("values", [math.nan] * 5),
        ("active", [True]),
        ("shared", [True, 7]),
        ("owners", [[5, 1]]),
        ("owners", [[0, -1]]),
        ("owners", 3),
    ],
)
def test_damaged_kept_weights_are_refused(key: str, value: object) -> None:
    model, optimizer = fresh()
    train(optimizer, model, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        group["surgery"]["kept"][key] = value
    with pytest.raises(ValueError, match="'kept' are no weights"):
        optimizer.load_state_dict(saved)


def test_the_log_counts_reused_steps_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, optimizer = fresh(GradVac())
    path = tmp_path / "conflicts.jsonl"
    train(optimizer, model, range(6))
    line = ConflictLog(path).write(optimizer.conflicts, step=6)
    assert (line["window"], line["unmeasured"]) == (6, 4)
    assert line["gradients"]["possible"] == 4  # two tasks in two measured steps
    assert line["pairs"][0]["possible"] == 2
    assert line["pairs"][0]["altered"] is not None
    assert report.main([str(path)]) == 0
    assert "6 steps (conflicts not measured in 4)" in capsys.readouterr().out


def test_altered_is_known_where_all_steps_of_a_window_are_reused() -> None:
    model, optimizer = fresh()
    train(optimizer, model, range(1))
    optimizer.conflicts.reset()
    train(optimizer, model, range(1, 3))
    optimizer.conflicts.summary()
    train(optimizer, model, range(3, 4))
    assert optimizer.conflicts.summary()["pairs"][0]["altered"] is not None
    assert optimizer.conflicts.scalars()["surgery/unmeasured"] == 2


@pytest.mark.parametrize("every", [0, -1])
def test_every_is_a_number_of_steps(every: int) -> None:
    with pytest.raises(ValueError, match=f"every .* not {every}"):
        fresh(every=every)


def refused(match: str, make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_what_every_cannot_go_with() -> None:
    refused("grouping='tensor' makes 12 segments", lambda: fresh(grouping="tensor"))
    refused("every=3 does not go with FAMO", lambda: fresh(FAMO()))
    model, optimizer = fresh()
    z = model.lower(torch.ones(2, 3))
    losses: Sequence[Tensor] = [model.heads[task](z).mean() for task in TASKS]
    refused("features= does not go with every=3", lambda: optimizer.join(losses, features=z))


def test_a_second_segment_is_refused_when_it_comes() -> None:
    lower, upper = nn.Linear(2, 2), nn.Linear(2, 2)
    base = torch.optim.SGD([(f"lower.{n}", p) for n, p in lower.named_parameters()], lr=0.1)
    optimizer = GradientSurgery(
        base, PCGrad(), tasks=TASKS, every=2, grouping=lambda name: name.split(".")[0]
    )
    group = {"params": [(f"upper.{n}", p) for n, p in upper.named_parameters()]}
    refused("makes 2 segments", lambda: optimizer.add_param_group(group))
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("weights", "finite", "usable"),
    [
        ([0.5, 2.0], True, True),
        ([0.5, 2.0], False, False),  # as the fused kernels find out without the host
        ([1e39, 2.0], True, False),
        ([0.0, 2.0], True, True),  # task a has no parameters of its own
        ([0.5, 1e-9], True, False),
    ],
)
def test_weights_that_no_loss_can_be_multiplied_by_are_not_used(
    weights: list[float], finite: bool, usable: bool
) -> None:
    values, own = torch.tensor([weights, [1.0, 1.0]], dtype=torch.float64)
    both = [True, True]
    kept = Kept(values, own, torch.tensor(finite), both, both, [SHARED, 1])
    assert (kept.own_factors(1) is not None) is usable
    restored = Kept.restored(kept.saved(), 2)
    assert restored is not None
    assert restored.saved() == kept.saved()
