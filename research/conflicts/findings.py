"""The page's sentences, each written from the numbers it states.

Vocabulary: a pair of tasks *conflicts* when the interval of its expected gradients' cosine lies
below 0, *agrees* when it lies above, is *open* when it holds 0, and has no answer (n/a) where an
expected gradient cannot be told from zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from bert_mtl_demo.study.intervals import Comparison, Interval, compare, interval
from research.conflicts import estimate, simultaneous
from research.conflicts.estimate import Expected, Probed
from research.conflicts.figures import altered_rate, changes
from research.conflicts.limit import expected_change
from research.conflicts.simultaneous import Cosine

SAYS = {
    "conflict": "conflict (below 0)",
    "agree": "agree (above 0)",
    "open": "open (the interval holds 0)",
    "n/a": "n/a (an expected gradient cannot be told from zero)",
}
CONCLUSIONS = {
    "conflict": "pull against each other",
    "agree": "pull to the same side",
    "open": "have a cosine that this budget cannot tell from 0",
    "n/a": "cannot be compared at this budget, since one of them cannot be told from zero",
}


def number(value: Interval | None, digits: int = 3) -> str:
    """An interval in a table, with its sign.

    >>> number(Interval(0.0123, 0.01, 0.0146, 5)), number(Interval(-0.5, None, None, 1))
    ('+0.012 ± 0.002', '-0.500')
    """
    if value is None or not math.isfinite(value.mean):
        return "n/a"
    margin = "" if value.half is None else f" ± {value.half:.{digits}f}"
    return f"{value.mean:+.{digits}f}{margin}"


def percent(value: float) -> str:
    """Two significant digits below ten percent, none after the point above.

    >>> percent(0.43), percent(4.16), percent(51.2)
    ('0.43%', '4.2%', '51%')
    """
    return f"{value:.{0 if value >= 10 else 1 if value >= 1 else 2}f}%"


def expectation(stage: str, probes: Mapping[str, Probed]) -> str:
    """The verdicts on a stage's expected gradients, pairs with the same one in one sentence.

    Judged together with those of all other stages.
    """
    groups: dict[str, list[str]] = {}
    for key, expected in simultaneous.of_pairs(probes).items():
        if key.stage == stage:
            cosine = "" if expected.cosine is None else f" ({number(expected.cosine)})"
            groups.setdefault(expected.verdict, []).append(f"{named(key, probes)}{cosine}")
    parts = [f"{listed(pairs)} {CONCLUSIONS[verdict]}" for verdict, pairs in groups.items()]
    return f"{stage.capitalize()}, the expected gradients of {'; those of '.join(parts)}."


def named(cosine: Cosine, probes: Mapping[str, Probed]) -> str:
    """The pair's name."""
    tasks = probes[cosine.stage].tasks
    return f"{tasks[cosine.i]}/{tasks[cosine.j]}"


def p_alone(cosine: Interval | None) -> float | None:
    """The p of a cosine by itself, two-sided; None without an interval.

    >>> p_alone(Interval(0.2, 0.0, 0.4, 16, 0.094, 15))  # doctest: +ELLIPSIS
    0.0503...
    """
    if cosine is None or cosine.error is None or cosine.df is None:
        return None
    if cosine.error == 0:
        return float(cosine.mean == 0)
    return 2 * float(stats.t.sf(abs(cosine.mean) / cosine.error, cosine.df))


def headline(probes: Mapping[str, Probed]) -> str:
    """Whether any pair's expected gradients differ from orthogonal when all are judged together."""
    judged = simultaneous.of_pairs(probes)
    apart = {key: e for key, e in judged.items() if e.verdict in ("conflict", "agree")}
    conflicts = [key for key, e in apart.items() if e.verdict == "conflict"]
    count = sum(e.cosine is not None for e in judged.values())
    if not count:
        return "No expected gradient can be told from zero here, so none can be said to conflict."

    def case(key: Cosine, expected: Expected) -> str:
        alone = p_alone(expected.cosine)
        ps = "" if alone is None else f" (p = {alone:.3f} by itself, {expected.p:.2f} with all)"
        return f"{named(key, probes)} {key.stage}{ps}"

    nearly = [
        case(key, e)
        for key, e in judged.items()
        if key not in apart and (p := p_alone(e.cosine)) is not None and p < 0.05
    ]
    first = (
        f"Of {count} pairs and stages judged together, {len(conflicts)} conflict"
        + (f": {listed([case(key, apart[key]) for key in conflicts])}" if conflicts else "")
        + f"; {len(apart) - len(conflicts)} agree."
    )
    second = (
        f" By itself {listed(nearly)} would stand out, which is not enough among {count}."
        if nearly
        else ""
    )
    return f"{first}{second} It is one run of one seed: another may answer otherwise."


def noise(stage: str, probed: Probed) -> str:
    """How small the signal of one batch is."""
    batch, largest = min(probed.levels), max(probed.levels)
    grams, pairs = probed.level(batch), list(combinations(range(len(probed.tasks)), 2))
    shares = [100 * estimate.negative(grams, i, j) for i, j in pairs]
    means = [estimate.cosine_at(probed, batch, i, j).mean for i, j in pairs]
    small, high = (
        [
            f"{number(estimate.cosine_at(probed, size, k, k), digits)} ({task})"
            for k, task in enumerate(probed.tasks)
        ]
        for size, digits in ((batch, 3), (largest, 2))
    )
    return (
        f"{stage.capitalize()}, two batches of {batch} from different tasks have mean cosines from "
        f"{min(means):+.4f} to {max(means):+.4f}, and {percent(min(shares))} to "
        f"{percent(max(shares))} of them are negative. Two batches from the *same* task have a "
        f"mean cosine of {listed(small)} at {batch} examples, and of {listed(high)} at "
        f"{largest:,}."
    )


