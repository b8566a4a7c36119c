"""A step's lifecycle: what was skipped, dropped, cut or forgotten is right, or is told."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradsurgery import GradientSurgery, PCGrad, Sum, SurgeryWarning, UncertaintyWeighting, pipeline
from tests.gradsurgery.problems import Fails, wrap

TASKS = ("a", "b")
Clear = Callable[[nn.Module, GradientSurgery], Any]


class Pair(nn.Module):
    """A trunk and a head for each task, in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(3, 4)
        self.heads = nn.ModuleDict({task: nn.Linear(4, 1) for task in TASKS})
        self.double()

    def loss(self, task: str, batch: int) -> Tensor:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(batch)).double()
        sign = 1 if task == "a" else -1
        loss: Tensor = (self.heads[task](self.trunk(x).tanh()) - sign).square().mean()
        return loss

    def losses(self, batch: int) -> dict[str, Tensor]:
        return {task: self.loss(task, batch) for task in TASKS}


def build() -> tuple[Pair, GradientSurgery]:
    model = Pair()
    base = torch.optim.AdamW(model.parameters(), lr=0.05)
    return model, GradientSurgery(base, PCGrad(seed=3), tasks=TASKS)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def by_task(model: Pair, optimizer: GradientSurgery, batch: int) -> None:
    for task in TASKS:
        with optimizer.task(task):
            model.loss(task, batch).backward()
    optimizer.combine()
    optimizer.step()


def never_skipped(batches: list[int]) -> Tensor:
    model, optimizer = build()
    for batch in batches:
        by_task(model, optimizer, batch)
        optimizer.zero_grad()
    return weights(model)


CLEARS: dict[str, Clear] = {
    "model": lambda model, optimizer: model.zero_grad(),
    "model, to zeros": lambda model, optimizer: model.zero_grad(set_to_none=False),
    "base": lambda model, optimizer: optimizer.base.zero_grad(),
    "by hand": lambda model, optimizer: [setattr(p, "grad", None) for p in model.parameters()],
    "optimizer": lambda model, optimizer: optimizer.zero_grad(),
    "discard": lambda model, optimizer: optimizer.discard(),
}
every_clear = pytest.mark.parametrize("clear", CLEARS.values(), ids=CLEARS)

# ---------------------------------------------------------------------- batches that are skipped


@every_clear
def test_a_batch_skipped_between_tasks_leaves_nothing(clear: Clear) -> None:
    model, optimizer = build()
    for batch in range(4):
        if batch == 2:
            with optimizer.task("a"):
                (1e3 * model.loss("a", batch)).backward()
            clear(model, optimizer)
            continue
        by_task(model, optimizer, batch)
        clear(model, optimizer)
        optimizer.zero_grad()
    assert torch.equal(weights(model), never_skipped([0, 1, 3]))


@every_clear
def test_a_micro_batch_skipped_after_others_leaves_nothing(clear: Clear) -> None:
    model, optimizer = build()
    for batch in range(4):
        if batch == 2:
            (1e3 * optimizer.join(model.losses(batch), combine=False)).backward()
            clear(model, optimizer)
            continue
        optimizer.join(model.losses(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(weights(model), never_skipped([0, 1, 3]))


def test_a_skipped_micro_batch_of_weighted_losses_leaves_nothing() -> None:
    """The losses of a skipped batch are not part of the next decision either."""
    results = []
    for skips in (False, True):
        model = Pair()
        base = torch.optim.AdamW(model.parameters(), lr=0.05)
        optimizer = GradientSurgery(base, UncertaintyWeighting(), tasks=TASKS)
        for batch in range(3):
            if skips:
                (1e3 * optimizer.join(model.losses(batch), combine=False)).backward()
                model.zero_grad()
            optimizer.join(model.losses(batch)).backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(weights(model))
    assert torch.equal(*results)


@pytest.mark.parametrize("clears", [True, False])
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_batch_that_raised_leaves_nothing(error: type[BaseException], clears: bool) -> None:
    model, optimizer = build()
    for batch in range(4):
        try:
            for task in TASKS:
                with optimizer.task(task):
                    model.loss(task, batch).backward()
                    if batch == 2 and task == "b":
                        raise error
        except error:
            if clears:
                model.zero_grad()
            continue
        optimizer.combine()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(weights(model), never_skipped([0, 1, 3]))


def test_a_joined_backward_that_raised_leaves_nothing() -> None:
    model, optimizer = build()
    for batch in range(4):
        losses = model.losses(batch)
        if batch == 2:
            optimizer.join(losses, combine=False).backward()
            losses = model.losses(batch)
            losses["b"] = Fails.apply(losses["b"])
            with pytest.raises(MemoryError):
                optimizer.join(losses).backward()
            continue
        optimizer.join(losses).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(weights(model), never_skipped([0, 1, 3]))


def test_accumulation_goes_on_where_nothing_was_cleared() -> None:
    """Also beside a gradient that is there already, and one that is added between the tasks."""
    w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = wrap([w], Sum(), tasks=TASKS)
    for beside in (False, True):
        for _ in range(3):
            for task in TASKS:
                with optimizer.task(task):
                    w.sum().backward()
            if beside:
                (10 * w.sum()).backward()
        optimizer.combine()
        assert w.grad.tolist() == [36.0 if beside else 6.0] * 2
        optimizer.zero_grad()


def test_the_gradient_that_watches_is_gone_once_nothing_waits() -> None:
    w, head = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(1))
    optimizer = wrap([w, head], Sum(), tasks=TASKS)
    for drop in (optimizer.discard, optimizer.zero_grad):
        with optimizer.task("a"):
            (w.sum() + head).backward()
        assert w.grad is None
        assert head.grad.tolist() == [0]
        drop()
        assert head.grad is None
    for task in TASKS:
        with optimizer.task(task):
            (w.sum() + (head if task == "a" else 0)).sum().backward()
    optimizer.combine()
    assert (w.grad.tolist(), head.grad.tolist()) == ([2, 2, 2], [1])


def test_a_combination_that_is_cut_is_not_delivered_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = build()
    deliver, count = pipeline.deliver, iter(range(100))

    def cut(parameter: Tensor, grad: Tensor) -> None:
        if next(count) == 2:
            raise KeyboardInterrupt
        deliver(parameter, grad)

    for task in TASKS:
        with optimizer.task(task):
            model.loss(task, 0).backward()
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "deliver", cut)
        with pytest.raises(KeyboardInterrupt):
            optimizer.combine()
    for call in (optimizer.combine, optimizer.step):
        with pytest.raises(RuntimeError, match=r"interrupted while it wrote .grad.*zero_grad\(\)"):
            call()
    optimizer.zero_grad()
    reference, plain = build()
    by_task(reference, plain, 1)
    by_task(model, optimizer, 1)
    assert torch.equal(weights(model), weights(reference))


