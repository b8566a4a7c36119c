"""Several base optimizers: one surgery over all their parameters, and each steps on its own."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import Optimizer, lr_scheduler

from gradsurgery import GradientSurgery, GradVac, PCGrad
from tests.gradsurgery.problems import linear_losses, same, state_of, through_distributed_checkpoint
from tests.integration import ranks
from tests.integration.by_hand import (
    SEED,
    TASKS,
    fresh_model,
    orders,
    same_bits,
    separate,
    train,
    weights,
    write_update,
)

Named = list[tuple[str, nn.Parameter]]
STEPS = range(5)


def adamw(named: Any) -> Optimizer:
    return torch.optim.AdamW(named, lr=0.02)


def halves(model: nn.Module) -> tuple[Named, Named]:
    named = list(model.named_parameters())
    return named[:3], named[3:]


def split(model: nn.Module) -> list[Optimizer]:
    """AdamW in two: over the first three parameters, and over the others."""
    return [adamw(half) for half in halves(model)]


def whole(model: nn.Module) -> Optimizer:
    """One AdamW over the same groups."""
    return adamw([{"params": half} for half in halves(model)])


def mixed(model: nn.Module) -> list[Optimizer]:
    """Muon for the trunk's matrices, AdamW for the rest."""
    named = list(model.named_parameters())
    hidden = [name for name, p in named if p.dim() == 2 and "trunk" in name]
    muon = torch.optim.Muon([(name, p) for name, p in named if name in hidden], lr=0.02)
    return [muon, adamw([(name, p) for name, p in named if name not in hidden])]


BASES: dict[str, Callable[[nn.Module], list[Optimizer]]] = {"split": split, "mixed": mixed}
every_pair = pytest.mark.parametrize("pair", BASES.values(), ids=BASES)


def wrapped(base: Optimizer | list[Optimizer], **options: Any) -> GradientSurgery:
    options = {"tasks": TASKS, "grouping": "layer"} | options
    return GradientSurgery(base, GradVac(beta=0.3, seed=SEED), **options)


def surgery(optimizer: GradientSurgery) -> dict[str, Any]:
    return state_of(optimizer)


# ---------------------------------------------------------------------- what it equals


@pytest.mark.parametrize("grouping", ["model", "layer", "tensor"])
def test_an_optimizer_split_in_two_is_the_one(grouping: str) -> None:
    model, alone = fresh_model(), fresh_model()
    optimizer = wrapped(split(model), grouping=grouping)
    one = wrapped(whole(alone), grouping=grouping)
    train(model, optimizer, STEPS)
    train(alone, one, STEPS)
    assert same_bits(model, alone)
    assert same(optimizer.state_dict(), one.state_dict())
    assert optimizer.conflicts.summary() == one.conflicts.summary()


def test_a_list_of_one_is_that_one() -> None:
    model, alone = fresh_model(), fresh_model()
    base = adamw(model.named_parameters())
    optimizer = wrapped([base])
    assert optimizer.base is base
    assert optimizer.bases == (base,)
    train(model, optimizer, STEPS)
    train(alone, wrapped(adamw(alone.named_parameters())), STEPS)
    assert same_bits(model, alone)


def test_muon_and_adamw_are_the_loop_by_hand() -> None:
    """PCGrad over the parameters of both as one vector; then each base's own step, to the bit."""
    model, plain = fresh_model(), fresh_model()
    optimizer = GradientSurgery(mixed(model), PCGrad(seed=SEED), tasks=TASKS)
    bare = mixed(plain)
    for step, order in zip(STEPS, orders(), strict=False):
        optimizer.join([separate(model, step, task) for task in TASKS]).backward()
        write_update(plain, [separate(plain, step, task) for task in TASKS], order)
        for parameter, other in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, other.grad, rtol=0, atol=1e-6)
            other.grad = parameter.grad.clone()
        optimizer.step()
        optimizer.zero_grad()
        for base in bare:
            base.step()
            base.zero_grad()
    assert optimizer.conflicts.summary()["gradients"]["altered"] > 0
    assert same_bits(model, plain)


