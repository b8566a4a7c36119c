"""The scoreboard: every claim of the five reports beside what was measured, with a verdict by rule.

A claim (claims.tsv) is a list of tests: a row against another in one score, and what the report
says of the difference: `more`, `less`, `none` or, of two prints of one run, `same`. What is no
difference of scores is a quantity of a study beside the demo (`findings`) against a number, in a
test whose row is `@STUDY`; and a printed test score against a number, in one whose row is `test:`
and a row. The rule is in `verdict`, and nothing on the page but the claims' wording is typed.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bert_mtl_demo.errors import CheckpointError
from bert_mtl_demo.reporting.tables import cell, table
from bert_mtl_demo.store import atomic
from bert_mtl_demo.study.collected import COLLECTED, read_collected
from bert_mtl_demo.study.effects import MARGIN
from bert_mtl_demo.study.findings import Findings, read_findings
from bert_mtl_demo.study.intervals import MISSING, Comparison
from bert_mtl_demo.study.outcomes import Outcomes
from bert_mtl_demo.study.papers import PAPERS
from bert_mtl_demo.study.published import Paper, Row
from bert_mtl_demo.study.tables import seen
from bert_mtl_demo.training.progress import short

PAGE = "claims.md"
PRINTED = "test: "  # before the row of a printed score on the test set
TEST_SIZES = {"sst": 2_210, "para": 40_431}  # examples, of the sets that are scored by accuracy
SAYS = ("more", "less", "none", "same")
VERDICTS = (
    "holds",
    "does not hold",
    "cannot tell here",
    "contradicted by the report's own numbers",
    "not run",
)
HOLDS, FAILS, OPEN, CONTRADICTED, NOT_RUN = VERDICTS


@dataclass(frozen=True)
class ClaimTest:
    """One comparison that a claim stands on.

    Args:
        row: of the paper; or `@` and a study whose findings have the quantity `score`; or `test: `
            and the row of a printed score on the test set.
        control: the row that it is compared with, or a number; "" for the row's own control, and
            there is no test as long as it has none.
        score: a task, `mean` or `leaderboard`, or another quantity of a run (`Result.value`).
        says: one of `SAYS`.
    """

    row: str
    control: str
    score: str
    says: str

    @property
    def study(self) -> str | None:
        """The study whose finding is tested, if it is no row that is."""
        return self.row[1:] if self.row.startswith("@") else None

    @property
    def number(self) -> float | None:
        """The number that the row is compared with, if it is no row."""
        try:
            return float(self.control)
        except ValueError:
            return None


@dataclass(frozen=True)
class Claim:
    """A claim: in our words, with the numbers that no row of the paper has, and what is missing."""

    id: str
    paper: str
    text: str
    published: str
    tests: tuple[ClaimTest, ...]
    missing: str


@dataclass(frozen=True)
class Answer:
    """A test's published difference, and ours if it was run."""

    test: ClaimTest
    published: float | None
    rounding: float  # of the published difference
    ours: Comparison | None

    @property
    def contradicted(self) -> bool:
        """Whether the printed numbers contradict the claim, by more than their rounding."""
        if self.published is None or self.test.says == "none":
            return False
        sign = {"more": -1, "less": 1}.get(self.test.says)
        wrong = abs(self.published) if sign is None else sign * self.published
        return wrong > self.rounding + 1e-9

    @property
    def verdict(self) -> str:
        """Of this test alone: holds, does not hold, cannot tell, or not run."""
        if self.ours is None or not self.ours.difference.n:
            return NOT_RUN
        if self.ours.identical or self.test.says == "same":
            return OPEN  # nothing was changed between the two rows
        apart, small = self.ours.differs, self.ours.negligible
        if self.test.says == "none":
            return HOLDS if small else FAILS if apart else OPEN
        if apart and (self.ours.difference.mean > 0) == (self.test.says == "more"):
            return HOLDS
        return FAILS if apart or small else OPEN


