"""surgery.md: the factorial's page, written from its pieces alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert_mtl_demo.reporting import plots
from bert_mtl_demo.reporting.tables import table
from bert_mtl_demo.study.findings import write_findings
from bert_mtl_demo.study.intervals import MISSING, Comparison, Interval, holm, interval
from bert_mtl_demo.study.outcomes import Outcomes
from bert_mtl_demo.study.published import Row
from bert_mtl_demo.study.results import Result
from bert_mtl_demo.study.tables import seen
from bert_mtl_demo.training.progress import short
from research.surgery import expected, figures
from research.surgery.arms import CONTROL
from research.surgery.count_law import expected_alterations
from research.surgery.records import by_task
from research.surgery.study import PUBLISHED_STEPS, load

PAGE = "surgery.md"
PUBLISHED = 2_000  # alterations of the first epoch, in the published run; of 54,000 gradients
PUBLISHED_LATER = 0.005  # the share that every later epoch stayed below

WHAT = {
    CONTROL: "the plain sum",
    "pcgrad": "Yu et al. 2020",
    "gradvac, always": "Wang et al. 2020, targets that follow every cosine",
    "gradvac, on_alter": "the same, targets that move only where they altered",
    "sham": "PCGrad's weights of the step before: another batch's",
    "fixed weights": "1 + s / sqrt(2 pi) sum of lengths of the others over its own, from running "
    "means: what PCGrad gives to pure noise",
    "equal norms": "all gradients stretched to their mean length",
    "denoised pcgrad": "PCGrad on the running mean of each pair's cosine",
}

Runs = Mapping[str, Mapping[str, Any]]  # arm -> seed -> record


def write(directory: Path) -> Path:
    """Write surgery.md and its pictures into the folder of a study that was run."""
    study = load(directory)
    pieces = study["pieces"]
    runs, replays = pieces["runs"], pieces["replays"]
    probes = pieces.get("probes", {})
    drawn = {"weights": figures.weights(runs), "count_law": figures.counts(replays)}
    pictures = {
        name: f"![{name.replace('_', ' ')}]({plots.save(figure, directory / f'{name}.png').name})"
        for name, figure in drawn.items()
    }
    sections = [
        "# Is gradient surgery more than a reweighting by noise?\n\n" + _question(),
        "## The answer\n\n" + _answer(runs, replays),
        "## The arms\n\n" + table(["arm", "what it is"], WHAT.items()),
        "## Mean weights\n\n" + _weights(runs) + "\n\n" + pictures["weights"],
        "## Scores\n\n" + _scores(runs),
        "## Where the tasks conflict\n\n" + expected.section(probes),
        "## The count law\n\n" + _law(replays) + "\n\n" + pictures["count_law"],
        "## The published counts\n\n" + _published(pieces["published size"]),
        "## Budget, and how to repeat it\n\n" + _budget(study),
    ]
    write_findings(directory, "surgery", {**quantities(runs), **expected.quantities(probes)})
    path = directory / PAGE
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return path


def _question() -> str:
    return (
        "PCGrad projects a task's gradient off those that it conflicts with. The cosines of single "
        "batches are mostly noise, and on noise surgery is a reweighting: a cosine from "
        "N(0, s^2) gives task j, in the mean, the weight 1 + s / sqrt(2 pi) times the sum of "
        "|g_i| / |g_j| over the others. So surgery is compared here with shams that keep its "
        "weights and lose its knowledge of the batch, and with weights that know nothing of "
        "conflicts at all."
    )


# --- findings


def outcomes_of(runs: Runs) -> Outcomes:
    """The arms as rows of a report, so that they are compared as its rows are."""
    rows = [Row("surgery", arm, "", {}) for arm in runs]
    results = {
        arm: {int(seed): _result(record) for seed, record in records.items()}
        for arm, records in runs.items()
    }
    return Outcomes("surgery", rows, results, CONTROL)


def _result(record: Mapping[str, Any]) -> Result:
    scores = dict(record["scores"])
    overall = {name: scores.pop(name) for name in ("mean", "leaderboard")}
    evaluation = record.get("evaluation")  # older records keep no answers
    return Result.from_dict({"scores": scores, **overall, "evaluation": evaluation})


def comparisons(runs: Runs, control: str = CONTROL) -> dict[str, dict[str, Comparison]]:
    """Arm -> score name -> the arm against the control, paired by seed and by example of dev."""
    outcomes = outcomes_of(runs)
    rows = {row.name: row for row in outcomes.rows}
    return {
        arm: {name: outcomes.compare(row, rows[control], name) for name in _names(runs)}
        for arm, row in rows.items()
        if arm != control
    }


def _names(runs: Runs) -> list[str]:
    return list(next(iter(runs[CONTROL].values()))["scores"])


def quantities(runs: Runs) -> dict[str, Interval]:
    """Differences of scores between the arms, for the scoreboard: name -> value."""
    pairs = [(arm, CONTROL) for arm in runs if arm != CONTROL]
    pairs += [("pcgrad", arm) for arm in ("sham", "fixed weights", "equal norms")]
    return {
        f"{arm} - {control}, {name}": comparison.difference
        for arm, control in pairs
        for name, comparison in comparisons(runs, control)[arm].items()
    }


def weights_of(records: Mapping[str, Any], name: str) -> dict[str, Interval]:
    """Task -> the interval over seeds of its mean weight (`weights`) or the noise's (`noise`)."""
    rows = [by_task(record[name], record["scores"]) for record in records.values()]
    return {task: interval([row[task] for row in rows]) for task in rows[0]}