def test_it_is_another_thing_than_a_surgery_for_each() -> None:
    """Gradients that conflict in the first base's parameter, and agree as a whole: -3 + 4 > 0."""
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    grads = torch.tensor([[[1.0], [2.0]], [[-3.0], [2.0]]])
    bases = [torch.optim.SGD([p], lr=1.0) for p in (a, b)]
    joint = GradientSurgery(bases, PCGrad(), tasks=("x", "y"))
    joint.join(linear_losses([a, b], grads)).backward()
    assert (a.grad.item(), b.grad.item()) == (-2.0, 4.0)
    joint.zero_grad()
    for base, parameter, column in zip(bases, (a, b), grads.unbind(1), strict=True):
        alone = GradientSurgery(base, PCGrad(), tasks=("x", "y"))
        alone.join(linear_losses([parameter], column[:, None])).backward()
    assert (a.grad.item(), b.grad.item()) == pytest.approx((0.0, 4.0), abs=1e-6)


def test_layers_are_segments_across_bases() -> None:
    """The matrix of a trunk's layer is Muon's and its bias AdamW's; both are one segment."""
    model = fresh_model()
    optimizer = wrapped(mixed(model))
    train(model, optimizer, range(1))
    layers = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    assert len(surgery(optimizer)["target"]) == len(layers) == 5


# ---------------------------------------------------------------------- an optimizer like any other


SCHEDULES: list[Callable[[Optimizer], Any]] = [
    lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.5**epoch),
    lambda o: lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=10),
    lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=4),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_of_the_wrapper_moves_all(schedule: Callable[[Optimizer], Any]) -> None:
    model, alone = fresh_model(), fresh_model()
    optimizer, one = wrapped(split(model)), wrapped(whole(alone))
    schedules = [schedule(optimizer), schedule(one)]
    for step in STEPS:
        train(model, optimizer, range(step, step + 1))
        train(alone, one, range(step, step + 1))
        for scheduler in schedules:
            scheduler.step()
    rates = [[group["lr"] for group in o.param_groups] for o in (optimizer, one)]
    assert rates[0] == rates[1] != [0.02, 0.02]
    assert same_bits(model, alone)


def test_a_schedule_of_a_base_moves_its_rate() -> None:
    model = fresh_model()
    muon, rest = mixed(model)
    before = lr_scheduler.ConstantLR(muon, 0.5)
    optimizer = wrapped([muon, rest])
    after = lr_scheduler.ConstantLR(rest, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.005]
    train(model, optimizer, range(1))
    before.step()  # warns when the optimizer has not stepped
    after.step()


def test_a_cycled_momentum_that_not_all_bases_have_is_refused() -> None:
    optimizer = wrapped(mixed(fresh_model()))
    with pytest.raises(ValueError, match="momentum or beta1"):
        lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=10)
    lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=10, cycle_momentum=False)


