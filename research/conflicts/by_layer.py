"""Layer by layer what the page says of the whole encoder: one row per stage, part and pair.

Conflicts and alterations of a layer by itself are read off the probe: where every layer is grouped
by itself, PCGrad alters a task's gradient there whenever the cosine is negative.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import combinations

from bert_mtl_demo.reporting.run_report import markdown
from research.conflicts import estimate
from research.conflicts.estimate import Probed
from research.conflicts.findings import SAYS, listed, number, percent


def layer_table(probes: Mapping[str, Probed]) -> str:
    """Cosines at the smallest and the largest batch, noise floors, and expected cosines."""
    rows, first = [], next(iter(probes.values()))
    small, large = min(first.levels), max(first.levels)
    for stage, probed in probes.items():
        for name in probed.segments:
            for i, j in combinations(range(len(probed.tasks)), 2):
                found = estimate.expected(probed.kept(name), i, j)
                shares = [
                    percent(100 * estimate.negative(probed.level(batch, name), i, j))
                    for batch in (small, large)
                ]
                at = [number(estimate.cosine_at(probed, n, i, j, name)) for n in (small, large)]
                floors = [number(estimate.cosine_at(probed, large, k, k, name)) for k in (i, j)]
                rows.append(
                    [
                        stage,
                        name,
                        f"{probed.tasks[i]}, {probed.tasks[j]}",
                        *(f"{cosine}, {share}" for cosine, share in zip(at, shares, strict=True)),
                        "; ".join(floors),
                        number(found.cosine),
                        found.verdict,
                    ]
                )
    heading = [
        *("stage", "part", "tasks"),
        *(f"{size:,} examples" for size in (small, large)),
        f"noise floors at {large:,}",
        *("expected gradients", "they"),
    ]
    return markdown(heading, rows)


def layer_answer(probes: Mapping[str, Probed]) -> str:
    """How many of all layers, pairs and stages conflict, beside what chance alone gives."""
    answers = Counter(
        estimate.expected(probed.kept(name), i, j).verdict
        for probed in probes.values()
        for name in probed.segments
        for i, j in combinations(range(len(probed.tasks)), 2)
    )
    total = answers.total()
    counts = [f"{answers[verdict]} {words}" for verdict, words in SAYS.items() if answers[verdict]]
    known = total - answers["n/a"]
    said = (
        f"Part by part, of {total} cosines of expected gradients (stages x parts x pairs): "
        f"{listed(counts)}."
    )
    if not known:
        return said
    return (
        f"{said} If all {known} that have an interval were truly 0, about {known / 40:.1f} of them "
        "would lie below 0 and as many above it by chance."
    )


def layer_conflicts(probes: Mapping[str, Probed]) -> str:
    """What surgery by layer would alter, from the smallest batches of all stages."""
    batch = min(next(iter(probes.values())).levels)
    shares = [
        100 * estimate.negative(probed.level(batch, name), i, j)
        for probed in probes.values()
        for name in probed.segments
        for i, j in combinations(range(len(probed.tasks)), 2)
    ]
    return (
        "In the compared runs surgery takes the whole model as one vector, so an alteration is one "
        "of all layers. Taken layer by layer, PCGrad alters where that layer's cosine is negative: "
        f"at {batch} examples of a task, in {percent(min(shares))} to {percent(max(shares))} of "
        "the batches, over all parts, pairs and stages. The shares of each stand under `The "
        "expected gradients`."
    )
