"""Where the tasks conflict: expected gradients in the plain sum's runs, in two metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from bert_mtl_demo.reporting.tables import table
from bert_mtl_demo.study.intervals import MISSING, Interval
from research.conflicts import simultaneous
from research.conflicts.estimate import Probed
from research.conflicts.findings import SAYS, listed, named, number
from research.conflicts.metrics import in_adams_metric, side_effects

METRICS = ("Euclid's", "Adam's")
Probes = Mapping[str, Mapping[str, Any]]  # seed -> stage -> record


def in_metric(records: Mapping[str, Any], metric: str) -> dict[str, Probed]:
    """Stage -> probe in a metric, of the stages that have it."""
    read = in_adams_metric if metric == "Adam's" else Probed.of
    probed = {stage: read(record) for stage, record in records.items()}
    return {stage: value for stage, value in probed.items() if value is not None}


def section(probes: Probes) -> str:
    """Cosines of all pairs and stages, then of all layers, judged together in each run."""
    if not probes:
        return "Not run yet: `--probe-seeds` names the plain sum's runs to be probed."
    first = next(iter(next(iter(probes.values())).values()))
    examples = first["batches"] * first["batch_size"]
    return (
        f"{answer(probes)}\n\n{examples:,} examples of each task, drawn anew at each stage. In "
        "Euclid's metric a product of two expected gradients says what a step of SGD does for one "
        "task along the other's gradient; in Adam's, 1 / (sqrt(v) + eps) of the run's second "
        "moments, what a step of Adam does. Intervals of all pairs and stages of a run and metric "
        "hold at once (max-t over a jackknife of blocks). `a <- b`: what a step along b's expected "
        "gradient gives task a, of what a's own step gives; below 0 it takes back.\n\n"
        f"{_pairs(probes)}\n\n{_layers(probes)}"
    )


def answer(probes: Probes) -> str:
    """Which pairs conflict or agree, in how many of the runs."""
    verdicts: Counter[tuple[str, str, str]] = Counter()
    for records in probes.values():
        for metric in METRICS:
            probed = in_metric(records, metric)
            for key, expected in simultaneous.of_pairs(probed).items():
                if expected.verdict in ("conflict", "agree"):
                    verdicts[expected.verdict, f"{named(key, probed)} {key.stage}", metric] += 1
    if not verdicts:
        return f"In none of {len(probes)} runs can a cosine be told from 0."
    return " ".join(
        f"{pair.capitalize()} {SAYS[verdict].partition(' (')[0]} in {metric} metric in {count} of "
        f"{len(probes)} runs."
        for (verdict, pair, metric), count in verdicts.items()
    )


def quantities(probes: Probes) -> dict[str, Interval]:
    """Expected cosines by run, for the scoreboard: name -> value."""
    values = {}
    for seed, records in probes.items():
        for metric in METRICS:
            probed = in_metric(records, metric)
            for key, expected in simultaneous.of_pairs(probed).items():
                if expected.cosine is not None:
                    pair = f"expected cosine of {named(key, probed)}, {key.stage}"
                    values[f"{pair}, {metric} metric, seed {seed}"] = expected.cosine
    return values


def _pairs(probes: Probes) -> str:
    rows = []
    for seed, records in probes.items():
        for metric in METRICS:
            probed = in_metric(records, metric)
            for key, expected in simultaneous.of_pairs(probed).items():
                tasks = probed[key.stage].tasks
                effects, pair = side_effects(probed[key.stage]), (tasks[key.i], tasks[key.j])
                rows.append(
                    [
                        *(seed, metric, key.stage, ", ".join(pair)),
                        *(number(expected.cosine), SAYS[expected.verdict].partition(" (")[0]),
                        *(_effect(effects, *order) for order in (pair, pair[::-1])),
                    ]
                )
    heading = ["seed", "metric", "stage", "a, b", "cosine", "they", "a <- b", "b <- a"]
    return table(heading, rows)


def _effect(effects: Mapping[tuple[str, str], Interval], i: str, j: str) -> str:
    return number(effects[i, j], 2) if (i, j) in effects else MISSING


def _layers(probes: Probes) -> str:
    """Counts by verdict, and the layers in which a pair conflicts or agrees."""
    lines = []
    for seed, records in probes.items():
        for metric in METRICS:
            probed = in_metric(records, metric)
            judged = simultaneous.of_layers(probed) if probed else {}
            counts = Counter(expected.verdict for expected in judged.values())
            told = [
                f"{key.part}, {key.stage}, {named(key, probed)} {number(expected.cosine)}"
                for key, expected in judged.items()
                if expected.verdict in ("conflict", "agree")
            ]
            words = listed([f"{counts[v]} {SAYS[v]}" for v in SAYS if counts[v]] or ["none"])
            lines.append(
                f"- seed {seed}, {metric} metric, {len(judged)} cosines judged together: {words}"
                + (f". Told from 0: {'; '.join(told)}" if told else "")
                + "."
            )
    return "Layer by layer:\n\n" + "\n".join(lines)
