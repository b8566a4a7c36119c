"""Evidence of conflict: whether the expected gradients of two tasks point against each other.

A single batch cannot say: nearly orthogonal gradients have a negative cosine in half of the steps.
The mean over many steps can, and the Gram matrix of every step has what that takes.

**What is estimated.** The mean cosine of single batches. With u_i = g_i / |g_i| of this step's
batch and independent batches of tasks i and j, E[cos(g_i, g_j)] = E[u_i] . E[u_j]: the noises are
multiplied with each other and their product has mean zero. That is rho sqrt(f_i f_j), rho the
cosine of the expected (unit) gradients and f_i = |E u_i|^2, in (0, 1], the *noise floor*, the
cosine of two batches of one task. So the mean cosine has the sign of rho, and at most its size:
evidence of a conflict is evidence about rho, and rho itself is at least as far from zero. Unit
gradients are averaged, not gradients, since cosines are bounded: no step outweighs the others, and
neither the loss's scale nor its fall over training enters. (The mean dot product over the root of
the mean squared norms, which are |E g|^2 and the noise, has the floors in it as well.)

**The cosine of expected gradients** itself takes the floors, and they are not in one batch's Gram
matrix: its diagonal holds signal and noise together. A product of one task's gradients of two
batches is needed. Of successive steps, it would keep the K gradients of the last step and read
them again; of micro-batches that are added up, it would read the first sum once more: memory and
passes in every step, for a diagnosis. Two half batches that count as tasks of their own need
neither: their cosine is the floor, and :func:`expected_cosine` divides by it (the correction for
attenuation, Spearman 1904).

**How sure it is.** Successive steps are dependent, as the weights change slowly. Steps are
therefore added up in batches of ``BATCH``, which count as independent (non-overlapping batch means:
Conway 1963). With s_b the sum and n_b the number of the cosines in batch b (n_b varies with absent
tasks and at a window's end), the mean is m = sum s_b / sum n_b, and its variance that of a ratio
(Cochran 1977, chapter 6), B / (B - 1) sum (s_b - m n_b)^2 / (sum n_b)^2. The interval is Student's
t with B - 1 degrees of freedom. Six sums hold all of it, and they add up over windows and logs.
Below ``ENOUGH`` batches nothing is said.

**Several pairs.** The intervals of the pairs of one log hold together with probability 95%: each is
made at level 1 - 0.05 / pairs (Bonferroni), so that the interval and the verdict never disagree.
Windows are not corrected for each other: judge a run by its whole log.

**Assumed.** Each task draws its batches on its own. When one batch of examples serves several
tasks, their noises are correlated and the mean cosine holds that correlation, too: it then speaks
of batches, and not of the expected gradients. Over the steps that are added up, the mean of their
cosines is meant, also where training changes it. Dependence that outlasts ``BATCH`` steps makes the
interval too short: without a conflict one is found in 2.5% of runs of 400 steps, in 3% if
neighbouring steps are correlated by 0.5, and in 6% if by 0.8 (simulated; see the tests).

**How much it takes.** A mean cosine of -0.1 of independent steps that scatter by 0.25 is found in
nine of ten runs of 100 steps; half the mean or twice the scatter take four times the steps, and
steps correlated by 0.5 three times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, NamedTuple, TypedDict

from gradsurgery._markdown import cell

BATCH = 10  # successive steps that are taken as one observation
ENOUGH = 8  # batches; with fewer there is no interval
LEVEL = 0.95
NAMED = 10  # pairs in a sentence
RESOLUTION = 2.0**-23  # of a cosine of float32 gradients: no interval is narrower

#: "conflict": the interval lies below 0. "no conflict": above. "no evidence": it holds 0.
Judgement = Literal["conflict", "no conflict", "no evidence", "too few steps"]

_WORDS: dict[Judgement, str] = {
    "conflict": "conflict",
    "no conflict": "no conflict",
    "no evidence": "no evidence of conflict",
    "too few steps": "too few steps to judge",
}


class EvidenceSummary(TypedDict):
    """The evidence on a pair as a log line has it; ``low`` and ``high`` are None without one."""

    cosine: float
    low: float | None
    high: float | None
    verdict: Judgement
    sums: list[float]


@dataclass(frozen=True)
class Evidence:
    """Sums over batches of successive steps of one pair's cosines; ``+`` adds windows.

    Args:
        batches: in which the pair met.
        cosine, steps: sums over batches of s, the sum of a batch's cosines, and n, their number.
        cosine_cosine, cosine_steps, steps_steps: sums over batches of s s, s n and n n.

    Example:
        >>> batches = [Evidence.of_batch([-0.2, 0.0] * 5), Evidence.of_batch([-0.3, 0.1] * 5)]
        >>> evidence = sum(batches * 5, Evidence())
        >>> round(evidence.mean, 4), evidence.verdict()
        (-0.1, 'conflict')
    """

    batches: float = 0
    cosine: float = 0
    steps: float = 0
    cosine_cosine: float = 0
    cosine_steps: float = 0
    steps_steps: float = 0

    @classmethod
    def of_batch(cls, cosines: Sequence[float]) -> Evidence:
        """Return the sums of one batch of successive steps."""
        s, n = math.fsum(cosines), len(cosines)
        return cls(float(n > 0), s, n, s * s, s * n, n * n)

    @property
    def sums(self) -> list[float]:
        """The six sums, in the order of the fields."""
        return list(vars(self).values())

    def __add__(self, other: Evidence) -> Evidence:
        return Evidence(
            self.batches + other.batches,
            self.cosine + other.cosine,
            self.steps + other.steps,
            self.cosine_cosine + other.cosine_cosine,
            self.cosine_steps + other.cosine_steps,
            self.steps_steps + other.steps_steps,
        )

    @property
    def mean(self) -> float:
        """The mean cosine of single batches; NaN without a step."""
        return self.cosine / self.steps if self.steps else math.nan

    def half(self, pairs: int = 1) -> float | None:
        """Return half the interval's width, None with fewer than ``ENOUGH`` batches.

        Args:
            pairs: whose intervals are to hold together.
        """
        if self.batches < ENOUGH:
            return None
        mean, count = self.mean, self.batches
        squares = self.cosine_cosine - 2 * mean * self.cosine_steps + mean**2 * self.steps_steps
        error = math.sqrt(max(squares, 0) * count / (count - 1)) / self.steps
        return max(student(1 - (1 - LEVEL) / (2 * pairs), count - 1) * error, RESOLUTION)

    def verdict(self, pairs: int = 1) -> Judgement:
        """Return what the interval says about zero."""
        half = self.half(pairs)
        if half is None:
            return "too few steps"
        if self.mean + half < 0:
            return "conflict"
        return "no conflict" if self.mean - half > 0 else "no evidence"

    def describe(self, pairs: int = 1) -> str:
        """Return the interval and the verdict in words.

        >>> Evidence.of_batch([0.1, 0.2]).describe()
        '+0.150, too few steps to judge'
        """
        half = self.half(pairs)
        margin = "" if half is None else f" +- {half:.{_digits(half)}f}"
        digits = 3 if half is None else _digits(half)
        return f"{self.mean:+.{digits}f}{margin}, {_WORDS[self.verdict(pairs)]}"

    def to_json(self, pairs: int = 1) -> EvidenceSummary:
        """Return the evidence as a log line has it."""
        half, mean = self.half(pairs), self.mean
        return {
            "cosine": mean,
            "low": None if half is None else mean - half,
            "high": None if half is None else mean + half,
            "verdict": self.verdict(pairs),
            "sums": self.sums,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any] | None) -> Evidence:
        """Read what :meth:`to_json` returned; None, of an older log, is no evidence.

        Raises:
            ValueError: when it is not six finite numbers.
        """
        if not row:
            return cls()
        sums = row.get("sums")
        if not (
            isinstance(sums, list | tuple)
            and len(sums) == 6
            and all(isinstance(value, int | float) and math.isfinite(value) for value in sums)
        ):
            raise ValueError(f"evidence has six finite sums, not {sums!r}")
        return cls(*sums)


def sentence(evidence: Mapping[str, Evidence]) -> str:
    """Return the verdict on all pairs in one sentence: what it means, and what to do.

    Names are escaped for Markdown and terminals; of more than ``NAMED`` pairs in conflict, those
    with the lowest mean cosines are named.

    Args:
        evidence: of every pair that met, by its name.

    Example:
        >>> sentence({"a/b": Evidence()})
        'Too few steps to judge: a pair is judged from 80 steps of both its tasks on.'
    """
    pairs = len(evidence)
    verdicts = {name: pair.verdict(pairs) for name, pair in evidence.items()}
    conflicts = [name for name, verdict in verdicts.items() if verdict == "conflict"]
    if conflicts:
        verb = "conflict" if conflicts[1:] else "conflicts"
        return (
            f"{_listed(conflicts, evidence)} {verb}: over many batches, and not by the chance of "
            "one, the gradients point against each other, so try PCGrad() and compare its scores "
            "with Sum()'s."
        )
    judged = [pair for pair in evidence.values() if pair.batches >= ENOUGH]
    if not judged:
        return (
            f"Too few steps to judge: a pair is judged from {BATCH * ENOUGH} steps of both its "
            "tasks on."
        )
    least = min(pair.mean - (pair.half(pairs) or 0) for pair in judged)
    some = "No pair" if len(judged) == pairs else f"Of {pairs} pairs, {len(judged)} judged, none"
    return (
        f"{some} shows evidence of conflict (a mean cosine of single batches below "
        f"{least:+.{_digits(least)}f} is ruled out), so stay with Sum(): surgery would mostly act "
        "on the noise of single batches."
    )


def _listed(names: Sequence[str], evidence: Mapping[str, Evidence]) -> str:
    """The names, and of many those whose mean cosines are the lowest."""
    if len(names) <= NAMED:
        return ", ".join(map(cell, names))
    lowest = sorted(names, key=lambda name: evidence[name].mean)[:NAMED]
    return f"{', '.join(map(cell, lowest))} and {len(names) - NAMED} more pairs"


class ExpectedCosine(NamedTuple):
    """The cosine of two tasks' expected gradients, and its interval; NaN where all is noise."""

    cosine: float
    low: float
    high: float


