"""`python -m bert_mtl_demo.evaluate RUN`: dev scores of a run's best weights, and its mistakes.

With `--split test` it reads another split; a table that has no labels is answered, in a file of ids
and answers for each task.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_mtl_demo.cli import Parser, guard
from bert_mtl_demo.printing import printable

if TYPE_CHECKING:
    from bert_mtl_demo.data import Examples, Skipped


@dataclass(frozen=True)
class Mistake:
    """A wrong answer: the example's index among the dev examples, and the size of the error.

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
    parser = Parser(
        prog="python -m bert_mtl_demo.evaluate",
        description="Score a run's best weights on dev; writes evaluation.md, .json and pictures.",
    )
    parser.add_argument("run", help="directory of the run")
    parser.add_argument("--data", help="data of the built-in tasks (default: the run's)")
    parser.add_argument("--split", default="dev", help="split to score or answer (default: dev)")
    parser.add_argument("--tsv", action="store_true", help="answers with a header between tabs")
    parser.add_argument("--output", help="output directory (default: the run's)")
    parser.add_argument("--device", help="'cpu', 'cuda', ... (default: auto)")
    parser.add_argument("--amp", help="'off', 'bf16', 'fp16' or 'auto' (default: the run's)")
    parser.add_argument("--top", default="10", help="mistakes listed per task (default: 10)")
    arguments = parser.parse_args(argv)
    return guard(lambda: _main(arguments))


def _main(arguments: argparse.Namespace) -> int:
    from bert_mtl_demo.errors import ConfigError
    from bert_mtl_demo.setting_types import integer

    try:
        top = integer(0)(arguments.top)
    except ValueError as error:
        raise ConfigError(f"top = {arguments.top}: {error}") from None
    places = arguments.run, arguments.data, arguments.output, arguments.device
    print(
        printable(
            evaluate(*places, top, split=arguments.split, tsv=arguments.tsv, amp=arguments.amp)
        )
    )
    return 0


def evaluate(
    run: str | Path,
    data: str | None = None,
    output: str | Path | None = None,
    device: str | None = None,
    top: int = 10,
    *,
    split: str = "dev",
    tsv: bool = False,
    amp: str | None = None,
) -> str:
    """Score a run and write evaluation.json, evaluation.md and pictures; a summary is returned.

    Tasks whose table of the split has no labels get answers-TASK-SPLIT.csv, or .tsv, instead.

    >>> evaluate("no-such-run")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    bert_mtl_demo.errors.CheckpointError: no-such-run: is not a run directory ...
    """
    from bert_mtl_demo.data import dev_halves, load_dev
    from bert_mtl_demo.data.loading import table_of
    from bert_mtl_demo.reporting.loaded_run import load_run
    from bert_mtl_demo.store import write_text, writing
    from bert_mtl_demo.tasks import leaderboard_score, mean_score

    loaded = load_run(run, device, amp)
    config = replace(loaded.config, data=data or loaded.config.data)
    unlabelled = [] if split == "dev" else _unlabelled(config.data, loaded.tasks, split)
    labelled = [task for task in loaded.tasks if task not in unlabelled]
    splits: dict[str, Examples] = {}
    skipped: list[Skipped] = []
    if labelled:
        other = {} if split == "dev" else {"split": split}
        splits, skipped = load_dev(config.data, labelled, bad_rows=config.bad_rows, **other)
    directory = Path(output) if output else loaded.run.path
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    files = [
        _answer(loaded, task, table_of(config.data, task, split), directory, split, tsv)
        for task in unlabelled
    ]
    told = "\n".join(f"written: {file}" for file in files)
    if not labelled:
        return told
    end = "" if split == "dev" else f"-{split}"
    tasks: dict[str, dict[str, Any]] = {}
    for name, dev in splits.items():
        if split == "dev":
            dev = dev.limited(config.dev_limit)
        if config.dev_half and data is None and split == "dev":
            dev = dev.take(dev_halves(len(dev), name)[1])
        tasks[name] = _assess(loaded.answer(dev, cached=True), dev, directory, top, end)
    scores = {name: task["score"] for name, task in tasks.items()}
    evaluation = {
        "run": str(run),
        "data": config.sources,
        "skipped": [str(row) for row in skipped],
        "tasks": tasks,
        "mean": mean_score(scores, config.definitions),
        "leaderboard": leaderboard_score(scores, config.definitions),
    }
    stem = f"evaluation{end}"
    write_text(directory / f"{stem}.json", json.dumps(evaluation, indent=1) + "\n")
    page = write_text(directory / f"{stem}.md", _document(evaluation, split))
    told = f"written: {page}" + (f"\n{told}" if told else "")
    return f"{_summary(evaluation)}\n\n{told}"


