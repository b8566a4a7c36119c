"""Text to tensors: every sentence tokenised once, every batch padded to its own longest one.

Vocabulary: an *encoded set* holds the token ids of all examples of one task; a *batch* holds B of
them as tensors. Both sentences of a pair travel in one tensor of 2B rows, first all u, then all v:
one call of the encoder instead of two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bert_mtl_demo.data import Examples
from bert_mtl_demo.tasks import Task


@dataclass(frozen=True)
class Batch:
    """B examples of one task, ready for the encoder.

    >>> Batch(torch.zeros(4, 7), torch.ones(4, 7), torch.zeros(2)).size
    2
    """

    ids: Tensor  # [B or 2B, T] int64, u rows before v rows
    mask: Tensor  # [B or 2B, T] int64, 1 where there is a token
    labels: Tensor  # [B] int64 classes or float32 scores

    @property
    def size(self) -> int:
        """Number of examples, B."""
        return len(self.labels)


@dataclass(frozen=True)
class EncodedSet:
    """The token ids and labels of all examples of one task.

    >>> from bert_mtl_demo.tasks import TASKS
    >>> few = EncodedSet(TASKS["sst"], [[101, 7, 102], [101, 102]], None, [4, 0], pad=0)
    >>> few.collate([0, 1]).mask.tolist()
    [[1, 1, 1], [1, 1, 0]]
    """

    task: Task
    first: list[list[int]]
    second: list[list[int]] | None
    labels: list[Any]
    pad: int

    def __len__(self) -> int:
        return len(self.first)

    def lengths(self) -> list[int]:
        """Tokens of each example; of a pair, those of its longer sentence: it sets the padding."""
        if self.second is None:
            return [len(row) for row in self.first]
        return [max(len(u), len(v)) for u, v in zip(self.first, self.second, strict=True)]

    def fingerprint(self) -> str:
        """A hash of all ids and labels: a resumed run must see the very same data."""
        content = repr((self.first, self.second, [float(label) for label in self.labels]))
        return hashlib.sha256(content.encode()).hexdigest()

    def collate(self, indices: Sequence[int], device: torch.device | str = "cpu") -> Batch:
        """The examples at `indices` as one batch, padded to the longest of them."""
        rows = [self.first[i] for i in indices]
        if self.second is not None:
            rows += [self.second[i] for i in indices]
        ids, mask = pad_rows(rows, self.pad)
        kind = torch.float32 if self.task.classes is None else torch.int64
        labels = torch.tensor([self.labels[i] for i in indices], dtype=kind)
        return Batch(ids.to(device), mask.to(device), labels.to(device))


def encode(examples: Examples, task: Task, tokenizer: Any, max_length: int) -> EncodedSet:
    """Tokenise a whole set, once."""
    first = tokenise(tokenizer, examples.first, max_length)
    second = None if examples.second is None else tokenise(tokenizer, examples.second, max_length)
    return EncodedSet(task, first, second, list(examples.labels), tokenizer.pad_token_id)


def tokenise(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids of each text, [CLS] and [SEP] included, cut at `max_length`."""
    if not texts:
        return []
    found = tokenizer(list(texts), truncation=True, max_length=max_length, padding=False)
    return [list(row) for row in found["input_ids"]]


def pad_rows(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Rows of ids as one rectangle, and the mask of what is real.

    >>> pad_rows([[5, 6], [7]], pad=0)[0].tolist()
    [[5, 6], [7, 0]]
    """
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[i, : len(row)] = 1
    return ids, mask
