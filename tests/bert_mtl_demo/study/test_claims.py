"""The scoreboard on made-up results: every verdict by its rule, and only what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from bert_mtl_demo.study import claims
from bert_mtl_demo.study.__main__ import main
from bert_mtl_demo.study.claims import (
    VERDICTS,
    Answer,
    Claim,
    ClaimTest,
    answers_of,
    read_claims,
    verdict,
)
from bert_mtl_demo.study.collected import Collected, read_collected, write_collected
from bert_mtl_demo.study.findings import read_findings, share, write_findings
from bert_mtl_demo.study.intervals import Comparison, Interval, compare
from bert_mtl_demo.study.papers import PAPERS
from bert_mtl_demo.study.results import Epoch, Evaluation, Mistake, Result

NOISE = (0.001, -0.001, 0.0005, 0.0)
BIG = (0.02, -0.02, 0.01, 0.0)


def difference(mean: float, noise: Sequence[float] = NOISE) -> Comparison:
    """A comparison with that mean difference."""
    return compare({s: 0.5 + mean + e for s, e in enumerate(noise)}, dict.fromkeys(range(4), 0.5))


def answer(says: str, ours: Comparison | None, published: float | None = None) -> Answer:
    """A test's answer."""
    return Answer(ClaimTest("a", "b", "sst", says), published, 0.001, ours)


@pytest.mark.parametrize(
    ("says", "ours", "expected"),
    [
        ("more", difference(0.02), "holds"),
        ("less", difference(-0.02), "holds"),
        ("none", difference(0.0), "holds"),
        ("more", difference(-0.02), "does not hold"),
        ("less", difference(0.02), "does not hold"),
        ("more", difference(0.0), "does not hold"),  # shown to be below the margin
        ("none", difference(0.02), "does not hold"),
        ("more", difference(0.0, BIG), "cannot tell here"),
        ("none", difference(0.0, BIG), "cannot tell here"),
        ("none", difference(0.0, (0.0,) * 4), "cannot tell here"),  # identical: nothing was changed
        ("more", difference(0.02, (0.0,)), "cannot tell here"),  # one seed
        ("more", None, "not run"),
        ("more", compare({0: 0.5}, {1: 0.5}), "not run"),
    ],
)
def test_one_test_decides(says: str, ours: Comparison | None, expected: str) -> None:
    assert verdict([answer(says, ours)]) == expected


def test_several_tests_decide_together() -> None:
    holds, fails = answer("more", difference(0.02)), answer("more", difference(-0.02))
    unclear, not_run = answer("more", difference(0.0, BIG)), answer("more", None)
    assert verdict([holds, holds]) == "holds"
    assert verdict([holds, unclear, fails]) == "does not hold"
    assert verdict([holds, unclear]) == verdict([holds, not_run]) == "cannot tell here"
    assert verdict([not_run, not_run]) == verdict([]) == "not run"


@pytest.mark.parametrize(
    ("says", "published", "contradicted"),
    [
        *(("more", -0.004, True), ("more", -0.001, False), ("more", 0.02, False)),
        *(("less", 0.002, True), ("less", -0.1, False), ("none", 0.1, False)),
        *(("same", -0.023, True), ("same", 0.001, False), ("more", None, False)),
    ],
)
def test_the_reports_own_numbers_come_first(
    says: str, published: float | None, contradicted: bool
) -> None:
    ours = answer(says, difference(0.02), published)
    assert (verdict([ours]) == VERDICTS[3]) == contradicted


def test_every_test_names_rows_of_its_paper() -> None:
    found = read_claims()
    assert len(found) == len({claim.id for claim in found}) == 58
    for claim in found:
        assert claim.tests or claim.missing
        answers_of(claim, {})  # an unknown row is an error


