"""A trimmed vocabulary: the same rows, gradients and saved weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bert_mtl_demo.config import Config
from bert_mtl_demo.evaluate import evaluate
from bert_mtl_demo.model.vocabulary import TrimmedEmbedding
from bert_mtl_demo.study.plan import key_of
from bert_mtl_demo.training.checkpoint import load_state
from bert_mtl_demo.training.run import continue_run, start_run

TABLE = "encoder.embeddings.word_embeddings.weight"


@pytest.fixture
def tables() -> tuple[nn.Embedding, TrimmedEmbedding]:
    torch.manual_seed(0)
    whole = nn.Embedding(50, 8, padding_idx=0)
    return whole, TrimmedEmbedding(whole, [0, 3, 7, 40, 41])


IDS = torch.tensor([[3, 40, 7, 0], [40, 40, 3, 0]])


def test_rows_in_use_have_the_very_gradients(
    tables: tuple[nn.Embedding, TrimmedEmbedding],
) -> None:
    """Bitwise, the padding's zero included."""
    whole, trimmed = tables
    for table in tables:
        (table(IDS) ** 3).sum().backward()
    assert torch.equal(whole(IDS), trimmed(IDS))
    assert torch.equal(whole.weight.grad[trimmed.used], trimmed.weight.grad[:-1])
    assert not trimmed.weight.grad[0].any()
    assert not trimmed.weight.grad[-1].any()
    assert trimmed.left_out == (50 - 6) * 8


def test_the_table_is_whole_again_whenever_it_is_saved(
    tables: tuple[nn.Embedding, TrimmedEmbedding],
) -> None:
    """After steps with weight decay, the rows left out included: to rounding."""
    whole, trimmed = tables
    for table in tables:
        optimizer = torch.optim.AdamW(table.parameters(), lr=0.1, weight_decay=0.3)
        for _ in range(5):
            optimizer.zero_grad()
            (table(IDS) ** 3).sum().backward()
            optimizer.step()
    saved = trimmed.state_dict()
    assert list(saved) == ["weight"]
    torch.testing.assert_close(saved["weight"], whole.weight.detach(), rtol=1e-6, atol=1e-7)
    nn.Embedding(50, 8).load_state_dict(saved)
    again = TrimmedEmbedding(nn.Embedding(50, 8), trimmed.used.tolist())
    again.load_state_dict(saved)
    assert torch.equal(again.state_dict()["weight"], saved["weight"])
    with pytest.raises(IndexError):
        trimmed(torch.tensor([5]))


@pytest.mark.parametrize("method", ["sum", "pcgrad"])
def test_a_trimmed_run_is_the_run_to_rounding(
    method: str, settings: Callable[..., Config], rows_of: Callable[[Path, str], Any]
) -> None:
    shared: dict[str, Any] = {"method": method, "dropout": 0.0, "encoder_dropout": 0.0}
    shared |= {"train_limit": 6, "batch_size": 2}  # so that tokens are left out
    plain = start_run(settings("plain", **shared)).path
    trimmed = start_run(settings("trimmed", **shared, trim_vocabulary=True)).path
    weights = [load_file(run / "best.safetensors") for run in (plain, trimmed)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-4)
    rows = [rows_of(run, "metrics.jsonl") for run in (plain, trimmed)]
    for one, other in zip(*rows, strict=True):
        assert one.get("trained_parameters") == other.get("trained_parameters")
        assert other.get("loss", {}) == pytest.approx(one.get("loss", {}), rel=1e-4)
    for run in (plain, trimmed):
        evaluate(run, output=run / "evaluation", device="cpu")
    one, other = (
        json.loads((run / "evaluation" / "evaluation.json").read_text("utf-8"))["tasks"]
        for run in (plain, trimmed)
    )
    assert {task: answers["score"] for task, answers in other.items()} == pytest.approx(
        {task: answers["score"] for task, answers in one.items()}, abs=1e-4
    )


def test_a_trimmed_run_resumes_to_the_same_bits(settings: Callable[..., Config]) -> None:
    """But for rounding in rows that no example has."""
    once = start_run(settings("once", trim_vocabulary=True)).path
    halves = start_run(settings("halves", trim_vocabulary=True, max_steps=5)).path
    continue_run(halves, {"max_steps": None})
    one, other = (load_state(run / "last.pt")["model"] for run in (once, halves))
    for name, value in one.items():
        if name == TABLE:
            torch.testing.assert_close(other[name], value, rtol=1e-6, atol=1e-8)
        else:
            assert torch.equal(other[name], value), name


def test_the_trimming_is_no_part_of_a_key() -> None:
    assert key_of(Config(trim_vocabulary=True)) == key_of(Config())
