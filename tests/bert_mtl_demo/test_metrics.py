"""Metrics against scikit-learn and SciPy."""

from __future__ import annotations

import numpy as np
import pytest

from bert_mtl_demo.metrics import accuracy, confusion, pearson


@pytest.fixture
def classes():
    rng = np.random.default_rng(0)
    return rng.integers(0, 5, 200), rng.integers(0, 5, 200)


def test_accuracy_and_confusion_agree_with_scikit_learn(classes):
    from sklearn.metrics import accuracy_score, confusion_matrix

    truth, found = classes
    assert accuracy(truth, found) == pytest.approx(accuracy_score(truth, found))
    assert (confusion(truth, found, 5) == confusion_matrix(truth, found)).all()


def test_confusion_keeps_a_class_that_never_occurs():
    assert confusion([0, 0], [0, 3], 5).shape == (5, 5)
    assert confusion([0, 0], [0, 3], 5).sum() == 2


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e9])
def test_pearson_agrees_with_scipy_at_every_scale(scale):
    from scipy.stats import pearsonr

    rng = np.random.default_rng(1)
    truth = rng.uniform(0, 5, 300)
    found = scale * (0.3 * truth + rng.normal(size=300))
    assert pearson(truth, found) == pytest.approx(pearsonr(truth, found).statistic, abs=1e-12)


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
