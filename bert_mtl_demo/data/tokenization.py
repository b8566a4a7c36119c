"""Text to tensors: every sentence tokenised once, every batch padded to its own longest one.

Vocabulary: an *encoded set* holds the token ids of all examples of one task; a *batch* holds B of
them as tensors. A pair can be read in two ways. *Siamese*: both sentences travel in one tensor of
2B rows, first all u, then all v, which is one call of the encoder instead of two. *Cross*: the pair
is one row, "[CLS] u [SEP] v [SEP]", so that the words of u and v see each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from bert_mtl_demo.data import Examples
from bert_mtl_demo.tasks import Task

PIECE = 4096  # examples tokenised at a time


@dataclass(frozen=True)
class Cross:
    """B pairs as one row each, "[CLS] u [SEP] v [SEP]"."""

    ids: Tensor  # [B, T] int64
    mask: Tensor  # [B, T] int64, 1 where there is a token
    types: Tensor  # [B, T] int64, 0 up to the first [SEP], 1 up to the second, 0 in the padding


@dataclass(frozen=True)
class Batch:
    """B examples of one task, ready for the encoder.

    >>> Batch(torch.zeros(4, 7), torch.ones(4, 7), torch.zeros(2)).size
    2
    """

    # [B or 2B, T] int64, u rows before v rows; None if pairs are crossed only, or vectors known
    ids: Tensor | None
    mask: Tensor | None  # [B or 2B, T] int64, 1 where there is a token
    labels: Tensor  # [B] int64 classes or float32 scores
    cross: Cross | None = None
    vectors: Tensor | None = None  # [B or 2B, W] of the sentences, where they are known already

    @property
    def size(self) -> int:
        """Number of examples, B."""
        return len(self.labels)


class Rows(Sequence[list[int]]):
    """Token ids of many sentences end to end, from which a padded batch is one gather.

    A sequence of lists, made when they are asked for: as lists, ids take sixteen times the memory.

    >>> Rows([[5, 6], [7]]).pad(torch.tensor([1, 0]), pad=0)[0].tolist()
    [[7, 0], [5, 6]]
    """

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        lengths = [torch.empty(0, dtype=torch.int64)]
        flat = [torch.empty(0, dtype=torch.int32)]
        for start in range(0, len(rows), PIECE):  # in pieces: each is lists for a moment
            piece = rows[start : start + PIECE]
            lengths.append(torch.tensor([len(row) for row in piece], dtype=torch.int64))
            flat.append(torch.tensor(list(chain.from_iterable(piece)), dtype=torch.int32))
        self._set(lengths, flat)

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """The rows of some parts, one after the other.

        >>> list(Rows.joined([Rows([[5, 6]]), Rows([[7]])]))
        [[5, 6], [7]]
        """
        rows = cls([])
        rows._set([part.lengths for part in parts], [part.flat for part in parts])
        return rows

    def _set(self, lengths: Sequence[Tensor], flat: Sequence[Tensor]) -> None:
        self.lengths = torch.cat([torch.empty(0, dtype=torch.int64), *lengths])  # [N]
        self.flat = torch.cat([torch.empty(0, dtype=torch.int32), *flat])  # int32
        self.starts = self.lengths.cumsum(0) - self.lengths  # [N]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        start = int(self.starts[index])
        return self.flat[start : start + int(self.lengths[index])].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        position = 0
        for length in self.lengths.tolist():
            yield self.flat[position : position + length].tolist()
            position += length

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Rows):
            return torch.equal(self.lengths, other.lengths) and torch.equal(self.flat, other.flat)
        return list(self) == other

    __hash__ = None  # type: ignore[assignment]

    def pad(self, indices: Tensor, pad: int) -> tuple[Tensor, Tensor]:
        """The rows at `indices` as one rectangle [R, T] int64, and the mask of what is real."""
        lengths = self.lengths[indices, None]  # [R, 1]
        positions = torch.arange(int(lengths.max()))  # [T]
        real = positions < lengths  # [R, T]
        # Position 0 is read for the padding and not used: an index past the end would be an error.
        ids = self.flat[(self.starts[indices, None] + positions) * real].to(torch.int64)
        return ids.masked_fill_(~real, pad), real.to(torch.int64)


@dataclass(frozen=True)
class EncodedSet:
    """The token ids and labels of all examples of one task.

    Args:
        task: whose examples they are.
        first, second: token ids with [CLS] and [SEP]; `second` is None for single sentences.
        labels: one per example.
        pad: the id that fills a row up.
        pairs: `"siamese"`, `"cross"` or `"ensemble"` (both); single sentences ignore it.
        max_length: most tokens in a row of a pair; None cuts nothing.
        whole: examples before a limit; None: these are all.
        vectors: of the sentences, [N, W] or [2N, W] of a pair's first and second ones, if an
            encoder that does not train has computed them; batches then hold them in place of ids.
        cut: examples with a text that was longer than `max_length`.

    >>> from bert_mtl_demo.tasks import TASKS
    >>> few = EncodedSet(TASKS["sst"], [[101, 7, 102], [101, 102]], None, [4, 0], pad=0)
    >>> few.collate([0, 1]).mask.tolist()
    [[1, 1, 1], [1, 1, 0]]
    """

    task: Task
    first: Sequence[list[int]]
    second: Sequence[list[int]] | None
    labels: list[Any]
    pad: int
    pairs: str = "siamese"
    max_length: int | None = None
    whole: int | None = None
    vectors: Tensor | None = field(default=None, repr=False, compare=False)
    cut: int = field(default=0, compare=False)

    def __len__(self) -> int:
        return len(self.first)

    def lengths(self) -> list[int]:
        """Tokens of the longest row an example is read in: it sets the padding.

        That is the sentence; of a siamese pair its longer sentence; of a crossed pair the joint
        row, also when the sentences are read on their own besides.
        """
        first = _lengths(self.first)
        if self.second is None:
            return first
        pairs = zip(first, _lengths(self.second), strict=True)
        if self.pairs == "siamese":
            return [max(u, v) for u, v in pairs]
        return [sum(kept_of_pair(u, v, self.max_length)) - 1 for u, v in pairs]

    def spread(self, count: int) -> EncodedSet:
        """At most `count` examples, evenly spread over all, in their order.

        >>> from bert_mtl_demo.tasks import TASKS
        >>> rows = EncodedSet(TASKS["sst"], [[1], [2], [3], [4]], None, [0, 1, 2, 3], pad=0)
        >>> rows.spread(2).labels
        [0, 2]
        """
        size = len(self)
        indices = [i * size // count for i in range(count)] if count < size else range(size)
        second = None if self.second is None else [self.second[i] for i in indices]
        first, labels = ([column[i] for i in indices] for column in (self.first, self.labels))
        vectors = self.vectors
        if vectors is not None:
            rows = [*indices, *(size + i for i in indices if second is not None)]
            vectors = vectors[rows]
        return replace(self, first=first, second=second, labels=labels, vectors=vectors)

    def tokens(self) -> set[int]:
        """All ids that a batch can hold."""
        return {self.pad}.union(*self.first, *(self.second or []))

    def fingerprint(self) -> str:
        """A hash of all ids and labels: a resumed run must see the very same data."""
        # The text of a tuple of lists, piece by piece: as a whole it would take a gigabyte.
        digest = hashlib.sha256()
        for begin, rows in (("(", self.first), (", ", self.second)):
            digest.update(begin.encode())
            if rows is None:
                digest.update(b"None")
                continue
            for n, row in enumerate(rows):
                digest.update(f"{', ' if n else '['}{row}".encode())
            digest.update(b"]" if len(rows) else b"[]")
        digest.update(f", {[float(label) for label in self.labels]})".encode())
        return digest.hexdigest()

    def collate(self, indices: Sequence[int], device: torch.device | str = "cpu") -> Batch:
        """The examples at `indices` as one batch, padded to the longest of them."""
        chosen = torch.tensor(indices, dtype=torch.int64)
        labels = self._labels[chosen].to(device)
        if self.vectors is not None:
            rows = chosen if self.second is None else torch.cat([chosen, chosen + len(self)])
            return Batch(None, None, labels, vectors=self.vectors[rows].to(device))
        if self.second is None:
            ids, mask = self._sentences.pad(chosen, self.pad)
            return Batch(ids.to(device), mask.to(device), labels)
        cross = None if self.pairs == "siamese" else self._crossed(chosen, device)
        if self.pairs == "cross":
            return Batch(None, None, labels, cross)
        both = torch.cat([chosen, chosen + len(self)])
        ids, mask = self._sentences.pad(both, self.pad)
        return Batch(ids.to(device), mask.to(device), labels, cross)

    def _crossed(self, chosen: Tensor, device: torch.device | str) -> Cross:
        rows, borders = self._pairs
        ids, mask = rows.pad(chosen, self.pad)
        types = mask * (torch.arange(ids.shape[1]) >= borders[chosen, None])
        return Cross(ids.to(device), mask.to(device), types.to(device))

    # What every batch is cut from, made at the first one. `functools` writes it past the freeze.
    @cached_property
    def _sentences(self) -> Rows:
        columns = [rows for rows in (self.first, self.second) if rows is not None]
        return Rows.joined([rows if isinstance(rows, Rows) else Rows(rows) for rows in columns])

    @cached_property
    def _pairs(self) -> tuple[Rows, Tensor]:
        assert self.second is not None
        joined = [
            cross_row(u, v, self.max_length) for u, v in zip(self.first, self.second, strict=True)
        ]
        return Rows([row for row, _ in joined]), torch.tensor([border for _, border in joined])

    @cached_property
    def _labels(self) -> Tensor:
        dtype = torch.float32 if self.task.classes is None else torch.int64
        return torch.tensor(self.labels, dtype=dtype)


def _lengths(rows: Sequence[list[int]]) -> list[int]:
    return rows.lengths.tolist() if isinstance(rows, Rows) else [len(row) for row in rows]


def kept_of_pair(u: int, v: int, limit: int | None) -> tuple[int, int]:
    """Number of tokens that two sentences keep, so that their joint row has at most `limit`.

    Args:
        u, v: tokens of each, [CLS] and [SEP] counted in both; the joint row has one [CLS] less.
        limit: most tokens of the joint row.

    Longest first: the longer one is cut until it is as long as the other, then both are, and an odd
    token is the first one's.

    >>> kept_of_pair(9, 4, limit=10), kept_of_pair(9, 8, limit=10), kept_of_pair(3, 4, limit=None)
    ((7, 4), (6, 5), (3, 4))
    """
    room = u + v if limit is None else limit + 1
    if u + v <= room:
        return u, v
    keep = min(u, max(room - v, room - room // 2))
    return keep, room - keep


def cross_row(
    u: Sequence[int], v: Sequence[int], limit: int | None = None
) -> tuple[list[int], int]:
    """ "[CLS] u [SEP] v [SEP]" from "[CLS] u [SEP]" and "[CLS] v [SEP]", and where v begins.

    >>> cross_row([101, 7, 8, 102], [101, 9, 102])
    ([101, 7, 8, 102, 9, 102], 4)
    """
    of_u, of_v = kept_of_pair(len(u), len(v), limit)
    return [*u[: of_u - 1], u[-1], *v[1 : of_v - 1], v[-1]], of_u


def encode(
    examples: Examples,
    task: Task,
    tokenizer: Any,
    max_length: int,
    pairs: str = "siamese",
    done: Callable[[int], object] = lambda examples: None,
) -> EncodedSet:
    """Tokenise a whole set, once; `done` is called with the number of examples of each piece."""
    columns = [column for column in (examples.first, examples.second) if column is not None]
    parts: list[list[Rows]] = [[] for _ in columns]
    cut = 0
    for start in range(0, len(examples), PIECE):
        size = len(examples.first[start : start + PIECE])
        longer = [False] * size
        for column, ids in zip(columns, parts, strict=True):
            piece = _whole(tokenizer, column[start : start + size])
            longer = [n or len(row) > max_length for n, row in zip(longer, piece, strict=True)]
            ids.append(Rows([_cut(row, tokenizer, max_length) for row in piece]))
        cut += sum(longer)
        done(size)
    rows = [Rows.joined(ids) for ids in parts]
    first, second = rows[0], rows[1] if len(rows) > 1 else None
    labels = [task.scaled(v) if task.classes is None else v for v in examples.labels]
    pad = tokenizer.pad_token_id
    return EncodedSet(task, first, second, labels, pad, pairs, max_length, cut=cut)


def tokenise(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids of each text, [CLS] and [SEP] included, cut at `max_length`."""
    return [_cut(row, tokenizer, max_length) for row in _whole(tokenizer, texts)]


