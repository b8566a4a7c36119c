"""The Hugging Face Trainer with surgery is the plain loop, to the bit."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import TrainerCallback

from tests.gradsurgery.problems import same
from tests.integration import hf_problem as problem
from tests.integration import hf_ranks, hf_trainer
from tests.integration.hf_trainer import (
    OneByOneTrainer,
    RowTrainer,
    TaskTrainer,
    trainer,
)

KINDS = {
    "tasks": (TaskTrainer, problem.TaskRows, problem.task_losses),
    "mixed": (RowTrainer, problem.MixedRows, problem.mixed_losses),
}


def test_the_page_shows_the_trainer_that_is_tested() -> None:
    page = (Path(__file__).parents[2] / "docs" / "recipes" / "trainer.md").read_text()
    for trainer_class in (
        hf_trainer.SurgeryTrainer,
        hf_trainer.MixedTrainer,
        hf_trainer.FrugalTrainer,
    ):
        assert inspect.getsource(trainer_class) in page


@pytest.mark.parametrize("accumulation", [1, 4])  # 10 micro-batches: the last step has 2
@pytest.mark.parametrize("kind", KINDS)
def test_the_trainer_is_the_plain_loop(kind: str, accumulation: int, tmp_path: Path) -> None:
    trainer_class, rows, losses = KINDS[kind]
    model, again = problem.net(), problem.net()
    run = trainer(trainer_class, model, rows(), tmp_path, gradient_accumulation_steps=accumulation)
    run.train()
    plain = problem.plain_loop(again, problem.micro_batches([run.seen], accumulation), losses)
    assert same(problem.weights(model), problem.weights(again))
    assert same(problem.learned(run.surgery), problem.learned(plain))


def test_one_task_after_the_other_is_all_joined(tmp_path: Path) -> None:
    runs = []
    for kind in (TaskTrainer, OneByOneTrainer):
        run = trainer(
            kind, problem.net(), problem.TaskRows(), tmp_path, gradient_accumulation_steps=2
        )
        run.train()
        runs.append(run)
    joined, apart = runs
    assert same(problem.weights(joined.model), problem.weights(apart.model))
    assert same(problem.learned(joined.surgery), problem.learned(apart.surgery))
    losses = [[log["loss"] for log in r.state.log_history if "loss" in log] for r in runs]
    assert losses[0] == pytest.approx(losses[1])


class Interrupted:
    """Over a trainer: what interrupts its first steps, at the start of the third micro-batch."""

    error: BaseException = KeyboardInterrupt()
    micro_batches = 0

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **options: Any) -> Any:
        self.micro_batches += 1
        if self.micro_batches == 3:
            raise self.error
        return super().compute_loss(model, inputs, *args, **options)  # type: ignore[misc]


class InterruptedTask(Interrupted):
    """The same in the middle of a micro-batch: the second of its tasks."""

    def task_losses(self, model: nn.Module, inputs: Any) -> Any:
        self.micro_batches += 1
        if self.micro_batches == 2:
            raise self.error
        return super().task_losses(model, inputs)  # type: ignore[misc]


HALVES = {
    "micro-batch": type("Joined", (Interrupted, TaskTrainer), {}),
    "task": type("OneByOne", (InterruptedTask, OneByOneTrainer), {}),
}


@pytest.mark.parametrize("half", HALVES)
def test_training_again_after_ctrl_c_is_the_training_never_begun(half: str, tmp_path: Path) -> None:
    """What was captured before the interrupt belongs to no step."""
    runs = []
    for interrupts in (False, True):
        run = trainer(
            HALVES[half], problem.net(), problem.TaskRows(), tmp_path, gradient_accumulation_steps=4
        )
        run.micro_batches = 0 if interrupts else 10**6
        if interrupts:
            with pytest.raises(KeyboardInterrupt):
                run.train()
        run.train()
        runs.append(run)
    assert same(problem.weights(runs[0].model), problem.weights(runs[1].model))
    assert same(problem.learned(runs[0].surgery), problem.learned(runs[1].surgery))


@pytest.mark.parametrize("half", HALVES)
def test_a_batch_size_found_after_running_out_of_memory_starts_afresh(
    half: str, tmp_path: Path
) -> None:
    runs = []
    for size in (4, 3):
        run = trainer(
            HALVES[half],
            problem.net(),
            problem.TaskRows(),
            tmp_path,
            gradient_accumulation_steps=4,
            per_device_train_batch_size=size,
            auto_find_batch_size=True,
        )
        run.error = RuntimeError("CUDA out of memory.")
        run.micro_batches = 0 if size == 4 else 10**6
        run.train()
        assert run._train_batch_size == 3
        runs.append(run)
    assert same(problem.weights(runs[0].model), problem.weights(runs[1].model))
    assert same(problem.learned(runs[0].surgery), problem.learned(runs[1].surgery))


def test_bf16_autocast_is_that_of_the_plain_loop(tmp_path: Path) -> None:
    def losses(model: nn.Module, batches: problem.Batches) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            outs = {task: model(batch["x"], task=task) for task, batch in batches.items()}
        return {t: (outs[t].float() - batches[t]["y"]).square().mean() for t in batches}

    model, again, full = (problem.net() for _ in range(3))
    run = trainer(TaskTrainer, model, problem.TaskRows(), tmp_path, bf16=True)
    run.train()
    problem.plain_loop(again, problem.micro_batches([run.seen], 1), losses)
    problem.plain_loop(full, problem.micro_batches([run.seen], 1))
    assert same(problem.weights(model), problem.weights(again))
    assert not same(problem.weights(model), problem.weights(full))


def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path: Path) -> None:
    def run() -> tuple[nn.Module, Any]:
        model = problem.net(dropout=0.2)
        saving = {"save_strategy": "steps", "save_steps": 4, "gradient_accumulation_steps": 2}
        stopped = trainer(
            TaskTrainer, model, problem.TaskRows(), tmp_path, num_train_epochs=2, **saving
        )
        return model, stopped

    (model_of_all, uninterrupted), (model, resumed) = run(), run()
    uninterrupted.train()
    start = tmp_path / "checkpoint-4"
    saved = torch.load(start / "optimizer.pt", weights_only=True)["param_groups"][0]["surgery"]
    assert torch.tensor(saved["target"]).any()
    resumed.train(resume_from_checkpoint=str(start))
    assert same(problem.weights(model), problem.weights(model_of_all))
    assert same(problem.learned(resumed.surgery), problem.learned(uninterrupted.surgery))


def test_each_log_of_training_says_what_surgery_did_since_the_last(tmp_path: Path) -> None:
    logged: list[dict[str, float]] = []

    class Backend(TrainerCallback):
        def on_log(self, *given: Any, logs: dict[str, float], **others: Any) -> None:
            logged.append(logs)

    run = trainer(TaskTrainer, problem.net(), problem.TaskRows(), tmp_path, logging_steps=10)
    run.add_callback(Backend)  # what `report_to` adds for each of its names
    run.train()
    plain = problem.plain_loop(problem.net(), problem.micro_batches([run.seen], 1))
    scalars = plain.conflicts.scalars()
    training, summary = logged
    assert "surgery/cosine/a-b" in scalars
    assert {name: training[name] for name in scalars} == scalars
    assert not any(name.startswith("surgery") for name in summary)
    assert run.surgery.conflicts.summary()["window"] == 0


def test_a_trainer_evaluates_by_task_before_it_trains_and_trains_twice(tmp_path: Path) -> None:
    model = problem.net()
    run = trainer(TaskTrainer, model, problem.TaskRows(), tmp_path)
    metrics = run.evaluate({t: problem.TaskRows((t,), (16,)) for t in ("a", "b")})
    batches = {t: problem.examples(t, 16) for t in ("a", "b")}
    with torch.no_grad():
        losses = problem.task_losses(model.eval(), batches)
    assert {t: pytest.approx(losses[t].item()) for t in losses} == {
        t: metrics[f"eval_{t}_loss"] for t in losses
    }
    run.train()
    surgery = run.surgery
    run.train()
    assert run.surgery is surgery
    assert run.optimizer.optimizer is surgery


def rank_main(folder: Path) -> dict[str, Any]:
    results = {}
    kinds = {**KINDS, "apart": (OneByOneTrainer, *KINDS["tasks"][1:])}
    for kind, (trainer_class, rows, _) in kinds.items():
        model = problem.net()
        options = {
            "gradient_accumulation_steps": 2,
            "ddp_backend": "gloo",
            "ddp_find_unused_parameters": False,
        }
        run = trainer(trainer_class, model, rows(), folder / kind, **options)
        run.train()
        results[kind] = {
            "weights": problem.weights(model),
            "learned": problem.learned(run.surgery),
            "seen": getattr(run, "seen", []),
        }
    return results


def test_two_processes_are_the_plain_loop_on_both_batches(tmp_path: Path) -> None:
    ranks = hf_ranks.start(rank_main, tmp_path)
    for rank in ranks:
        assert same(rank["apart"]["weights"], rank["tasks"]["weights"])
    for kind, (_, _, losses) in KINDS.items():
        first, second = (rank[kind] for rank in ranks)
        assert same(first["weights"], second["weights"])
        assert same(first["learned"], second["learned"])
        assert not same(first["seen"], second["seen"])
        steps = problem.micro_batches([first["seen"], second["seen"]], 2)
        again = problem.net()
        problem.plain_loop(again, steps, losses)
        problem.assert_near(first["weights"], again)
