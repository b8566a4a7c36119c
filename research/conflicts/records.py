"""Records of trained runs: scores, cosines, alterations and the change of the update over time.

The arms differ in their method alone; with the same seed they see the same batches and begin with
the same heads, so their scores are compared in pairs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_mtl_demo.training.checkpoint import RunDirectory
from bert_mtl_demo.training.logs import read_lines
from gradsurgery import report as surgery


def record_of(directory: Path) -> dict[str, Any]:
    """The record of a run.

    Returns:
        scores: task (and mean, leaderboard) -> the last epoch's; every epoch's stand in epochs.
        epochs: per epoch scores, mean change of the update, altered gradients, and per ordered
            pair the steps, conflicts, alterations, mean cosine and last target.
        windows: per window its last step, and per ordered pair the same.
        sizes: examples of each task.
    """
    run = RunDirectory(directory)
    rows = [row for row in read_lines(run.metrics) if row["kind"] == "dev"]
    lines = surgery.read([run.conflicts])
    dev = {row["epoch"]: row for row in rows}
    return {
        "scores": _scores(rows[-1]),
        "epochs": [
            {
                "epoch": epoch,
                "scores": _scores(dev[epoch]),
                **_totals([line for line in lines if line["epoch"] == epoch]),
            }
            for epoch in sorted(dev)
        ],
        "windows": [{"step": line["step"], **_totals([line])} for line in lines],
        "sizes": json.loads(run.data.read_text(encoding="utf-8"))["sizes"],
    }


def _scores(row: Mapping[str, Any]) -> dict[str, float]:
    return {**row["scores"], "mean": row["mean"], "leaderboard": row["leaderboard"]}


def _totals(lines: Sequence[surgery.Line]) -> dict[str, Any]:
    """The sums and means of some windows."""
    return {
        "change": surgery.mean_change(lines),
        "gradients": surgery.gradient_totals(lines),
        "pairs": surgery.totals(lines),
    }


def layer_map(directory: Path) -> dict[str, Any]:
    """Mean cosine per pair, layer and window of a run with grouping "layer".

    Returns:
        steps: of the windows' ends; segments: names of those in which tasks meet; pairs: "i, j" ->
        [segment][window], null where they did not meet.
    """
    lines = surgery.read([RunDirectory(directory).conflicts])
    cosines: dict[str, dict[str, list[float | None]]] = {}
    for line in lines:
        for part in line["by_segment"]:
            for pair in part["pairs"]:
                if line["tasks"].index(pair["i"]) < line["tasks"].index(pair["j"]):
                    row = cosines.setdefault(f"{pair['i']}, {pair['j']}", {})
                    row.setdefault(part["segment"], []).append(pair["cosine"]["mean"])
    first = next(iter(cosines.values()))
    # Heads belong to one task each, so nothing meets there.
    met = [name for name, row in first.items() if any(x is not None for x in row)]
    segments = sorted(met, key=lambda name: "embeddings" not in name)  # from the input upwards
    return {
        "steps": [line["step"] for line in lines],
        "segments": segments,
        "pairs": {pair: [rows[name] for name in segments] for pair, rows in cosines.items()},
    }
