"""The Hugging Face Trainer with several bases, methods of degree 0, and methods of the losses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from gradsurgery import GradientSurgery, GradVac, Method, NashMTL, UncertaintyWeighting
from tests.gradsurgery.problems import same
from tests.integration import hf_problem as problem
from tests.integration.hf_trainer import TaskTrainer, trainer


def one(model: nn.Module, method: Method) -> GradientSurgery:
    return GradientSurgery(problem.adamw(model), method, tasks=problem.TASKS)


def several(model: nn.Module, method: Method) -> GradientSurgery:
    """Muon for the trunk's matrix, AdamW for the rest."""
    muon = torch.optim.Muon([model.trunk.weight], lr=0.02)  # type: ignore[arg-type,union-attr]
    rest = [p for p in model.parameters() if p is not model.trunk.weight]  # type: ignore[union-attr]
    return GradientSurgery(
        [muon, torch.optim.AdamW(rest, lr=problem.LR)], method, tasks=problem.TASKS
    )


Build = Callable[[nn.Module], GradientSurgery]
CASES: dict[str, Build] = {
    "several bases": lambda model: several(model, GradVac(beta=0.3, seed=5)),
    "degree 0": lambda model: one(model, NashMTL()),
    "weights of losses": lambda model: one(model, UncertaintyWeighting(lr=0.1)),
    "several, of degree 0": lambda model: several(model, NashMTL()),
    "several, by losses": lambda model: several(model, UncertaintyWeighting(lr=0.1)),
}
every_case = pytest.mark.parametrize("case", CASES)


def run(case: str, folder: Path, model: nn.Module, **options: Any) -> Any:
    """A trainer whose optimizer is the case's."""

    class CaseTrainer(TaskTrainer):
        def create_optimizer(self, model: Any = None) -> Any:
            if self.optimizer is None:
                self.surgery = self.optimizer = CASES[case](self.model)
            return self.optimizer

    return trainer(CaseTrainer, model, problem.TaskRows(), folder, **options)


def joined_loop(
    model: nn.Module, optimizer: GradientSurgery, steps: list[list[list[Any]]]
) -> GradientSurgery:
    """Train without a framework, on the micro-batches of each step of one process."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for index, micros in enumerate(steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * problem.warmup(index, 2, len(steps))
        for number, (batches,) in enumerate(micros, 1):
            losses = problem.task_losses(model, batches)
            joined = optimizer.join(losses, combine=number == len(micros))
            (joined / len(micros)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), problem.CLIP)
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


@every_case
@pytest.mark.parametrize("accumulation", [1, 4])  # 10 micro-batches: the last step has 2
def test_the_trainer_is_the_plain_loop(case: str, accumulation: int, tmp_path: Path) -> None:
    model, again = problem.net(), problem.net()
    trained = run(case, tmp_path, model, gradient_accumulation_steps=accumulation)
    trained.train()
    steps = problem.micro_batches([trained.seen], accumulation)
    plain = joined_loop(again, CASES[case](again), steps)
    assert same(problem.weights(model), problem.weights(again))
    assert same(trained.surgery.state_dict()["state"], plain.state_dict()["state"])


@every_case
def test_a_resumed_run_is_the_run_that_never_stopped(case: str, tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 4, "num_train_epochs": 2}
    whole, model = problem.net(dropout=0.2), problem.net(dropout=0.2)
    run(case, tmp_path, whole, **options).train()
    resumed = run(case, tmp_path, model, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert same(problem.weights(model), problem.weights(whole))