def expected_cosine(
    pairs: Mapping[str, Evidence], first: Sequence[str], second: Sequence[str], compared: int = 1
) -> ExpectedCosine | None:
    """Return the cosine of expected gradients of two tasks whose half batches ran as four tasks.

    Args:
        pairs: the evidence by name, as :func:`gradsurgery.report.evidence` returns it.
        first: the names of the two halves of one task.
        second: of the other.
        compared: the number of pairs of tasks whose intervals are to hold together.

    Returns:
        The mean cosine between the tasks over the root of the two noise floors. Its interval is the
        widest that the three intervals allow, which hold together, so it is on the safe side. None
        with too few steps.

    Raises:
        ValueError: when two of the four did not meet.

    Example:
        >>> steps = {"a/A": 0.5, "b/B": 0.5, "a/b": -0.1, "a/B": -0.1, "A/b": -0.1, "A/B": -0.1}
        >>> pairs = {name: sum([Evidence.of_batch([c] * 10)] * 10, Evidence())
        ...          for name, c in steps.items()}
        >>> round(expected_cosine(pairs, ("a", "A"), ("b", "B")).cosine, 3)
        -0.2
    """
    floors = [_pair(pairs, *first), _pair(pairs, *second)]
    across = [_pair(pairs, i, j) for i in first for j in second]
    halves = [pair.half(3 * compared) for pair in (*floors, *across)]
    if any(half is None for half in halves):
        return None
    margins = [half or 0.0 for half in halves]
    mean = math.fsum(pair.mean for pair in across) / len(across)
    margin = math.fsum(margins[2:]) / len(across)  # no mean scatters more than its parts
    least = [max(pair.mean - half, 0) for pair, half in zip(floors, margins, strict=False)]
    most = [min(max(pair.mean + half, 0), 1) for pair, half in zip(floors, margins, strict=False)]
    low, high = mean - margin, mean + margin
    means = [pair.mean for pair in floors]
    return ExpectedCosine(
        _over(mean, means) if min(means) > 0 else math.nan,
        _over(low, least if low < 0 else most),
        _over(high, least if high > 0 else most),
    )