def resized(stage: str, probed: Probed) -> str:
    """The change that PCGrad makes to a batch, to many, and to the expectation."""
    sizes = (min(probed.levels), max(probed.levels))
    small, large = (_percents(interval(changes(probed.level(n), "pcgrad"))) for n in sizes)
    limit = expected_change(probed.kept())
    last = (
        "the expected gradients cannot all be told from zero, or there are too few blocks, so no "
        "limit can be given"
        if limit is None
        else f"of the expected gradients' sum it would change {_percents(limit)}, where no "
        "conflict at all would give 0 on average"
    )
    return (
        f"{stage.capitalize()}, PCGrad moves the update by {small} of its length at "
        f"{sizes[0]} examples of a task and by {large} at {sizes[1]:,}; {last}."
    )


def _percents(change: Interval) -> str:
    margin = "" if change.half is None else f" ± {percent(100 * change.half)}"
    return percent(100 * change.mean) + margin


def comparisons(runs: Mapping[str, Any]) -> dict[str, dict[str, Comparison]]:
    """Every arm against the plain sum, paired by seed: arm -> score -> comparison."""
    plain = by_seed(runs["sum"])
    return {
        arm: {name: compare(by_seed(seeds)[name], plain[name]) for name in plain}
        for arm, seeds in runs.items()
        if arm != "sum"
    }


def by_seed(seeds: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    """score -> seed -> value."""
    names = next(iter(seeds.values()))["scores"]
    return {
        name: {int(seed): record["scores"][name] for seed, record in seeds.items()}
        for name in names
    }


def scores(runs: Mapping[str, Any]) -> str:
    """Which of the differences to the plain sum are more than noise."""
    compared = {
        f"{arm} in {name}": comparison
        for arm, by_score in comparisons(runs).items()
        for name, comparison in by_score.items()
    }
    count = len(compared)
    if next(iter(compared.values())).difference.n < 2:
        return "One seed has no interval: no difference can be told from noise."
    apart = [f"{name} ({c.difference.signed()})" for name, c in compared.items() if c.differs]
    same = sum(comparison.identical for comparison in compared.values())
    equal = f", {same} of them exactly 0" if same else ""
    if not apart:
        return f"All {count} differences to the plain sum are inside the noise{equal}."
    return (
        f"Of {count} differences to the plain sum, {count - len(apart)} are inside the "
        f"noise{equal}. "
        f"Outside of it, each by its own interval: {listed(apart)}. One in twenty is expected "
        "there by chance."
    )


def rules(runs: Mapping[str, Any]) -> str:
    """The counts of the two rules on this study's gradients."""
    copied, always = (_turn(runs[f"gradvac, {rule}"]) for rule in ("on_alter", "always"))
    return (
        "In this study's runs, on batches of the same tasks, the copied rule's share of altered "
        f"pairs {copied}, and the paper's rule's {always}."
    )


def _turn(seeds: Mapping[str, Any]) -> str:
    """The slope of the share of altered pairs over all epochs, a line by seed."""
    rates = [
        [altered_rate(epoch["pairs"]) for epoch in record["epochs"]] for record in seeds.values()
    ]
    slopes = interval([float(np.polyfit(range(len(r)), r, 1)[0]) for r in rates if len(r) > 1])
    ends = [percent(interval([r[n] for r in rates]).mean) for n in (0, -1)]
    span = f"from {ends[0]} in the first epoch to {ends[1]} in the last"
    if not slopes.error or slopes.low is None or slopes.high is None:
        return f"went {span} (one seed, one epoch or no spread: cannot tell)"
    turn = "went" if slopes.low <= 0 <= slopes.high else "fell" if slopes.mean < 0 else "rose"
    trend = "inside the noise: " if turn == "went" else ""
    size = f"{slopes.mean:+.1f} ± {slopes.half:.1f} points an epoch over all epochs and seeds"
    return f"{turn} {span} ({trend}{size})"


def published(simulated: Mapping[str, Any]) -> str:
    """The counts under both rules without any model."""
    curve = simulated["published size, mean 0.05"]
    counts = ", ".join(f"{value:,.0f}" for value in curve["on_alter"][:5])
    possible = curve["steps"] * curve["pairs"]
    share = [100 * value / possible for value in curve["on_alter"][:2]]
    ends = [percent(100 * end(curve["always"]) / possible) for end in (min, max)]
    steady = f"a steady {ends[0]}" if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
    # The report counts gradients; each of three tasks' gradients stands in two ordered pairs.
    gradients = possible / 2
    alone = [percent(100 * value / gradients) for value in curve["on_alter"][:3]]
    return (
        f"With {curve['steps']:,} steps an epoch, the copied rule alters {counts} of {possible:,} "
        f"ordered pairs in the first five epochs ({percent(share[0])}, then {percent(share[1])} "
        f"and less), and the paper's rule {steady} in every epoch. Had no gradient been altered "
        f"twice in a step, that would be {listed(alone)} of {gradients:,.0f} gradients, beside "
        "the published 3.7%, then under 0.5%: the same fall, with a mean and a "
        "spread that are guesses."
    )


def listed(words: Sequence[str]) -> str:
    """Words as a sentence has them.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
