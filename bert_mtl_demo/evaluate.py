"""`python -m bert_mtl_demo.evaluate RUN`: how good the weights are, and where they err."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_mtl_demo.cli import guard


@dataclass(frozen=True)
class Mistake:
    """One example, by its place (from 0) among the dev examples that were used, and how far off
    the answer was.

    >>> Mistake(7, ("A dull film.",), "very negative", "positive", 3.2).true
    'very negative'
    """

    row: int
    texts: tuple[str, ...]
    true: str
    found: str
    error: float


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code.

    >>> main(["no-such-run"])
    2
    """
    parser = argparse.ArgumentParser(
        prog="python -m bert_mtl_demo.evaluate",
        description="Score a run's best weights on dev; writes evaluation.md, .json and pictures.",
    )
    parser.add_argument("run", help="directory of the run")
    parser.add_argument("--data", help="other data than the run's own")
    parser.add_argument("--output", help="where to write (default: into the run)")
    parser.add_argument("--device", help="'cpu', 'cuda', ... (default: auto)")
    parser.add_argument("--top", default="10", help="mistakes shown per task (default 10)")
    arguments = parser.parse_args(argv)
    return guard(lambda: _main(arguments))


def _main(arguments: argparse.Namespace) -> int:
    from bert_mtl_demo.errors import ConfigError
    from bert_mtl_demo.setting_types import integer

    try:
        top = integer(0)(arguments.top)
    except ValueError as error:
        raise ConfigError(f"top = {arguments.top}: {error}") from None
    print(evaluate(arguments.run, arguments.data, arguments.output, arguments.device, top))
    return 0


def evaluate(
    run: str | Path,
    data: str | None = None,
    output: str | Path | None = None,
    device: str | None = None,
    top: int = 10,
) -> str:
    """Score a run, write evaluation.json, evaluation.md and pictures; the summary for the terminal.

    >>> evaluate("no-such-run")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    bert_mtl_demo.errors.CheckpointError: no-such-run: is not a run directory ...
    """
    from bert_mtl_demo.data import load
    from bert_mtl_demo.reporting.loaded_run import load_trained
    from bert_mtl_demo.tasks import resolve

    trained = load_trained(run, device)
    config = trained.config
    splits, _ = load(data or config.data, resolve(config.tasks), bad_rows=config.bad_rows)
    place = Path(output) if output else trained.run.path
    place.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"run": str(run), "data": data or config.data, "tasks": {}}
    for name, split in splits.items():
        dev = split.dev.limited(config.dev_limit)
        found["tasks"][name] = _assess(trained.answer(dev), dev, place, top)
    found |= _overall({name: part["score"] for name, part in found["tasks"].items()})
    (place / "evaluation.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text = _document(found)
    (place / "evaluation.md").write_text(text, encoding="utf-8")
    return f"{_scores(found)}\n\nwritten: {place / 'evaluation.md'}"


def _assess(answers: Any, examples: Any, place: Path, top: int) -> dict[str, Any]:
    """Score, picture and mistakes of one task."""
    from bert_mtl_demo.reporting import plots
    from bert_mtl_demo.training.metrics import confusion

    task = examples.task
    found: dict[str, Any] = {"metric": task.metric, "examples": len(examples)}
    found["score"] = answers.score(examples.labels)
    title = f"{task.title}: {task.metric} {found['score']:.3f}"
    if task.classes is None:
        found["truth"] = [float(label) for label in examples.labels]
        found["found"] = [float(value) for value in answers.values]
        figure, (axes,) = plots.new_panels([title])
        plots.similarity(axes, examples.labels, answers.values, (task.low, task.high))
        name = f"similarity_{task.name}.png"
    else:
        table = confusion(examples.labels, answers.values, task.classes)
        found["confusion"] = table.tolist()
        names = task.label_names
        size = max(4.2, 1.5 + 0.9 * len(names)), max(3.4, 1.2 + 0.8 * len(names))
        figure, (axes,) = plots.new_panels([title], size=size)
        plots.confusion(axes, table, names)
        name = f"confusion_{task.name}.png"
    found["picture"] = plots.save(figure, place / name).name
    found["mistakes"] = [vars(mistake) for mistake in worst(answers, examples, top)]
    return found


def worst(answers: Any, examples: Any, top: int) -> list[Mistake]:
    """The wrong answers with the largest -log p(true class), or |score - label|."""
    import numpy as np

    task, labels, texts = examples.task, np.asarray(examples.labels), examples.texts()
    if answers.probabilities is None:
        errors = np.abs(answers.values - labels)
    else:
        likely = answers.probabilities[np.arange(len(labels)), labels.astype(int)]
        errors = np.where(answers.values == labels, 0.0, -np.log(np.maximum(likely, 1e-12)))
    order = [int(i) for i in np.argsort(-errors, kind="stable")[:top] if errors[i] > 0]
    return [
        Mistake(
            i,
            texts[i],
            label_text(task, float(labels[i])),
            label_text(task, float(answers.values[i])),
            float(errors[i]),
        )
        for i in order
    ]


def label_text(task: Any, value: float) -> str:
    """A class by its name, a score with two decimals.

    >>> from bert_mtl_demo.tasks import TASKS
    >>> label_text(TASKS["sst"], 4.0), label_text(TASKS["sts"], 3.25)
    ('very positive', '3.25')
    """
    return f"{value:.2f}" if task.classes is None else task.label_names[int(value)]


def _overall(scores: Mapping[str, float]) -> dict[str, float]:
    from bert_mtl_demo.tasks import leaderboard_score, mean_score

    return {"mean": mean_score(scores), "leaderboard": leaderboard_score(scores)}


def _scores(found: Mapping[str, Any]) -> str:
    from bert_mtl_demo.training.progress import score_line

    scores = {name: part["score"] for name, part in found["tasks"].items()}
    return score_line(scores, found["mean"], found["leaderboard"])


def _document(found: Mapping[str, Any]) -> str:
    parts = [f"# Evaluation on the dev sets of {found['data']}", _scores(found)]
    for name, part in found["tasks"].items():
        parts.append(
            f"## {name}: {part['metric']} {part['score']:.4f} on {part['examples']} examples"
        )
        parts.append(f"![{name}]({part['picture']})")
        if part["mistakes"]:
            parts.append("Most wrong:\n\n" + _mistakes(part["mistakes"]))
    return "\n\n".join(parts) + "\n"


def _mistakes(rows: Sequence[Mapping[str, Any]]) -> str:
    from bert_mtl_demo.reporting.tables import cell, table

    cells = [
        [cell(" / ".join(row["texts"])), row["true"], row["found"], f"{row['error']:.2f}"]
        for row in rows
    ]
    return table(["text", "true", "predicted", "error"], cells)


if __name__ == "__main__":
    sys.exit(main())
