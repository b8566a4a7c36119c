"""GradientSurgery as a torch.optim.Optimizer: everything that takes one takes it."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gradsurgery import GradientSurgery, GradVac, PCGrad, Sum
from tests.gradsurgery.problems import (
    TwoHeads,
    losses_of,
    same,
    state_of,
    through_distributed_checkpoint,
    train_heads,
    two_heads,
    wrap,
)
from tests.methods import METHODS, every_method

BASES: list[Callable[..., torch.optim.Optimizer]] = [
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    lambda params, **options: torch.optim.AdamW(params, fused=True, **options),
    lambda params, **options: torch.optim.AdamW(params, foreach=True, **options),
    torch.optim.Adagrad,
    torch.optim.RMSprop,
]


@pytest.mark.parametrize("base", BASES)
def test_with_sum_every_base_trains_as_it_does_alone(
    base: Callable[..., torch.optim.Optimizer],
) -> None:
    weights = []
    for wrapped in (True, False):
        torch.manual_seed(0)
        model = TwoHeads()
        optimizer = base(model.parameters(), lr=0.05)
        if wrapped:
            train_heads(model, GradientSurgery(optimizer, Sum(), tasks=("a", "b")), range(4))
        else:
            for seed in range(4):
                for loss in losses_of(model, seed).values():
                    loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        weights.append(list(model.parameters()))
    assert same(*weights)


def through_torch_save(source: GradientSurgery, target: GradientSurgery, path: Path) -> None:
    torch.save(source.state_dict(), path / "optimizer.pt")
    target.load_state_dict(torch.load(path / "optimizer.pt", weights_only=True))


def through_base(source: GradientSurgery, target: GradientSurgery, path: Path) -> None:
    target.base.load_state_dict(copy.deepcopy(source.base.state_dict()))


def through_pickle(source: GradientSurgery, target: GradientSurgery, path: Path) -> None:
    target.load_state_dict(pickle.loads(pickle.dumps(source)).state_dict())


def through_deepcopy(source: GradientSurgery, target: GradientSurgery, path: Path) -> None:
    target.load_state_dict(copy.deepcopy(source).state_dict())


@pytest.mark.parametrize(
    "carry", [through_torch_save, through_base, through_pickle, through_deepcopy]
)
@every_method
def test_a_resumed_run_is_bitwise_the_run_that_never_stopped(
    carry: Callable[[GradientSurgery, GradientSurgery, Path], None],
    name: str,
    tmp_path: Path,
) -> None:
    model, optimizer = two_heads(METHODS[name].make(5))
    train_heads(model, optimizer, range(8))
    stopped, first = two_heads(METHODS[name].make(5))
    train_heads(stopped, first, range(4))
    resumed, second = two_heads(METHODS[name].make(5))
    resumed.load_state_dict(stopped.state_dict())
    carry(first, second, tmp_path)
    train_heads(resumed, second, range(4, 8))
    assert same(list(model.parameters()), list(resumed.parameters()))


# torch says that no_dist means no distribution.
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("flatten", [False, True])
def test_distributed_checkpoint_carries_everything(flatten: bool, tmp_path: Path) -> None:
    method = GradVac(beta=0.2, seed=5)
    model, optimizer = two_heads(method)
    train_heads(model, optimizer, range(4))
    resumed, second = two_heads(method)
    through_distributed_checkpoint((model, optimizer), (resumed, second), tmp_path, flatten)
    for run in ((model, optimizer), (resumed, second)):
        train_heads(*run, range(4, 8))
    assert same(list(model.parameters()), list(resumed.parameters()))


def test_a_state_dict_keeps_what_it_saw() -> None:
    model, optimizer = two_heads(GradVac(beta=0.5))
    train_heads(model, optimizer, range(2))
    saved = state_of(optimizer)
    before = copy.deepcopy(saved)
    train_heads(model, optimizer, range(2, 4))
    assert same(saved, before)


def test_checkpoints_pass_between_wrapped_and_plain() -> None:
    model, optimizer = two_heads(PCGrad())
    train_heads(model, optimizer, range(3))
    plain = torch.optim.AdamW(model.named_parameters(), lr=0.05)
    plain.load_state_dict(optimizer.state_dict())
    _, other = two_heads(PCGrad(seed=9))
    rng = state_of(other)["rng"]
    unwrapped = torch.optim.AdamW(model.named_parameters(), lr=0.05)
    other.load_state_dict(state_dict=unwrapped.state_dict())  # by keyword, as DCP does
    assert torch.equal(state_of(other)["rng"], rng)


def test_checkpoints_of_other_tasks_or_segments_are_refused() -> None:
    model, optimizer = two_heads(GradVac())
    train_heads(model, optimizer, range(1))
    before = copy.deepcopy(optimizer.state_dict())
    other = GradientSurgery(
        torch.optim.AdamW(model.named_parameters()), GradVac(), tasks=("b", "a")
    )
    with pytest.raises(ValueError, match=r"\['a', 'b'\].*\['b', 'a'\]"):
        other.load_state_dict(optimizer.state_dict())
    coarse = GradientSurgery(
        torch.optim.AdamW(model.named_parameters()), GradVac(), tasks=("a", "b")
    )
    with pytest.raises(ValueError, match=r"segments.*has 1"):
        coarse.load_state_dict(optimizer.state_dict())
    assert coarse.state == {}
    with pytest.raises(ValueError, match=r"of 1 segments"):
        optimizer.load_state_dict(coarse.state_dict())
    assert same(optimizer.state_dict(), before)


def test_step_refuses_captured_gradients_that_wait() -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], tasks=("a", "b"))
    with optimizer.task("b"):
        w.sum().backward()
    with pytest.raises(RuntimeError, match=r"task b has captured gradients.*combine\(\)"):
        optimizer.step()
    assert w.tolist() == [0, 0]
    optimizer.zero_grad()
    optimizer.step()


def test_a_closure_is_evaluated_as_often_as_the_base_wants() -> None:
    w = nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = wrap([w], tasks=("a", "b"), base=torch.optim.LBFGS, lr=1.0)
    calls = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        joined = optimizer.join([(w[0] - 1).square(), (w[0] + w[1]).square()])
        joined.backward()
        calls.append(joined.item())
        return joined

    for _ in range(5):
        optimizer.step(closure)
    assert len(calls) > 5
    assert w.tolist() == pytest.approx([1, -1], abs=1e-3)


def test_a_closure_that_forgets_to_combine_is_refused() -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], tasks=("a", "b"))

    def closure() -> None:
        optimizer.join([w.sum(), w.sum()], combine=False).backward()

    with pytest.raises(RuntimeError, match=r"combine\(\)"):
        optimizer.step(closure)
    assert w.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"base": object()}, TypeError, "torch.optim.Optimizer, not a object"),
        ({"base": wrap([nn.Parameter(torch.zeros(1))])}, TypeError, "GradientSurgery already"),
        ({"method": PCGrad}, TypeError, r"such as PCGrad\(\)"),
        ({"method": "pcgrad"}, TypeError, "'pcgrad'"),
        ({"tasks": "sst"}, ValueError, "'sst'"),
        ({"tasks": ()}, ValueError, "not ()"),
        ({"tasks": ("a", 1)}, ValueError, "1"),
        ({"tasks": ("a", "b", "a")}, ValueError, "'a' is listed more than once"),
        ({"grouping": "block"}, ValueError, "'model', 'layer', 'tensor'.*'block'"),
        ({"grouping": "layer"}, ValueError, "parameter 0 has none.*named_parameters"),
        ({"process_group": object()}, TypeError, "after init_process_group"),
        ({"method": GradVac(target=torch.zeros(3, 3))}, ValueError, r"\[3, 3\].*2 tasks"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    w = nn.Parameter(torch.zeros(1))
    usual = {"base": torch.optim.SGD([w]), "method": PCGrad(), "tasks": ("a", "b")}
    merged = {**usual, **arguments}
    with pytest.raises(error, match=message):
        GradientSurgery(merged.pop("base"), merged.pop("method"), **merged)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -0.1}, "beta.*-0.1"),
        ({"beta": 1.5}, "beta.*1.5"),
        ({"update": "never"}, "always.*on_alter.*'never'"),
        ({"target": 1.5}, "cosine.*1.5"),
        ({"target": float("nan")}, "cosine.*nan"),
    ],
)
def test_wrong_settings_of_gradvac(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradVac(**options)


def test_nothing_runs_when_a_checkpoint_is_loaded() -> None:
    _, optimizer = two_heads(GradVac())
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    torch.load(file, weights_only=True)  # refuses anything that could run code
