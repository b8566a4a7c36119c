"""The model as a whole: what reaches what, and what does not."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bert_mtl_demo.config import STS_LOSSES, Config
from bert_mtl_demo.data.tokenization import Cross, EncodedSet
from bert_mtl_demo.errors import ConfigError
from bert_mtl_demo.model.multitask import new_model
from bert_mtl_demo.model.pooling import POOLINGS, needs_pooler
from bert_mtl_demo.tasks import TASKS
from bert_mtl_demo.training.optimizer import build_optimizer, decay_groups, lr_curve

ROWS = [[2, 5, 6, 7, 3], [2, 9, 3], [2, 11, 12, 3], [2, 8, 5, 10, 6, 3]]
EVERYTHING = "mean+cls+pooler+cnn+bilstm"


@pytest.fixture
def model_of(tiny_encoder):
    from bert_mtl_demo.model.encoder import load_encoder, locate

    def make(**changes):
        config = Config(encoder=tiny_encoder, **changes)
        encoder = load_encoder(locate(tiny_encoder), pooler=needs_pooler(config))
        return new_model(config, encoder).eval()

    return make


def set_of(task, pairs="siamese"):
    """Two examples of a task."""
    second = ROWS[2:] if TASKS[task].pair else None
    return EncodedSet(TASKS[task], ROWS[:2], second, [0, 1], pad=0, pairs=pairs)


def padded(batch, room=20):
    """The same batch with more padding."""
    wide = {
        name: None if rows is None else F.pad(rows, (0, room))
        for name, rows in (("ids", batch.ids), ("mask", batch.mask))
    }
    if batch.cross is not None:
        rows = (batch.cross.ids, batch.cross.mask, batch.cross.types)
        wide["cross"] = Cross(*(F.pad(part, (0, room)) for part in rows))
    return dataclasses.replace(batch, **wide)


@pytest.mark.parametrize("pooling", [*POOLINGS, EVERYTHING])
@pytest.mark.parametrize("pairs", ["siamese", "cross", "ensemble"])
@pytest.mark.parametrize("adapter", ["none", "pals"])
def test_padding_does_not_change_the_answer(model_of, pooling, pairs, adapter):
    model = model_of(pooling=pooling, pairs=pairs, adapter=adapter, hidden_layers=1).double()
    for task in ("sst", "para", "sts"):
        batch = set_of(task, pairs).collate([0, 1])
        with torch.no_grad():
            short, long = model(task, batch), model(task, padded(batch))
        torch.testing.assert_close(short, long, atol=1e-6, rtol=1e-6)


def test_batch_mates_do_not_change_the_answer(model_of):
    model = model_of()
    rows = {"first": [[2, 5, 3], [2, 9, 6, 7, 3]], "second": [[2, 8, 6, 3], [2, 12, 3]]}
    pairs = EncodedSet(TASKS["para"], rows["first"], rows["second"], [0, 1], pad=0)
    with torch.no_grad():
        together = model("para", pairs.collate([0, 1]))
        apart = torch.cat([model("para", pairs.collate([i])) for i in (0, 1)])
        turned = model("para", pairs.collate([1, 0])).flip(0)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together, turned, atol=1e-5, rtol=1e-4)


def test_u_and_v_are_not_mixed_up(model_of):
    model = model_of()
    pairs = EncodedSet(TASKS["para"], [[2, 5, 3]], [[2, 8, 6, 3]], [0], pad=0)
    single = EncodedSet(TASKS["sst"], [[2, 5, 3], [2, 8, 6, 3]], None, [0, 0], pad=0)
    with torch.no_grad():
        u, v = (model.sentences(single.collate([i])) for i in (0, 1))
        expected = model.heads["para"](u, v)
        torch.testing.assert_close(
            model("para", pairs.collate([0])), expected, atol=1e-5, rtol=1e-4
        )


def test_a_cross_head_reads_the_joint_row(model_of):
    model = model_of(pairs="cross")
    batch = set_of("sts", "cross").collate([0])
    row = [*ROWS[0], *ROWS[2][1:]]
    with torch.no_grad():
        hidden = model.encoder(
            input_ids=torch.tensor([row]),
            attention_mask=torch.ones(1, len(row), dtype=torch.int64),
            token_type_ids=torch.tensor([[0] * len(ROWS[0]) + [1] * (len(ROWS[2]) - 1)]),
        ).last_hidden_state
        head = model.heads["sts"].linear
        expected = hidden[:, 0] @ head.weight[0] + head.bias
        torch.testing.assert_close(model("sts", batch), expected, atol=1e-5, rtol=1e-4)


def test_a_cross_head_takes_the_pooler_if_the_sentences_do(model_of):
    model = model_of(pairs="cross", pooling="mean+pooler")
    batch = set_of("para", "cross").collate([0, 1])
    rows = batch.cross
    with torch.no_grad():
        pooled = model.encoder(
            input_ids=rows.ids, attention_mask=rows.mask, token_type_ids=rows.types
        ).pooler_output
        assert torch.equal(model.crossed(batch), pooled)


def test_an_ensemble_is_the_sum_of_its_halves(model_of):
    model = model_of(pairs="ensemble", pooling="mean+cnn", para_head="difference")
    batch = set_of("para", "ensemble").collate([0, 1])
    with torch.no_grad():
        u, v = model.sentences(batch).chunk(2)
        head = model.heads["para"]
        expected = head.siamese(u, v) + head.cross(model.crossed(batch))
        torch.testing.assert_close(model("para", batch), expected)
        cosine = torch.cosine_similarity(u, v)
        linear = model.heads["sts"].cross(model.crossed(batch))
        torch.testing.assert_close(model("sts", batch), cosine + linear)


def test_pairs_need_two_types_of_token(model_of):
    encoder = model_of().encoder
    encoder.config.type_vocab_size = 1
    new_model(Config(), encoder)
    with pytest.raises(ConfigError, match="--pairs siamese"):
        new_model(Config(pairs="cross"), encoder)


@pytest.mark.parametrize("pairs", ["siamese", "cross", "ensemble"])
@pytest.mark.parametrize("loss", ["cross_entropy", "bce", "mse"])
def test_every_trained_parameter_gets_a_gradient(model_of, pairs, loss):
    shape = {"pooling": "mean+cnn+bilstm", "sts_head": "linear", "hidden_layers": 1}
    changes = {"para_loss": loss, "weighting": "uncertainty", "adapter": "low_rank"}
    model = model_of(pairs=pairs, dropout=0.0, **shape, **changes).train()
    sizes = {"sst": 2, "para": 2, "sts": 2}
    for task in sizes:
        batch = set_of(task, pairs).collate([0, 1])
        loss = model.weighting(task, model.loss(task, batch), sizes)
        assert loss.shape == ()
        loss.backward()
    # Keys' biases shift all of a softmax alike; ReLUs may be shut on two examples.
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert not missing


def test_what_belongs_to_untrained_tasks_is_held(model_of):
    changes = {"adapter": "pals", "weighting": "uncertainty", "sts_head": "linear"}
    model = model_of(untrained=("para",), **changes)
    held = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert held == {name for name, _ in model.named_parameters() if "para" in name.split(".")}
    for part in ("heads.para.linear.bias", "adapters.para", "weighting.log_variance.para"):
        assert any(part in name for name in held)


@pytest.mark.parametrize("loss", STS_LOSSES)
def test_every_loss_of_similarity_trains(model_of, loss):
    model = model_of(sts_loss=loss, temperature=0.2, encoder_dropout=0.0).train()
    first, second = ROWS[:3], [ROWS[3], ROWS[0], ROWS[2]]
    pairs = EncodedSet(TASKS["sts"], first, second, [0.5, 4.9, 5.0], pad=0)
    found = model.loss("sts", pairs.collate([0, 1, 2]), epoch=2)
    found.backward()
    assert found.shape == ()
    assert any(p.grad is not None and p.grad.any() for p in model.encoder.parameters())


@pytest.mark.parametrize("pairs", ["siamese", "ensemble"])
def test_mixed_precision_trains(model_of, pairs):
    model = model_of(pairs=pairs, pooling="mean+cnn+bilstm", adapter="pals", dropout=0.0)
    for task in ("sst", "para", "sts"):
        batch = set_of(task, pairs).collate([0, 1])
        exact = model.loss(task, batch)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model.loss(task, batch)
        assert rough.dtype == torch.float32
        torch.testing.assert_close(rough, exact, atol=0.05, rtol=0.05)
        rough.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.pool.parameters())


def test_the_epoch_reaches_the_loss(model_of):
    model = model_of(sts_loss="mnrl_label")
    pairs = EncodedSet(TASKS["sts"], ROWS[:2], ROWS[2:], [4.6, 1.0], pad=0).collate([0, 1])
    losses = [model.loss("sts", pairs, epoch).item() for epoch in (1, 5, 6)]
    assert losses[0] == losses[1] > 0
    assert losses[2] == 0


def test_the_temperature_reaches_the_loss(model_of):
    pairs = EncodedSet(TASKS["sts"], ROWS[:2], ROWS[2:], [4.6, 1.0], pad=0).collate([0, 1])
    losses = [
        model_of(sts_loss="simcse", temperature=value).loss("sts", pairs) for value in (0.05, 1e6)
    ]
    assert losses[1].item() == pytest.approx(math.log(2), abs=1e-4)  # all alike when it is hot
    assert losses[0].item() != pytest.approx(math.log(2), abs=1e-4)


def test_a_frozen_encoder_gives_fixed_features_also_in_training(model_of):
    model = model_of(freeze_encoder=True, sts_head="concat").train()
    batch = EncodedSet(TASKS["sst"], [[2, 5, 3]], None, [0], pad=0).collate([0])
    assert torch.equal(model.sentences(batch), model.sentences(batch))
    assert not model.sentences(batch).requires_grad
    assert not torch.equal(model("sst", batch), model("sst", batch))  # the head has its dropout


@pytest.mark.parametrize("kind", ["pals", "low_rank"])
def test_adapters_train_inside_a_frozen_encoder(model_of, kind):
    from bert_mtl_demo.model.adapters import adapter_parameters

    model = model_of(freeze_encoder=True, adapter=kind).train()
    added = set(adapter_parameters(model.encoder))
    assert added == {p for p in model.encoder.parameters() if p.requires_grad}
    model.loss("sst", set_of("sst").collate([0, 1])).backward()
    assert any(p.grad is not None and p.grad.any() for p in added)
    assert all(p.grad is None for p in model.encoder.parameters() if p not in added)
    training = [name for name, part in model.encoder.named_modules() if part.training]
    assert training
    assert all("adapters" in name for name in training)
    assert not any(part.training for part in model.eval().modules())


def test_a_network_over_a_frozen_encoder_trains(model_of):
    model = model_of(freeze_encoder=True, pooling="cnn+bilstm").train()
    model.loss("sts", set_of("sts").collate([0, 1])).backward()
    assert all(p.grad is not None for p in model.pool.parameters())
    assert all(p.grad is None for p in model.encoder.parameters())


def test_tasks_have_adapters_of_their_own(model_of):
    model = model_of(adapter="pals", pooling="mean")
    batch = set_of("sts").collate([0, 1])
    with torch.no_grad():
        before = {task: model(task, batch) for task in ("para", "sts")}
        for name, parameter in model.encoder.named_parameters():
            if "adapters.para." in name:
                parameter.add_(1.0)
        assert torch.equal(model("sts", batch), before["sts"])
        assert not torch.equal(model("para", batch), before["para"])


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_dropout_of_the_encoder(model_of, share):
    model = model_of(encoder_dropout=share, dropout=0.0, adapter="pals").train()
    batch = set_of("sst").collate([0, 1])
    with torch.no_grad():
        assert torch.equal(model("sst", batch), model("sst", batch)) == (share == 0.0)
    inside = [part.p for part in model.encoder.modules() if isinstance(part, nn.Dropout)]
    assert set(inside) == {share}


def test_dropout_reaches_attention(model_of, monkeypatch):
    """It is no module's output, so only what the kernel is told counts."""
    model = model_of(encoder_dropout=0.25).train()
    told = []
    kernel = F.scaled_dot_product_attention

    def spy(*args, dropout_p=0.0, **kwargs):
        told.append(dropout_p)
        return kernel(*args, dropout_p=dropout_p, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    model("sst", set_of("sst").collate([0, 1]))
    assert told == [0.25] * model.encoder.config.num_hidden_layers


def test_heads_depend_on_the_seed_alone(model_of):
    torch.rand(3)
    one = model_of(seed=5)
    torch.rand(7)
    other = model_of(seed=5)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_heads_do_not_depend_on_adapters(model_of):
    plain, adapted = model_of(), model_of(adapter="pals")
    for name, weights in plain.state_dict().items():
        assert torch.equal(weights, adapted.state_dict()[name])


def test_names_of_the_default_model(model_of):
    names = {name.rsplit(".", 2)[0] for name in model_of().state_dict() if "encoder." not in name}
    assert names == {"heads.sst", "heads.para"}


def test_weight_decay_spares_biases_and_norms(model_of):
    with_decay, without = decay_groups(model_of(), 0.01)
    assert (with_decay["weight_decay"], without["weight_decay"]) == (0.01, 0.0)
    names = [name for name, _ in without["params"]]
    assert all(name.endswith("bias") or "LayerNorm" in name for name in names)
    assert not any("LayerNorm" in name for name, _ in with_decay["params"])
    total = sum(p.numel() for group in (with_decay, without) for _, p in group["params"])
    assert total == sum(p.numel() for p in model_of().parameters())


def test_nothing_to_train_is_refused(model_of):
    model = model_of()
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        build_optimizer(Config(), model)


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_the_learning_rate_rises_then_falls_or_stays(schedule):
    curve = lr_curve(schedule, warmup=10, steps=50)
    rates = [curve(step) for step in range(51)]
    assert rates[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert max(rates) == 1.0
    assert rates[-1] == (0.0 if schedule == "linear" else 1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert all(rate > 0 for rate in rates[:-1])
