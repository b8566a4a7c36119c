"""Features of a frozen encoder computed once: the same run, to rounding."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bert_mtl_demo.config import Config
from bert_mtl_demo.data.tokenization import EncodedSet
from bert_mtl_demo.errors import ConfigError
from bert_mtl_demo.evaluate import evaluate
from bert_mtl_demo.model.encoder import load_encoder, locate
from bert_mtl_demo.model.multitask import MultitaskModel, new_model
from bert_mtl_demo.runtime import Precision
from bert_mtl_demo.study.plan import key_of
from bert_mtl_demo.tasks import TASKS
from bert_mtl_demo.training.checkpoint import load_state
from bert_mtl_demo.training.features import with_features
from bert_mtl_demo.training.run import continue_run, start_run
from tests.bert_mtl_demo.training.test_resume import LOGS, assert_same_state

# A frozen encoder leaves the tasks nothing in common, which the run says at its start as well.
pytestmark = pytest.mark.filterwarnings(
    "ignore:no parameter has gradients of two tasks:gradsurgery.SurgeryWarning"
)

FROZEN: dict[str, Any] = {"freeze_encoder": True, "sts_head": "concat"}


@pytest.fixture
def frozen(tiny_encoder: str) -> MultitaskModel:
    """A model in training mode, with dropout in its heads and its encoder's configuration."""
    config = Config(**FROZEN, pooling="mean+cls+pooler", encoder_dropout=0.5)
    return new_model(config, load_encoder(locate(tiny_encoder), pooler=True)).train()


def vectors_of(
    model: MultitaskModel, examples: EncodedSet, precision: Precision, cache: Path
) -> EncodedSet:
    return with_features(model, {"sts": examples}, precision, cache)["sts"]


PAIRS = EncodedSet(
    TASKS["sts"], [[2, 7, 3], [2, 8, 9, 10, 3]], [[2, 5, 5, 5, 5, 5, 3], [2, 3]], [0.0, 1.0], pad=0
)


def test_a_frozen_encoder_is_deterministic_while_its_heads_train(frozen: MultitaskModel) -> None:
    """Bitwise, and without a draw: only so can its vectors be kept."""
    batch, before = PAIRS.collate([0, 1]), torch.get_rng_state()
    first, second = frozen.sentences(batch), frozen.sentences(batch)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(frozen("sts", batch), frozen("sts", batch))  # the heads do draw


def test_features_are_the_vectors_of_any_batch_to_rounding(
    frozen: MultitaskModel, tmp_path: Path
) -> None:
    cached = vectors_of(frozen, PAIRS, Precision("off", torch.device("cpu")), tmp_path)
    assert frozen.training
    assert not frozen.encoder.training
    for chosen in ([0], [1], [1, 0], [0, 1, 1]):
        known, computed = cached.collate(chosen), PAIRS.collate(chosen)
        assert known.ids is None
        assert torch.equal(known.labels, computed.labels)
        torch.testing.assert_close(
            frozen.sentences(known), frozen.sentences(computed), rtol=1e-5, atol=1e-6
        )
    assert cached.fingerprint() == PAIRS.fingerprint()
    one = cached.spread(1)
    assert torch.equal(one.collate([0]).vectors, cached.collate([0]).vectors)


def test_features_are_computed_once_for_an_encoder_and_its_sentences(
    frozen: MultitaskModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = Precision("off", torch.device("cpu"))
    first = vectors_of(frozen, PAIRS, off, tmp_path)
    calls = []
    compute = type(frozen).sentences
    monkeypatch.setattr(type(frozen), "sentences", lambda *a: [calls.append(1), compute(*a)][1])
    again = vectors_of(frozen, PAIRS, off, tmp_path)
    assert not calls
    assert torch.equal(first.vectors, again.vectors)
    vectors_of(frozen, replace(PAIRS, second=PAIRS.first), off, tmp_path)
    vectors_of(frozen, PAIRS, Precision("bf16", torch.device("cpu")), tmp_path)
    with torch.no_grad():
        next(frozen.encoder.parameters())[5] += 1
    changed = vectors_of(frozen, PAIRS, off, tmp_path)
    assert len(calls) == 3
    assert not torch.equal(first.vectors, changed.vectors)


def test_a_cached_run_is_the_run_to_rounding(settings: Callable[..., Config]) -> None:
    """Weights, scores and the model that is evaluated; and the batches' sequence."""
    plain = start_run(settings("plain", **FROZEN)).path
    cached = start_run(settings("cached", **FROZEN, cache_features=True)).path
    states = [load_state(run / "last.pt") for run in (plain, cached)]
    for name, weights in states[0]["model"].items():
        torch.testing.assert_close(states[1]["model"][name], weights, rtol=1e-4, atol=1e-5)
    assert torch.equal(states[0]["random"]["torch"], states[1]["random"]["torch"])
    for run in (plain, cached):
        evaluate(run, output=run / "evaluation", device="cpu")
    one, other = (
        json.loads((run / "evaluation" / "evaluation.json").read_text("utf-8"))["tasks"]
        for run in (plain, cached)
    )
    for task, answers in one.items():
        assert other[task]["score"] == pytest.approx(answers["score"], abs=1e-4)


def test_a_cached_run_resumes_to_the_same_bits(
    settings: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    rows_of: Callable[[Path, str], Any],
) -> None:
    once = start_run(settings("once", **FROZEN, cache_features=True)).path
    halves = start_run(settings("halves", **FROZEN, cache_features=True, max_steps=5)).path
    continue_run(halves, {"max_steps": None})
    one, other = (load_state(run / "last.pt") for run in (once, halves))
    assert_same_state(one["model"], other["model"])
    for log in LOGS:
        assert rows_of(once, log)[-1] == rows_of(halves, log)[-1]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "its encoder trains"),
        ({**FROZEN, "adapter": "pals"}, "the adapters train"),
        ({**FROZEN, "pooling": "mean+cnn"}, "its networks train"),
        ({**FROZEN, "pairs": "ensemble"}, "single sentences"),
    ],
)
def test_what_cannot_be_cached_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Config(**changes, cache_features=True)


def test_the_cache_is_no_part_of_a_key() -> None:
    assert key_of(Config(**FROZEN, cache_features=True)) == key_of(Config(**FROZEN))