def test_hooks_fire_once() -> None:
    model = fresh_model()
    optimizer = wrapped(mixed(model))
    fired: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: fired.append("pre"))
    optimizer.register_step_post_hook(lambda *_: fired.append("post"))
    optimizer.register_state_dict_pre_hook(lambda *_: fired.append("saving"))
    optimizer.register_state_dict_post_hook(lambda *_: fired.append("saved"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: fired.append("loading"))
    optimizer.register_load_state_dict_post_hook(lambda *_: fired.append("loaded"))
    for name, base in zip(("muon", "adamw"), optimizer.bases, strict=True):
        base.register_step_post_hook(lambda *_, name=name: fired.append(name))
        base.register_load_state_dict_post_hook(lambda *_, name=name: fired.append(name))
    train(model, optimizer, range(1))
    optimizer.load_state_dict(optimizer.state_dict())
    assert fired == ["pre", "muon", "adamw", "post", "saving", "saved"] + [
        *("loading", "muon", "adamw", "loaded")
    ]


def test_hooks_may_change_what_is_saved_and_loaded() -> None:
    optimizer = wrapped(mixed(fresh_model()))
    optimizer.register_state_dict_post_hook(lambda _, saved: {**saved, "note": 1})
    optimizer.register_load_state_dict_pre_hook(lambda _, saved: saved["inner"])
    saved = optimizer.state_dict()
    assert saved["note"] == 1
    saved["param_groups"][1]["lr"] = 0.5
    optimizer.load_state_dict({"inner": saved, "param_groups": []})
    assert optimizer.bases[1].param_groups[0]["lr"] == 0.5


def test_a_closure_runs_once_and_its_loss_is_returned() -> None:
    model, plain = fresh_model(), fresh_model()
    optimizer, other = wrapped(mixed(model)), wrapped(mixed(plain))
    losses = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        joined = optimizer.join([separate(model, 0, task) for task in TASKS])
        joined.backward()
        losses.append(joined)
        return joined

    with torch.no_grad():  # as the steps of torch's optimizers, which enable gradients for it
        assert optimizer.step(closure) is losses[0]
    assert len(losses) == 1
    train(plain, other, range(1))
    assert same_bits(model, plain)


@pytest.mark.parametrize("unscale", [False, True])
def test_a_loss_scale_changes_no_bit(unscale: bool) -> None:
    models = fresh_model(), fresh_model()
    for model, enabled in zip(models, (True, False), strict=True):
        optimizer = wrapped(mixed(model))
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=enabled)
        for step in STEPS:
            joined = optimizer.join([separate(model, step, task) for task in TASKS])
            scaler.scale(joined).backward()
            if unscale:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert same_bits(*models)


@pytest.mark.parametrize("where", [0, -1], ids=["Muon's", "AdamW's"])
def test_an_overflow_in_one_base_skips_the_step_of_all(where: int) -> None:
    model = fresh_model()
    optimizer = wrapped(mixed(model))
    parameter = optimizer.param_groups[where]["params"][0]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = weights(model)
    loss = separate(model, 0, "a") + float("inf") * parameter.sum()
    scaler.scale(optimizer.join({"a": loss, "b": separate(model, 0, "b")})).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**9
    assert same(before, weights(model))
    assert not optimizer.state


class Modes(torch.optim.SGD):
    """Has modes, as a schedule-free optimizer."""

    mode = "train"

    def train(self) -> None:
        self.mode = "train"

    def eval(self) -> None:
        self.mode = "eval"


def test_extras_reach_all_that_have_them() -> None:
    first, second = (Modes(half) for half in halves(fresh_model()))
    optimizer = wrapped([first, second])
    optimizer.eval()
    assert (first.mode, second.mode) == ("eval", "eval")
    with pytest.raises(AttributeError, match="several of its optimizers"):
        _ = optimizer.mode
    with pytest.raises(AttributeError, match="_private"):
        _ = optimizer._private
    model = fresh_model()
    modes, plain = Modes(halves(model)[0]), adamw(halves(model)[1])
    optimizer = wrapped([modes, plain])
    optimizer.eval()
    assert optimizer.mode == "eval"
    assert not hasattr(optimizer, "nothing")


# ---------------------------------------------------------------------- groups and state


def test_a_group_goes_to_the_last_base_or_the_one_that_is_named() -> None:
    optimizer = wrapped(mixed(fresh_model()), grouping="tensor")
    muon, rest = optimizer.bases
    late, matrix = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, 2))
    optimizer.add_param_group({"params": [("late", late)]})
    optimizer.add_param_group({"params": [("matrix", matrix)], "lr": 0.5}, base=muon)
    assert rest.param_groups[1]["params"] == [late]
    assert muon.param_groups[1]["params"] == [matrix]
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 1, 8, 1]
    assert len(surgery(optimizer)["target"]) == 12
    with pytest.raises(ValueError, match="not wrapped here"):
        optimizer.add_param_group({"params": []}, base=adamw([nn.Parameter(torch.zeros(1))]))


