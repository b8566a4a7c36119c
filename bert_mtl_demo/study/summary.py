"""findings.md: what the studies found, in two screens, from all results and findings below it.

Question, method, result, limits, and the blocks that were run: how many seeds, and the standard
error that was aimed at and reached. What has not run yet is named as such.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from bert_mtl_demo.reporting import plots
from bert_mtl_demo.reporting.tables import cell, table
from bert_mtl_demo.store import atomic
from bert_mtl_demo.study.claims import (
    HOLDS,
    NOT_RUN,
    VERDICTS,
    Answer,
    Claim,
    answers_of,
    claim_test,
    read_outcomes,
    verdict,
)
from bert_mtl_demo.study.effects import MARGIN
from bert_mtl_demo.study.findings import Findings, read_findings
from bert_mtl_demo.study.intervals import MISSING, Interval
from bert_mtl_demo.study.outcomes import Outcomes
from bert_mtl_demo.study.papers import PAPERS
from bert_mtl_demo.training.progress import short

PAGE, PICTURES = "findings.md", "findings"
LATER = "not run yet"
POWERED = 2.8  # standard errors that a true difference must have to be seen with 80% power
Studies = Mapping[str, Sequence[Outcomes]]


@dataclass(frozen=True)
class Block:
    """A part of the study that is run by one command.

    Args:
        name, what: on the page.
        comparisons: what it is to decide, a claim in form.
        effect: the difference that it is to see, of comparisons for which none is published.
        seeds: planned.
        command: that runs it.
        stopped: what of it was stopped, and why; "" for nothing.
    """

    name: str
    what: str
    comparisons: Claim
    effect: float
    seeds: int
    command: str
    stopped: str


def read_blocks() -> list[Block]:
    """The blocks, in the file's order.

    >>> [block.name for block in read_blocks()][:3]
    ['A', 'B', 'C']
    """
    with Path(__file__).with_name("blocks.tsv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [
        Block(
            line["block"],
            line["what"],
            Claim(
                *(line["block"], line["paper"], line["what"], ""),
                tuple(claim_test(words) for words in line["tests"].split("; ")),
                "",
            ),
            float(line["effect"]),
            int(line["seeds"]),
            line["command"],
            line["stopped"],
        )
        for line in lines
    ]


def write_summary(directory: Path, claims: Mapping[Claim, Sequence[Answer]]) -> Path:
    """Write findings.md and its pictures into a directory; the page's path.

    Args:
        directory: whose results, and those below, are read.
        claims: the scoreboard's.
    """
    studies, findings = read_outcomes(directory), read_findings(directory)
    blocks = {block: answers_of(block.comparisons, studies, findings) for block in read_blocks()}
    pictures = _pictures(directory, claims, blocks, findings)
    sections = [
        "# Does gradient surgery pay? Five reports, run again with controls",
        f"**Question.** {_QUESTION}",
        f"**Method.** {_method(claims)}",
        "## Result\n\n" + _result(claims, blocks, findings),
        "\n\n".join(pictures),
        "## Limits\n\n" + _limits(claims, studies),
        "## Blocks\n\n" + _blocks(blocks),
        "Written by `python -m bert_mtl_demo.study claims`, as [the scoreboard](claims.md).",
    ]
    page = directory / PAGE
    with atomic(page) as unfinished:
        unfinished.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return page


_QUESTION = (
    "Five reports fine-tuned one BERT on sentiment, paraphrase and similarity, and explained what "
    "gradient surgery gained by the conflicts that it removes. Gradients of single batches are "
    "noisy, and their cosines negative in half of the cases whatever the tasks want. So is surgery "
    "more than a reweighting of the tasks by that noise, and do the tasks conflict at all?"
)


def _method(claims: Mapping[Claim, Sequence[Answer]]) -> str:
    rows = sum(len(paper.rows) for paper in PAPERS.values())
    added = sum(row.added for paper in PAPERS.values() for row in paper.rows)
    return (
        f"All {rows - added} rows of the reports are settings of one program, beside {added} rows "
        f"of ours, most of them controls. The {len(claims)} claims are judged by one rule: paired "
        "by seed and by example of dev, intervals of 95% over both, equivalence within "
        f"{short(MARGIN)} before the words `no effect`. Surgery is set "
        "against the plain sum on the same batches, and against a *sham*: PCGrad's weights of the "
        "step before, which are surgery's own in all but that they belong to another batch. What "
        "the tasks want of the encoder is asked of expected gradients, from products of "
        "independent batches."
    )


# --- results


def _result(
    claims: Mapping[Claim, Sequence[Answer]],
    blocks: Mapping[Block, Sequence[Answer]],
    findings: Findings,
) -> str:
    counts = Counter(verdict(answers) for answers in claims.values())
    board = ", ".join(f"{counts[name]} {name}" for name in VERDICTS)
    holding = [cell(claim.text) for claim, answers in claims.items() if verdict(answers) == HOLDS]
    points = [
        f"**The {len(claims)} claims**: {board}.",
        "**What holds**: " + ("; ".join(holding) if holding else "none so far") + ".",
        "**Surgery in pairs of tasks** (block B): " + _differences(blocks, "B"),
        "**Surgery among its controls** (block C): " + _differences(blocks, "C"),
        "**Conflicts**: " + _conflicts(findings),
    ]
    return "\n".join(f"- {point}" for point in points)


def _differences(blocks: Mapping[Block, Sequence[Answer]], name: str) -> str:
    known = [
        f"{_label(answer)} {answer.ours.difference.signed()} ({answer.ours.describe()})"
        for block, answers in blocks.items()
        for answer in answers
        if block.name == name and answer.ours is not None and answer.ours.difference.n
    ]
    return "; ".join(known) + "." if known else f"{LATER}."


def _label(answer: Answer) -> str:
    """The comparison as a few words."""
    test = answer.test
    if test.study:
        return cell(test.score)
    return cell(f"{test.row} - {test.control}, {test.score}" if test.control else test.row)


def _conflicts(findings: Findings) -> str:
    cosines = _cosines(findings)
    if not cosines:
        return f"{LATER}."
    told = [
        f"{name} {value.signed()}"
        for name, value in cosines.items()
        if value.low is not None and value.high is not None and not value.low <= 0 <= value.high
    ]
    few = findings.get("conflicts", {}).get("share of negative cosines")
    share = f" Of single batches' cosines {100 * few.mean:.0f}% are negative." if few else ""
    return (
        f"of {len(cosines)} expected cosines {len(told)} are told from 0"
        + (f" ({'; '.join(told)})" if told else "")
        + f".{share}"
    )


def _cosines(findings: Findings) -> dict[str, Interval]:
    """The expected cosines, what and when -> value.

    Those in Adam's metric, which is that of the runs, where they were probed; else all.
    """
    begin = "expected cosine of "
    cosines = {
        name.removeprefix(begin): value
        for quantities in findings.values()
        for name, value in quantities.items()
        if name.startswith(begin)
    }
    return {name: value for name, value in cosines.items() if "Adam's" in name} or cosines


# --- pictures


def _pictures(
    directory: Path,
    claims: Mapping[Claim, Sequence[Answer]],
    blocks: Mapping[Block, Sequence[Answer]],
    findings: Findings,
) -> list[str]:
    surgery = {
        _label(answer): answer.ours.difference
        for block, answers in blocks.items()
        for answer in answers
        if block.name in ("B", "C") and answer.ours is not None and answer.ours.difference.n
    }
    drawn: dict[str, tuple[str, Callable[[], Figure] | None]] = {
        "verdicts": ("The claims of each report by verdict.", lambda: _verdicts(claims)),
        "surgery": (
            "Surgery and its controls: differences in score with 95% intervals; one seed has none.",
            (lambda: _forest(surgery, "difference in score")) if surgery else None,
        ),
        "cosines": (
            "Cosines of expected gradients, with intervals that hold together in each study.",
            (lambda: _forest(_cosines(findings), "cosine")) if _cosines(findings) else None,
        ),
    }
    lines = []
    for name, (caption, draw) in drawn.items():
        if draw is None:
            lines.append(f"*{caption}* ({LATER})")
            continue
        (directory / PICTURES).mkdir(parents=True, exist_ok=True)
        path = plots.save(draw(), directory / PICTURES / f"{name}.png")
        lines.append(f"![{name}]({PICTURES}/{path.name})\n\n*{caption}*")
    return lines


def _verdicts(claims: Mapping[Claim, Sequence[Answer]]) -> Figure:
    papers = list(dict.fromkeys(claim.paper for claim in claims))
    figure, (axes,) = plots.new_panels([""], size=(7.5, 2.8), xlabel="claims")
    left = dict.fromkeys(papers, 0)
    for n, name in enumerate(VERDICTS):
        counts = Counter(c.paper for c, answers in claims.items() if verdict(answers) == name)
        widths = [counts[paper] for paper in papers]
        color = "lightgrey" if name == NOT_RUN else plots.COLORS[n % len(plots.COLORS)]
        axes.barh(papers, widths, left=[left[p] for p in papers], color=color, label=name)
        left = {paper: left[paper] + counts[paper] for paper in papers}
    axes.invert_yaxis()
    plots.legend(figure, columns=3)
    return figure


def _forest(values: Mapping[str, Interval], xlabel: str) -> Figure:
    """A point and its interval for each value, one below the other."""
    size = (7.5, 1.2 + 0.28 * len(values))
    figure, (axes,) = plots.new_panels([""], size=size, xlabel=xlabel)
    for n, value in enumerate(values.values()):
        axes.errorbar(value.mean, n, xerr=value.half, fmt="o", color=plots.COLORS[0], capsize=3)
    axes.set_yticks(range(len(values)), list(values), fontsize=8)
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.locator_params(axis="x", nbins=5)
    axes.invert_yaxis()
    return figure


# --- limits and blocks


def _limits(claims: Mapping[Claim, Sequence[Answer]], studies: Studies) -> str:
    waiting = sum(verdict(answers) == NOT_RUN for answers in claims.values())
    encoders = {
        result.settings.get("encoder", "minilm")
        for outcomes in studies.values()
        for study in outcomes
        for seeds in study.results.values()
        for result in seeds.values()
    }
    points = [
        f"{waiting} of {len(claims)} claims are {LATER}, and have no verdict.",
        *(
            [
                "The encoder is all-MiniLM-L6-v2, a fifth of the reports' BERT-base, in some "
                "blocks cut to three layers. It has seen Quora's duplicates and other pairs of "
                "sentences, so paraphrase and similarity are not clean, and a claim that leans on "
                "what BERT has not seen is not tested here."
            ]
            if "minilm" in encoders
            else []
        ),
        "Dev is the reports' own, on which their epochs were chosen too; labels of the test sets "
        "are not public.",
        "Intervals of different claims are not corrected for their number.",
    ]
    return "\n".join(f"- {point}" for point in points)


def _blocks(blocks: Mapping[Block, Sequence[Answer]]) -> str:
    rows = []
    for block, answers in blocks.items():
        known = [a.ours.difference for a in answers if a.ours is not None and a.ours.difference.n]
        rows.append(
            [
                *(block.name, cell(block.what), block.seeds),
                min(difference.n for difference in known) if known else LATER,
                "<br>".join(
                    f"{_label(answer)}: {short(_aim(answer, block))}, {_reached(answer)}"
                    for answer in answers
                ),
                cell(block.stopped) or MISSING,
            ]
        )
    heading = ["block", "what", "seeds planned", "seeds run", "error aimed at, reached", "stopped"]
    commands = "\n".join(f"{block.command}  # {block.name}" for block in blocks)
    return (
        f"{table(heading, rows)}\n\nThe standard error aimed at is that with which the published "
        "difference, or where there is none the one that the block is to see, is told from 0 with "
        f"80% power: the difference over {POWERED:g}. Of expected cosines, the seeds are the "
        f"blocks of examples in one run.\n\n```console\n{commands}\n```"
    )


def _aim(answer: Answer, block: Block) -> float:
    return (abs(answer.published or 0.0) or block.effect) / POWERED


def _reached(answer: Answer) -> str:
    error = answer.ours.difference.error if answer.ours is not None else None
    return MISSING if error is None else short(error)
