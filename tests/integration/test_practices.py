"""Common practice around surgery: what the pages say of it, each done once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from gradsurgery import GradientSurgery, PCGrad
from tests.integration import hf_problem, hf_ranks
from tests.integration.by_hand import (
    SEED,
    TASKS,
    adamw,
    batch,
    distance,
    fresh_model,
    furthest,
    momentum,
    same_bits,
    separate,
    wrapped,
)

CLIP = 0.05  # binds for every task


def step(model: nn.Module, optimizer: GradientSurgery, number: int) -> None:
    optimizer.join([separate(model, number, task) for task in TASKS]).backward()
    optimizer.step()
    optimizer.zero_grad()


def test_clipping_inside_a_task_clips_that_task() -> None:
    model, by_hand = fresh_model(), fresh_model()
    optimizer, again = (
        wrapped(momentum(model.parameters())),
        wrapped(momentum(by_hand.parameters())),
    )
    for number in range(3):
        for task in TASKS:
            with optimizer.task(task):
                separate(model, number, task).backward()
                norm = nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            assert norm > CLIP
            loss = separate(by_hand, number, task)
            parameters = list(by_hand.parameters())
            grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            norm = torch.stack([g.norm() for g in grads if g is not None]).norm()
            with again.task(task):
                (loss * (CLIP / (norm + 1e-6))).backward()
        for surgery in (optimizer, again):
            surgery.combine()
            surgery.step()
            surgery.zero_grad()
    assert furthest(model, by_hand) < 1e-6


def test_a_trunk_is_frozen_and_thawed() -> None:
    model = fresh_model()
    optimizer = wrapped(adamw(model.named_parameters()))  # type: ignore[arg-type]
    cosines = []
    for number, frozen in enumerate([False, True, False]):
        before = [p.clone() for p in model.trunk.parameters()]
        model.trunk.requires_grad_(not frozen)
        optimizer.conflicts.reset()
        step(model, optimizer, number)
        stayed = all(map(torch.equal, before, model.trunk.parameters()))
        assert stayed is frozen
        cosines.append(optimizer.conflicts.summary()["pairs"][0]["cosine"]["mean"])
    assert [cosine is None for cosine in cosines] == [False, True, False]  # heads share nothing


@pytest.mark.parametrize("inside", [True, False])
def test_an_adversarial_example_by_autograd_grad_leaves_no_gradient(inside: bool) -> None:
    def example(model: nn.Module, number: int, task: str) -> Tensor:
        x = batch(number, task).requires_grad_(True)
        (gradient,) = torch.autograd.grad(distance(model(x, task), task), x)
        return (x + 0.1 * gradient.sign()).detach()

    model, plain = fresh_model(), fresh_model()
    optimizer, again = (wrapped(momentum(net.parameters())) for net in (model, plain))
    for number in range(3):
        for task in TASKS:
            x = example(model, number, task)
            with optimizer.task(task):
                if inside:
                    x = example(model, number, task)
                distance(model(x, task), task).backward()
        again.join(
            [distance(plain(example(plain, number, t), t), t) for t in TASKS],
        ).backward()
        optimizer.combine()
        for surgery in (optimizer, again):
            surgery.step()
            surgery.zero_grad()
    assert same_bits(model, plain)


def test_a_hook_that_watches_sees_the_last_task() -> None:
    """As ``wandb.watch`` does, with a hook on each parameter."""
    model = fresh_model()
    optimizer = wrapped(momentum(model.parameters()))
    seen: list[Tensor] = []
    weight = model.trunk[0].weight
    weight.register_hook(lambda grad: seen.append(grad.clone()))
    optimizer.join([separate(model, 0, task) for task in TASKS]).backward()
    assert len(seen) == len(TASKS)
    (alone,) = torch.autograd.grad(separate(model, 0, TASKS[-1]), weight)
    assert torch.equal(seen[-2], alone)  # before the hook ran once more, for this
    assert not torch.equal(weight.grad, alone)


# ---------------------------------------------------------------------- trainers


def test_losses_summed_over_tokens_are_divided_by_the_trainers_count(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests.integration.hf_trainer import RowTrainer, trainer

    class Summed(RowTrainer):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.model_accepts_loss_kwargs = True  # as the Trainer finds by itself

        def compute_loss(
            self,
            model: Any,
            inputs: Any,
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            means = hf_problem.mixed_losses(model, inputs)
            counts = inputs["task_ids"].bincount(minlength=len(TASKS))
            losses = {
                task: loss * counts[TASKS.index(task)] / num_items_in_batch
                for task, loss in means.items()
            }
            return self.surgery.join(losses, combine=self.accelerator.sync_gradients)

    models = []
    for size, accumulation in ((8, 1), (4, 2), (2, 4)):
        models.append(hf_problem.net())
        run = trainer(
            Summed,
            models[-1],
            hf_problem.MixedRows(),
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        run.train()
    for model in models[1:]:
        hf_problem.assert_near(hf_problem.weights(model), models[0])
    assert not same_bits(models[0], hf_problem.net())


def test_sentence_transformers_train_a_task_a_batch(tmp_path: Path) -> None:
    """Each batch is of one data set: accumulated batches make the step in which tasks meet."""
    package = pytest.importorskip("sentence_transformers")
    datasets = pytest.importorskip("datasets")
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["a", "dog", "cat", "runs", "sleeps", "red", "blue"]

    def encoder() -> Any:
        torch.manual_seed(0)
        words_only = models.WordLevel(dict(zip(words, range(7), strict=True)), unk_token="a")
        tokenizer = Tokenizer(words_only)
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        modules = [StaticEmbedding(tokenizer, embedding_dim=8)]
        return package.SentenceTransformer(modules=modules, device="cpu")

    def rows(shift: int) -> Any:
        texts = [" ".join(words[(i * k + shift) % 7] for k in range(1, 5)) for i in range(24)]
        labels = [((i + shift) % 5) / 4 for i in range(24)]
        columns = {"sentence1": texts, "sentence2": texts[3:] + texts[:3], "label": labels}
        return datasets.Dataset.from_dict(columns)

    def surgery(parameters: Any) -> GradientSurgery:
        return GradientSurgery(momentum(parameters), PCGrad(seed=SEED), tasks=("sts", "para"))

    class SurgeryTrainer(package.SentenceTransformerTrainer):  # type: ignore[misc,name-defined]
        def create_optimizer(self, model: Any = None) -> Any:
            if self.optimizer is None:
                self.surgery = self.optimizer = surgery(self.model.parameters())
                self.seen: list[Any] = []
            return self.optimizer

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
            if not model.training:
                return super().compute_loss(model, inputs, *args, **options)
            task = inputs["dataset_name"]
            self.seen.append((task, *self.collect_features(dict(inputs))))
            loss = super().compute_loss(model, inputs)
            return self.surgery.join({task: loss}, combine=self.accelerator.sync_gradients)

    model, again = encoder(), encoder()
    arguments = package.SentenceTransformerTrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        multi_dataset_batch_sampler="round_robin",
        num_train_epochs=1,
        learning_rate=0.05,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trained = SurgeryTrainer(
        model=model,
        args=arguments,
        train_dataset={"sts": rows(0), "para": rows(1)},
        loss={task: losses.CosineSimilarityLoss(model) for task in ("sts", "para")},
    )
    trained.train()
    assert trained.surgery.conflicts.summary()["pairs"][0]["possible"] == 6
    optimizer, loss = surgery(again.parameters()), losses.CosineSimilarityLoss(again)
    for first in range(0, len(trained.seen), 2):
        for task, features, labels in trained.seen[first : first + 2]:
            with optimizer.task(task):
                (loss(features, labels) / 2).backward()
        optimizer.combine()
        optimizer.step()
        optimizer.zero_grad()
    assert same_bits(model, again)
    assert not same_bits(model, encoder())


# ---------------------------------------------------------------------- several processes


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def averaged(build: Callable[[Any], torch.optim.Optimizer]) -> Tensor:
    model = fresh_model()
    optimizer = GradientSurgery(
        build(model.parameters()), PCGrad(seed=SEED), tasks=TASKS, process_group=dist.group.WORLD
    )
    for number in range(4):
        step(model, optimizer, 2 * number + dist.get_rank())
    return flat(model)


def zero(parameters: Any) -> torch.optim.Optimizer:
    return ZeroRedundancyOptimizer(parameters, optimizer_class=torch.optim.AdamW, lr=0.02)


def by_itself(model: nn.Module) -> GradientSurgery:
    """Surgery on this rank's gradients alone, which are meant to differ from the others'."""
    alone, _ = dist.new_subgroups(group_size=1)
    return GradientSurgery(
        adamw(model.parameters()), PCGrad(seed=SEED), tasks=TASKS, process_group=alone
    )


def local(accelerator: Any, every: int) -> Tensor:
    """Steps of each rank by itself, and a mean of the weights after ``every``."""
    from accelerate.local_sgd import LocalSGD

    model = fresh_model()
    surgery = by_itself(model)
    prepared, optimizer = accelerator.prepare(model, surgery)
    with LocalSGD(accelerator=accelerator, model=prepared, local_sgd_steps=every) as averaging:
        for number in range(4):
            losses = [
                distance(prepared(batch(2 * number + dist.get_rank(), task), task), task)
                for task in TASKS
            ]
            accelerator.backward(surgery.join(losses))
            optimizer.step()
            optimizer.zero_grad()
            averaging.step()
    return flat(model)


def local_by_hand(every: int) -> Tensor:
    model = fresh_model()
    optimizer = by_itself(model)
    for number in range(4):
        step(model, optimizer, 2 * number + dist.get_rank())
        if (number + 1) % every == 0:
            for parameter in model.parameters():
                dist.all_reduce(parameter.data)
                parameter.data /= dist.get_world_size()
    return flat(model)


def rank_main(folder: Path) -> dict[str, Any]:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    return {
        "zero": averaged(zero),
        "whole": averaged(adamw),
        "local": local(accelerator, 2),
        "by hand": local_by_hand(2),
    }


def test_zero_and_local_sgd_are_the_loops_by_hand(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    first, second = hf_ranks.start(rank_main, tmp_path)
    torch.testing.assert_close(first["zero"], first["whole"])
    torch.testing.assert_close(first["local"], first["by hand"])
    torch.testing.assert_close(first["local"], second["local"])
