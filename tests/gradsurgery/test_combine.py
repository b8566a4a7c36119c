"""combine: what reaches ``.grad`` in the corners, and what a non-finite step leaves as it was."""

from __future__ import annotations

import copy
import math
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from gradsurgery import GradVac, LossWeighting, Method, PCGrad, Verdict, kernels, pipeline
from gradsurgery.methods.base import State
from tests.gradsurgery.problems import linear_losses, same, state_of, vectors, wrap
from tests.methods import ALONE, METHODS, every_method, obeying


@obeying(ALONE)
def test_one_task_is_plain_training(name: str) -> None:
    w = nn.Parameter(torch.zeros(2))
    wrap([w], METHODS[name].make(0), tasks=("only",)).join(
        linear_losses([w], vectors((1, -2)))
    ).backward()
    assert w.grad.tolist() == [1, -2]


@pytest.mark.parametrize(
    ("rows", "pcgrad"),
    [
        pytest.param([(1, 2), (1, 2)], (2, 4), id="identical"),
        pytest.param([(1, 2), (-1, -2)], (0, 0), id="opposite"),
        pytest.param([(1, 2), (-3, -6)], (0, 0), id="opposite, other length"),
        pytest.param([(1, 2), (0, 0)], (1, 2), id="one zero"),
        pytest.param([(0, 0), (0, 0)], (0, 0), id="all zero"),
        pytest.param([(1, 0), (0, 1)], (1, 1), id="orthogonal"),
    ],
)
def test_degenerate_pairs(rows: list[tuple[float, ...]], pcgrad: tuple[float, float]) -> None:
    for method in (PCGrad(), GradVac()):
        w = nn.Parameter(torch.zeros(2))
        optimizer = wrap([w], method, tasks=("a", "b"))
        optimizer.join(linear_losses([w], vectors(*rows))).backward()
        assert torch.allclose(w.grad, torch.tensor(pcgrad, dtype=torch.float32), atol=1e-6)


@pytest.mark.parametrize("scale", [1e-20, 1e-12, 1e12, 1e19])
def test_scales_that_float32_squares_cannot_hold(scale: float) -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], tasks=("a", "b"))
    optimizer.join(linear_losses([w], vectors((scale, 0), (-scale, scale)))).backward()
    assert torch.allclose(w.grad / scale, torch.tensor([0.5, 1.5]))


def test_a_task_absent_from_a_segment_is_absent_there_only() -> None:
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = wrap([first, second], GradVac(beta=1.0), tasks=("a", "b", "c"), grouping="tensor")
    with optimizer.task("a"):
        (first.sum() + second.sum()).backward()
    with optimizer.task("b"):
        (first[0] + second[0]).backward()
    with optimizer.task("c"):
        second[1].backward()
    optimizer.combine()
    target = state_of(optimizer)["target"]
    assert target[0, 0, 1] == pytest.approx(math.sqrt(0.5))
    assert target[0, 2].tolist() == target[0, :, 2].tolist() == [0, 0, 0]
    assert target[1, 0, 2] == pytest.approx(math.sqrt(0.5))


@pytest.mark.parametrize("joined", [False, True])
def test_methods_decide_without_autograd(joined: bool) -> None:
    """Which would record every small operator, and take a quarter of their time."""

    class Noting(Method):
        recorded: ClassVar[list[bool]] = []

        def __call__(self, gram: Tensor, state: State) -> Verdict:
            self.recorded.append(torch.is_grad_enabled())
            return Verdict(torch.ones(gram.shape[:-1], dtype=gram.dtype), None, state)

    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], Noting(), tasks=("a", "b"))
    losses = linear_losses([w], vectors((1, 0), (0, 1)))
    if joined:
        optimizer.join(losses).backward()
    else:
        for task, loss in zip("ab", losses, strict=True):
            with optimizer.task(task):
                loss.backward()
        optimizer.combine()
    assert Noting.recorded == [False]
    assert torch.is_grad_enabled()


def test_combining_nothing_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"nothing captured.*task\(name\)"):
        wrap([nn.Parameter(torch.zeros(1))]).combine()


