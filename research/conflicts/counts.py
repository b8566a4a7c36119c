"""What was counted: alterations by epoch under both rules, and every pair of tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bert_mtl_demo.reporting.run_report import markdown
from bert_mtl_demo.study.intervals import interval
from research.conflicts import figures
from research.conflicts.findings import number, percent


def alteration_table(study: Mapping[str, Any]) -> str:
    """Alterations per epoch under both rules: without a model, and of the trained runs."""
    simulated, runs = study["pieces"]["simulation"], study["pieces"]["runs"]
    rows = []
    for title, found in simulated.items():
        for rule in ("always", "on_alter"):
            possible = found["steps"] * found["pairs"]
            counts = [f"{n:,.0f} ({percent(100 * n / possible)})" for n in found[rule][:5]]
            rows.append([f"no model, {title}", rule, *_padded(counts)])
    for rule in ("always", "on_alter"):
        records = runs[f"gradvac, {rule}"].values()
        counts = [_mean_count(list(records), n) for n in range(study["options"]["epochs"])][:5]
        rows.append(["trained runs, mean over seeds", rule, *_padded(counts)])
    heading = ["gradients", "rule", *(f"epoch {n}" for n in range(1, 6))]
    return (
        "GradVac's target of a pair follows its cosines, by `always` at every step (Wang et al. "
        "2020, Algorithm 1), by `on_alter` only when the gradient was altered, which is the rule "
        "of a much-copied implementation. Without a model, cosines are independent normal draws of "
        "standard deviation 0.05 or, *as measured*, with the mean and spread of each pair of real "
        "gradients at the size of a step's batch. Counted are ordered pairs of tasks.\n\n"
        f"{markdown(heading, rows)}"
    )


def _mean_count(records: list[Any], epoch: int) -> str:
    altered = [sum(p["altered"] for p in r["epochs"][epoch]["pairs"]) for r in records]
    share = [figures.altered_share(r["epochs"][epoch]["pairs"]) for r in records]
    return f"{interval(altered).mean:,.0f} ({percent(interval(share).mean)})"


def _padded(cells: list[str]) -> list[str]:
    return cells + [""] * (5 - len(cells))


def pair_table(runs: Mapping[str, Any]) -> str:
    """Every arm and ordered pair, all seeds together; alterations also by epoch."""
    rows = []
    epochs = max(len(r["epochs"]) for seeds in runs.values() for r in seeds.values())
    shown = range(min(epochs, 5))
    for arm, seeds in runs.items():
        found: dict[tuple[str, str], list[Any]] = {}
        for record in seeds.values():
            for epoch in record["epochs"]:
                for pair in epoch["pairs"]:
                    found.setdefault((pair["i"], pair["j"]), []).append(pair)
        for (i, j), pairs in found.items():
            possible = sum(pair["possible"] for pair in pairs)
            total = sum(pair["possible"] * (pair["mean"] or 0.0) for pair in pairs)
            mean = f"{total / possible:+.4f}" if possible else "n/a"
            # The pairs of every seed stand in the order of its epochs.
            by_epoch = [_share(pairs[n::epochs], "altered") for n in shown]
            targets = [pair["target"] for pair in pairs[epochs - 1 :: epochs]]
            last = interval([target for target in targets if target is not None])
            counted = [_share(pairs, what) for what in ("conflicts", "altered")]
            target = number(last, 4) if last.n else ""
            rows.append([arm, f"{i} <- {j}", f"{possible:,}", mean, *counted, *by_epoch, target])
    heading = [
        *("method", "pair", "possible", "mean cosine", "conflicts", "altered"),
        *(f"in epoch {n + 1}" for n in shown),
        "last target",
    ]
    return (
        "`i <- j`: gradient i, looked at and altered because of gradient j. A conflict is a "
        "negative cosine of two single batches; all epochs and seeds together, alterations also "
        "epoch by epoch. GradVac's last targets are means over seeds, with 95% intervals.\n\n"
        + markdown(heading, rows)
    )


def _share(pairs: list[Any], what: str) -> str:
    possible = sum(pair["possible"] for pair in pairs)
    return percent(100 * sum(pair[what] for pair in pairs) / possible) if possible else "n/a"