def verdict(answers: Sequence[Answer]) -> str:
    """The verdict on a claim from its tests: the first line that applies.

    1. Contradicted by the report's own numbers: a printed difference has the opposite sign of what
       the claim says, by more than rounding (of a test set, and more than its sampling error); or
       two prints of one run differ.
    2. Not run: no test has a result.
    3. Does not hold: a test's 95% interval lies on the other side of 0, or its difference is shown
       to be below the margin where the claim sees one, or outside 0 where it sees none.
    4. Holds: every test's does, as `more` or `less` by its interval, or as `none` by equivalence.
    5. Cannot tell here.

    >>> verdict([])
    'not run'
    """
    alone = [answer.verdict for answer in answers]
    if any(answer.contradicted for answer in answers):
        return CONTRADICTED
    if all(one == NOT_RUN for one in alone):
        return NOT_RUN
    if FAILS in alone:
        return FAILS
    return HOLDS if set(alone) == {HOLDS} else OPEN


def read_claims() -> list[Claim]:
    """The claims, in the file's order.

    >>> claims = read_claims()
    >>> len(claims), claims[3].tests[0].score
    (58, 'sts')
    """
    with Path(__file__).with_name("claims.tsv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [
        Claim(
            line["id"],
            line["paper"],
            line["claim"],
            line["published"],
            tuple(claim_test(words) for words in line["tests"].split("; ") if words),
            line["missing"],
        )
        for line in lines
    ]


def claim_test(words: str) -> ClaimTest:
    """A test from its words, `row | control | score | says`.

    >>> claim_test("a | b | sst | more").says
    'more'
    """
    row, control, score, says = (word.strip() for word in words.split("|"))
    if says not in SAYS:
        raise ValueError(f"{words!r}: says {says!r}; it is one of {', '.join(SAYS)}")
    return ClaimTest(row, control, score, says)


def read_outcomes(directory: Path) -> dict[str, list[Outcomes]]:
    """Paper -> the outcomes of each of its result files below a directory, in order of path."""
    outcomes: dict[str, list[Outcomes]] = {name: [] for name in PAPERS}
    for path in sorted(directory.rglob(f"*{COLLECTED}")):
        name = path.name[: -len(COLLECTED)]
        if name not in PAPERS:
            raise CheckpointError(f"{path}: holds results of {name!r}, which is none of the papers")
        paper, study = PAPERS[name], read_collected(path)
        outcomes[name].append(
            Outcomes(
                *(name, paper.rows, study.results(), paper.baseline, study.shared),
                coinciding=study.coinciding,
            )
        )
    return outcomes


def answers_of(
    claim: Claim, studies: Mapping[str, Sequence[Outcomes]], findings: Findings | None = None
) -> list[Answer]:
    """The tests' answers, each from the study with the most seeds of both of its rows."""
    answers = []
    for test in claim.tests:
        if test.study is not None:
            answers.append(Answer(test, None, 0.001, _finding(test, findings or {})))
            continue
        paper = PAPERS[claim.paper]
        if test.row.startswith(PRINTED):
            answers.append(_on_test(test, paper))
            continue
        row = paper.row(test.row)
        control: Row | float | None = test.number
        if control is None and (name := test.control or row.control):
            control = paper.row(name)
        best: Comparison | None = None
        for outcomes in studies.get(claim.paper, ()):
            comparison = _compared(outcomes, row, control, test.score)
            if comparison and (best is None or comparison.difference.n > best.difference.n):
                best = comparison
        answers.append(Answer(test, *_published(paper, row, control, test.score), best))
    return answers


def _finding(test: ClaimTest, findings: Findings) -> Comparison | None:
    """A quantity of a study minus the test's number; None as long as it was not measured."""
    value = findings.get(test.study or "", {}).get(test.score)
    number = test.number
    if number is None:
        raise ValueError(f"{test}: a finding is compared with a number, not {test.control!r}")
    if value is None:
        return None
    bounds = (None if bound is None else bound - number for bound in (value.low, value.high))
    low, high = bounds
    apart = replace(value, mean=value.mean - number, low=low, high=high)
    return Comparison(apart, None, identical=False)


def _on_test(test: ClaimTest, paper: Paper) -> Answer:
    """A printed score on the test set minus the test's number.

    It may miss the truth by rounding and by 1.96 standard errors of the set's examples.
    """
    name, number = test.row[len(PRINTED) :], test.number
    score = dict(paper.test_scores)[name][test.score]
    if number is None:
        raise ValueError(f"{test}: a printed score is compared with a number")
    error = 1.96 * math.sqrt(score * (1 - score) / TEST_SIZES[test.score])
    return Answer(test, round(score - number, 3), round(0.001 + error, 3), None)