def test_a_cuda_graph_that_is_being_captured_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], tasks=("a", "b"))
    optimizer.join(linear_losses([w], vectors((1, 0), (-1, 1))), combine=False).backward()
    refuse = pipeline._refuse_graph_capture
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        patch.setattr(pipeline, "_refuse_graph_capture", lambda _: refuse(torch.device("cuda")))
        with pytest.raises(RuntimeError, match=r"part of a CUDA graph.*outside of the graph"):
            optimizer.combine()
    optimizer.combine()  # nothing was lost
    assert w.grad.tolist() == [0.5, 1.5]


def test_several_parameter_groups_are_one_problem() -> None:
    """Surgery within each group would find no conflict in the first."""
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    groups = [{"params": [first], "lr": 0.1}, {"params": [second], "lr": 1.0}]
    optimizer = wrap(groups, tasks=("a", "b"))  # type: ignore[arg-type]
    optimizer.join(
        [first.sum() + (second * torch.zeros(1)).sum(), (second - first).sum()]
    ).backward()
    assert (first.grad.item(), second.grad.item()) == (0.5, 1.5)
    optimizer.step()
    assert (first.item(), second.item()) == pytest.approx((-0.05, -1.5))


@pytest.mark.parametrize("where", ["shared", "head"])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@every_method
def test_a_nonfinite_step_changes_no_state(where: str, value: float, name: str) -> None:
    w, head = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    optimizer = wrap([w, head], METHODS[name].make(0), tasks=("a", "b"))
    good = [loss + 2 for loss in linear_losses([w], vectors((1, 0), (-1, 1)))]
    optimizer.join(good).backward()
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict()), optimizer.conflicts.summary()
    optimizer.zero_grad()
    broken = w if where == "shared" else head
    optimizer.join([2 + w[0] + value * broken.sum(), 2 + w[1] - w[0]]).backward()
    assert not all(p.grad.isfinite().all() for p in (w, head) if p.grad is not None)
    if where == "head" and not isinstance(optimizer.method, LossWeighting):  # decides before
        assert w.grad.tolist() == [0, 1]  # weights of one
    after = optimizer.state_dict(), optimizer.conflicts.summary()
    if kernels.fused_on(w.device, 2):  # nobody looked in time to put the order back
        for old, new in zip(before[0]["param_groups"], after[0]["param_groups"], strict=True):
            new["surgery"]["rng"] = old["surgery"]["rng"]
    assert same(after[0], before[0])
    assert after[1]["nonfinite"] == 1
    assert {**after[1], "nonfinite": 0, "window": 1} == before[1]


def test_grad_scaler_skips_a_nonfinite_step_and_training_goes_on() -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], GradVac(beta=0.5), tasks=("a", "b"))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for broken in (False, True, False):
        losses = linear_losses([w], vectors((math.inf if broken else 1, 0), (-1, 1)))
        scaler.scale(optimizer.join(losses)).backward()
        before = w.detach().clone()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_([w], 100.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert torch.equal(w, before) is broken
    assert scaler.get_scale() == 2.0
    assert w.isfinite().all()
    assert state_of(optimizer)["target"].isfinite().all()
    assert optimizer.conflicts.summary()["nonfinite"] == 1


def test_loss_scaling_changes_no_decision() -> None:
    """Surgery before ``unscale_`` is the surgery without AMP, to the bit for powers of two."""
    rows = vectors((1, 0.3, 2), (-1, 1, 0.1), (0.2, -3, -1))
    results = []
    for scale in (1.0, 65536.0):
        w = nn.Parameter(torch.zeros(3))
        optimizer = wrap([w], PCGrad(seed=3))
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(optimizer.join(linear_losses([w], rows))).backward()
        scaler.unscale_(optimizer)
        results.append(w.grad)
    assert torch.equal(*results)


def test_clipping_sees_the_gradient_that_is_stepped_on() -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], tasks=("a", "b"), lr=1.0)
    optimizer.join(linear_losses([w], vectors((1, 0), (-1, 1)))).backward()
    norm = torch.nn.utils.clip_grad_norm_([w], 0.5)
    assert norm.item() == pytest.approx(math.hypot(0.5, 1.5))
    optimizer.step()
    assert w.norm().item() == pytest.approx(0.5, rel=1e-5)