def study(directory: Path, differences: dict[str, float]) -> None:
    """Results of the first report: sts of every row moved by that from the baseline's."""
    runs, rows = {}, {}
    for name, moved in differences.items():
        rows[name] = {seed: (f"{name} {seed}",) for seed in range(len(NOISE))}
        for seed, noise in enumerate(NOISE):
            sts = 0.4 + moved + seed / 100 + noise * (moved != 0)
            scores = {"sst": 0.5, "para": 0.7, "sts": sts}
            mistake = Mistake(3, ("a sentence",), "bad", "good", 1.0)
            dev = {"sst": Evaluation(0.5, ((1, 1), (1, 1)), mistakes=(mistake,))}
            local = {"data": "/home/somebody", "seed": seed}
            overall = sum(scores.values()) / 3
            (key,) = rows[name][seed]
            runs[key] = Result(scores, overall, overall, evaluation=dev, settings=local)
    write_collected(directory / "pals_gradvac.results.json", Collected(runs, rows))


def row_of(text: str, claim: str) -> list[str]:
    """The cells of a claim's row."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {claim} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_counts_and_shows_what_the_results_say(tmp_path: Path) -> None:
    moved = {"Naive multitask": 0.0, "Cosine similarity": 0.3, "Baseline (separate)": -0.3}
    study(tmp_path / "block", moved)
    assert main(["claims", "--output", str(tmp_path)]) == 0
    text = (tmp_path / "claims.md").read_text("utf-8")
    assert row_of(text, "P4")[2:6] == [
        "sts (Cosine similarity) +0.393",
        "sts (Cosine similarity) +.300 ± .001, differs",
        *(".002", "holds"),
    ]
    assert row_of(text, "P1")[5] == "does not hold"
    assert row_of(text, "P6")[5] == "cannot tell here"  # identical
    assert row_of(text, "P3")[3:6] == ["–", "–", "not run"]  # noqa: RUF001
    assert row_of(text, "S6")[5] == "contradicted by the report's own numbers"
    counts = dict(row.strip("| ").split(" | ") for row in text.splitlines()[4:9])
    assert [*counts] == list(VERDICTS)
    assert sum(map(int, counts.values())) == 58
    assert (counts["holds"], counts["does not hold"]) == ("1", "1")


def test_of_several_studies_the_one_with_most_seeds_answers(tmp_path: Path) -> None:
    study(tmp_path / "a", {"Naive multitask": 0.0, "PALs multitask": 0.1})
    study(tmp_path / "b", {"Naive multitask": 0.0, "Cosine similarity": 0.2})
    text = claims.write_claims(tmp_path).read_text("utf-8")
    assert [row_of(text, claim)[5] for claim in ("P3", "P4")] == ["holds", "holds"]


def test_collected_results_hold_no_sentence_and_no_directory(tmp_path: Path) -> None:
    study(tmp_path, {"Naive multitask": 0.0})
    path = tmp_path / "pals_gradvac.results.json"
    assert "sentence" not in path.read_text("utf-8")
    assert "somebody" not in path.read_text("utf-8")
    collected = read_collected(path)
    scores = collected.results()["Naive multitask"][1].scores
    assert scores["sts"] == pytest.approx(0.41)


def test_settings_of_runs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "--output", str(tmp_path), "--seeds", "0", "1"]) == 2
    assert "seeds with the study 'claims': it reads results" in capsys.readouterr().err


def test_results_of_no_paper_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.results.json").write_text("{}")
    assert main(["claims", "--output", str(tmp_path)]) == 2
    assert "'other', which is none of the papers" in capsys.readouterr().err


def test_the_committed_scoreboard_follows_from_the_committed_results(tmp_path: Path) -> None:
    directory = Path(__file__).parents[3] / "docs" / "study"
    for path in [*directory.rglob("*.results.json"), *directory.rglob("findings.json")]:
        copy = tmp_path / path.relative_to(directory)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    written = claims.write_claims(tmp_path).read_bytes()
    assert written == (directory / "claims.md").read_bytes()
    assert set(PAPERS) < {claim.paper for claim in read_claims()}


def test_a_claim_may_be_about_a_run_and_about_a_number(tmp_path: Path) -> None:
    """Over-fitting, times and epochs: a quantity against another row's, or against a number."""
    runs, rows = {}, {}
    for name, seconds, train in (
        ("multitask finetune", 10.0, 0.99),
        ("multitask + dropout .4", 30.0, 0.8),
    ):
        rows[name] = {seed: (f"{name} {seed}",) for seed in range(len(NOISE))}
        for seed, noise in enumerate(NOISE):
            scores = {"sst": 0.5, "para": 0.7, "sts": 0.4}
            noise *= seconds  # the two rows' own
            known = dict.fromkeys(scores, train + noise)
            epochs = (Epoch(1, 5, scores, 0.5, 0.5, {}), Epoch(2, 9, scores, 0.5, 0.5, known))
            runs[f"{name} {seed}"] = Result(
                scores, 0.5, 0.5, 2, epochs, seconds_per_epoch=seconds + noise
            )
    write_collected(tmp_path / "optimusbert.results.json", Collected(runs, rows))
    studies = claims.read_outcomes(tmp_path)

    def answer(*test: str) -> Answer:
        claim = Claim("x", "optimusbert", "", "", (ClaimTest(*test),), "")
        return answers_of(claim, studies)[0]

    dropout, plain = "multitask + dropout .4", "multitask finetune"
    assert answer(plain, "0.95", "train sst", "more").verdict == "holds"
    assert answer(dropout, "0.95", "train sst", "more").verdict == "does not hold"
    assert answer(dropout, plain, "gap para", "less").verdict == "holds"
    assert answer(dropout, plain, "seconds", "more").verdict == "holds"
    assert answer(dropout, plain, "best epoch", "more").verdict == "cannot tell here"
    assert answer(plain, "0.5", "gap para", "less").ours.difference.mean == pytest.approx(
        -0.21, 0.01
    )