def beyond_noise(records: Mapping[str, Any]) -> dict[str, Interval]:
    """Task -> the interval over seeds of its mean weight minus the noise's."""
    weights, noise = (
        [by_task(record[name], record["scores"]) for record in records.values()]
        for name in ("weights", "noise")
    )
    return {
        task: interval(
            [here[task] - there[task] for here, there in zip(weights, noise, strict=True)]
        )
        for task in weights[0]
    }


def moved(runs: Runs, arm: str) -> float:
    """Root mean square, over seeds and tasks, of the difference in score to the plain sum."""
    squares = [
        (record["scores"][task] - runs[CONTROL][seed]["scores"][task]) ** 2
        for seed, record in runs[arm].items()
        for task in by_task(record["weights"], record["scores"])
    ]
    return float((sum(squares) / len(squares)) ** 0.5)


# --- sections


def _answer(runs: Runs, replays: Mapping[str, Any]) -> str:
    weights, noise = (weights_of(runs["pcgrad"], name) for name in ("weights", "noise"))
    listed = ", ".join(
        f"{task} {weights[task].mean:.3f} ({noise[task].mean:.3f}, difference {_apart(value)})"
        for task, value in beyond_noise(runs["pcgrad"]).items()
    )
    compared = comparisons(runs)
    means = {arm: scores["mean"] for arm, scores in compared.items()}
    kept = holm([comparison.p for comparison in means.values()])
    different = [arm for arm, rejected in zip(means, kept, strict=True) if rejected]
    could = seen(means["pcgrad"].difference)
    shares = [record["fixed"] for record in runs["pcgrad"].values() if record["fixed"] is not None]
    points = [
        f"PCGrad's mean weights, and in brackets what pure noise of the same spread predicts: "
        f"{listed}.",
        f"The mean weights alone make {_percent(interval(shares))} of the squared change that "
        "PCGrad makes to the update.",
        f"Score differences to the plain sum, root mean square over tasks and seeds: PCGrad "
        f"{short(moved(runs, 'pcgrad'))}, sham {short(moved(runs, 'sham'))}, fixed weights "
        f"{short(moved(runs, 'fixed weights'))}, equal norms {short(moved(runs, 'equal norms'))}.",
        f"Mean score, against the plain sum, Holm over {len(means)} arms: "
        + (f"{', '.join(different)} differ." if different else "no arm differs."),
        "What PCGrad's mean score could have shown with 80% power: "
        + ("nothing, with one seed." if could == MISSING else f"a difference of {could}."),
        _law_sentence(replays),
    ]
    return "\n".join(f"- {point}" for point in points)


