"""conflicts.md: the study's page, written from its pieces alone."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from bert_mtl_demo.reporting import plots
from bert_mtl_demo.reporting.tables import table
from bert_mtl_demo.study.findings import write_findings
from bert_mtl_demo.study.intervals import Interval, interval
from research.conflicts import estimate, figures, findings, simultaneous
from research.conflicts.by_layer import layer_answer, layer_conflicts, layer_table
from research.conflicts.counts import alteration_table, pair_table
from research.conflicts.estimate import Probed
from research.conflicts.findings import number, percent
from research.conflicts.limit import expected_change
from research.conflicts.quantities import quantities

PAGE = "conflicts.md"


def write(directory: Path) -> Path:
    """Write conflicts.md, its pictures and its findings into the folder of a finished study."""
    from research.conflicts.study import load

    study = load(directory)
    pieces = study["pieces"]
    probes = {stage: Probed.of(record) for stage, record in pieces["probes"].items()}
    pictures = _draw(study, probes, directory)
    sections = [
        "# Do the tasks' gradients conflict?\n\n" + _question(),
        "## The answer\n\n" + _answer(pieces, probes),
        "## Alterations under two rules\n\n" + alteration_table(study),
        pictures["alterations"],
        pictures["altered_over_time"],
        "## Pair by pair\n\n" + pair_table(pieces["runs"]),
        "## Layer by time\n\n" + _layers(pieces["layers"], probes, pictures),
        "## Signal and noise\n\n" + _signal(probes, pictures),
        "## The expected gradients\n\n" + _expected(probes, pictures),
        "## The size of the change\n\n" + _change(probes, pictures),
        "## Scores\n\n" + _scores(pieces["runs"]),
        "## What the published conclusion rested on\n\n" + _published(pieces, probes),
        "## Budget, and how to repeat it\n\n" + _budget(study),
    ]
    write_findings(directory, "conflicts", quantities(pieces["runs"], probes))
    path = directory / PAGE
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return path


def _draw(study: Mapping[str, Any], probes: Mapping[str, Probed], to: Path) -> dict[str, str]:
    drawn = {
        "alterations": figures.alterations(study),
        "altered_over_time": figures.altered_over_time(study["pieces"]["runs"]),
        "layers": figures.layer_maps(study["pieces"]["layers"]),
        "cosine_by_batch": figures.cosine_by_batch(probes),
        "expected_by_layer": figures.expected_by_layer(probes),
        "change_by_batch": figures.change_by_batch(probes),
    }
    paths = [plots.save(figure, to / f"{name}.png") for name, figure in drawn.items()]
    return {path.stem: f"![{path.stem.replace('_', ' ')}]({path.name})" for path in paths}


def _question() -> str:
    return (
        "Gradient surgery (PCGrad, GradVac) acts where two tasks' gradients have a negative, or "
        "unusually low, cosine. One report that counted these cases concluded that its tasks do "
        "not conflict: GradVac altered 2,000 of 54,000 gradients in the first epoch and under 0.5% "
        "in each later one. A count of single batches cannot say that. Nearly orthogonal gradients "
        "have a negative cosine in half of the batches by chance, and the rule by which the "
        "targets moved decides the rest. So this page asks three things: what the *expected* "
        "gradients do, how much surgery moves the update, and what that does to the scores."
    )


def _answer(pieces: Mapping[str, Any], probes: Mapping[str, Probed]) -> str:
    stage = list(probes)[-1]
    points = [
        findings.noise(stage, probes[stage]),
        findings.headline(probes),
        *(findings.expectation(name, probes) for name in probes),
        layer_answer(probes),
        findings.resized(stage, probes[stage]),
        findings.scores(pieces["runs"]),
        findings.rules(pieces["runs"]),
    ]
    return "\n".join(f"- {point}" for point in points)


def _layers(
    layers: Mapping[str, Any], probes: Mapping[str, Probed], pictures: Mapping[str, str]
) -> str:
    window = layers["steps"][0]
    return (
        "Mean cosines of single batches in each part of the encoder, window by window, in a run of "
        f"the plain sum. Blue is agreement, red conflict; a field is the mean of {window} cosines, "
        "most of whose spread is noise, and one run has no interval: what stands below under `The "
        f"expected gradients` has.\n\n{pictures['layers']}\n\n{layer_conflicts(probes)}"
    )


def _signal(probes: Mapping[str, Probed], pictures: Mapping[str, str]) -> str:
    names = next(iter(probes.values())).tasks
    tasks = range(len(names))
    rows = [
        [
            *(stage, f"{batch:,}"),
            *(
                f"{number(estimate.cosine_at(probed, batch, i, j))}, "
                f"{percent(100 * estimate.negative(probed.level(batch), i, j))}"
                for i, j in combinations(tasks, 2)
            ),
            *(number(estimate.cosine_at(probed, batch, k, k)) for k in tasks),
        ]
        for stage, probed in probes.items()
        for batch in probed.levels
    ]
    heading = [
        *("stage", "examples", *(f"{i}, {j}" for i, j in combinations(names, 2))),
        *(f"two halves of {name}" for name in names),
    ]
    answers = "\n\n".join(findings.noise(stage, probed) for stage, probed in probes.items())
    return (
        "The model stands still at three stages of a run of the plain sum, in training mode. Each "
        "task's gradient over the encoder is taken on growing batches of independently drawn "
        "examples. Cosines between tasks (with the share of negative ones) stand beside the noise "
        "floor, the cosine of two such batches of the *same* task: where the floor is low, a batch "
        "is mostly noise, and cosines between tasks are near 0 whatever the tasks want. Margins "
        f"are 95% intervals over replicates; where fewer than {estimate.FEW} pairs of halves are "
        "left, cosine and interval come from the products of all kept blocks, jackknifed.\n\n"
        f"{answers}\n\n{pictures['cosine_by_batch']}\n\n{table(heading, rows)}"
    )


def _expected(probes: Mapping[str, Probed], pictures: Mapping[str, str]) -> str:
    rows = [
        [
            *(key.stage, findings.named(key, probes), number(expected.cosine)),
            *(_p(findings.p_alone(expected.cosine)), _p(expected.p)),
            findings.SAYS[expected.verdict],
        ]
        for key, expected in simultaneous.of_pairs(probes).items()
    ]
    heading = ["stage", "pair", "cosine", "p by itself", "p with all", "the tasks"]
    answers = "\n\n".join(findings.expectation(stage, probes) for stage in probes)
    return (
        "The cosine of the *expected* gradients, free of the noise that pulls a batch's cosine "
        "towards 0: the mean product of independent batches of two tasks, over the root of the "
        "mean products of independent batches of each. Intervals (95%) are jackknifed over blocks "
        "of batches; a bootstrap would multiply a block with itself. All of a table hold at once "
        "(max-t: the quantile of the largest of the correlated t statistics), for one run.\n\n"
        f"{findings.headline(probes)}\n\n{answers}\n\n{table(heading, rows)}\n\n"
        f"{pictures['expected_by_layer']}\n\n{layer_answer(probes)}\n\n"
        '<details markdown="1">\n<summary>Every part of the encoder</summary>\n\n'
        "Cosines with the share of negative ones, the cosine of two batches of the same task, and "
        "the cosine of the expected gradients; what is `n/a` cannot be told from zero.\n\n"
        f"{layer_table(probes)}\n\n</details>"
    )


def _p(p: float | None) -> str:
    return "n/a" if p is None else "below 0.001" if p < 0.001 else f"{p:.3f}"


def _change(probes: Mapping[str, Probed], pictures: Mapping[str, str]) -> str:
    rows = []
    for stage, probed in probes.items():
        for batch in probed.levels:
            samples = [figures.changes(probed.level(batch), arm) for arm in ("pcgrad", "gradvac")]
            rows.append([stage, f"{batch:,}", *(_length(interval(sample)) for sample in samples)])
        limit = expected_change(probed.kept())
        rows.append([stage, "expectation", _length(limit), ""])
    answers = "\n\n".join(findings.resized(stage, probed) for stage, probed in probes.items())
    return (
        "The length of (update - plain sum), relative to the plain sum, over the encoder and "
        "before the optimizer. GradVac's targets stand at the mean cosine of each batch size, "
        f"where the paper's rule takes them (n/a with fewer than {estimate.FEW} pairs of halves, "
        "whose own mean is no target); from a target of 0 it is PCGrad. In the expectation, half "
        "of the blocks decide what is projected and the others measure it: without a conflict that "
        "is 0 on average, and it may be negative.\n\n"
        f"{answers}\n\n{pictures['change_by_batch']}\n\n"
        f"{table(['stage', 'examples', 'PCGrad', 'GradVac'], rows)}"
    )


def _scores(runs: Mapping[str, Any]) -> str:
    names = list(findings.by_seed(runs["sum"]))
    rows = [
        [
            arm,
            *(str(interval(list(findings.by_seed(seeds)[name].values()))) for name in names),
            _run_change(seeds),
        ]
        for arm, seeds in runs.items()
    ]
    differences = [
        [arm, *(f"{scores[name].difference.signed()}, {scores[name].describe()}" for name in names)]
        for arm, scores in findings.comparisons(runs).items()
    ]
    return (
        f"Dev scores after the last epoch, over {len(runs['sum'])} seeds. `mean` averages the "
        "scores as they are; `leaderboard` takes (r + 1) / 2 for similarity first.\n\n"
        f"{table(['method', *names, 'change of the update'], rows)}\n\n"
        "Differences to the plain sum with the same seed, which has the same batches and initial "
        f"heads, with 95% t-intervals:\n\n{table(['method', *names], differences)}\n\n"
        f"{findings.scores(runs)}"
    )


def _run_change(seeds: Mapping[str, Any]) -> str:
    """Mean over epochs, with its interval over seeds."""
    seed_changes = [[epoch["change"] for epoch in record["epochs"]] for record in seeds.values()]
    known = [[change for change in changes if change is not None] for changes in seed_changes]
    return _length(interval([sum(changes) / len(changes) for changes in known if changes]), 4)


def _length(change: Interval | None, digits: int = 3) -> str:
    return number(change, digits).lstrip("+")


def _published(pieces: Mapping[str, Any], probes: Mapping[str, Probed]) -> str:
    last = list(probes)[-1]
    return (
        "The conclusion that the tasks do not conflict rested on a count that falls to under 0.5% "
        "after the first epoch. The target behind that count moves only when a gradient was "
        "altered, that is only towards cosines below itself. It starts at 0, so it can only sink, "
        "and ever fewer cosines lie below it: alterations die out whatever the tasks do. "
        f"Independent draws without any model show it. {findings.published(pieces['simulation'])} "
        f"{findings.rules(pieces['runs'])}\n\n"
        "The paper's rule does not measure conflict either: its target follows the mean, and about "
        "half of any sequence of cosines lies below its mean.\n\n"
        f"What holds instead: {_lower(findings.expectation(last, probes))} "
        f"{findings.resized(last, probes[last])} "
        f"{findings.scores(pieces['runs'])}"
    )


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def _budget(study: Mapping[str, Any]) -> str:
    options, about = study["options"], study["about"]
    record = next(iter(study["pieces"]["runs"]["sum"].values()))
    sizes = ", ".join(
        f"{task} {size['train']:,} and {size['dev']:,}" for task, size in record["sizes"].items()
    )
    drawn = options["probe_batches"] * options["batch_size"]
    hidden = ("command", "output", "jobs", "threads", "settings")
    settings = {k: v for k, v in options.items() if k not in hidden} | options["settings"]
    listed = ", ".join(f"{name} = {value}" for name, value in settings.items())
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    seen = (
        "\n\nall-MiniLM-L6-v2 has seen Quora's duplicate questions and other sentence pairs in its "
        "own training: its paraphrase and similarity scores are not clean, and those two tasks' "
        "gradients may be smaller and noisier than an encoder's that has not."
        if options["encoder"] == "minilm"
        else ""
    )
    return (
        f"```console\n{options['command']}\n```\n\n"
        f"Settings: {listed}. Training and dev examples: {sizes}. Every run takes "
        f"{options['epochs']} x {options['steps']:,} steps; the published one took 10 x 18,000. "
        f"Each probe draws {drawn:,} examples of every task, in {options['blocks']} blocks.\n\n"
        f"{about['date']}, {about['device']}, threads: {about['threads']}, {versions}.{seen}\n\n"
        "The page and its pictures are written from study.json and the files in pieces/ alone."
    )
