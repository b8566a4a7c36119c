"""Tables of counts: alterations by epoch under both rules, and every pair of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bert_mtl_demo.reporting.tables import table
from bert_mtl_demo.study.intervals import interval
from gradsurgery.report import PairCounts, pair_totals
from research.conflicts.figures import altered_rate
from research.conflicts.findings import number, percent

Pairs = Sequence[Mapping[str, Any]]

EPOCHS = 5  # in a table, at most


def alteration_table(study: Mapping[str, Any]) -> str:
    """Alterations per epoch under both rules: without a model, and of the trained runs."""
    simulated, runs = study["pieces"]["simulation"], study["pieces"]["runs"]
    rows = []
    for title, record in simulated.items():
        possible = record["steps"] * record["pairs"]
        for rule in ("always", "on_alter"):
            cells = [f"{n:,.0f} ({percent(100 * n / possible)})" for n in record[rule]]
            rows.append([f"no model, {title}", rule, *cells])
    for rule in ("always", "on_alter"):
        cells = [_mean_count(epoch) for epoch in _epochs(runs[f"gradvac, {rule}"])]
        rows.append(["trained runs, mean over seeds", rule, *cells])
    rows = [[*row, *[""] * EPOCHS][: 2 + EPOCHS] for row in rows]
    heading = ["gradients", "rule", *(f"epoch {n + 1}" for n in range(EPOCHS))]
    return (
        "GradVac's target of a pair follows its cosines, by `always` at every step (Wang et al. "
        "2020, Algorithm 1), by `on_alter` only when the gradient was altered, which is the rule "
        "of a much-copied implementation. Without a model, cosines are independent normal draws of "
        "standard deviation 0.05 or, *as measured*, with the mean and spread of each pair of real "
        "gradients at the size of a step's batch. Counted are ordered pairs of tasks.\n\n"
        f"{table(heading, rows)}"
    )


def _epochs(seeds: Mapping[str, Any]) -> list[list[Pairs]]:
    """[epoch][seed] -> the pairs that were counted."""
    records = [[epoch["pairs"] for epoch in record["epochs"]] for record in seeds.values()]
    return [list(epoch) for epoch in zip(*records, strict=True)]


def _mean_count(seeds: Sequence[Pairs]) -> str:
    altered = interval([sum(pair["altered"] for pair in pairs) for pairs in seeds])
    rate = interval([altered_rate(pairs) for pairs in seeds])
    return f"{altered.mean:,.0f} ({percent(rate.mean)})"


def pair_table(runs: Mapping[str, Any]) -> str:
    """Every arm and ordered pair, all seeds together; alterations also by epoch."""
    rows = []
    for arm, seeds in runs.items():
        epochs = _epochs(seeds)
        by_epoch = [pair_totals(pair for pairs in epoch for pair in pairs) for epoch in epochs]
        last = [pair_totals(pairs) for pairs in epochs[-1]]  # of every seed
        for pair in by_epoch[0]:
            total = sum((totals[pair] for totals in by_epoch), PairCounts())
            targets = [totals[pair].target for totals in last]
            target = interval([value for value in targets if value is not None])
            rows.append(
                [
                    *(arm, " <- ".join(pair), f"{total.possible:,}"),
                    "n/a" if total.cosine is None else f"{total.cosine:+.4f}",
                    _rate(total.rate("conflicts")),
                    _rate(total.rate("altered")),
                    *(_rate(totals[pair].rate("altered")) for totals in by_epoch[:EPOCHS]),
                    number(target, 4) if target.n else "",
                ]
            )
    heading = [
        *("method", "pair", "possible", "mean cosine", "conflicts", "altered"),
        *(f"in epoch {n + 1}" for n in range(len(rows[0]) - 7)),
        "last target",
    ]
    return (
        "`i <- j`: gradient i, looked at and altered because of gradient j. A conflict is a "
        "negative cosine of two single batches; all epochs and seeds together, alterations also "
        "epoch by epoch. GradVac's last targets are means over seeds, with 95% intervals.\n\n"
        + table(heading, rows)
    )


def _rate(rate: float | None) -> str:
    return "n/a" if rate is None else percent(rate)
