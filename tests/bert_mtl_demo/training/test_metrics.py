"""Metrics against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from bert_mtl_demo.training.metrics import accuracy, confusion, pearson


def test_accuracy_and_confusion_count_by_hand():
    truth, found = [0, 0, 1, 2, 2, 2], [0, 1, 1, 2, 0, 2]
    assert accuracy(truth, found) == pytest.approx(4 / 6)
    assert confusion(truth, found, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]


def test_confusion_keeps_a_class_that_never_occurs():
    assert confusion([0, 0], [0, 3], 5).shape == (5, 5)
    assert confusion([0, 0], [0, 3], 5).sum() == 2


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e9])
def test_pearson_is_the_cosine_of_the_centred_lists_at_every_scale(scale):
    rng = np.random.default_rng(1)
    truth = rng.uniform(0, 5, 300)
    found = scale * (0.3 * truth + rng.normal(size=300))
    a, b = truth - truth.mean(), found - found.mean()
    cosine = a @ b / np.sqrt((a @ a) * (b @ b))
    assert pearson(truth, found) == pytest.approx(cosine, abs=1e-12)


def test_pearson_of_known_cases():
    line = np.arange(10.0)
    assert pearson(line, 3 * line - 7) == pytest.approx(1)
    assert pearson(line, -line) == pytest.approx(-1)
    assert pearson(line, np.full(10, 2.5)) == 0.0
    assert pearson(line, line[[0]].repeat(10)) == 0.0


@pytest.mark.parametrize("metric", [accuracy, pearson])
@pytest.mark.parametrize("pair", [([1, 2], [1]), ([], []), ([[1]], [[1]])])
def test_lists_that_do_not_match_are_refused(metric, pair):
    with pytest.raises(ValueError, match="shapes"):
        metric(*pair)
