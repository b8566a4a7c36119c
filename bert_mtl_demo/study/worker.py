"""`python -m bert_mtl_demo.study.worker DIRECTORY`: one run of a row, from settings to result.

A run is a process of its own, so that its peak memory is its own and a crash costs one row. It goes
on from its last checkpoint if it was interrupted, and leaves its weights behind only when asked to.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_mtl_demo.cli import guard
from bert_mtl_demo.config import Config, read_settings
from bert_mtl_demo.study.published import unpinned
from bert_mtl_demo.study.results import Result, write_result

if TYPE_CHECKING:
    from gradsurgery import Method

KEEP = "--keep-weights"
WINDOWS = 200  # of losses that a result keeps: more than a picture shows


def main(argv: Sequence[str] | None = None) -> int:
    """The command.

    >>> main(["no-such-directory"])
    2
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    directory = Path(next(word for word in arguments if word != KEEP))
    return guard(lambda: run(directory, keep=KEEP in arguments))


def run(directory: Path, *, keep: bool = False) -> int:
    """Train, evaluate, and write the result; 0 when it exists."""
    settings, path = directory / "settings.json", directory / "result.json"
    config = Config.from_mapping(read_settings(settings), origin=str(settings))
    if path.exists():
        return 0
    from bert_mtl_demo.evaluate import evaluate
    from bert_mtl_demo.training.progress import score_line

    trained = train(config, directory / "run", config.max_steps)
    evaluate(trained, output=directory, device=config.device)
    result = collect(trained, directory)
    write_result(path, result)
    if not keep:
        drop_weights(trained)
    print(score_line(result.scores, result.mean, result.leaderboard))
    return 0


def train(config: Config, directory: Path, step: int | None, method: Method | None = None) -> Path:
    """A run, begun or taken up where it is, that stands after `step`, or at its end.

    A `method` of surgery stands in for the one that the settings name.

    Raises:
        SystemExit: when a signal stopped it, with the signal's exit code; its checkpoint is kept.
    """
    from bert_mtl_demo.training.checkpoint import RunDirectory, load_state
    from bert_mtl_demo.training.claim import delete
    from bert_mtl_demo.training.run import continue_run, start_run

    last = RunDirectory(directory).last
    if last.exists() and (step is None or load_state(last)["progress"]["step"] <= step):
        outcome = continue_run(directory, {"max_steps": step}, method=method)
    else:
        delete(directory)  # past that step, or interrupted before its first checkpoint
        settings = dataclasses.replace(config, output=str(directory), max_steps=step)
        outcome = start_run(settings, method=method)
    if not outcome.done:
        raise SystemExit(outcome.exit_code)
    return directory


def drop_weights(run: Path) -> None:
    """Delete a run's weights; its logs stay."""
    for name in ("last.pt", "best.safetensors"):
        (run / name).unlink(missing_ok=True)


def collect(run: Path, directory: Path) -> Result:
    """The result of a finished run, from its logs and its evaluation."""
    from bert_mtl_demo.reporting.run_report import by_epoch
    from bert_mtl_demo.training.checkpoint import RunDirectory
    from bert_mtl_demo.training.logs import read_lines
    from gradsurgery import report as surgery

    files = RunDirectory(run)
    rows = read_lines(files.metrics)
    windows, dev, model = (
        [row for row in rows if row["kind"] == kind] for kind in ("train", "dev", "model")
    )
    best = [row for row in dev if row["best"]][-1]
    lines = surgery.read([files.conflicts])
    seconds, waited = (sum(row[name] for row in windows) for name in ("seconds", "data_seconds"))
    evaluation = json.loads((directory / "evaluation.json").read_text(encoding="utf-8"))
    config = files.load_config()
    return Result.from_dict(
        {
            **_scores(config, best, evaluation),
            "best_epoch": best["epoch"],
            "epochs": dev,
            "losses": _thinned(windows),
            "conflicts": {
                "steps": sum(line["window"] for line in lines),
                "pairs": by_epoch(lines) if len(config.trained) > 1 else [],
                "change": surgery.mean_change(lines),
            },
            "seconds_per_epoch": seconds / len(dev) if windows else None,
            "data_share": waited / seconds if windows else None,
            "peak_memory": max(row["peak_memory"] for row in dev),
            "trained_parameters": model[0]["trained_parameters"] if model else None,
            "evaluation": evaluation["tasks"],
            "settings": unpinned(config),
            "versions": versions(),
            "device": _device_name(config.device),
        }
    )


def _scores(
    config: Config, best: Mapping[str, Any], evaluation: Mapping[str, Any]
) -> dict[str, Any]:
    """The scores of the best epoch: on all of dev, also where a sample of it chose the epoch."""
    if config.dev_sample is None:
        return {name: best[name] for name in ("scores", "mean", "leaderboard")}
    scores = {name: task["score"] for name, task in evaluation["tasks"].items()}
    return {"scores": scores, **{name: evaluation[name] for name in ("mean", "leaderboard")}}


def _thinned(windows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """At most `WINDOWS` windows of equal length, the means of neighbours in their place.

    >>> lines = [{"step": n, "epoch": 1, "loss": {"sst": float(n)}} for n in range(1, 401)]
    >>> few = _thinned(lines)
    >>> len(few), few[0]
    (200, {'step': 2, 'epoch': 1, 'loss': {'sst': 1.5}})
    """
    size = -(-len(windows) // WINDOWS) or 1
    parts = [windows[start : start + size] for start in range(0, len(windows), size)]
    return [{**part[-1], "loss": _mean_losses([line["loss"] for line in part])} for part in parts]


def _mean_losses(losses: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for line in losses:
        for task, loss in line.items():
            values.setdefault(task, []).append(math.nan if loss is None else loss)
    return {task: sum(known) / len(known) for task, known in values.items()}


def versions() -> dict[str, str]:
    """The versions of what results depend on."""
    import torch
    import transformers

    import gradsurgery

    return {
        "gradsurgery": gradsurgery.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": sys.version.split()[0],
    }


def _device_name(name: str) -> str:
    """The device of that name as a page shows it."""
    import torch

    from bert_mtl_demo.runtime import choose_device

    device = choose_device(name)
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"cpu, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    sys.exit(main())