def test_a_group_that_would_renumber_segments_is_refused() -> None:
    first, second = halves(fresh_model())
    bases = [adamw([p for _, p in half]) for half in (first, second)]
    optimizer = wrapped(bases, grouping="tensor")
    group = {"params": [nn.Parameter(torch.zeros(2))]}
    with pytest.raises(ValueError, match="would renumber them"):
        optimizer.add_param_group(dict(group), base=bases[0])
    assert len(optimizer.param_groups) == 2
    optimizer.add_param_group(dict(group))
    by_model = [adamw([p for _, p in half]) for half in halves(fresh_model())]
    wrapped(by_model, grouping="model").add_param_group(dict(group), base=by_model[0])


def test_a_parameter_of_two_bases_is_refused_by_name() -> None:
    model = fresh_model()
    named = list(model.named_parameters())
    bases = [adamw(named[:3]), torch.optim.SGD(named[2:])]
    with pytest.raises(ValueError, match=rf"{named[2][0]} is held by two.*AdamW.*SGD"):
        wrapped(bases)
    assert "surgery" not in bases[0].param_groups[0]
    bases = [adamw([p for _, p in named]), torch.optim.SGD([named[1][1]])]
    with pytest.raises(ValueError, match=f"{named[1][0]} is held"):
        wrapped(bases, named_parameters=named)
    with pytest.raises(ValueError, match=f"parameter {len(named)} is held"):
        wrapped(bases, grouping="model")
    with pytest.raises(ValueError, match="is held by two"):
        wrapped([bases[0], bases[0]])
    optimizer = wrapped(split(model))
    with pytest.raises(ValueError, match=f"{named[0][0]} is held"):
        optimizer.add_param_group({"params": [named[0]]})
    assert len(optimizer.param_groups) == 2


@pytest.mark.parametrize(
    ("bases", "error", "message"),
    [
        ([], ValueError, "at least one"),
        ([object()], TypeError, "torch.optim.Optimizer, not a object"),
        ({}, TypeError, "torch.optim.Optimizer, not a dict"),
    ],
)
def test_wrong_bases(bases: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        wrapped(bases)


def test_bases_that_cannot_be_one_of_several_are_refused() -> None:
    first, second = halves(fresh_model())
    with pytest.raises(TypeError, match="GradientSurgery already"):
        wrapped([wrapped(adamw(first)), adamw(second)])
    with pytest.raises(ValueError, match=r"LBFGS.step\(\) evaluates its closure several times"):
        wrapped([torch.optim.LBFGS(first), adamw(second)])


def test_groups_are_the_bases_own_and_change_shape_there() -> None:
    optimizer = wrapped(mixed(fresh_model()))
    muon, rest = optimizer.bases
    assert [id(g) for g in optimizer.param_groups] == [
        id(g) for base in (muon, rest) for g in base.param_groups
    ]
    with pytest.raises(AttributeError):
        optimizer.param_groups.append({})
    optimizer.param_groups = [dict(group) for group in optimizer.param_groups[::-1]]
    assert [p.dim() for p in muon.param_groups[0]["params"]] == [2, 2]
    with pytest.raises(ValueError, match="parameters of 2 of the wrapped"):
        optimizer.param_groups = [
            {"params": [p for g in optimizer.param_groups for p in g["params"]]}
        ]
    with pytest.raises(ValueError, match="parameters of 0 of the wrapped"):
        optimizer.param_groups = [{"params": [nn.Parameter(torch.zeros(2))]}]


def test_swapped_parameters_are_trained() -> None:
    """FSDP2 and Accelerate replace the tensors in the groups."""
    a, b, c = (nn.Parameter(torch.zeros(1)) for _ in "abc")
    bases = [torch.optim.SGD([p], lr=1.0) for p in (a, b)]
    optimizer = GradientSurgery(bases, PCGrad(), tasks=("x", "y"))
    optimizer.param_groups[1]["params"] = [c]
    optimizer.join(linear_losses([a, c], torch.ones(2, 2, 1))).backward()
    optimizer.step()
    assert [p.item() for p in (a, b, c)] == [-2, 0, -2]


def test_the_state_is_read_and_written_through() -> None:
    model = fresh_model()
    optimizer = wrapped(mixed(model))
    parameter = optimizer.param_groups[1]["params"][0]
    assert parameter not in optimizer.state
    assert optimizer.state.get(parameter) is None
    assert not optimizer.state
    train(model, optimizer, range(1))
    assert len(optimizer.state) == 10
    entry = optimizer.state[parameter]
    assert entry is optimizer.bases[1].state[parameter]
    optimizer.state[parameter] = {"step": 3}
    assert optimizer.bases[1].state[parameter] == {"step": 3}
    del optimizer.state[parameter]
    assert parameter not in optimizer.bases[1].state
    optimizer.state = {parameter: entry}
    assert list(optimizer.bases[0].state) == []
    assert list(optimizer.bases[1].state) == [parameter]
    with pytest.raises(KeyError):
        _ = optimizer.state[nn.Parameter(torch.zeros(1))]


# ---------------------------------------------------------------------- checkpoints and copies


def through_torch_save(source: GradientSurgery, target: GradientSurgery) -> None:
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True))


