"""Fixtures: a BERT of 30 thousand parameters and a few dozen examples, a run in a second."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bert_mtl_demo.config import Config
from bert_mtl_demo.data import Examples, Splits, load, load_dev
from bert_mtl_demo.training.run import Outcome, start_run

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# Every letter, alone and as a continuation, so that WordPiece can spell any word.
LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
WORDS = ["the", "is", "not", "good", "bad", "film", "man", "woman", "dog", "how", "what", ".", "?"]
VOCABULARY = [*SPECIAL, *WORDS, *LETTERS, *("##" + letter for letter in LETTERS)]

SHAPE = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}

# what may differ between two equal runs
CLOCK = ("seconds", "steps_per_second", "data_seconds", "peak_memory", "run", "crc32")


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory with a random BERT and its tokenizer."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    place = tmp_path_factory.mktemp("encoder")
    (place / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    BertModel(BertConfig(**SHAPE)).save_pretrained(place)
    BertTokenizerFast.from_pretrained(place).save_pretrained(place)
    return str(place)


@pytest.fixture
def small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process see 44 and 24 examples of each task."""

    def few(source: str, tasks: Any, *, bad_rows: str = "skip") -> Any:
        splits, skipped = load(source, tasks, bad_rows=bad_rows)
        small = {name: Splits(cut(s.train, 44), cut(s.dev, 24)) for name, s in splits.items()}
        return small, skipped

    monkeypatch.setattr("bert_mtl_demo.training.run.load", few)

    def few_dev(source: str, tasks: Any, **options: str) -> Any:
        examples, skipped = load_dev(source, tasks, **options)
        return {name: cut(dev, 24) for name, dev in examples.items()}, skipped

    monkeypatch.setattr("bert_mtl_demo.data.load_dev", few_dev)  # evaluate imports it when called


def cut(examples: Examples, size: int) -> Examples:
    """The first `size` examples."""
    second = None if examples.second is None else examples.second[:size]
    return dataclasses.replace(
        examples, first=examples.first[:size], second=second, labels=examples.labels[:size]
    )


@pytest.fixture
def settings(tiny_encoder: str, tmp_path: Path, small_data: None) -> Callable[..., Config]:
    """Settings of a run of 2 x 6 small steps; keywords change them."""

    def make(output: str = "run", **changes: object) -> Config:
        base: dict[str, object] = {
            "encoder": tiny_encoder,
            "output": str(tmp_path / output),
            "cache": str(tmp_path / "cache"),
            "device": "cpu",
            "amp": "off",
            "batch_size": 4,
            "steps_per_epoch": 6,
            "log_every": 4,
            "max_length": 64,
            "lr": 1e-3,
        }
        return Config.from_mapping({**base, **changes})

    return make


@pytest.fixture
def finished(settings: Callable[..., Config]) -> Outcome:
    """A short finished run of all three tasks."""
    return start_run(settings("finished", steps_per_epoch=2, log_every=1))


@pytest.fixture(scope="session")
def rows_of() -> Callable[[Path, str], list[dict[str, Any]]]:
    """Reads a JSON log of a run without its clock and its name."""

    def read(run: Path, name: str) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in (run / name).read_text("utf-8").splitlines()]
        return [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]

    return read
