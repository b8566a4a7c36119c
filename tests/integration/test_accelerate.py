"""Hugging Face Accelerate with surgery is the plain loop, to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader

pytest.importorskip("accelerate")

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from gradsurgery import GradientSurgery
from tests.gradsurgery.problems import same
from tests.integration import hf_problem as problem
from tests.integration import hf_ranks
from tests.throwaway import Unit

STEPS = 5  # of two micro-batches
MICROS = 2


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    """Accelerate keeps its configuration for the whole process."""
    forget()
    yield
    forget()


def forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class Run:
    """The loop of docs/recipes/accelerate.md, which remembers the batches that it saw."""

    def __init__(
        self,
        accelerator: Accelerator,
        dropout: float = 0.0,
        build: Callable[[nn.Module], Any] = problem.adamw,
        **options: Any,
    ) -> None:
        self.accelerator = accelerator
        self.bare = problem.net(dropout)
        self.surgery = problem.wrapped(build(self.bare), **options)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            self.surgery,
            # A prepared schedule takes a step for each process.
            lambda step: problem.warmup(step // accelerator.num_processes, 2, STEPS),
        )
        # With a generator of its own, beginning an epoch takes nothing from the global one.
        size = 4 // accelerator.num_processes
        loader = DataLoader(problem.TaskRows(), batch_size=size, generator=torch.Generator())
        self.model, self.optimizer, self.loader, self.schedule = accelerator.prepare(
            self.bare, self.surgery, loader, schedule
        )
        self.seen: list[problem.Batches] = []
        self.skipped: list[bool] = []

    def train(self, first: int = 0, last: int = STEPS * MICROS) -> None:
        """Train on the micro-batches from ``first`` to before ``last`` of an epoch."""
        accelerator, optimizer = self.accelerator, self.optimizer
        for number, batches in enumerate(self.loader):
            if not first <= number < last:
                continue
            self.seen.append(batches)
            with accelerator.accumulate(self.model):
                with accelerator.no_sync(self.model):
                    losses = problem.task_losses(self.model, batches)
                joined = self.surgery.join(losses, combine=accelerator.sync_gradients)
                accelerator.backward(joined)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(self.model.parameters(), problem.CLIP)
                optimizer.step()
                self.schedule.step()
                optimizer.zero_grad()
            self.skipped.append(accelerator.optimizer_step_was_skipped)


def accelerator(**options: Any) -> Accelerator:
    return Accelerator(cpu=True, gradient_accumulation_steps=MICROS, **options)


def an_optimizer_a_group(model: nn.Module) -> list[torch.optim.Optimizer]:
    """What ``problem.adamw`` builds, in two optimizers."""
    return [torch.optim.AdamW([group]) for group in problem.adamw(model).param_groups]


@pytest.fixture(params=[problem.adamw, an_optimizer_a_group], ids=["one base", "two bases"])
def build(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_the_prepared_loop_is_the_plain_loop(build: Any) -> None:
    run, again = Run(accelerator(), build=build), problem.net()
    run.train()
    plain = problem.plain_loop(again, problem.micro_batches([run.seen], MICROS))
    assert run.optimizer.optimizer is run.surgery
    assert same(problem.weights(run.bare), problem.weights(again))
    assert same(problem.learned(run.surgery), problem.learned(plain))


def test_task_and_combine_are_join() -> None:
    joined, apart = Run(accelerator()), Run(accelerator())
    joined.train()
    accel = apart.accelerator
    for batches in apart.loader:
        with accel.accumulate(apart.model):
            for task, batch in batches.items():
                with apart.surgery.task(task, sync=accel.sync_gradients):
                    accel.backward(problem.task_losses(apart.model, {task: batch})[task])
            if accel.sync_gradients:
                apart.surgery.combine()
                accel.clip_grad_norm_(apart.model.parameters(), problem.CLIP)
            apart.optimizer.step()
            apart.schedule.step()
            apart.optimizer.zero_grad()
    assert same(problem.weights(joined.bare), problem.weights(apart.bare))
    assert same(problem.learned(joined.surgery), problem.learned(apart.surgery))


def test_a_resumed_run_is_the_run_that_never_stopped(build: Any, tmp_path: Path) -> None:
    def run() -> Run:
        loop = Run(accelerator(), dropout=0.2, build=build)
        loop.accelerator.register_for_checkpointing(loop.surgery.conflicts)
        return loop

    uninterrupted = run()
    uninterrupted.train()
    first = run()
    first.train(last=6)
    first.accelerator.save_state(str(tmp_path))
    saved = torch.load(tmp_path / "optimizer.bin", weights_only=True)
    assert torch.tensor(saved["param_groups"][0]["surgery"]["target"]).any()
    second = run()
    second.accelerator.load_state(str(tmp_path))
    second.train(first=6)
    assert same(problem.weights(second.bare), problem.weights(uninterrupted.bare))
    assert same(problem.learned(second.surgery), problem.learned(uninterrupted.surgery))
    assert second.surgery.conflicts.summary() == uninterrupted.surgery.conflicts.summary()


def loss_scaled(scale: float, build: Any) -> Run:
    """Loss scaling as of ``mixed_precision="fp16"``, without its autocast."""
    forget()
    accel = accelerator(mixed_precision="fp16")
    accel.scaler = torch.amp.GradScaler("cpu", init_scale=scale)  # Accelerate: on a GPU only
    run = Run(accel, build=build)
    accel.native_amp = True
    return run


def test_loss_scaling_changes_nothing(build: Any) -> None:
    plain = Run(accelerator())
    plain.train()
    scaled = loss_scaled(2.0**10, build)
    scaled.train()
    assert same(problem.weights(plain.bare), problem.weights(scaled.bare))
    assert same(problem.learned(plain.surgery), problem.learned(scaled.surgery))


def test_an_overflow_skips_the_step_the_schedule_and_the_targets(build: Any) -> None:
    run = loss_scaled(1e38, build)
    before = problem.weights(run.bare), problem.learned(run.surgery)
    run.train(last=MICROS)
    assert run.skipped[-1]
    assert run.accelerator.scaler.get_scale() == pytest.approx(5e37)
    assert run.schedule.scheduler.last_epoch == 0
    assert run.surgery.conflicts.summary()["nonfinite"] == 1
    assert same(before, (problem.weights(run.bare), problem.learned(run.surgery)))


def rank_main(folder: Path) -> dict[str, Any]:
    accel = accelerator()
    run = Run(accel, process_group=dist.group.WORLD)
    run.train()
    return {
        "weights": problem.weights(run.bare),
        "learned": problem.learned(run.surgery),
        "seen": run.seen,
    }


def test_two_processes_are_the_plain_loop_on_both_batches(tmp_path: Path) -> None:
    first, second = hf_ranks.start(rank_main, tmp_path)
    assert same(first["weights"], second["weights"])
    assert same(first["learned"], second["learned"])
    assert not same(first["seen"], second["seen"])
    again = problem.net()
    problem.plain_loop(again, problem.micro_batches([first["seen"], second["seen"]], MICROS))
    problem.assert_near(first["weights"], again)


def test_a_method_that_is_not_linear_decides_on_the_accumulated_batch() -> None:
    """Accelerate divides the joined loss by the micro-batches; the update is a batch's."""
    accelerate, model = accelerator(), torch.nn.Linear(2, 1, bias=False)
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    surgery = GradientSurgery(base, Unit(), tasks=("a", "b"))
    model, _ = accelerate.prepare(model, surgery)
    for number in range(MICROS):
        with accelerate.accumulate(model):
            rows = torch.tensor([[3.0, 4.0], [0.0, 2.0]]) * (2 * number / (MICROS - 1))
            joined = surgery.join(list(model(rows).flatten()), combine=number == MICROS - 1)
            accelerate.backward(joined)
    assert surgery.param_groups[0]["params"][0].grad.flatten().tolist() == pytest.approx([0.6, 1.8])