def through_each_base(source: GradientSurgery, target: GradientSurgery) -> None:
    for base, other in zip(source.bases, target.bases, strict=True):
        other.load_state_dict(copy.deepcopy(base.state_dict()))


def through_pickle(source: GradientSurgery, target: GradientSurgery) -> None:
    target.load_state_dict(pickle.loads(pickle.dumps(source)).state_dict())


def through_deepcopy(source: GradientSurgery, target: GradientSurgery) -> None:
    target.load_state_dict(copy.deepcopy(source).state_dict())


@every_pair
@pytest.mark.parametrize(
    "carry", [through_torch_save, through_each_base, through_pickle, through_deepcopy]
)
def test_a_resumed_run_is_bitwise_the_run_that_never_stopped(
    pair: Callable[[nn.Module], list[Optimizer]],
    carry: Callable[[GradientSurgery, GradientSurgery], None],
) -> None:
    model, stopped, resumed = fresh_model(), fresh_model(), fresh_model()
    optimizer, first, second = (wrapped(pair(net)) for net in (model, stopped, resumed))
    train(model, optimizer, range(6))
    train(stopped, first, range(3))
    resumed.load_state_dict(stopped.state_dict())
    carry(first, second)
    train(resumed, second, range(3, 6))
    assert same_bits(model, resumed)
    assert same(surgery(optimizer), surgery(second))


# torch says that no_dist means no distribution.
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@every_pair
@pytest.mark.parametrize("flatten", [False, True])
def test_distributed_checkpoint_carries_everything(
    pair: Callable[[nn.Module], list[Optimizer]], flatten: bool, tmp_path: Path
) -> None:
    model, resumed = fresh_model(), fresh_model()
    optimizer, second = wrapped(pair(model)), wrapped(pair(resumed))
    train(model, optimizer, range(3))
    through_distributed_checkpoint((model, optimizer), (resumed, second), tmp_path, flatten)
    train(model, optimizer, range(3, 6))
    train(resumed, second, range(3, 6))
    assert same_bits(model, resumed)


def test_a_copy_stands_on_its_own() -> None:
    model = fresh_model()
    optimizer = wrapped(mixed(model))
    lr_scheduler.ConstantLR(optimizer)
    train(model, optimizer, range(1))
    before = weights(model)
    net, twin = copy.deepcopy((model, optimizer))
    assert [type(base) for base in twin.bases] == [type(base) for base in optimizer.bases]
    train(net, twin, range(1, 2))
    assert same(before, weights(model))
    train(model, optimizer, range(1, 2))
    assert same_bits(model, net)
    assert str(twin) == str(optimizer)


