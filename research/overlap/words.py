"""What a pair of sentences shares in words, and what can be answered from that alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bert_mtl_demo.data import Examples
from bert_mtl_demo.study.dev_error import RESAMPLES, two_level
from bert_mtl_demo.study.intervals import Interval

Array = NDArray[np.float64]
BINS = 10


def overlaps(examples: Examples) -> Array:
    """The words that a pair has in common over all of its words (Jaccard), [N].

    >>> from bert_mtl_demo.tasks import TASKS
    >>> pairs = ["How do I cook?", "Who?"], ["How do I cook rice?", "Where?"]
    >>> overlaps(Examples(TASKS["para"], *pairs, [1, 0])).tolist()
    [0.8, 0.0]
    """
    assert examples.second is not None
    pairs = zip(map(_words, examples.first), map(_words, examples.second), strict=True)
    return np.array([len(a & b) / max(1, len(a | b)) for a, b in pairs])


def _words(sentence: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", sentence.lower()))


def edges_of(values: Array, bins: int = BINS) -> Array:
    """The lowest values of all bins but the first, [at most bins - 1].

    Bins hold about equally many values; each border is a value, so none is empty.

    >>> edges_of(np.arange(8.0), bins=4).tolist()
    [1.0, 3.0, 5.0]
    """
    edges = np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1], method="lower")
    return np.unique(edges[edges > values.min()])


def overlap_only(train: Examples, dev: Examples) -> NDArray[np.int64]:
    """Dev's answers by a system that knows a pair's overlap alone, [N].

    It answers the most frequent label of train in the bin of the pair's overlap; a tie is a 1.
    """
    known, asked = overlaps(train), overlaps(dev)
    edges = edges_of(known)
    labels, bins = np.asarray(train.labels), np.searchsorted(edges, known, side="right")
    most = [bool((labels[bins == n]).mean() >= 0.5) for n in range(len(edges) + 1)]
    answers: NDArray[np.int64] = np.asarray(most, dtype=np.int64)[
        np.searchsorted(edges, asked, side="right")
    ]
    return answers


def concentration(wrong: Mapping[int, Array], misled: NDArray[np.bool_]) -> Interval:
    """Share of mistakes where overlap misleads minus that elsewhere, over seeds and examples.

    Mistakes that have nothing to do with shared words give 0.

    Args:
        wrong: seed -> [N], 1 where the answer is wrong.
        misled: [N], where the overlap-only system is wrong.

    >>> misled = np.array([True, True, False, False])
    >>> concentration({0: np.array([1.0, 0.0, 0.0, 0.0])}, misled).mean
    0.5
    """
    counts = _resamples(len(misled))
    values, draws = {}, {}
    for seed, errors in wrong.items():
        values[seed] = float(errors[misled].mean() - errors[~misled].mean())
        draws[seed] = _share(counts, errors, misled) - _share(counts, errors, ~misled)
    return two_level(values, draws)


def _share(counts: Array, errors: Array, part: NDArray[np.bool_]) -> Array:
    """The share of mistakes in a part of the examples on every resample, [B]."""
    share: Array = counts[:, part] @ errors[part] / np.maximum(counts[:, part].sum(1), 1)
    return share


def _resamples(examples: int) -> Array:
    """How often each resample has each example, [B, N]."""
    drawn = np.random.default_rng(examples).integers(0, examples, (RESAMPLES, examples))
    counts: Array = np.stack([np.bincount(row, minlength=examples) for row in drawn]).astype(float)
    return counts


def by_bin(overlap: Array, *columns: Sequence[float] | Array) -> list[list[float]]:
    """Per tenth of dev by overlap: lowest and highest overlap, pairs, and each column's mean."""
    edges = edges_of(overlap)
    bins = np.searchsorted(edges, overlap, side="right")
    parts = [bins == n for n in range(len(edges) + 1)]
    return [
        [
            *(float(overlap[part].min()), float(overlap[part].max()), int(part.sum())),
            *(float(np.asarray(column)[part].mean()) for column in columns),
        ]
        for part in parts
        if part.any()
    ]
