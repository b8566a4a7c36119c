"""GradientSurgery as a torch.optim.Optimizer: everything that takes one takes it."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import lr_scheduler

from gradsurgery import GradientSurgery, GradVac, Method, PCGrad, Sum
from tests.gradsurgery.problems import TwoHeads, linear_losses, losses_of, same, vectors, wrap

BASES: list[Callable[..., torch.optim.Optimizer]] = [
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    lambda params, **options: torch.optim.AdamW(params, fused=True, **options),
    lambda params, **options: torch.optim.AdamW(params, foreach=True, **options),
    torch.optim.Adagrad,
    torch.optim.RMSprop,
]


def train(model: TwoHeads, optimizer: GradientSurgery, steps: range) -> None:
    for seed in steps:
        optimizer.join(losses_of(model, seed)).backward()
        optimizer.step()
        optimizer.zero_grad()


def build(method: Method, grouping: str = "layer") -> tuple[TwoHeads, GradientSurgery]:
    torch.manual_seed(0)
    model = TwoHeads()
    # torch's distributed checkpoint cannot carry Adam's state of a parameter that is never used.
    del model.spare
    base = torch.optim.AdamW(model.named_parameters(), lr=0.05)
    return model, GradientSurgery(base, method, tasks=("a", "b"), grouping=grouping)


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
            train(model, GradientSurgery(optimizer, Sum(), tasks=("a", "b")), range(4))
        else:
            for seed in range(4):
                for loss in losses_of(model, seed).values():
                    loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        weights.append(list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_it_is_an_optimizer_whose_parts_are_the_bases() -> None:
    model, optimizer = build(PCGrad())
    train(model, optimizer, range(1))
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups is optimizer.base.param_groups
    assert optimizer.state is optimizer.base.state
    assert optimizer.defaults is optimizer.base.defaults
    optimizer.load_state_dict(optimizer.state_dict())  # rebinds the base's
    assert optimizer.param_groups is optimizer.base.param_groups
    assert optimizer.state is optimizer.base.state


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.5**epoch),
        lambda o: lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=10),
        lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=4),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.ConstantLR(o, 0.1, 1), lr_scheduler.ExponentialLR(o, 0.5)], [1]
        ),
    ],
)
def test_schedulers_move_the_bases_rate_as_without_the_wrapper(schedule: Any) -> None:
    rates = []
    for wrapped in (True, False):
        model, optimizer = build(Sum())
        target: Any = optimizer if wrapped else optimizer.base
        with warnings.catch_warnings():
            # SequentialLR steps its schedulers before the optimizer, and warns about it itself.
            warnings.simplefilter("ignore")
            scheduler = schedule(target)
        seen = []
        for seed in range(4):
            optimizer.join(losses_of(model, seed)).backward()
            target.step()
            scheduler.step()
            seen.append(optimizer.base.param_groups[0]["lr"])
        rates.append(seen)
    assert rates[0] == rates[1]


def test_reduce_on_plateau() -> None:
    _, optimizer = build(Sum())
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for _ in range(3):
        scheduler.step(1.0)
    assert optimizer.base.param_groups[0]["lr"] < 0.05


METHODS = [PCGrad(seed=5), GradVac(beta=0.2, seed=5), GradVac(update="on_alter"), Sum()]


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
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_resumed_run_is_bitwise_the_run_that_never_stopped(
    carry: Callable[[GradientSurgery, GradientSurgery, Path], None],
    method: Method,
    tmp_path: Path,
) -> None:
    model, optimizer = build(method)
    train(model, optimizer, range(8))
    stopped, first = build(method)
    train(stopped, first, range(4))
    resumed, second = build(method)
    resumed.load_state_dict(stopped.state_dict())
    carry(first, second, tmp_path)
    train(resumed, second, range(4, 8))
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True)
    )


# torch says that no_dist means no distribution.
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("flatten", [False, True])
def test_distributed_checkpoint_carries_everything(flatten: bool, tmp_path: Path) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    method = GradVac(beta=0.2, seed=5)
    model, optimizer = build(method)
    train(model, optimizer, range(4))
    state = {"optimizer": get_optimizer_state_dict(model, optimizer, options=options)}
    dcp.save(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    resumed, second = build(method)
    resumed.load_state_dict(model.state_dict())
    blank = {"optimizer": get_optimizer_state_dict(resumed, second, options=options)}
    dcp.load(blank, checkpoint_id=tmp_path / "dcp", no_dist=True)
    set_optimizer_state_dict(resumed, second, blank["optimizer"], options=options)
    for run in ((model, optimizer), (resumed, second)):
        train(*run, range(4, 8))
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True)
    )


def test_a_state_dict_keeps_what_it_saw() -> None:
    model, optimizer = build(GradVac(beta=0.5))
    train(model, optimizer, range(2))
    saved = optimizer.state_dict()["param_groups"][0]["surgery"]
    before = copy.deepcopy(saved)
    train(model, optimizer, range(2, 4))
    assert same(saved, before)


def test_checkpoints_pass_between_wrapped_and_plain() -> None:
    model, optimizer = build(PCGrad())
    train(model, optimizer, range(3))
    plain = torch.optim.AdamW(model.named_parameters(), lr=0.05)
    plain.load_state_dict(optimizer.state_dict())
    _, other = build(PCGrad(seed=9))
    rng = other.param_groups[0]["surgery"]["rng"]
    unwrapped = torch.optim.AdamW(model.named_parameters(), lr=0.05)
    other.load_state_dict(state_dict=unwrapped.state_dict())  # by keyword, as DCP does
    assert torch.equal(other.param_groups[0]["surgery"]["rng"], rng)


def test_checkpoints_of_other_tasks_or_segments_are_refused() -> None:
    model, optimizer = build(GradVac())
    train(model, optimizer, range(1))
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
    with pytest.raises(RuntimeError, match=r"of b wait.*combine\(\)"):
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


def test_hooks_fire_once() -> None:
    model, optimizer = build(PCGrad())
    fired: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: fired.append("pre"))
    optimizer.register_step_post_hook(lambda *_: fired.append("post"))
    optimizer.base.register_step_post_hook(lambda *_: fired.append("base"))
    optimizer.register_state_dict_pre_hook(lambda *_: fired.append("save"))
    optimizer.register_load_state_dict_post_hook(lambda *_: fired.append("load"))
    train(model, optimizer, range(1))
    optimizer.load_state_dict(optimizer.state_dict())
    assert fired == ["pre", "base", "post", "save", "load"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_stand_on_their_own(copied: Callable[[Any], Any]) -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], tasks=("a", "b"))
    lr_scheduler.ConstantLR(optimizer)  # patches `step` into the instance
    with optimizer.task("a"):
        w.sum().backward()
    twin = copied(optimizer)
    parameter = twin.param_groups[0]["params"][0]
    twin.join(linear_losses([parameter], vectors((1, 0), (-1, 1)))).backward()
    twin.step()
    assert w.tolist() == [0, 0]
    assert parameter.tolist() == pytest.approx(
        [-0.5 * twin.param_groups[0]["lr"]] * 1 + [-1.5 * twin.param_groups[0]["lr"]]
    )
    assert str(twin) == str(optimizer)


def test_parameter_groups_added_later_take_part() -> None:
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = wrap([first], GradVac(beta=1.0), tasks=("a", "b"), grouping="tensor")
    optimizer.join([first.sum(), -first.sum()]).backward()
    optimizer.zero_grad()
    optimizer.add_param_group({"params": [second], "lr": 0.5})
    optimizer.join([first.sum() + second.sum(), second.sum() - first.sum()]).backward()
    target = optimizer.param_groups[0]["surgery"]["target"]
    assert target[:, 0, 1].tolist() == pytest.approx([-1, 1])
    assert optimizer.conflicts.summary()["segments"] == 2


def test_a_checkpoint_right_after_adding_a_group_loads() -> None:
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = wrap([first], GradVac(target=0.5), tasks=("a", "b"), grouping="tensor")
    optimizer.add_param_group({"params": [second]})
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["surgery"]["target"].shape == (2, 2, 2)


def test_a_group_without_the_names_it_needs_is_not_added() -> None:
    model = TwoHeads()
    named = model.named_parameters()
    optimizer = wrap(
        list(model.parameters()), tasks=("a", "b"), grouping="layer", named_parameters=named
    )
    with pytest.raises(ValueError, match="has none"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    assert len(optimizer.param_groups) == 1
    train(model, optimizer, range(1))


def test_assigned_groups_keep_the_state_of_surgery() -> None:
    """Accelerate assigns ``param_groups``; FSDP2 swaps the tensors in them."""
    w, swapped = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], PCGrad(seed=4), tasks=("a", "b"))
    rng = optimizer.param_groups[0]["surgery"]["rng"]
    optimizer.param_groups = [{"params": [swapped], "lr": 1.0}]
    assert torch.equal(optimizer.param_groups[0]["surgery"]["rng"], rng)
    optimizer.join(linear_losses([swapped], vectors((1, 0), (-1, 1)))).backward()
    assert swapped.grad.tolist() == [0.5, 1.5]


def test_amp_support_of_a_fused_base_is_not_forwarded() -> None:
    """A scaler that saw it would leave the gradients scaled, and the update a thousandfold."""
    w = nn.Parameter(torch.zeros(2))
    base = torch.optim.SGD([w], lr=0.1, fused=True)
    optimizer = GradientSurgery(base, Sum(), tasks=("a",))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(optimizer.join([w.sum()])).backward()
    scaler.step(optimizer)
    assert w.tolist() == pytest.approx([-0.1, -0.1])


def test_public_extras_of_the_base_are_reachable() -> None:
    class ScheduleFree(torch.optim.SGD):
        mode = "train"

        def eval(self) -> None:
            self.mode = "eval"

    w = nn.Parameter(torch.zeros(1))
    optimizer = wrap([w], base=ScheduleFree)
    optimizer.eval()
    assert optimizer.mode == "eval"
    with pytest.raises(AttributeError, match="_private"):
        _ = optimizer._private


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"base": object()}, TypeError, "torch.optim.Optimizer, not a object"),
        ({"base": wrap([nn.Parameter(torch.zeros(1))])}, TypeError, "not a GradientSurgery"),
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
    _, optimizer = build(GradVac())
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    torch.load(file, weights_only=True)  # refuses anything that could run code