def _unlabelled(data: str, tasks: Sequence[Any], split: str) -> list[Any]:
    """The tasks whose table of a split has no labels."""
    from bert_mtl_demo.data.loading import table_of
    from bert_mtl_demo.data.unlabelled import is_labelled
    from bert_mtl_demo.errors import ConfigError

    if data == "hub":
        raise ConfigError(f"split = {split}: the hub's sets are scored on dev; give --data DIR")
    return [task for task in tasks if not is_labelled(table_of(data, task, split), task)]


def _answer(loaded: Any, task: Any, table: Path, directory: Path, split: str, tsv: bool) -> Path:
    """Answer a table without labels; the file."""
    from bert_mtl_demo.data.unlabelled import read_unlabelled
    from bert_mtl_demo.reporting import answers
    from bert_mtl_demo.store import write_text

    rows = read_unlabelled(table, task)
    answered = loaded.ask(task.name, rows.first, rows.second)
    path = directory / f"answers-{task.name}-{split}.{'tsv' if tsv else 'csv'}"
    return write_text(path, answers.content(task, rows.ids, answered, tsv=tsv))


def _assess(answers: Any, examples: Any, directory: Path, top: int, end: str) -> dict[str, Any]:
    """Score, picture and mistakes of one task."""
    from bert_mtl_demo.reporting import plots
    from bert_mtl_demo.training.metrics import confusion

    task = examples.task
    score = answers.score(examples.labels)
    title = f"{task.title}: {task.metric} {score:.3f}"
    assessment: dict[str, Any] = {"metric": task.metric, "examples": len(examples), "score": score}
    number = float if task.classes is None else int
    assessment["truth"] = [number(label) for label in examples.labels]
    assessment["found"] = [number(value) for value in answers.values]
    if task.classes is None:
        figure, (axes,) = plots.new_panels([title])
        plots.similarity(axes, examples.labels, answers.values, (task.low, task.high))
        path = directory / f"similarity_{task.name}{end}.png"
    else:
        counts, names = confusion(examples.labels, answers.values, task.classes), task.label_names
        assessment["confusion"] = counts.tolist()
        size = max(4.2, 1.5 + 0.9 * len(names)), max(3.4, 1.2 + 0.8 * len(names))
        figure, (axes,) = plots.new_panels([title], size=size)
        plots.confusion(axes, counts, names)
        path = directory / f"confusion_{task.name}{end}.png"
    assessment["picture"] = plots.save(figure, path).name
    assessment["mistakes"] = [vars(mistake) for mistake in worst(answers, examples, top)]
    return assessment


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


def _scores(evaluation: Mapping[str, Any]) -> str:
    from bert_mtl_demo.training.progress import score_line

    scores = {name: task["score"] for name, task in evaluation["tasks"].items()}
    return score_line(scores, evaluation["mean"], evaluation["leaderboard"])


def _summary(evaluation: Mapping[str, Any]) -> str:
    skipped = evaluation["skipped"]
    note = f"skipped {len(skipped)} rows, the first of them {skipped[0]}" if skipped else ""
    return "\n\n".join(filter(None, [_scores(evaluation), note]))


def _document(evaluation: Mapping[str, Any], split: str) -> str:
    from bert_mtl_demo.reporting.tables import cell

    data = ", ".join(Path(part).name for part in evaluation["data"].split(", "))
    parts = [f"# Evaluation on the {split} sets of {cell(data)}", _summary(evaluation)]
    for name, task in evaluation["tasks"].items():
        parts.append(
            f"## {name}: {task['metric']} {task['score']:.4f} on {task['examples']} examples"
        )
        parts.append(f"![{name}]({task['picture']})")
        if task["mistakes"]:
            parts.append("Most wrong:\n\n" + _mistakes(task["mistakes"]))
    return "\n\n".join(parts) + "\n"


def _mistakes(rows: Sequence[Mapping[str, Any]]) -> str:
    from bert_mtl_demo.reporting.tables import cell, table

    cells = [
        [
            *(cell(text) for text in (" / ".join(row["texts"]), row["true"], row["found"])),
            f"{row['error']:.2f}",
        ]
        for row in rows
    ]
    return table(["text", "true", "predicted", "error"], cells)


if __name__ == "__main__":
    sys.exit(main())