def _compared(
    outcomes: Outcomes, row: Row, control: Row | float | None, score: str
) -> Comparison | None:
    if control is None:
        return None
    if not isinstance(control, Row):
        return outcomes.compare_with(row, control, score)
    return None if outcomes.same_design(row, control) else outcomes.compare(row, control, score)


def _published(
    paper: Paper, row: Row, control: Row | float | None, score: str
) -> tuple[float | None, float]:
    """The difference that the report prints, and how far rounding can move it."""
    printed = [r.published[score] for r in paper.rows if score in r.published]
    digits = max((len(repr(value).partition(".")[2]) for value in printed), default=3)
    if not isinstance(control, Row) or not {score} <= row.published.keys() & control.published:
        return None, 10.0**-digits
    return round(row.published[score] - control.published[score], digits), 10.0**-digits


def answers_below(directory: Path) -> dict[Claim, list[Answer]]:
    """Every claim's answers, from all results and findings in a directory and below."""
    studies, findings = read_outcomes(directory), read_findings(directory)
    return {claim: answers_of(claim, studies, findings) for claim in read_claims()}


def write_claims(directory: Path) -> Path:
    """Write claims.md into a directory, from the result files in it and below; the page's path."""
    answers = answers_below(directory)
    verdicts = {claim: verdict(found) for claim, found in answers.items()}
    counts = Counter(verdicts.values())
    sections = [
        "# What the five reports claim, and what holds",
        table(["verdict", "claims"], [[name, counts[name]] for name in VERDICTS]),
        f"{len(answers)} claims. {_RULE}",
    ]
    for paper in dict.fromkeys(claim.paper for claim in answers):
        rows = [
            [
                *(claim.id, cell(claim.text), _printed(claim, found), _ours(found)),
                *("<br>".join(_seen(answer) for answer in found) or MISSING, verdicts[claim]),
                cell(claim.missing),
            ]
            for claim, found in answers.items()
            if claim.paper == paper
        ]
        title = PAPERS[paper].title if paper in PAPERS else "All five"
        heading = ["", "claim", "published", "ours", "could have seen", "verdict", "what it lacks"]
        sections.append(f"## {title}\n\n{table(heading, rows)}")
    directory.mkdir(parents=True, exist_ok=True)
    page = directory / PAGE
    with atomic(page) as unfinished:
        unfinished.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return page


_RULE = (
    "Ours are differences of two rows, paired by seed and by example of dev, with 95% intervals, "
    "or a quantity of a study beside the reports minus a number (cosines judged together, shares "
    "with Wilson's interval); `could have seen` is the smallest true difference that would have "
    "been told from 0 with 80% power. The verdict is the first of these that applies. "
    "*Contradicted by the report's own numbers*: a printed difference has the opposite sign of "
    "what the claim says, by more than rounding (on a test set, rounding and sampling error), or "
    "two prints of one run differ. *Not run*: no test has a result. *Does not hold*: in a test, "
    "the interval lies on the other side of 0, or the difference is shown to be below "
    f"{short(MARGIN)} (two one-sided tests) where the claim sees one, or excludes 0 where it sees "
    "none. *Holds*: every test does, by its interval, or by equivalence where the claim sees no "
    "difference. Else *cannot tell here*. Written by `python -m bert_mtl_demo.study claims`."
)


def _printed(claim: Claim, answers: Sequence[Answer]) -> str:
    differences = [
        f"{_name(answer.test)} {answer.published:+.{_digits(answer)}f}"
        for answer in answers
        if answer.published is not None
    ]
    return "<br>".join([*([cell(claim.published)] if claim.published else []), *differences]) or (
        "no numbers"
    )


def _digits(answer: Answer) -> int:
    return max(3, round(-math.log10(answer.rounding)))


def _name(test: ClaimTest) -> str:
    number = f" - {test.control}" if test.number else ""
    source = f"{test.study} study" if test.study else test.row
    return f"{test.score}{number} ({cell(source)})"


def _ours(answers: Sequence[Answer]) -> str:
    run = [a for a in answers if a.ours is not None and a.ours.difference.n]
    return (
        "<br>".join(
            f"{_name(a.test)} {a.ours.difference.signed()}, {a.ours.describe()}"
            for a in run
            if a.ours
        )
        or MISSING
    )


def _seen(answer: Answer) -> str:
    return MISSING if answer.ours is None else seen(answer.ours.difference)
