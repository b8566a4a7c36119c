"""`python -m bert_mtl_demo.study.worker PLACE`: one run of a study, from settings to result.

A run is a process of its own, so that its peak memory is its own and a crash costs one row. It goes
on from its last checkpoint if it was interrupted, and leaves its weights behind only when asked to.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bert_mtl_demo.cli import guard
from bert_mtl_demo.config import Config, read_settings
from bert_mtl_demo.study.plan import Job
from bert_mtl_demo.study.results import Result, write_result

KEEP = "--keep-weights"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns what the run would have returned.

    >>> main(["no-such-place"])
    2
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    place = Path(next(word for word in arguments if word != KEEP))
    return guard(lambda: run(place, keep=KEEP in arguments))


def run(place: Path, *, keep: bool = False) -> int:
    """Train, evaluate, and write the result; 0 when it is there."""
    settings = place / "settings.json"
    job = Job(Config.from_mapping(read_settings(settings), origin=str(settings)), place)
    if job.result.exists():
        return 0
    from bert_mtl_demo.evaluate import evaluate

    outcome = _train(job)
    if not outcome.done:
        return int(outcome.exit_code)
    evaluate(outcome.path, output=place, device=job.config.device)
    write_result(job.result, collect(outcome.path, place))
    if not keep:
        for name in ("last.pt", "best.safetensors"):
            (outcome.path / name).unlink(missing_ok=True)
    return 0


def _train(job: Job) -> Any:
    from bert_mtl_demo.training.run import continue_run, start_run

    run = job.place / "run"
    if (run / "last.pt").exists():
        return continue_run(run, {})
    if run.exists():
        shutil.rmtree(run)  # it was interrupted before there was anything to go on from
    return start_run(dataclasses.replace(job.config, output=str(run)))


def collect(run: Path, place: Path) -> Result:
    """The result of a finished run, from its logs and its evaluation."""
    import torch
    import transformers

    import gradsurgery
    from bert_mtl_demo.reporting.run_report import by_epoch
    from bert_mtl_demo.training.checkpoint import RunDirectory
    from bert_mtl_demo.training.logs import read_lines
    from gradsurgery import report as surgery

    files = RunDirectory(run)
    rows = read_lines(files.metrics)
    train = [row for row in rows if row["kind"] == "train"]
    dev = [row for row in rows if row["kind"] == "dev"]
    model = [row for row in rows if row["kind"] == "model"]
    best = [row for row in dev if row["best"]][-1]
    lines = surgery.read([files.conflicts])
    seconds = sum(row["seconds"] for row in train)
    evaluation = json.loads((place / "evaluation.json").read_text(encoding="utf-8"))
    config = files.load_config()
    return Result.from_dict(
        {
            **{name: best[name] for name in ("scores", "mean", "leaderboard")},
            "best_epoch": best["epoch"],
            "epochs": dev,
            "losses": train,
            "conflicts": {
                "steps": sum(line["window"] for line in lines),
                "pairs": by_epoch(lines) if len(config.trained) > 1 else [],
                "change": surgery.mean_change(lines),
            },
            "seconds_per_epoch": seconds / len(dev),
            "data_share": sum(row["data_seconds"] for row in train) / seconds,
            "peak_memory": max(row["peak_memory"] for row in dev),
            "trained_parameters": model[0]["trained_parameters"] if model else None,
            "evaluation": evaluation["tasks"],
            "settings": config.changed(),
            "versions": {
                "gradsurgery": gradsurgery.__version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "python": sys.version.split()[0],
            },
            "device": _device_name(config.device),
        }
    )


def _device_name(name: str) -> str:
    import torch

    from bert_mtl_demo.runtime import choose_device

    device = choose_device(name)
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"cpu, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    sys.exit(main())
