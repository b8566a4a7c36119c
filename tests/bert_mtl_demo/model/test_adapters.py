"""Adapters: one layer written out by hand, and what must not change when they are attached."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from bert_mtl_demo.errors import ConfigError, EncoderError
from bert_mtl_demo.model.adapters import active, adapter_parameters, attach, inner_size
from gradsurgery import GradientSurgery, PCGrad
from gradsurgery.grouping import by_layer

TASKS = ("sst", "para", "sts")
KINDS = ("pals", "low_rank")
WIDTH, HEADS, LAYERS, SIZE = 24, 4, 3, 8
IDS = torch.tensor([[2, 5, 7, 3], [2, 9, 3, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


def bert(attention: str = "sdpa", dtype: torch.dtype = torch.float64) -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    config._attn_implementation = attention
    return BertModel(config).to(dtype).eval()


def adapted(kind: str = "pals", attention: str = "sdpa", scale: float = 10.0) -> BertModel:
    """With weights and biases large enough that every one of them matters."""
    encoder = bert(attention)
    attach(encoder, TASKS, kind, SIZE)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in adapter_parameters(encoder):
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.02 * scale)
    return encoder


def hidden(encoder: BertModel, task: str, ids: Tensor = IDS, mask: Tensor = MASK) -> Tensor:
    with active(encoder, task):
        return encoder(input_ids=ids, attention_mask=mask).last_hidden_state


def linear(x: Tensor, values: dict[str, Tensor], name: str) -> Tensor:
    return x @ values[f"{name}.weight"].T + values[f"{name}.bias"]


def attention(x: Tensor, mask: Tensor, values: dict[str, Tensor], at: str, heads: int) -> Tensor:
    """Softmax attention, example by example and head by head, over the real tokens only."""
    found = torch.zeros_like(x)
    size = x.shape[-1] // heads
    for row in range(len(x)):
        real = mask[row].bool()
        q, k, v = (linear(x[row], values, at + part) for part in ("query", "key", "value"))
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            weights = (q[:, part] @ k[real][:, part].T / math.sqrt(size)).softmax(-1)
            found[row, :, part] = weights @ v[real][:, part]
    return found


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def norm(x: Tensor, values: dict[str, Tensor], at: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    unit = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-12).sqrt()
    return unit * values[f"{at}.weight"] + values[f"{at}.bias"]


def by_hand(encoder: BertModel, task: str, kind: str) -> Tensor:
    values = dict(encoder.state_dict())
    h = encoder.embeddings(input_ids=IDS)
    for number in range(LAYERS):
        at = f"encoder.layer.{number}."
        mixed = attention(h, MASK, values, at + "attention.self.", HEADS)
        a = norm(
            linear(mixed, values, at + "attention.output.dense") + h,
            values,
            at + "attention.output.LayerNorm",
        )
        ffn = linear(
            gelu(linear(a, values, at + "intermediate.dense")), values, at + "output.dense"
        )
        mine = f"{at}adapters.{task}."
        if kind == "pals":
            small = linear(h, values, f"adapters.{task}.encode")
            seen = attention(small, MASK, values, mine, HEADS)
            term = gelu(linear(seen, values, f"adapters.{task}.decode"))
        else:
            term = linear(linear(h, values, mine + "encode"), values, mine + "decode")
        h = norm(ffn + a + term, values, at + "output.LayerNorm")
    return h


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_formula(kind, implementation):
    encoder = adapted(kind, implementation)
    for task in TASKS:
        found = hidden(encoder, task)
        torch.testing.assert_close(found, by_hand(encoder, task, kind), atol=1e-10, rtol=0)
        assert (found - hidden(bert(), task)).abs().max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_of_zeros_is_bert_itself(kind):
    encoder = adapted(kind)
    with torch.no_grad():
        for name, p in encoder.named_parameters():
            if ".decode." in name:
                p.zero_()
    assert torch.equal(hidden(encoder, "sts"), hidden(bert(), "sts"))


@pytest.mark.parametrize("kind", KINDS)
def test_training_begins_near_the_pretrained_function(kind):
    encoder = bert()
    attach(encoder, TASKS, kind, SIZE)
    moved = (hidden(encoder, "sst") - hidden(bert(), "sst")).norm() / hidden(bert(), "sst").norm()
    assert 0 < moved < 0.05
    hidden(encoder, "sst").square().mean().backward()
    mine = [p for name, p in encoder.named_parameters() if ".sst." in name or "rs.sst" in name]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in mine if p.ndim > 1)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind, implementation):
    encoder = adapted(kind, implementation)
    together = hidden(encoder, "para")[1, :3]
    alone = hidden(encoder, "para", IDS[1:, :3], MASK[1:, :3])[0]
    torch.testing.assert_close(together, alone, atol=1e-10, rtol=0)


def test_other_tasks_get_no_gradient():
    for kind in KINDS:
        encoder = adapted(kind)
        hidden(encoder, "para").square().sum().backward()
        for name, p in encoder.named_parameters():
            used = ("pooler" not in name and "adapters" not in name) or "adapters.para." in name
            assert (p.grad is not None) == used, name


def test_layers_share_a_pals_projections_only():
    encoder = adapted("pals")
    names = [name for name, _ in encoder.named_parameters()]
    assert sum(".encode.weight" in name for name in names) == len(TASKS)
    assert list(encoder.state_dict()) == names  # each name once, and no name beside these
    first, last = (encoder.encoder.layer[n].adapters["sst"] for n in (0, -1))
    assert first.shared[0] is last.shared[0] is encoder.adapters["sst"]
    assert first.query is not last.query


def test_surgery_leaves_adapters_to_their_task():
    encoder = adapted("pals").float()
    optimizer = GradientSurgery(
        torch.optim.AdamW(encoder.named_parameters()),
        PCGrad(seed=0),
        tasks=TASKS[:2],
        grouping="layer",
    )
    alone = {}
    for task, sign in (("sst", 1), ("para", -1)):  # opposite wishes, so that there is a conflict
        with optimizer.task(task):
            (sign * hidden(encoder, task)[..., 0].sum()).backward()
        fresh = copy.deepcopy(encoder)
        (sign * hidden(fresh, task)[..., 0].sum()).backward()
        alone |= {n: p.grad for n, p in fresh.named_parameters() if f"adapters.{task}." in n}
    optimizer.combine()
    assert optimizer.conflicts.summary()["gradients"]["altered"] > 0
    for name, p in encoder.named_parameters():
        if "adapters" in name:
            assert (p.grad is None) == ("adapters.sts." in name), name
            assert p.grad is None or torch.allclose(p.grad, alone[name], atol=1e-5), name


def test_names_put_adapters_into_their_layer():
    encoder = adapted("pals")
    names = [name for name, _ in encoder.named_parameters() if "adapters" in name]
    found = {by_layer(name) for name in names if "query" in name}
    assert found == {f"encoder.layer.{number}" for number in range(LAYERS)}


def weights_and_biases(*shapes: tuple[int, int]) -> int:
    return sum(rows * columns + rows for rows, columns in shapes)


def test_the_number_of_parameters():
    h, s = WIDTH, SIZE
    projection = weights_and_biases((s, h), (h, s))
    pals = len(TASKS) * (projection + LAYERS * weights_and_biases(*[(s, s)] * 3))
    assert sum(p.numel() for p in adapter_parameters(adapted("pals"))) == pals
    low_rank = len(TASKS) * LAYERS * projection
    assert sum(p.numel() for p in adapter_parameters(adapted("low_rank"))) == low_rank
    assert list(adapter_parameters(bert())) == []


@pytest.mark.parametrize("kind", KINDS)
def test_eight_tasks_cost_as_much_as_the_paper_says(kind):
    with torch.device("meta"):
        encoder = BertModel(BertConfig())
        base = sum(p.numel() for p in encoder.parameters())
        attach(encoder, [f"task{n}" for n in range(8)], kind)
    assert sum(p.numel() for p in encoder.parameters()) / base == pytest.approx(1.13, abs=0.006)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_makes_the_same_encoder_again(kind):
    one, other = adapted(kind), bert()
    attach(other, TASKS, kind, SIZE)
    other.load_state_dict(one.state_dict())
    assert torch.equal(hidden(one, "sts"), hidden(other, "sts"))
    assert one.config.to_dict() == bert().config.to_dict()
    plain = set(bert().state_dict())
    assert {name for name in one.state_dict() if "adapters" not in name} == plain


def test_a_copy_stands_on_its_own():
    one = adapted("pals")
    other = copy.deepcopy(one)
    with torch.no_grad():
        other.adapters["sst"].decode.weight.zero_()
        other.adapters["sst"].decode.bias.zero_()
    assert torch.equal(hidden(other, "sst"), hidden(bert(), "sst"))
    assert not torch.equal(hidden(one, "sst"), hidden(other, "sst"))
    with active(one, "sst"), pytest.raises(RuntimeError, match="no task was chosen"):
        other(input_ids=IDS)


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_frozen_bert_adapters_train(kind):
    encoder = bert().requires_grad_(False)
    attach(encoder, TASKS, kind, SIZE)
    hidden(encoder, "sst").square().sum().backward()
    trained = {name for name, p in encoder.named_parameters() if p.grad is not None}
    assert trained == {name for name in encoder.state_dict() if "adapters.sst" in name}


def test_a_pal_has_the_dropout_of_berts_attention():
    encoder = adapted("pals")
    h, pal = encoder.embeddings(input_ids=IDS), encoder.encoder.layer[0].adapters["sst"]
    assert pal.dropout.p == encoder.config.attention_probs_dropout_prob > 0
    assert torch.equal(pal(h, None), pal(h, None))
    pal.train()
    assert not torch.equal(pal(h, None), pal(h, None))


def test_new_parameters_are_where_and_as_the_encoder_is():
    encoder = bert(dtype=torch.float32)
    attach(encoder, TASKS, "pals", SIZE)
    assert {p.dtype for p in adapter_parameters(encoder)} == {torch.float32}
    weights = torch.cat([p.flatten() for p in adapter_parameters(encoder) if p.ndim > 1])
    assert weights.std().item() == pytest.approx(0.02, rel=0.05)
    assert all(p.abs().max() == 0 for p in adapter_parameters(encoder) if p.ndim == 1)


def test_all_hidden_states_can_still_be_asked_for():
    encoder = adapted("pals")
    with active(encoder, "sst"):
        found = encoder(input_ids=IDS, attention_mask=MASK, output_hidden_states=True)
    assert len(found.hidden_states) == LAYERS + 1
    assert torch.equal(found.hidden_states[-1], found.last_hidden_state)


def test_a_task_has_to_be_chosen():
    encoder = adapted()
    with pytest.raises(RuntimeError, match="no task was chosen"):
        encoder(input_ids=IDS)
    with pytest.raises(ConfigError, match="did you mean 'sts'"), active(encoder, "sts2"):
        pass
    with active(encoder, "sst"):
        inside = hidden(encoder, "para")
        assert not torch.equal(encoder(input_ids=IDS, attention_mask=MASK)[0], inside)
    with pytest.raises(ZeroDivisionError), active(encoder, "sst"):
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="no task was chosen"):
        encoder(input_ids=IDS)


@pytest.mark.parametrize(
    ("kind", "width", "heads", "expected"),
    [
        ("pals", 768, 12, 204),
        ("pals", 1024, 16, 272),
        ("pals", 384, 12, 96),
        ("pals", 32, 2, 8),
        ("pals", 8, 4, 4),
        ("low_rank", 768, 12, 100),
        ("low_rank", 4, 2, 1),
    ],
)
def test_sizes_follow_the_width(kind, width, heads, expected):
    assert inner_size(kind, width, heads) == expected


@pytest.mark.parametrize(("size", "remedy"), [(9, "Use 8 or 12."), (3, "Use 4.")])
def test_a_size_that_heads_cannot_share_is_refused(size, remedy):
    with pytest.raises(ConfigError, match=f"adapter_size = {size}: .*{remedy}"):
        attach(bert(), TASKS, "pals", size)
    attach(bert(), TASKS, "low_rank", size)


def test_what_cannot_be_adapted_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'pals'"):
        attach(bert(), TASKS, "pal")
    with pytest.raises(RuntimeError, match="already"):
        attach(adapted(), TASKS, "pals", SIZE)
    encoder = bert()
    encoder.config._attn_implementation = "flash_attention_2"
    with pytest.raises(EncoderError, match="flash_attention_2"):
        attach(encoder, TASKS, "pals", SIZE)
    decoder = bert()
    decoder.config.is_decoder = True
    with pytest.raises(EncoderError, match="is_decoder"):
        attach(decoder, TASKS, "pals", SIZE)