def _whole(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, of any length.

    From the tokenizer beneath that of transformers, where there is one: transformers spends as much
    again on masks, types and offsets that nothing here reads.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # one written in Python
        ids: list[list[int]] = tokenizer(list(texts), truncation=False)["input_ids"]
        return ids
    backend.no_truncation()
    backend.no_padding()
    return [encoding.ids for encoding in backend.encode_batch_fast(list(texts))]


def _cut(row: list[int], tokenizer: Any, max_length: int) -> list[int]:
    """The row with `max_length` ids at most, [CLS] and [SEP] among them."""
    if len(row) <= max_length:
        return row
    if tokenizer.truncation_side == "left":
        return [row[0], *row[len(row) - max_length + 1 :]]
    return [*row[: max_length - 1], row[-1]]


def cut_texts(sets: Mapping[str, EncodedSet], split: str) -> list[str]:
    """A sentence for each task some of whose texts were cut.

    >>> from bert_mtl_demo.tasks import TASKS
    >>> long = EncodedSet(TASKS["sst"], [[2, 1, 3]], None, [4], pad=0, max_length=3, cut=1)
    >>> cut_texts({"sst": long}, "train")
    ['sst: 1 of 1 train texts is cut at max_length = 3 tokens']
    """
    return [
        f"{name}: {rows.cut:,} of {len(rows):,} {split} {'pairs' if rows.task.pair else 'texts'} "
        f"{'is' if rows.cut == 1 else 'are'} cut at max_length = {rows.max_length} tokens"
        for name, rows in sets.items()
        if rows.cut
    ]


def unknown_words(sets: Mapping[str, EncodedSet], unknown: int) -> list[str]:
    """A sentence for each task of whose tokens more than a tenth are [UNK], whose number is given.

    >>> from bert_mtl_demo.tasks import TASKS
    >>> unknown_words({"sst": EncodedSet(TASKS["sst"], [[2, 1, 1, 3]], None, [4], pad=0)}, 1)
    ['sst: 100% of the tokens in train are [UNK]: the encoder was made for other texts']
    """
    sentences = []
    for name, examples in sets.items():
        words = number = 0
        for row in chain(examples.first, examples.second or []):
            words += len(row) - 2  # without [CLS] and [SEP]
            number += row.count(unknown)
        share = number / max(words, 1)
        if share > 0.1:
            sentences.append(
                f"{name}: {share:.0%} of the tokens in train are [UNK]: the encoder was made for "
                "other texts"
            )
    return sentences


def pad_rows(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Rows of ids as one rectangle, and the mask of what is real.

    >>> pad_rows([[5, 6], [7]], pad=0)[0].tolist()
    [[5, 6], [7, 0]]
    """
    return Rows(rows).pad(torch.arange(len(rows)), pad)
