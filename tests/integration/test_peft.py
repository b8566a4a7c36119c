"""PEFT: surgery on the adapters that all tasks share, and on nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from gradsurgery import SurgeryWarning
from tests.gradsurgery.problems import same, state_of
from tests.integration.by_hand import (
    TASKS,
    adamw,
    furthest,
    momentum,
    same_bits,
    train,
    train_by_hand,
    weights,
    wrapped,
)

pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from tests.integration import tiny_bert  # noqa: E402  (imports transformers)

STEPS = range(3)

# peft asks transformers for something by the name that it had before 5.20.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*deprecated:FutureWarning")


def adapted() -> nn.Module:
    """LoRA in a BERT without heads of its own, the heads beside it; with dropout."""
    torch.manual_seed(2)
    config = peft.LoraConfig(r=2, lora_alpha=4, lora_dropout=0.1, target_modules=["query", "value"])
    return tiny_bert.Tasks(peft.get_peft_model(tiny_bert.trunk(), config))


def around_heads() -> nn.Module:
    """LoRA around the model of all tasks, whose heads are saved with the adapter."""
    torch.manual_seed(2)
    heads = [f"heads.{task}" for task in TASKS]
    config = peft.LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=heads)
    return peft.get_peft_model(tiny_bert.Tasks(tiny_bert.trunk()), config)


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("build", [adapted, around_heads])
def test_it_is_the_loop_by_hand(build: Callable[[], nn.Module]) -> None:
    model, plain = build(), build()
    train(model, wrapped(momentum(trained(model))), STEPS, tiny_bert.separate)
    train_by_hand(plain, momentum(trained(plain)), STEPS, tiny_bert.separate)
    assert furthest(model, plain) < 1e-6


@pytest.mark.parametrize("build", [adapted, around_heads])
def test_only_adapters_and_heads_train(build: Callable[[], nn.Module]) -> None:
    model = build()
    before = weights(model)
    train(model, wrapped(adamw(trained(model))), STEPS, tiny_bert.separate)
    moved = [name for name, value in weights(model).items() if not torch.equal(value, before[name])]
    lora = [name for name in moved if ".lora_" in name]
    heads = [name for name in moved if "heads." in name]
    assert len(lora) == 8  # A and B of query and value in two layers
    assert len(heads) == 2 * len(TASKS)
    assert len(moved) == len(lora) + len(heads)
    # What modules_to_save keeps of the heads as they were has not moved.
    assert not any(".original_module." in name for name in moved)


@pytest.mark.parametrize("build", [adapted, around_heads])
def test_frozen_parameters_in_the_optimizer_change_nothing(build: Callable[[], nn.Module]) -> None:
    """Passing all parameters works as well: those without a gradient are left alone."""
    model, unfiltered = build(), build()
    train(model, wrapped(adamw(trained(model))), STEPS, tiny_bert.separate)
    train(unfiltered, wrapped(adamw(unfiltered.parameters())), STEPS, tiny_bert.separate)
    assert same_bits(model, unfiltered)


def test_a_resumed_run_is_bitwise_the_run_that_never_stopped(tmp_path: Path) -> None:
    """The adapter's folder holds LoRA and heads, the optimizer's file everything of surgery's."""
    never, first = around_heads(), around_heads()
    never_stopped = wrapped(adamw(trained(never)))
    train(never, never_stopped, range(6), tiny_bert.separate)
    optimizer = wrapped(adamw(trained(first)))
    train(first, optimizer, range(3), tiny_bert.separate)
    first.save_pretrained(tmp_path)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")

    resumed = peft.PeftModel.from_pretrained(
        tiny_bert.Tasks(tiny_bert.trunk()), tmp_path, is_trainable=True
    ).train()
    second = wrapped(adamw(trained(resumed)))
    second.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    train(resumed, second, range(3, 6), tiny_bert.separate)
    assert same_bits(resumed, never)
    assert same(state_of(second), state_of(never_stopped))


def test_an_adapter_for_each_task_leaves_nothing_shared() -> None:
    """Then each gradient passes through: plain training of three models, whatever the method."""
    torch.manual_seed(2)
    config = peft.LoraConfig(r=2, target_modules=["query"])
    model = peft.get_peft_model(tiny_bert.trunk(), config, adapter_name="for_a")
    for task in TASKS[1:]:
        model.add_adapter(f"for_{task}", config)
    adapters = [p for name, p in model.named_parameters() if ".lora_" in name]
    optimizer = wrapped(momentum(adapters))
    ids = torch.arange(8).view(2, 4)
    alone = {}
    for task in TASKS:
        model.set_adapter(f"for_{task}")
        with optimizer.task(task):
            model(input_ids=ids).pooler_output.sum().backward()
        alone[task] = [g.clone() for g in optimizer._pipeline._capture.grads[task].values()]
    with pytest.warns(SurgeryWarning, match="no parameter has gradients of two tasks"):
        optimizer.combine()
    for task in TASKS:
        adapter = [p for name, p in model.named_parameters() if f".for_{task}.weight" in name]
        assert all(torch.equal(p.grad, g) for p, g in zip(adapter, alone[task], strict=True))
    assert optimizer.conflicts.summary()["gradients"]["altered"] == 0
