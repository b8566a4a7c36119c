"""Sentence vectors: formulas written out token by token, and blindness to padding."""

from __future__ import annotations

import pytest
import torch

from bert_mtl_demo.config import Config
from bert_mtl_demo.model.pooling import NGRAMS, POOLINGS, BiLstm, Cnn, SentenceModel, needs_pooler

WIDTH = 8


@pytest.fixture
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def tokens_of(lengths, width=WIDTH, *, seed=0, room=0):
    """Hidden vectors with junk in the padding, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths) + room
    hidden = torch.randn(len(lengths), longest, width, generator=generator)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).to(torch.int64)
    return hidden, mask


def test_averages_and_firsts():
    hidden = torch.tensor([[[1.0], [2.0], [6.0]], [[4.0], [8.0], [99.0]]])  # [2, 3, 1]
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    pooled = torch.tensor([[7.0], [8.0]])
    found = {
        name: POOLINGS[name](1, 0.0)(hidden, mask, pooled).tolist()
        for name in ("mean", "cls", "pooler")
    }
    assert found == {"mean": [[3.0], [6.0]], "cls": [[1.0], [4.0]], "pooler": [[7.0], [8.0]]}


@pytest.mark.parametrize("name", POOLINGS)
def test_padding_changes_nothing(double, name):
    torch.manual_seed(0)
    part = POOLINGS[name](WIDTH, 0.3).eval()
    lengths = [5, 2, 1, 7, 3]
    hidden, mask = tokens_of(lengths, room=6)
    pooled = torch.randn(5, WIDTH)
    together = part(hidden, mask, pooled)
    other = hidden.masked_fill(mask[..., None] == 0, 1e3)
    torch.testing.assert_close(together, part(other, mask, pooled), rtol=1e-12, atol=1e-12)
    alone = [
        part(hidden[i : i + 1, :n], mask[i : i + 1, :n], pooled[i : i + 1])
        for i, n in enumerate(lengths)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=1e-12)


def test_the_padding_has_no_gradient(double):
    model = SentenceModel(("mean", "cnn", "bilstm"), WIDTH, 0.0)
    hidden, mask = tokens_of([5, 2, 1], room=4)
    hidden.requires_grad_()
    model(hidden, mask, None).square().sum().backward()
    assert hidden.grad[mask == 0].abs().max() == 0
    assert (hidden.grad[mask == 1].abs().sum(-1) > 0).all()


def test_cnn_is_the_strongest_ngram(double):
    torch.manual_seed(1)
    part = Cnn(WIDTH, 0.0)
    (sentence,), _ = tokens_of([6])
    found = part(sentence[None], torch.ones(1, 6), None)[0]
    expected = []
    for n, layer in zip(NGRAMS, part.filters, strict=True):
        tail = torch.cat([sentence, torch.zeros(n - 1, WIDTH)])
        for weight, bias in zip(layer.weight, layer.bias, strict=True):  # weight [H, n]
            at = [(weight.T * tail[i : i + n]).sum() + bias for i in range(6)]
            expected.append(max(0.0, *at))
    torch.testing.assert_close(found, torch.stack([torch.as_tensor(x) for x in expected]))


def test_cnn_sees_the_order_of_words_only_through_ngrams(double):
    torch.manual_seed(2)
    part = Cnn(WIDTH, 0.0)
    hidden, mask = tokens_of([6])
    turned = part(hidden.flip(1), mask, None)
    single = WIDTH // 4  # the filters of one word
    torch.testing.assert_close(part(hidden, mask, None)[:, :single], turned[:, :single])
    assert not torch.allclose(part(hidden, mask, None)[:, single:], turned[:, single:])


def test_bilstm_is_two_recurrences(double):
    torch.manual_seed(3)
    part = BiLstm(WIDTH, 0.0)
    hidden, mask = tokens_of([4, 6])
    found = part(hidden, mask, None)
    for row, length in enumerate((4, 6)):
        for side, suffix in enumerate(("", "_reverse")):
            w_in, w_on, b_in, b_on = (
                getattr(part.lstm, f"{kind}_l0{suffix}")
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            words = list(hidden[row, :length])
            state = cell = torch.zeros(WIDTH // 2)
            for word in reversed(words) if side else words:
                gates = w_in @ word + b_in + w_on @ state + b_on
                enter, forget, new, out = gates.chunk(4)
                cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
                state = out.sigmoid() * cell.tanh()
            half = slice(side * WIDTH // 2, (side + 1) * WIDTH // 2)
            torch.testing.assert_close(found[row, half], state)


def test_parts_stand_end_to_end():
    model = SentenceModel(("cls", "mean", "cnn"), WIDTH, 0.0)
    hidden, mask = tokens_of([3, 5])
    found = model(hidden, mask, None)
    assert found.shape == (2, model.width)
    for part, piece in zip(model.parts.values(), found.split(WIDTH, 1), strict=True):
        assert torch.equal(part(hidden, mask, None), piece)


@pytest.mark.parametrize("width", [2, 3, 6, 9])
def test_any_width_works(width):
    model = SentenceModel(("cnn", "bilstm"), width, 0.0)
    assert model(*tokens_of([3, 1], width), None).shape == (2, model.width)


@pytest.mark.parametrize("name", ["cnn", "bilstm"])
def test_dropout_acts_in_training_only(name):
    part = POOLINGS[name](64, 0.5)
    hidden, mask = tokens_of([6, 6], 64)
    assert (part.train()(hidden, mask, None) == 0).float().mean() > 0.2
    assert torch.equal(part.eval()(hidden, mask, None), part(hidden, mask, None))


@pytest.mark.parametrize("name", POOLINGS)
def test_mixed_precision_is_close(name):
    torch.manual_seed(4)
    part = POOLINGS[name](WIDTH, 0.0)
    hidden, mask = tokens_of([6, 3])
    pooled = torch.randn(2, WIDTH)
    exact = part(hidden, mask, pooled)
    with torch.autocast("cpu", torch.bfloat16):
        rough = part(hidden, mask, pooled)
    torch.testing.assert_close(rough.float(), exact, atol=0.05, rtol=0.05)


def test_only_some_parts_have_parameters():
    count = {name: sum(1 for _ in POOLINGS[name](WIDTH, 0.0).parameters()) for name in POOLINGS}
    assert count == {"mean": 0, "cls": 0, "pooler": 0, "cnn": 8, "bilstm": 8}


def test_who_needs_the_pooler():
    assert needs_pooler(Config(pooling="pooler"))
    assert needs_pooler(Config(pooling="cnn+pooler"))
    assert not needs_pooler(Config(pooling="mean+cnn+bilstm"))