def _weights(runs: Runs) -> str:
    tasks = list(weights_of(runs[CONTROL], "weights"))
    rows = []
    for arm, records in runs.items():
        weights, noise = (weights_of(records, name) for name in ("weights", "noise"))
        apart = beyond_noise(records)
        shares = [record["fixed"] for record in records.values() if record["fixed"] is not None]
        rows.append(
            [
                arm,
                *(
                    f"{_three(weights[task])}<br>{noise[task].mean:.3f}<br>{_apart(apart[task])}"
                    for task in tasks
                ),
                _percent(interval(shares)),
                _percent(interval([record["change"] for record in records.values()])),
            ]
        )
    return (
        "Mean weight of each task's gradient over the steps of a run, with its 95% interval over "
        "seeds; below it, what PCGrad would give in the mean if the cosines had the spread that "
        "they had in that run, and mean 0, and the difference of the two by seed. `fixed` is the "
        "part of the squared change of the update that the mean weights alone make; `change` is "
        "the length of (update - plain sum) over that of the plain "
        f"sum) over that of the plain sum.\n\n{table(['arm', *tasks, 'fixed', 'change'], rows)}"
    )


def _three(value: Interval) -> str:
    return f"{value.mean:.3f}" + ("" if value.half is None else f" ± {value.half:.3f}")


def _apart(value: Interval) -> str:
    margin = "" if value.half is None else f" ± {value.half:.3f}"
    return f"{value.mean:+.3f}{margin}"


def _percent(value: Interval) -> str:
    if value.n == 0:
        return MISSING
    return f"{100 * value.mean:.1f}%" + ("" if value.half is None else f" ± {100 * value.half:.1f}")


def _scores(runs: Runs) -> str:
    names, outcomes = _names(runs), outcomes_of(runs)
    rows = [
        [row.name, *(str(outcomes.interval(row, name)) for name in names)] for row in outcomes.rows
    ]
    answers = all("evaluation" in record for seeds in runs.values() for record in seeds.values())
    over = "seeds and dev's examples" if answers else "seeds alone, as answers were not kept"
    return (
        f"Dev scores at the end, {len(runs[CONTROL])} seeds, with 95% intervals over {over}.\n\n"
        f"{table(['arm', *names], rows)}\n\n"
        f"{_differences(runs, CONTROL)}\n\n"
        "The same with the sham in the place of the plain sum: what is left of surgery where its "
        f"weights are the same, and only belong to this batch.\n\n{_differences(runs, 'sham')}"
    )


def _differences(runs: Runs, control: str) -> str:
    names, compared = _names(runs), comparisons(runs, control)
    rejected = {name: holm([scores[name].p for scores in compared.values()]) for name in names}
    rows = [
        [
            arm,
            *(
                f"{scores[name].difference.signed()}{' *' if rejected[name][n] else ''}<br>"
                f"{scores[name].describe()}<br>{seen(scores[name].difference)}"
                for name in names
            ),
        ]
        for n, (arm, scores) in enumerate(compared.items())
    ]
    return (
        f"Differences to {control!r} with the same seed, which has the same batches and initial "
        "heads; below each what may be said of it (`no effect` is two one-sided tests at 5%), and "
        "the smallest true difference that could have been seen with 80% power. An asterisk: it "
        f"holds after Holm's correction over the arms.\n\n{table(['arm', *names], rows)}"
    )


def _expected(replays: Mapping[str, Any], beta: str, epoch: int) -> float:
    return expected_alterations(
        epoch,
        beta=float(beta),
        pairs=replays["pairs"],
        steps=replays["steps"],
        start=replays["start"],
    )


