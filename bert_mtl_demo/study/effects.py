"""What a difference that is inside the noise may still be: power and equivalence.

With standard error e and v degrees of freedom, a true difference d is told from 0 at level 1 - a
when |t| > t(1 - a / 2, v), and t then follows the noncentral distribution with noncentrality d / e.
The *smallest effect that could have been seen* is the d that is told from 0 with 80 % power. *No
effect* is said of a difference whose 90 % interval lies within a margin, which is two one-sided
tests at 5 % (TOST: Schuirmann 1987); a wide interval that holds 0 says nothing of the kind.
"""

from __future__ import annotations

from functools import lru_cache

from scipy import optimize, stats

MARGIN = 0.005  # of a score: half a point of accuracy
POWER = 0.8


def detectable(error: float, df: float, *, power: float = POWER, level: float = 0.95) -> float:
    """The smallest true difference that a two-sided t-test tells from 0 with this power.

    Args:
        error: standard error of the difference.
        df: its degrees of freedom, a whole number or not.

    >>> round(detectable(0.01, 1e6), 4)  # (1.960 + 0.842) standard errors with many seeds
    0.028
    >>> round(detectable(0.01, 2), 3)  # with three of them twice as much
    0.057
    """
    return error * _noncentrality(round(df, 3), power, level)


@lru_cache(maxsize=4096)
def _noncentrality(df: float, power: float, level: float) -> float:
    if df > 1e4:
        return float(stats.norm.ppf((1 + level) / 2) + stats.norm.ppf(power))
    critical = float(stats.t.ppf((1 + level) / 2, df))
    # The opposite tail is left out: at this power it is below 1e-6 but with one degree of freedom.
    return float(
        optimize.brentq(
            lambda shift: stats.nct.sf(critical, df, shift) - power, 0, 10 + 4 * critical
        )
    )


def equivalent(
    mean: float, error: float, df: float, *, margin: float = MARGIN, level: float = 0.95
) -> bool:
    """Whether a difference is shown to be smaller than the margin, by two one-sided t-tests.

    >>> equivalent(0.001, 0.001, 9), equivalent(0.001, 0.003, 9)
    (True, False)
    """
    return abs(mean) + float(stats.t.ppf(level, df)) * error < margin
