"""Metrics: accuracy, Pearson's r, and the confusion matrix.

scikit-learn and SciPy do the counting. They are imported with this module, and a run imports it
before it is seeded: a part of scikit-learn draws from Python's generator when it is imported, and a
resumed run would draw once more than the run that never stopped.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, confusion_matrix


def accuracy(true: ArrayLike, predicted: ArrayLike) -> float:
    """Fraction of equal classes.

    >>> accuracy([0, 1, 1, 4], [0, 1, 0, 4])
    0.75
    """
    true, predicted = _same_size(true, predicted)
    return float(accuracy_score(true.astype(np.int64), predicted.astype(np.int64)))


def pearson(true: ArrayLike, predicted: ArrayLike) -> float:
    """Correlation, in [-1, 1]; 0 if either side is constant.

    >>> round(pearson([1, 2, 3], [2, 4, 6]), 6), pearson([1, 2, 3], [7, 7, 7])
    (1.0, 0.0)
    """
    true, predicted = _same_size(true, predicted)
    if np.ptp(true) == 0 or np.ptp(predicted) == 0:
        return 0.0
    return float(pearsonr(true, predicted).statistic)


def confusion(true: ArrayLike, predicted: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Counts [C, C]: row = true class, column = predicted class.

    >>> confusion([0, 1, 1], [0, 0, 1], 2).tolist()
    [[1, 0], [1, 1]]
    """
    true, predicted = _same_size(true, predicted)
    labels = np.arange(classes)
    counts: NDArray[np.int64] = confusion_matrix(
        true.astype(np.int64), predicted.astype(np.int64), labels=labels
    )
    return counts


METRICS: dict[str, Callable[[ArrayLike, ArrayLike], float]] = {
    "accuracy": accuracy,
    "pearson": pearson,
}


def _same_size(
    true: ArrayLike, predicted: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(true, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or a.size == 0:
        raise ValueError(
            f"needs two lists of the same length of at least 1, but got shapes {a.shape} and "
            f"{b.shape}"
        )
    return a, b