# ---------------------------------------------------------------------- inside an open task

CALLS: dict[str, Callable[[GradientSurgery], Any]] = {
    "combine()": lambda optimizer: optimizer.combine(),
    "step()": lambda optimizer: optimizer.step(),
    "zero_grad()": lambda optimizer: optimizer.zero_grad(),
    "discard()": lambda optimizer: optimizer.discard(),
    "load_state_dict()": lambda optimizer: optimizer.load_state_dict(optimizer.state_dict()),
    "add_param_group()": lambda optimizer: optimizer.add_param_group(
        {"params": [nn.Parameter(torch.zeros(1))]}
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_inside_an_open_task_is_refused(name: str) -> None:
    w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = wrap([w], Sum(), tasks=TASKS)
    with optimizer.task("a"):
        w[0].backward()
    with optimizer.task("b"):
        with pytest.raises(RuntimeError, match=rf"{name[:-2]}\(\) was called inside task\('b'\)"):
            CALLS[name](optimizer)
        w[1].backward()
    optimizer.combine()
    assert w.grad.tolist() == [1, 1]


def test_a_generator_suspended_inside_a_task_is_named() -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], Sum(), tasks=TASKS)

    def tasks() -> Iterator[str]:
        for task in TASKS:
            with optimizer.task(task):
                yield task

    running = tasks()
    next(running)
    w.sum().backward()
    with pytest.raises(RuntimeError, match=r"step\(\).*task\('a'\).*generator"):
        optimizer.step()
    running.close()
    optimizer.step()


def test_another_optimizer_of_the_same_parameters_is_refused_and_one_of_others_is_not() -> None:
    w, x = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer, same, other = (wrap(p, Sum(), tasks=TASKS) for p in ([w], [x, w], [x]))
    with optimizer.task("a"):
        w.sum().backward()
        with pytest.raises(RuntimeError, match=r"inside task\('a'\) of another optimizer"):
            same.step()
        other.join([x.sum(), -x.sum()]).backward()
        other.step()


# ---------------------------------------------------------------------- what is told


def test_zero_grad_inside_the_loop_of_tasks_is_told() -> None:
    model, optimizer = build()
    for task in TASKS:
        optimizer.zero_grad()
        with optimizer.task(task):
            model.loss(task, 0).backward()
    with pytest.warns(SurgeryWarning, match=r"gradients of b, and not .*a \(zero_grad\(\)"):
        optimizer.combine()


def test_clearing_by_the_model_between_tasks_is_told() -> None:
    model, optimizer = build()
    for task in TASKS:
        with optimizer.task(task):
            model.loss(task, 0).backward()
        model.zero_grad()
    with pytest.warns(SurgeryWarning, match=r"a \(gradients were cleared before task 'b'\)"):
        optimizer.combine()


def test_a_missing_zero_grad_is_told_once() -> None:
    model, optimizer = build()
    optimizer.join(model.losses(0)).backward()
    optimizer.step()
    with pytest.warns(SurgeryWarning, match=r"still holds what the last step used.*zero_grad\(\)"):
        optimizer.join(model.losses(1)).backward()
    optimizer.step()
    optimizer.join(model.losses(2)).backward()  # not a second time