def _law(replays: Mapping[str, Any]) -> str:
    epochs = range(1, len(next(iter(replays["counts"].values()))) + 1)
    rows = []
    for beta, counts in replays["counts"].items():
        limit = [
            expected_alterations(epoch, beta=float(beta), pairs=replays["pairs"])
            for epoch in epochs
            if epoch > 1
        ]
        rows += [
            [beta, "replayed", *(f"{count:,}" for count in counts)],
            ["", "law", *(f"{_expected(replays, beta, epoch):,.0f}" for epoch in epochs)],
            ["", "law, many steps", MISSING, *(f"{count:,.0f}" for count in limit)],
        ]
    possible = replays["steps"] * replays["pairs"]
    return (
        "The copied rule moves a target only where it altered, so targets only sink. For a lower "
        "tail that falls off exponentially the probability of an alteration after n steps is "
        "p / (1 + beta p n), p that of the first step, whatever the cosines' mean and spread. An "
        "epoch e of N steps then has pairs / beta ln((1 + beta p N e) / (1 + beta p N (e - 1))) "
        "alterations, and with many steps pairs / beta ln(e / (e - 1)). A normal tail has up to "
        "1.57 times as many, and less the further the target has sunk.\n\n"
        "One run of the plain sum was logged step by step and given to GradVac again, with several "
        f"rates beta of its targets. Alterations of each epoch, of {possible:,} possible:\n\n"
        f"{table(['beta', '', *(f'epoch {epoch}' for epoch in epochs)], rows)}"
    )


def _law_sentence(replays: Mapping[str, Any]) -> str:
    parts = []
    for beta, counts in replays["counts"].items():
        expected = sum(_expected(replays, beta, epoch) for epoch in range(1, len(counts) + 1))
        parts.append(f"{sum(counts):,} with beta = {beta} (law: {expected:,.0f})")
    return f"Under the copied rule the same gradients are altered {', '.join(parts)} times."


def _published(simulated: Mapping[str, Any]) -> str:
    rows, ratios = [], {}
    for beta, counts in simulated.items():
        for pairs, name in ((6, "ordered pairs"), (3, "unordered pairs")):
            first, second = (
                expected_alterations(epoch, beta=float(beta), pairs=pairs, steps=PUBLISHED_STEPS)
                for epoch in (1, 2)
            )
            drawn = [count * pairs / counts["pairs"] for count in counts["on_alter"][:2]]
            possible = 3 * PUBLISHED_STEPS
            later = drawn[1] / possible
            if later < PUBLISHED_LATER:
                ratios[f"beta = {beta} and {name}"] = max(drawn[0], 1) / PUBLISHED
            rows.append(
                [
                    *(beta, name, f"{first:,.0f}", f"{drawn[0]:,.0f}"),
                    *(f"{second:,.0f}", f"{drawn[1]:,.0f}", f"{100 * later:.2f}%"),
                ]
            )
    nearest = min(ratios, key=lambda name: max(ratios[name], 1 / ratios[name]), default=None)
    verdict = (
        "None of these gives under 0.5% in the second epoch."
        if nearest is None
        else f"Of those that give under 0.5%, {nearest} come nearest to the published "
        f"{PUBLISHED:,}, at {ratios[nearest]:.2f} times as many."
    )
    heading = ["beta", "counted", "1: law", "1: normal", "2: law", "2: normal", "2: of 54,000"]
    return (
        f"Published: {PUBLISHED:,} alterations of 54,000 gradients in the first epoch of "
        f"{PUBLISHED_STEPS:,} steps, and under 0.5% in each later one. Below, alterations in "
        "epochs 1 and 2 by the law, and of independent normal cosines of mean 0, without any "
        f"model. {verdict}\n\n{table(heading, rows)}"
    )


def _budget(study: Mapping[str, Any]) -> str:
    options, about = study["options"], study["about"]
    record = next(iter(study["pieces"]["runs"][CONTROL].values()))
    sizes = ", ".join(
        f"{task} {size['train']:,} and {size['dev']:,}" for task, size in record["sizes"].items()
    )
    settings = {k: v for k, v in options.items() if k not in ("command", "settings")}
    listed = ", ".join(f"{k} = {v}" for k, v in {**settings, **options["settings"]}.items())
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    clean = (
        "\n\nall-MiniLM-L6-v2 has seen Quora's duplicate questions and other sentence pairs in its "
        "own training: its paraphrase and similarity scores are not clean."
        if options["encoder"] == "minilm"
        else ""
    )
    return (
        f"```console\n{options['command']}\n```\n\n"
        f"Settings: {listed}. Training and dev examples: {sizes}.\n\n"
        f"{about['date']}, {about['device']}, threads: {about['threads']}, {versions}.{clean}\n\n"
        "The page and its pictures are written from pieces.json beside it alone."
    )
