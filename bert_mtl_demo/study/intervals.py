"""Confidence intervals: Student's t over seeds, and differences paired by seed.

With n seeds the interval is mean +- t(n - 1) s / sqrt(n), s the sample's standard deviation. Two
rows are compared by the differences between runs of equal seeds (equal initial heads and batches
where the settings allow it), which is a one-sample t interval again. A difference whose interval
contains 0 is called inside the noise; "no effect" is said of one that is shown to lie within a
margin (`effects`). Where answers are kept, the sampling error of dev is added (`dev_error`).

Intervals are not corrected for how many there are: each answers its own question, and of twenty
true zeros one is expected outside. What would survive a correction is said beside them, by Holm's
step-down procedure (Holm 1979) over all comparisons of one score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from scipy import stats

from bert_mtl_demo.study.effects import MARGIN, detectable, equivalent
from bert_mtl_demo.training.progress import short

NEGLIGIBLE = f"no effect of {short(MARGIN)} or more"
MISSING = "–"  # noqa: RUF001 - an en dash, where there is no number


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval; without bounds when one value cannot tell.

    >>> str(Interval(0.5138, 0.506, 0.5216, 3)), str(Interval(0.5138, None, None, 1))
    ('.514 ± .008', '.514')
    >>> Interval(0.01, -0.002, 0.022, 3).signed()
    '+.010 ± .012'
    """

    mean: float  # NaN without values
    low: float | None
    high: float | None
    n: int  # values it stands on
    # Standard error and degrees of freedom, where there are bounds.
    error: float | None = field(default=None, repr=False, compare=False)
    df: float | None = field(default=None, repr=False, compare=False)

    @property
    def detectable(self) -> float | None:
        """The smallest true value that would be told from 0 with 80 % power."""
        return detectable(self.error, self.df) if self.error and self.df else None

    def within(self, margin: float) -> bool:
        """Whether the value is shown to be closer to 0 than the margin (TOST at 5 %)."""
        if not self.error or not self.df:
            return False
        return equivalent(self.mean, self.error, self.df, margin=margin)

    @property
    def half(self) -> float | None:
        """Half the width, or None without bounds."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def __str__(self) -> str:
        return MISSING if self.n == 0 else short(self.mean) + self._margin()

    def signed(self) -> str:
        """The text of a difference: always with its sign."""
        if self.n == 0:
            return MISSING
        text = short(abs(self.mean))
        sign = "" if float(text) == 0 else "-" if self.mean < 0 else "+"
        return sign + text + self._margin()

    def _margin(self) -> str:
        return "" if self.half is None else f" ± {short(self.half)}"


def interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean and Student-t interval of the finite values; `n` says how many there were.

    Args:
        values: one per seed; NaN stands for a score that does not exist, and is left out.
        level: of confidence, above 0 and below 1.

    >>> interval([0.5, 0.5, 0.56])  # doctest: +ELLIPSIS
    Interval(mean=0.52, low=0.43394..., high=0.60605..., n=3)
    >>> interval([0.5])
    Interval(mean=0.5, low=None, high=None, n=1)
    """
    if not 0 < level < 1:
        raise ValueError(f"level = {level}: a confidence level is above 0 and below 1, as 0.95 is")
    finite = [float(value) for value in values if math.isfinite(value)]
    n = len(finite)
    if n < 2:
        return Interval(finite[0] if finite else math.nan, None, None, n)
    mean = fmean(finite)
    error = _standard_error(finite)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    return Interval(mean, mean - half, mean + half, n, error, n - 1)


@dataclass(frozen=True)
class Comparison:
    """One row against another, in one score.

    >>> compare({0: 0.51, 1: 0.53, 2: 0.52}, {0: 0.50, 1: 0.53, 2: 0.53}).describe()
    'inside the noise'
    """

    difference: Interval
    p: float | None  # two-sided, of "the true difference is 0"; None without an interval
    identical: bool  # in every seed, to the last bit

    @property
    def differs(self) -> bool:
        """Whether the interval excludes 0."""
        low, high = self.difference.low, self.difference.high
        return low is not None and high is not None and not low <= 0 <= high

    def describe(self) -> str:
        """What may be said about it.

        Equal rows are named: with and without surgery they mean that surgery never acted.
        """
        if self.difference.n == 0:
            return "no common seed"
        if self.identical:
            return "identical"
        if self.difference.n == 1:
            return "one seed: cannot tell"
        if self.difference.low is None:
            return "equal in every seed: no spread to judge it by"
        if self.differs:
            return "differs"
        return NEGLIGIBLE if self.negligible else "inside the noise"

    @property
    def negligible(self) -> bool:
        """Whether the difference is shown to be within the margin, by two one-sided tests."""
        return self.difference.within(MARGIN)


def compare(
    a: Mapping[int, float],
    b: Mapping[int, float],
    level: float = 0.95,
    *,
    judge: Callable[[Mapping[int, float]], Interval] | None = None,
) -> Comparison:
    """a against b, paired by seed, over the seeds that both have.

    Args:
        a, b: seed -> score.
        level: of confidence.
        judge: the interval of the differences, seed -> difference; None: Student's t over seeds.

    >>> compare({0: 0.5, 1: 0.7}, {0: 0.5, 1: 0.7}).describe()
    'identical'
    """
    # Rounded: equal differences are equal, however the last bit of a subtraction fell.
    by_seed = {seed: round(a[seed] - b[seed], 12) for seed in sorted(set(a) & set(b))}
    by_seed = {seed: value for seed, value in by_seed.items() if math.isfinite(value)}
    differences = list(by_seed.values())
    difference = judge(by_seed) if judge else interval(differences, level)
    identical = bool(differences) and not any(differences)
    if identical and difference.n > 1:
        return Comparison(difference, 1.0, identical)
    if len(set(differences)) < 2:
        # Scores are multiples of one over the dev examples, so a few seeds may well give the same
        # difference by chance: an interval of no width would be sure of what it cannot know.
        return Comparison(Interval(difference.mean, None, None, difference.n), None, identical)
    assert difference.error is not None
    p = 2 * float(stats.t.sf(abs(difference.mean) / difference.error, difference.df))
    return Comparison(difference, p, identical)


def holm(ps: Sequence[float | None], level: float = 0.95) -> list[bool]:
    """Which hypotheses are rejected when all are tested at once (Holm 1979); None never is.

    The k-th smallest of m is held against (1 - level) / (m - k + 1), up to the first that stands.

    >>> holm([0.04, 0.01, 0.03, None])
    [False, True, False, False]
    """
    order = sorted((p, index) for index, p in enumerate(ps) if p is not None)
    rejected = [False] * len(ps)
    for rank, (p, index) in enumerate(order):
        if p > (1 - level) / (len(order) - rank):
            break
        rejected[index] = True
    return rejected


def _standard_error(values: Sequence[float]) -> float:
    n, mean = len(values), fmean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