@every_clear
@pytest.mark.parametrize("clips", [False, True])
def test_cleared_gradients_are_not_stale(clear: Clear, clips: bool) -> None:
    model, optimizer = build()
    for batch in range(3):
        optimizer.join(model.losses(batch)).backward()
        if clips:
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
        clear(model, optimizer)
        if clear is CLEARS["discard"]:
            model.zero_grad()


def test_two_combinations_of_one_step_add_up() -> None:
    w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = wrap([w], Sum(), tasks=TASKS)
    for _ in range(2):
        optimizer.join([w.sum(), w.sum()]).backward()
    assert w.grad.tolist() == [4, 4]


def test_plain_training_is_told_once() -> None:
    model, optimizer = build()
    sum(model.losses(0).values()).backward()
    with pytest.warns(SurgeryWarning, match=r"no combine\(\) delivered.*optimizer.join\(losses\)"):
        optimizer.step()
    optimizer.step()


def test_steps_without_gradients_and_after_surgery_are_not_told() -> None:
    """All tasks absent; an auxiliary loss alone; a closure."""
    model, optimizer = build()
    optimizer.step()
    by_task(model, optimizer, 0)
    optimizer.zero_grad()
    model.loss("a", 1).backward()
    optimizer.step()
    single = nn.Parameter(torch.ones(1))
    closed = wrap([single], tasks=("a",), base=torch.optim.LBFGS)

    def closure() -> Tensor:
        closed.zero_grad()
        loss = closed.join([single.square().sum()])
        loss.backward()
        return loss

    closed.step(closure)
    closed.step(closure)


def test_a_step_that_the_scaler_skips_is_not_told() -> None:
    model, optimizer = build()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for batch in range(3):
        factor = torch.inf if batch == 0 else 1.0
        losses = {task: loss * factor for task, loss in model.losses(batch).items()}
        scaler.scale(optimizer.join(losses)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert weights(model).isfinite().all()


def test_a_joined_loss_that_never_ran_is_told() -> None:
    model, optimizer = build()
    joined = optimizer.join(model.losses(0))
    (joined / 2).backward(inputs=list(model.trunk.parameters()))
    with pytest.warns(SurgeryWarning, match=r"backward did not run.*inputs="):
        optimizer.step()
    optimizer.join(model.losses(0)).detach()  # looked at, and then trained on another
    optimizer.join(model.losses(1)).backward()
    optimizer.step()


def test_tasks_with_no_parameter_in_common_are_told_once() -> None:
    left, right = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = wrap([left, right], tasks=TASKS)
    with pytest.warns(SurgeryWarning, match="no parameter has gradients of two tasks"):
        optimizer.join([left.sum(), right.sum()]).backward()
    optimizer.join([left.sum(), right.sum()]).backward()


def test_sharing_that_pauses_is_not_told_nor_is_the_plain_sum() -> None:
    w, head = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = wrap([w, head], tasks=TASKS)
    optimizer.join([w.sum(), -w.sum()]).backward()
    optimizer.join([w.sum(), head.sum()]).backward()
    optimizer.join({"a": w.sum()}).backward()
    wrap([w, head], Sum(), tasks=TASKS).join([w.sum(), head.sum()]).backward()


def test_a_copy_starts_without_a_step_under_way() -> None:
    import copy

    model, optimizer = build()
    with optimizer.task("a"):
        model.loss("a", 0).backward()
    twin = copy.deepcopy(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twin.zero_grad()


def test_an_adversarial_examples_gradients_may_be_cleared_inside_the_task() -> None:
    model, optimizer = build()
    for batch in range(3):
        for task in TASKS:
            with optimizer.task(task):
                (1e3 * model.loss(task, batch + 10)).backward()
                model.zero_grad()
                model.loss(task, batch).backward()
        optimizer.combine()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(weights(model), never_skipped([0, 1, 2]))


def test_a_factor_on_the_gradients_between_tasks_is_no_clearing() -> None:
    """Clipping in the wrong place scales zeros; what was captured stays."""
    model, optimizer = build()
    _, expected = plain = build()
    by_task(*plain, 0)
    for task in TASKS:
        with optimizer.task(task):
            model.loss(task, 0).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    optimizer.combine()
    optimizer.step()
    assert torch.equal(weights(model), weights(plain[0]))
    assert optimizer.conflicts.summary() == expected.conflicts.summary()


def test_sparse_gradients_stay_sparse() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = GradientSurgery(torch.optim.SGD(table.parameters(), lr=1.0), Sum(), tasks=TASKS)
    for index, task in enumerate(TASKS):
        with optimizer.task(task):
            table(torch.tensor([index])).sum().backward()
        assert table.weight.grad is None
    optimizer.combine()
    assert table.weight.grad.is_sparse
