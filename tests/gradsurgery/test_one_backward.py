"""Methods of the losses under ``join``: one backward pass, and what K of them would have given."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradsurgery import (
    FAMO,
    ConflictLog,
    ConflictStatistics,
    GradientSurgery,
    GradNorm,
    LossWeighting,
    PCGrad,
    SmoothTchebycheff,
    UncertaintyWeighting,
    report,
)
from tests.gradsurgery.problems import (
    Fails,
    TwoHeads,
    losses_of,
    same,
    state_of,
    task_gradients,
    wrap,
)
from tests.methods import METHODS

TASKS = ("a", "b")
WEIGHTINGS = [n for n, row in METHODS.items() if isinstance(row.make(0), LossWeighting)]
every_weighting = pytest.mark.parametrize("name", WEIGHTINGS)


def fresh(method: Any, **options: Any) -> tuple[TwoHeads, GradientSurgery]:
    torch.manual_seed(0)
    model = TwoHeads()
    return model, wrap(list(model.parameters()), method, tasks=TASKS, **options)


def train(optimizer: GradientSurgery, model: TwoHeads, steps: range, way: str = "join") -> None:
    for step in steps:
        losses = losses_of(model, step)
        if way == "join":
            optimizer.join(losses).backward()
        else:
            for task, loss in losses.items():
                with optimizer.task(task, loss=loss):
                    loss.backward()
            optimizer.combine()
        optimizer.step()
        optimizer.zero_grad()


def close(one: nn.Module, other: nn.Module, atol: float = 1e-6) -> None:
    torch.testing.assert_close(list(one.parameters()), list(other.parameters()), rtol=0, atol=atol)


class Passes(torch.autograd.Function):
    """Counts the backward passes through it."""

    count = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        Passes.count += 1
        return grad


@contextmanager
def passes(expected: int) -> Iterator[None]:
    Passes.count = 0
    yield
    assert Passes.count == expected


def shared_forward(model: TwoHeads) -> dict[str, Tensor]:
    z = Passes.apply(model.lower(torch.ones(2, 3)).tanh())
    return {task: (model.heads[task](z) - 1).square().mean() for task in TASKS}


@every_weighting
def test_one_forward_has_one_backward(name: str) -> None:
    model, optimizer = fresh(METHODS[name].make(0))
    with passes(1):
        optimizer.join(shared_forward(model)).backward()
    with passes(2):
        optimizer.join(shared_forward(model), combine=False).backward()


def test_methods_of_the_gram_matrix_have_k() -> None:
    for method in (PCGrad(), GradNorm()):
        model, optimizer = fresh(method)
        with passes(2):
            optimizer.join(shared_forward(model)).backward()


@pytest.mark.parametrize("name", [*WEIGHTINGS, "gradnorm"])
def test_the_update_is_the_sum_of_weighted_gradients_heads_among_them(name: str) -> None:
    """Weights from the method itself, gradients from ``torch.autograd.grad``."""
    method = METHODS[name].make(0)
    model, optimizer = fresh(method)
    train(optimizer, model, range(3))
    losses = losses_of(model, 3)
    values = torch.stack([loss.detach().double() for loss in losses.values()])
    state = {key: value for key, value in state_of(optimizer).items() if isinstance(value, Tensor)}
    del state["rng"]
    weights = state["weights"] if name == "gradnorm" else method.weigh(values, state)[0]
    by_task = task_gradients(model, losses)
    optimizer.join(losses).backward()
    for parameter_name, parameter in model.named_parameters():
        parts = [
            weight.float() * by_task[task][parameter_name]
            for task, weight in zip(TASKS, weights, strict=True)
            if parameter_name in by_task[task]
        ]
        if parts:
            torch.testing.assert_close(parameter.grad, sum(parts), rtol=1e-5, atol=1e-7)
        else:
            assert parameter.grad is None


@every_weighting
def test_separate_backwards_train_to_the_same(name: str) -> None:
    models = []
    for way in ("join", "task"):
        model, optimizer = fresh(METHODS[name].make(0))
        train(optimizer, model, range(6), way)
        models.append(model)
    close(*models)


@every_weighting
def test_micro_batches_are_decided_on_together(name: str) -> None:
    model, optimizer = fresh(METHODS[name].make(0))
    whole, other = fresh(METHODS[name].make(0))
    for step in range(4):
        halves = [losses_of(model, 2 * step + half) for half in (0, 1)]
        for losses, last in zip(halves, (False, True), strict=True):
            (optimizer.join(losses, combine=last) * 2).backward()
        parts = [losses_of(whole, 2 * step + half) for half in (0, 1)]
        total = {task: parts[0][task] + parts[1][task] for task in TASKS}
        (other.join(total) * 2).backward()
        for surgery in (optimizer, other):
            surgery.step()
            surgery.zero_grad()
    close(model, whole)


@pytest.mark.parametrize("name", [*WEIGHTINGS, "gradnorm"])
def test_a_loss_scale_changes_nothing(name: str) -> None:
    plain, optimizer = fresh(METHODS[name].make(0))
    train(optimizer, plain, range(6))
    scaled, other = fresh(METHODS[name].make(0))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    for step in range(6):
        scaler.scale(other.join(losses_of(scaled, step))).backward()
        scaler.step(other)
        scaler.update()
        other.zero_grad()
    close(plain, scaled)


@every_weighting
def test_features_change_nothing(name: str) -> None:
    grads = []
    for features in (False, True):
        model, optimizer = fresh(METHODS[name].make(0))
        for _ in range(2):
            optimizer.zero_grad()
            z = model.lower(torch.ones(2, 3)).tanh()
            passed = Passes.apply(z)
            losses = {t: (model.heads[t](passed) - 1).square().mean() for t in TASKS}
            with passes(1):
                optimizer.join(losses, features=z if features else None).backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert same(*grads)


@every_weighting
def test_an_absent_task(name: str) -> None:
    models = []
    for way in ("join", "task"):
        model, optimizer = fresh(METHODS[name].make(0))
        for step in range(5):
            losses = losses_of(model, step)
            if step % 2:
                del losses["a"]
            if way == "join":
                optimizer.join(losses).backward()
            else:
                for task, loss in losses.items():
                    with optimizer.task(task, loss=loss):
                        loss.backward()
                optimizer.combine()
            assert (model.adapter.weight.grad is None) is bool(step % 2)
            optimizer.step()
            optimizer.zero_grad()
        models.append(model)
    close(*models)


@every_weighting
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_nonfinite_loss_changes_no_state(name: str, value: float) -> None:
    model, optimizer = fresh(METHODS[name].make(0))
    train(optimizer, model, range(2))
    before = {k: v for k, v in state_of(optimizer).items() if isinstance(v, Tensor)}
    losses = losses_of(model, 2)
    losses["a"] = losses["a"] * value
    optimizer.join(losses).backward()
    assert not all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    after = {k: v for k, v in state_of(optimizer).items() if isinstance(v, Tensor)}
    assert same(after, before)
    assert optimizer.conflicts.summary()["nonfinite"] == 1
    optimizer.zero_grad()
    train(optimizer, model, range(3, 5))
    assert all(p.isfinite().all() for p in model.parameters())


def test_what_is_in_grad_already_is_added_to() -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], UncertaintyWeighting(), tasks=TASKS)
    (5 * w.sum()).backward()
    optimizer.join([w[0], w[1]]).backward()
    assert w.grad.tolist() == [6, 6]


@pytest.mark.parametrize("way", ["join", "task"])
def test_sparse_gradients_stay_sparse(way: str) -> None:
    table = nn.Embedding(6, 2, sparse=True)
    nn.init.ones_(table.weight)
    optimizer = wrap([table.weight], SmoothTchebycheff(preference=[1, 3]), tasks=TASKS)
    losses = {"a": table(torch.tensor([1, 1])).sum(), "b": table(torch.tensor([1, 4])).sum()}
    if way == "join":
        optimizer.join(losses).backward()
    else:
        for task, loss in losses.items():
            with optimizer.task(task, loss=loss):
                loss.backward()
        optimizer.combine()
    grad = table.weight.grad
    assert grad.is_sparse
    share = (4 * torch.tensor([0.25, 0.75])).softmax(0)  # both losses are 4, and mu is 1
    a, b = (share * torch.tensor([0.25, 0.75])).tolist()
    dense = grad.to_dense()[:, 0].tolist()
    assert dense == pytest.approx([0, 2 * a + b, 0, 0, b, 0])


def test_a_copy_goes_on_by_itself() -> None:
    model, optimizer = fresh(FAMO(), observe_every=2)
    train(optimizer, model, range(3))
    both = copy.deepcopy((model, optimizer))
    for one in ((model, optimizer), both):
        train(one[1], one[0], range(3, 6))
    assert same(list(model.parameters()), list(both[0].parameters()))
    assert optimizer.conflicts.summary() == both[1].conflicts.summary()


def test_a_failing_backward_leaves_nothing_behind() -> None:
    model, optimizer = fresh(FAMO())
    losses = losses_of(model)
    before = state_of(optimizer)
    with pytest.raises(MemoryError):
        optimizer.join({**losses, "b": Fails.apply(losses["b"])}).backward()
    assert all(p.grad is None for p in model.parameters())
    assert same(state_of(optimizer), before)
    optimizer.step()  # nothing waits
    other, fine = fresh(FAMO())
    train(optimizer, model, range(1))
    train(fine, other, range(1))
    assert same(list(model.parameters()), list(other.parameters()))


def test_negative_losses_are_refused_before_the_backward() -> None:
    model, optimizer = fresh(FAMO())
    losses = losses_of(model)
    with pytest.raises(ValueError, match="add a constant"):
        optimizer.join({**losses, "b": losses["b"] - 100}).backward()
    assert all(p.grad is None for p in model.parameters())


# ---------------------------------------------------------------------- what was measured


def test_the_statistics_say_that_nothing_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, optimizer = fresh(UncertaintyWeighting(lr=0.5))
    train(optimizer, model, range(3))
    scalars = optimizer.conflicts.scalars()
    assert scalars["surgery/unmeasured"] == 3
    assert not any("cosine" in name or "conflicts" in name for name in scalars)
    line = ConflictLog(tmp_path / "log.jsonl").write(optimizer.conflicts, step=3)
    assert (line["window"], line["unmeasured"], line["gradients"]["possible"]) == (3, 3, 0)
    assert line["pairs"][0]["cosine"]["mean"] is None
    assert line["norms"] == {"a": None, "b": None}
    assert line["change"]["mean"] is None
    assert 0.3 < line["weights"]["a"] < 3
    assert line["weights"]["a"] != 1
    assert report.main([str(tmp_path / "log.jsonl")]) == 0
    text = capsys.readouterr().out
    assert "a <- b | not measured |" in text
    assert "3 steps (conflicts not measured in 3)" in text
    assert "unmeasured" not in optimizer.conflicts.summary()  # a new window


def test_what_was_measured_by_the_exact_way_says_nothing_new() -> None:
    model, optimizer = fresh(UncertaintyWeighting())
    train(optimizer, model, range(3), "task")
    summary = optimizer.conflicts.summary()
    assert "unmeasured" not in summary
    assert summary["pairs"][0]["possible"] == 3
    json.dumps(summary, allow_nan=False)


def test_observing_measures_every_nth_step_and_changes_no_update() -> None:
    plain, optimizer = fresh(FAMO())
    train(optimizer, plain, range(7))
    model, observed = fresh(FAMO(), observe_every=3)
    train(observed, model, range(7))
    close(plain, model)
    summary = observed.conflicts.summary()
    assert (summary["window"], summary["unmeasured"]) == (7, 5)
    assert summary["pairs"][0]["possible"] == 2
    assert summary["gradients"]["possible"] == 4
    always = fresh(FAMO(), observe_every=1)
    train(always[1], always[0], range(3))
    assert "unmeasured" not in always[1].conflicts.summary()


def test_a_resumed_run_observes_the_same_steps() -> None:
    model, whole = fresh(UncertaintyWeighting(), observe_every=3)
    train(whole, model, range(6))
    first_model, first = fresh(UncertaintyWeighting(), observe_every=3)
    train(first, first_model, range(2))
    second_model, second = fresh(UncertaintyWeighting(), observe_every=3)
    second_model.load_state_dict(first_model.state_dict())
    second.load_state_dict(first.state_dict())
    second.conflicts.load_state_dict(first.conflicts.state_dict())
    train(second, second_model, range(2, 6))
    assert same(list(model.parameters()), list(second_model.parameters()))
    assert second.conflicts.summary() == whole.conflicts.summary()
    assert whole.conflicts.summary()["unmeasured"] == 4


@pytest.mark.parametrize("every", [0, -1])
def test_observing_needs_a_number_of_steps(every: int) -> None:
    with pytest.raises(ValueError, match=f"observe_every .* not {every}"):
        fresh(FAMO(), observe_every=every)


def test_statistics_of_a_version_that_always_measured_load() -> None:
    model, optimizer = fresh(PCGrad())
    train(optimizer, model, range(2))
    state = optimizer.conflicts.state_dict()
    old = {key: v for key, v in state["sums"].items() if key not in ("unmeasured", "weighted")}
    loaded = ConflictStatistics(TASKS, repr(optimizer.method))
    loaded.load_state_dict({**state, "sums": old})
    assert loaded.summary() == optimizer.conflicts.summary()


def test_gradnorm_smoothed_sees_the_scale_once() -> None:
    models = []
    for start, growth in ((1.0, 1.0), (1024.0, 4.0)):
        scale = start
        model, optimizer = fresh(GradNorm(lr=0.1), smoothing=0.5)
        for step in range(4):
            (optimizer.join(losses_of(model, step)) * scale).backward()
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad /= scale
            optimizer.step()
            optimizer.zero_grad()
            scale *= growth
        models.append(model)
    close(*models)
