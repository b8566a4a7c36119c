"""Layer-wise learning rates: which parameter gets which, and that the schedule keeps them apart."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from bert_mtl_demo.config import Config
from bert_mtl_demo.model.adapters import attach
from bert_mtl_demo.training.optimizer import build_optimizer, build_scheduler, decay_groups

LAYERS = 3


class Model(nn.Module):
    """Parts named as in a MultitaskModel."""

    def __init__(self, kind: str | None = None) -> None:
        super().__init__()
        shape = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
        self.encoder = BertModel(BertConfig(vocab_size=9, num_hidden_layers=LAYERS, **shape))
        if kind:
            attach(self.encoder, ["sst"], kind)
        self.heads = nn.ModuleDict({"sst": nn.Linear(8, 5)})
        self.weighting = nn.ParameterDict({"log_variance": nn.Parameter(torch.zeros(()))})


def rates(model: nn.Module, **settings: object) -> dict[str, tuple[float, float]]:
    """Name -> learning rate and weight decay, as AdamW has them."""
    optimizer = build_optimizer(Config.from_mapping({"tasks": ["sst"], **settings}), model)
    return {
        name: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for name in group["param_names"]
    }


@pytest.mark.parametrize("kind", [None, "pals", "low_rank"])
def test_each_layer_has_a_share_of_the_rate_above_it(kind):
    model = Model(kind)
    found = rates(model, lr=1e-3, layer_decay=0.5, weight_decay=0.1)
    expected = {
        "heads.": 1,
        "weighting.": 1,
        "encoder.pooler.": 1,
        "encoder.adapters.": 1,
        "encoder.encoder.layer.2.": 1 / 2,
        "encoder.encoder.layer.1.": 1 / 4,
        "encoder.encoder.layer.0.": 1 / 8,
        "encoder.embeddings.": 1 / 16,
    }
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, p in model.named_parameters():
        (share,) = (share for start, share in expected.items() if name.startswith(start))
        assert found[name] == (pytest.approx(1e-3 * share), 0.1 if p.ndim > 1 else 0.0), name


def test_without_layer_decay_nothing_is_grouped_otherwise():
    model = Model()
    groups = decay_groups(model, 0.1, lr=1e-3, layer_decay=1.0)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(set(group) == {"params", "weight_decay"} for group in groups)
    named = [(name, id(p)) for name, p in model.named_parameters()]
    matrices = [(name, id(p)) for name, p in groups[0]["params"]]
    vectors = [(name, id(p)) for name, p in groups[1]["params"]]
    assert matrices == [entry for entry in named if entry in matrices]  # the model's order
    assert sorted(matrices + vectors) == sorted(named)


def test_log_variances_have_no_weight_decay():
    assert rates(Model(), weight_decay=0.1)["weighting.log_variance"][1] == 0.0


def test_rates_keep_their_ratios_and_the_first_is_the_highest():
    config = Config(tasks=("sst",), lr=1e-2, layer_decay=0.9, warmup=0.2)
    optimizer = build_optimizer(config, Model())
    scheduler = build_scheduler(config, optimizer, steps=10)
    for factor in (1 / 2, 1, 1, 7 / 8):
        found = scheduler.get_last_lr()
        assert found[0] == pytest.approx(config.lr * factor)
        assert max(found) == found[0]
        assert min(found) == pytest.approx(config.lr * factor * 0.9 ** (LAYERS + 1))
        optimizer.step()
        scheduler.step()


def test_a_layer_that_does_not_train_still_counts():
    model = Model()
    model.encoder.encoder.layer[2].requires_grad_(False)
    found = rates(model, lr=1.0, layer_decay=0.5)
    assert found["encoder.encoder.layer.1.output.dense.weight"][0] == 0.25


def test_a_first_step_moves_each_layer_by_its_rate():
    """AdamW's first step is the rate itself, whatever the gradient's size."""
    model = Model()
    config = Config(tasks=("sst",), lr=1e-2, layer_decay=0.5, weight_decay=0.0, method="sum")
    optimizer = build_optimizer(config, model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with optimizer.task("sst"):
        sum(p.sum() for p in model.parameters()).backward()
    optimizer.combine()
    optimizer.step()
    moved = SimpleNamespace(
        **{
            short: (before[name] - dict(model.named_parameters())[name]).max().item()
            for short, name in (
                ("head", "heads.sst.bias"),
                ("top", "encoder.encoder.layer.2.output.dense.bias"),
                ("bottom", "encoder.encoder.layer.0.output.dense.bias"),
                ("words", "encoder.embeddings.LayerNorm.bias"),
            )
        }
    )
    assert moved.head == pytest.approx(1e-2, rel=1e-4)
    assert moved.top == pytest.approx(5e-3, rel=1e-4)
    assert moved.bottom == pytest.approx(1.25e-3, rel=1e-4)
    assert moved.words == pytest.approx(6.25e-4, rel=1e-4)
