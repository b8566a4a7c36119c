"""The study's quantities for the scoreboard: cosines of expectations, and shares of counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Any, Literal

from bert_mtl_demo.study.findings import share
from bert_mtl_demo.study.intervals import Interval, interval
from gradsurgery.report import PairCounts
from research.conflicts import simultaneous
from research.conflicts.estimate import Probed
from research.conflicts.findings import named

NONE = Interval(math.nan, None, None, 0)


def quantities(runs: Mapping[str, Any], probes: Mapping[str, Probed]) -> dict[str, Interval]:
    """Name -> value.

    Args:
        runs: arm -> seed -> record of the run.
        probes: stage -> probe.
    """
    return {
        **{
            f"expected cosine of {named(key, probes)}, {key.stage}": expected.cosine or NONE
            for key, expected in simultaneous.of_pairs(probes).items()
        },
        "share of negative cosines": _shares(runs["sum"], "conflicts"),
        "share that the paper's rule alters in the last epoch": _shares(
            runs["gradvac, always"], "altered", epoch=-1
        ),
        **_by_pair(runs["gradvac, on_alter"]),
    }


def _shares(
    seeds: Mapping[str, Any], count: Literal["conflicts", "altered"], epoch: int | None = None
) -> Interval:
    """Over seeds: the share of the possible ordered pairs in which something was counted."""
    rates = []
    for record in seeds.values():
        epochs = record["epochs"] if epoch is None else [record["epochs"][epoch]]
        pairs = [PairCounts.from_json(pair) for part in epochs for pair in part["pairs"]]
        rate = sum(pairs, PairCounts()).rate(count)
        rates.append(math.nan if rate is None else rate / 100)
    return interval(rates)


def _by_pair(seeds: Mapping[str, Any]) -> dict[str, Interval]:
    """Of each pair of tasks, its share of the copied rule's alterations in epoch 1, all seeds."""
    counts: dict[frozenset[str], int] = {}
    for record in seeds.values():
        for pair in record["epochs"][0]["pairs"]:
            tasks = frozenset((pair["i"], pair["j"]))
            counts[tasks] = counts.get(tasks, 0) + pair["altered"]
    tasks_in_order = dict.fromkeys(
        pair["i"] for record in seeds.values() for pair in record["epochs"][0]["pairs"]
    )
    total = sum(counts.values())
    return {
        f"share of the copied rule's alterations in epoch 1 between {i} and {j}": share(
            counts[frozenset((i, j))], total
        )
        for i, j in combinations(tasks_in_order, 2)
    }