def _pair(pairs: Mapping[str, Evidence], i: str, j: str) -> Evidence:
    """Return the evidence on a pair, by whichever name it has some."""
    pair = max(
        (pairs.get(name, Evidence()) for name in (f"{i}/{j}", f"{j}/{i}")),
        key=lambda pair: pair.batches,
    )
    if not pair.batches:
        raise ValueError(
            f"there is no evidence on {i}/{j}, only on {', '.join(pairs) or 'no pair'}: let both "
            "halves of both tasks run as tasks of their own, in the same steps"
        )
    return pair


def _over(cosine: float, floors: Sequence[float]) -> float:
    """Return the cosine over the root of the floors, between -1 and 1."""
    root = math.sqrt(math.prod(floors))
    return max(-1.0, min(1.0, cosine / root)) if root > 0 else math.copysign(1.0, cosine)


def _digits(value: float) -> int:
    """How many decimals show two digits of a value, three at least and seven at most."""
    size = abs(value)
    return min(max(3, 1 - math.floor(math.log10(size))), 7) if size else 3


def student(level: float, freedom: float) -> float:
    """Return Student's t quantile, by its expansion about the normal one.

    Abramowitz & Stegun 26.7.5; from 7 degrees of freedom on within 1% at the levels used here.

    >>> round(student(0.975, 9), 3), round(student(0.975, 1e9), 3)
    (2.262, 1.96)
    """
    z = NormalDist().inv_cdf(level)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**n for n, term in enumerate(terms, start=1))
