"""How good a set of answers is: accuracy, Pearson's r, and the confusion matrix.

Plain NumPy in float64; the tests hold each one against scikit-learn or SciPy.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray


def accuracy(truth: ArrayLike, found: ArrayLike) -> float:
    """Share of equal entries.

    >>> accuracy([0, 1, 1, 4], [0, 1, 0, 4])
    0.75
    """
    truth, found = _same_size(truth, found)
    return float((truth == found).mean())


def pearson(truth: ArrayLike, found: ArrayLike) -> float:
    """Correlation, in [-1, 1]; 0 when one side is constant and so says nothing about the other.

    >>> round(pearson([1, 2, 3], [2, 4, 6]), 6), pearson([1, 2, 3], [7, 7, 7])
    (1.0, 0.0)
    """
    truth, found = _same_size(truth, found)
    a, b = truth - truth.mean(), found - found.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(np.clip(a @ b / scale, -1.0, 1.0)) if scale > 0 else 0.0


def confusion(truth: ArrayLike, found: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Counts [C, C]: row = true class, column = predicted class.

    >>> confusion([0, 1, 1], [0, 0, 1], 2).tolist()
    [[1, 0], [1, 1]]
    """
    truth, found = _same_size(truth, found)
    table = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(table, (truth.astype(np.int64), found.astype(np.int64)), 1)
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
