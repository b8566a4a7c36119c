"""How good a set of answers is: accuracy, Pearson's r, and the confusion matrix.

scikit-learn and SciPy do the counting. They are imported when first asked: a wrong flag deserves
its answer before a second of imports.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray


def accuracy(truth: ArrayLike, found: ArrayLike) -> float:
    """Share of equal classes.

    >>> accuracy([0, 1, 1, 4], [0, 1, 0, 4])
    0.75
    """
    from sklearn.metrics import accuracy_score

    truth, found = _same_size(truth, found)
    return float(accuracy_score(truth.astype(np.int64), found.astype(np.int64)))


def pearson(truth: ArrayLike, found: ArrayLike) -> float:
    """Correlation, in [-1, 1]; 0 when one side is constant and so says nothing about the other.

    >>> round(pearson([1, 2, 3], [2, 4, 6]), 6), pearson([1, 2, 3], [7, 7, 7])
    (1.0, 0.0)
    """
    from scipy.stats import pearsonr

    truth, found = _same_size(truth, found)
    if np.ptp(truth) == 0 or np.ptp(found) == 0:
        return 0.0
    return float(pearsonr(truth, found).statistic)


def confusion(truth: ArrayLike, found: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Counts [C, C]: row = true class, column = predicted class.

    >>> confusion([0, 1, 1], [0, 0, 1], 2).tolist()
    [[1, 0], [1, 1]]
    """
    from sklearn.metrics import confusion_matrix

    truth, found = _same_size(truth, found)
    labels = np.arange(classes)
    table: NDArray[np.int64] = confusion_matrix(
        truth.astype(np.int64), found.astype(np.int64), labels=labels
    )
    return table


METRICS: dict[str, Callable[[ArrayLike, ArrayLike], float]] = {
    "accuracy": accuracy,
    "pearson": pearson,
}


def _same_size(
    truth: ArrayLike, found: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(truth, dtype=np.float64), np.asarray(found, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or a.size == 0:
        raise ValueError(
            f"needs two lists of the same length of at least 1, but got shapes {a.shape} and "
            f"{b.shape}"
        )
    return a, b