# --- findings of the studies beside the demo

COMMITTED = Path(__file__).parents[3] / "docs" / "study"


@pytest.mark.parametrize(
    ("mean", "error", "expected"),
    [
        (0.52, 0.02, "does not hold"),
        (0.01, 0.01, "holds"),
        (0.06, 0.02, "cannot tell here"),
    ],
)
def test_a_finding_decides_as_a_difference_does(
    mean: float, error: float, expected: str, tmp_path: Path
) -> None:
    """P7: the share of conflicts and of alterations lies below 5%."""
    names = [test.score for claim in read_claims() if claim.id == "P7" for test in claim.tests]
    assert len(names) == 2
    value = Interval(mean, mean - 2 * error, mean + 2 * error, 9, error, 8)
    write_findings(tmp_path / "block", "conflicts", dict.fromkeys(names, value))
    text = claims.write_claims(tmp_path).read_text("utf-8")
    assert row_of(text, "P7")[5] == expected
    assert f"{names[0]} - 0.05 (conflicts study) " in row_of(text, "P7")[3]
    assert row_of(text, "P8")[5] == row_of(text, "A1")[5] == "not run"


def test_of_several_findings_the_one_on_most_values_counts(tmp_path: Path) -> None:
    for block, n in (("a", 3), ("b", 7), ("c", 5)):
        write_findings(tmp_path / block, "some", {"gain": Interval(n, n - 1, n + 1, n)})
    assert read_findings(tmp_path)["some"]["gain"].n == 7


def test_a_damaged_file_of_findings_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "findings.json").write_text('{"study": "some"}')
    assert main(["claims", "--output", str(tmp_path)]) == 2
    assert "findings.json: holds no findings" in capsys.readouterr().err


def test_every_finding_that_a_claim_asks_for_is_one_that_the_conflict_study_has() -> None:
    """A slip in a name would leave its claim "not run" for good."""
    asked = {
        test.score for claim in read_claims() for test in claim.tests if test.study == "conflicts"
    }
    assert len(asked) == 6
    assert asked <= set(read_findings(COMMITTED)["conflicts"])


def test_a_share_has_an_interval_within_0_and_1() -> None:
    for part in (0, 1, 5, 10):
        value = share(part, 10)
        assert 0 <= value.low <= value.mean <= value.high <= 1
        assert value.low < value.high


def test_a_test_score_below_a_constant_answer_contradicts_over_fitting() -> None:
    (claim,) = (claim for claim in read_claims() if claim.id == "P14")
    for printed in answers_of(claim, {}):
        assert printed.published == pytest.approx(-0.125, abs=0.002)
        assert 0.001 < printed.rounding < 0.01  # of 40,431 pairs
        assert printed.contradicted
