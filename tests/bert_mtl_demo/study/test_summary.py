"""findings.md from made-up results: every number from them, and what has not run is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from bert_mtl_demo.study.__main__ import main
from bert_mtl_demo.study.claims import answers_below, answers_of
from bert_mtl_demo.study.collected import Collected, write_collected
from bert_mtl_demo.study.findings import write_findings
from bert_mtl_demo.study.intervals import Interval
from bert_mtl_demo.study.papers import PAPERS
from bert_mtl_demo.study.results import Result
from bert_mtl_demo.study.summary import PICTURES, read_blocks, write_summary

COMMITTED = Path(__file__).parents[3] / "docs" / "study"


def text_of(directory: Path) -> str:
    assert main(["claims", "--output", str(directory)]) == 0
    return (directory / "findings.md").read_text("utf-8")


def block_of(text: str, name: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def pairs(directory: Path) -> None:
    """Block B with two seeds: PCGrad .02 above the sum in para, the sham as far."""
    moved = {"without PCGrad (table 4)": 0.0, "with PCGrad (table 4)": 0.02}
    runs, rows = {}, {}
    for pair in ("sst + para", "sts + para"):
        for what, gain in {**moved, "with sham surgery": 0.021}.items():
            row = f"{pair} {what}"
            rows[row] = {seed: (f"{row} {seed}",) for seed in range(2)}
            for seed in range(2):
                scores = {pair[:3]: 0.4, "para": 0.7 + gain + gain * seed / 100}
                runs[f"{row} {seed}"] = Result(scores, 0.5, 0.5)
    write_collected(directory / "bert_mastery.results.json", Collected(runs, rows))


def test_without_results_everything_is_said_not_to_have_run(tmp_path: Path) -> None:
    text = text_of(tmp_path)
    assert "- **Surgery in pairs of tasks** (block B): not run yet." in text
    assert "- **Conflicts**: not run yet." in text
    assert text.count("](findings/") == 1  # of three pictures one
    assert all(block_of(text, block.name)[3] == "not run yet" for block in read_blocks())


def test_the_page_says_what_the_results_say(tmp_path: Path) -> None:
    pairs(tmp_path / "table4")
    cosine = Interval(-0.16, -0.23, -0.09, 16, 0.03, 15)
    name = "expected cosine of sst/sts, after training, Adam's metric, seed 0"
    gain = Interval(0.001, -0.002, 0.004, 7, 0.0012, 6)
    write_findings(tmp_path / "c", "surgery", {name: cosine, "pcgrad - sum, mean": gain})
    text = text_of(tmp_path)
    assert (
        "sst + para with PCGrad (table 4) - sst + para without PCGrad (table 4), para +.020" in text
    )
    assert "(sst/sts, after training, Adam's metric, seed 0 -.160 ± .070)" in text
    assert "pcgrad - sum, mean +.001 ± .003 (no effect of .005 or more)" in text
    assert {path.stem for path in (tmp_path / PICTURES).iterdir()} == {
        *("verdicts", "surgery", "cosines")
    }
    assert block_of(text, "B")[3] == "2"
    first, *_ = block_of(text, "B")[4].split("<br>")
    assert first.endswith("para: .005, .000")  # +.014 published, over 2.8
    assert block_of(text, "E")[4].startswith(f"{name}: .055, .030")


def test_every_block_names_rows_of_its_paper_and_a_command_that_is_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for block in read_blocks():
        answers_of(block.comparisons, {})
        for test in block.comparisons.tests:
            if not test.study:
                row = PAPERS[block.comparisons.paper].row(test.row)
                assert f'"{row.name}"' in block.command or f" {row.name} " in block.command


def test_the_committed_page_follows_from_the_committed_results(tmp_path: Path) -> None:
    for path in [*COMMITTED.rglob("*.results.json"), *COMMITTED.rglob("findings.json")]:
        copy = tmp_path / path.relative_to(COMMITTED)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    written = write_summary(tmp_path, answers_below(tmp_path)).read_bytes()
    assert written == (COMMITTED / "findings.md").read_bytes()
