"""Batches against rows written out by hand, and the joint row of a pair against its definition."""

from __future__ import annotations

import hashlib
import random

import pytest
import torch

from bert_mtl_demo.data import Examples
from bert_mtl_demo.data.tokenization import (
    EncodedSet,
    Rows,
    cross_row,
    encode,
    kept_of_pair,
    pad_rows,
)
from bert_mtl_demo.tasks import TASKS

CLS, SEP, PAD = 2, 3, 0
FIRST = [[CLS, 11, 12, SEP], [CLS, 13, SEP], [CLS, 14, 15, 16, SEP]]
SECOND = [[CLS, 21, SEP], [CLS, 22, 23, 24, 25, SEP], [CLS, 26, SEP]]


def pairs_of(pairs, max_length=None):
    return EncodedSet(TASKS["sts"], FIRST, SECOND, [0.5, 5.0, 2.0], PAD, pairs, max_length)


def longest_first(u, v, limit):
    """Remove the last token of the longer one, of v if they are as long, until both fit."""
    u, v = list(u), list(v)
    while len(u) + len(v) + 3 > limit:
        (u if len(u) > len(v) else v).pop()
    return [CLS, *u, SEP, *v, SEP]


def test_a_joint_row_is_cut_longest_first():
    draw = random.Random(0)
    for _ in range(300):
        u, v = ([draw.randrange(9, 99) for _ in range(draw.randrange(12))] for _ in "uv")
        limit = draw.randrange(8, 26)
        row, border = cross_row([CLS, *u, SEP], [CLS, *v, SEP], limit)
        assert row == longest_first(u, v, limit)
        assert border == row.index(SEP) + 1
        assert len(row) == sum(kept_of_pair(len(u) + 2, len(v) + 2, limit)) - 1


def test_cutting_sentences_first_does_not_change_the_joint_row():
    """Tokenised once, at `max_length` a sentence: the joint row would cut that too."""
    draw = random.Random(1)
    for _ in range(300):
        limit = draw.randrange(8, 20)
        u, v = ([draw.randrange(9, 99) for _ in range(draw.randrange(40))] for _ in "uv")
        cut = [[CLS, *part[: limit - 2], SEP] for part in (u, v)]
        assert cross_row(*cut, limit)[0] == longest_first(u, v, limit)


def test_siamese_rows():
    batch = pairs_of("siamese").collate([1, 0])
    assert batch.ids.tolist() == [
        [CLS, 13, SEP, 0, 0, 0],
        [CLS, 11, 12, SEP, 0, 0],
        [CLS, 22, 23, 24, 25, SEP],
        [CLS, 21, SEP, 0, 0, 0],
    ]
    assert batch.mask.tolist() == [[int(i > 0) for i in row] for row in batch.ids.tolist()]
    assert batch.labels.tolist() == [5.0, 0.5]
    assert batch.cross is None
    assert (batch.ids.dtype, batch.labels.dtype) == (torch.int64, torch.float32)


def test_cross_rows():
    batch = pairs_of("cross").collate([1, 0])
    assert batch.ids is None
    assert batch.mask is None
    assert batch.cross.ids.tolist() == [
        [CLS, 13, SEP, 22, 23, 24, 25, SEP],
        [CLS, 11, 12, SEP, 21, SEP, 0, 0],
    ]
    assert batch.cross.types.tolist() == [[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 0, 0]]
    assert batch.cross.mask.tolist() == [[1] * 8, [1] * 6 + [0] * 2]


def test_an_ensemble_holds_both():
    both = pairs_of("ensemble", 7).collate([2, 1])
    assert torch.equal(both.ids, pairs_of("siamese").collate([2, 1]).ids)
    for name in ("ids", "mask", "types"):
        expected = getattr(pairs_of("cross", 7).collate([2, 1]).cross, name)
        assert torch.equal(getattr(both.cross, name), expected)