def test_checkpoints_of_other_groups_or_tasks_load_nothing() -> None:
    model, other = fresh_model(), fresh_model()
    optimizer, target = wrapped(mixed(model)), wrapped(split(other))
    train(model, optimizer, range(1))
    with pytest.raises(ValueError, match=r"\[2, 8\] parameters.*\[3, 7\]"):
        target.load_state_dict(optimizer.state_dict())
    reordered = GradientSurgery(
        mixed(other), GradVac(), tasks=tuple(reversed(TASKS)), grouping="layer"
    )
    with pytest.raises(ValueError, match="build it with the same tasks"):
        reordered.load_state_dict(optimizer.state_dict())
    assert not target.state
    assert not reordered.state


def test_8_bit_states_stay_8_bit() -> None:
    """They load by a rule of their own, which the bases' load_state_dict has."""
    optim = pytest.importorskip("bitsandbytes").optim

    def pair(net: nn.Module) -> list[Optimizer]:
        first, second = halves(net)
        return [adamw(first), optim.AdamW8bit([p for _, p in second], lr=0.02, min_8bit_size=1)]

    model, resumed = fresh_model(), fresh_model()
    optimizer, second = (wrapped(pair(net), grouping="model") for net in (model, resumed))
    train(model, optimizer, range(3))
    resumed.load_state_dict(model.state_dict())
    through_torch_save(optimizer, second)
    assert second.bases[1].state[second.param_groups[1]["params"][0]]["state1"].dtype == torch.uint8
    train(model, optimizer, range(3, 6))
    train(resumed, second, range(3, 6))
    assert same_bits(model, resumed)


def test_a_base_that_saves_more_than_parameters_states_is_not_cut_short() -> None:
    class Counts(torch.optim.SGD):
        def state_dict(self) -> dict[str, Any]:
            return super().state_dict() | {"count": 3}

    first, second = halves(fresh_model())
    optimizer = wrapped([adamw(first), Counts(second)])
    with pytest.raises(NotImplementedError, match=r"Counts saves more.*base.state_dict\(\) for"):
        optimizer.state_dict()


# ---------------------------------------------------------------------- several processes


def on_shards(build: Callable[[nn.Module], Any], shard: bool = False) -> list[Tensor]:
    """Each rank trains on a step of its own, averaged; one process on both."""
    model: nn.Module = fresh_model()
    world = dist.get_world_size() if dist.is_initialized() else 1
    if shard:
        model = fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    group = dist.group.WORLD if world > 1 and not shard else None
    optimizer = wrapped(build(model), process_group=group)
    for step in STEPS:
        numbers = [2 * step + dist.get_rank()] if world > 1 else [2 * step, 2 * step + 1]
        for task in TASKS:
            with optimizer.task(task):
                losses = [separate(model, number, task) for number in numbers]
                torch.stack(losses).mean().backward()
        optimizer.combine()
        optimizer.step()
        optimizer.zero_grad()
    return [getattr(p, "full_tensor", lambda p=p: p)().detach() for p in model.parameters()]


WAYS: dict[str, ranks.Scenario] = {
    "split, averaged": partial(on_shards, split),
    "whole, averaged": partial(on_shards, whole),
    "mixed, averaged": partial(on_shards, mixed),
    "split, sharded": partial(on_shards, split, shard=True),
    "whole, sharded": partial(on_shards, whole, shard=True),
    "mixed, sharded": partial(on_shards, mixed, shard=True),
}


def test_two_processes_are_one_on_both_batches(tmp_path: Path) -> None:
    first, second = ranks.run(WAYS, 2, tmp_path)
    for way in WAYS:
        assert same(first[way], second[way]), way
        assert "error" not in first[way], first[way]
    assert same(first["split, averaged"], first["whole, averaged"])
    assert same(first["split, sharded"], first["whole, sharded"])
    # Not Muon's shards: it iterates in bf16, where the order of a sum shows.
    for way, build in (
        ("split, averaged", split),
        ("split, sharded", split),
        ("mixed, averaged", mixed),
    ):
        torch.testing.assert_close(first[way], on_shards(build), rtol=0, atol=1e-5)
