"""Layer by layer what the page says of the whole encoder: one row per stage, part and pair.

Conflicts and alterations of a layer by itself are read off the probe: where every layer is grouped
by itself, PCGrad alters a task's gradient there whenever the cosine is negative.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import combinations

from bert_mtl_demo.reporting.tables import table
from research.conflicts import estimate, simultaneous
from research.conflicts.estimate import Probed
from research.conflicts.findings import SAYS, listed, number, percent


def layer_table(probes: Mapping[str, Probed]) -> str:
    """Cosines at the smallest and the largest batch, noise floors, and expected cosines."""
    levels = next(iter(probes.values())).levels
    sizes = min(levels), max(levels)
    rows = []
    for (stage, part, i, j), expected in simultaneous.of_layers(probes).items():
        assert part is not None
        probed = probes[stage]
        floors = [number(estimate.cosine_at(probed, sizes[1], k, k, part)) for k in (i, j)]
        rows.append(
            [
                *(stage, part, f"{probed.tasks[i]}, {probed.tasks[j]}"),
                *(
                    f"{number(estimate.cosine_at(probed, size, i, j, part))}, "
                    f"{percent(_negative(probed, size, part, i, j))}"
                    for size in sizes
                ),
                *("; ".join(floors), number(expected.cosine), expected.verdict),
            ]
        )
    heading = [
        *("stage", "part", "tasks", *(f"{size:,} examples" for size in sizes)),
        *(f"noise floors at {sizes[1]:,}", "expected gradients", "they"),
    ]
    return table(heading, rows)


def layer_answer(probes: Mapping[str, Probed]) -> str:
    """How many of all layers, pairs and stages conflict, judged together."""
    answers = Counter(e.verdict for e in simultaneous.of_layers(probes).values())
    total = answers.total()
    counts = [f"{answers[verdict]} {words}" for verdict, words in SAYS.items() if answers[verdict]]
    return (
        f"Part by part, of {total} cosines of expected gradients (stages x parts x pairs), with "
        f"intervals that hold all at once: {listed(counts)}."
    )


def layer_conflicts(probes: Mapping[str, Probed]) -> str:
    """What surgery by layer would alter, from the smallest batches of all stages."""
    size = min(next(iter(probes.values())).levels)
    rates = [_negative(probes[stage], size, part, i, j) for stage, part, i, j in _cosines(probes)]
    return (
        "In the compared runs surgery takes the whole model as one vector, so an alteration is one "
        "of all layers. Taken layer by layer, PCGrad alters where that layer's cosine is negative: "
        f"at {size} examples of a task, in {percent(min(rates))} to {percent(max(rates))} of "
        "the batches, over all parts, pairs and stages. The shares of each stand under `The "
        "expected gradients`."
    )


def _cosines(probes: Mapping[str, Probed]) -> Iterator[tuple[str, str, int, int]]:
    """Stage, part of the encoder, and two tasks."""
    for stage, probed in probes.items():
        for part in probed.segments:
            for i, j in combinations(range(len(probed.tasks)), 2):
                yield stage, part, i, j


def _negative(probed: Probed, size: int, part: str, i: int, j: int) -> float:
    return 100 * estimate.negative(probed.level(size, part), i, j)