@pytest.mark.parametrize("pairs", ["siamese", "cross", "ensemble"])
@pytest.mark.parametrize("max_length", [None, 8, 7])
def test_lengths_are_those_of_the_longest_row_made(pairs, max_length):
    given = pairs_of(pairs, max_length)
    for index, length in enumerate(given.lengths()):
        batch = given.collate([index])
        made = [batch.ids, batch.cross and batch.cross.ids]
        widths = [rows.shape[1] for rows in made if rows is not None]
        assert max(widths) == length


@pytest.mark.parametrize("pairs", ["siamese", "cross", "ensemble"])
def test_single_sentences_are_read_as_they_are(pairs):
    single = EncodedSet(TASKS["sst"], FIRST, None, [0, 1, 2], PAD, pairs, 8)
    batch = single.collate([1, 2])
    assert batch.cross is None
    assert batch.ids.tolist() == [[CLS, 13, SEP, 0, 0], FIRST[2]]
    assert batch.labels.tolist() == [1, 2]
    assert single.lengths() == [4, 3, 5]


def test_an_example_does_not_depend_on_its_batch():
    """A padded gather that reads past a row would show its neighbour."""
    draw = random.Random(2)
    rows = [[draw.randrange(1, 99) for _ in range(draw.randrange(1, 9))] for _ in range(40)]
    indices = [draw.randrange(40) for _ in range(40)]
    ids, mask = pad_rows([rows[i] for i in indices], pad=7)
    for got, real, index in zip(ids.tolist(), mask.tolist(), indices, strict=True):
        size = len(rows[index])
        assert got[:size] == rows[index]
        assert set(got[size:]) <= {7}
        assert real == [1] * size + [0] * (ids.shape[1] - size)


def test_one_tokenisation_serves_all_ways(tiny_encoder):
    """The joint row is what the tokenizer itself makes of the pair."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    first, second = ["the man is good .", "a dog"], ["is the film bad ?", "the woman is not good"]
    examples = Examples(TASKS["sts"], first, second, [1.0, 2.0])
    expected = tokenizer(first, second)
    cross = encode(examples, examples.task, tokenizer, 64, "cross").collate([0, 1]).cross
    for i, length in enumerate(len(row) for row in expected["input_ids"]):
        assert cross.ids[i, :length].tolist() == expected["input_ids"][i]
        assert cross.types[i, :length].tolist() == expected["token_type_ids"][i]
        assert cross.mask[i].sum() == length


def test_the_fingerprint_is_of_the_data_alone():
    before = pairs_of("cross").fingerprint()
    assert before == pairs_of("siamese").fingerprint()
    other = EncodedSet(TASKS["sts"], FIRST, SECOND[::-1], [0.5, 5.0, 2.0], PAD)
    assert before != other.fingerprint()


def test_ids_are_kept_in_four_bytes_and_hashed_as_the_lists_they_were():
    """Runs of earlier versions are resumed by this hash; it is made without a text of all ids."""
    for second in (None, [[101, 8, 102], [101, 102], [101, 9, 9, 102]]):
        first = [[101, 7, 102], [101, 102], [101, 30521, 6, 102]]
        task, labels = TASKS["sts" if second else "sst"], [1, 2, 0]
        lists = EncodedSet(task, first, second, labels, pad=0)
        rows = EncodedSet(task, Rows(first), second and Rows(second), labels, pad=0)
        content = repr((first, second, [float(label) for label in labels]))
        digest = hashlib.sha256(content.encode()).hexdigest()
        assert lists.fingerprint() == rows.fingerprint() == digest
        assert rows.first.flat.dtype == torch.int32
        assert list(rows.first) == first
        assert rows.lengths() == lists.lengths()
        assert rows.tokens() == lists.tokens()
        ours, theirs = rows.collate([2, 0]), lists.collate([2, 0])
        assert torch.equal(ours.ids, theirs.ids)
        assert torch.equal(ours.mask, theirs.mask)
        assert ours.ids.dtype == torch.int64
        assert rows.spread(2) == lists.spread(2)
    empty = EncodedSet(TASKS["sst"], Rows([]), None, [], pad=0)
    assert empty.fingerprint() == EncodedSet(TASKS["sst"], [], None, [], pad=0).fingerprint()
