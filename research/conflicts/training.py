"""Trained runs, and what is kept of each: scores, cosines, alterations and the change, over time.

The arms (`options.ARMS`) differ in their method alone; with the same seed they see the same
batches and begin with the same heads, so their scores are compared in pairs. Weights are deleted
once they have been read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bert_mtl_demo.config import Config
from bert_mtl_demo.training.checkpoint import RunDirectory, load_state
from bert_mtl_demo.training.logs import read_lines
from bert_mtl_demo.training.run import continue_run, start_run
from gradsurgery import report as surgery

Line = Mapping[str, Any]


def train_to(config: Config, step: int | None = None) -> RunDirectory:
    """A run, begun or taken up where it is, that stands after `step` (None: at its end).

    Raises:
        KeyboardInterrupt: when it was stopped; its checkpoint is there.
    """
    run = RunDirectory(Path(str(config.output)))
    if run.path.exists() and not _can_go_on(run, step):
        shutil.rmtree(run.path)
    if run.path.exists():
        outcome = continue_run(run.path, {"max_steps": step})
    else:
        outcome = start_run(replace(config, max_steps=step))
    if not outcome.done:
        raise KeyboardInterrupt(f"stopped; {run.path} is taken up again next time")
    return run


def _can_go_on(run: RunDirectory, step: int | None) -> bool:
    """Whether there is a checkpoint, not yet past `step`."""
    if not run.last.exists():
        return False
    return step is None or int(load_state(run.last)["progress"]["step"]) <= step


def drop_weights(run: RunDirectory) -> None:
    """Delete what takes room; the logs stay."""
    for path in (run.last, run.best):
        path.unlink(missing_ok=True)
    for folder in ("encoder", "tensorboard"):
        shutil.rmtree(run.path / folder, ignore_errors=True)


def compared(config: Config) -> dict[str, Any]:
    """Train one arm with one seed; what the page needs of it."""
    run = train_to(config)
    record = read(run)
    drop_weights(run)
    return record


def read(run: RunDirectory) -> dict[str, Any]:
    """What is kept of a finished run.

    Returns:
        scores: task (and mean, leaderboard) -> the last epoch's; every epoch's stand in epochs.
        epochs: per epoch scores, mean change of the update, altered gradients, and per ordered
            pair the steps, conflicts, alterations, mean cosine and last target.
        windows: per window its last step, and per ordered pair the same.
        sizes: examples of each task.
    """
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


def _scores(row: Line) -> dict[str, float]:
    return {**row["scores"], "mean": row["mean"], "leaderboard": row["leaderboard"]}


def _totals(lines: Sequence[surgery.Line]) -> dict[str, Any]:
    """Windows added up."""
    return {
        "change": surgery.mean_change(lines),
        "gradients": surgery.gradient_totals(lines),
        "pairs": surgery.totals(lines),
    }


def layer_map(run: RunDirectory) -> dict[str, Any]:
    """Mean cosine per pair, layer and window of a run with grouping "layer".

    Returns:
        steps: of the windows' ends; segments: names of those in which tasks meet; pairs: "i, j" ->
        [segment][window], null where they did not meet.
    """
    lines = surgery.read([run.conflicts])
    found: dict[str, dict[str, list[float | None]]] = {}
    for line in lines:
        for part in line["by_segment"]:
            for pair in part["pairs"]:
                if line["tasks"].index(pair["i"]) < line["tasks"].index(pair["j"]):
                    row = found.setdefault(f"{pair['i']}, {pair['j']}", {})
                    row.setdefault(part["segment"], []).append(pair["cosine"]["mean"])
    first = next(iter(found.values()))
    # Heads belong to one task each, so nothing meets there.
    met = [name for name, row in first.items() if any(x is not None for x in row)]
    segments = sorted(met, key=lambda name: "embeddings" not in name)  # from the input upwards
    return {
        "steps": [line["step"] for line in lines],
        "segments": segments,
        "pairs": {pair: [rows[name] for name in segments] for pair, rows in found.items()},
    }
