"""The report: right totals, a picture per log, and clear words for files that are no logs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from gradsurgery import ConflictLog, GradVac, report
from tests.gradsurgery.problems import linear_losses, vectors, wrap


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Two windows of one and two steps, in two segments."""
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = wrap([first, second], GradVac(), tasks=("a", "b"), grouping="tensor")
    writer = ConflictLog(tmp_path / "conflicts.jsonl")
    for step, rows in enumerate([[(1, 0), (-1, 1)], [(2, 0), (1, 1)], [(1, 0), (1, 0)]], start=1):
        losses = linear_losses([first, second], [2 * row for row in vectors(*rows)])
        optimizer.join(losses).backward()
        optimizer.zero_grad()
        if step != 2:
            writer.write(optimizer.conflicts, step=step, epoch=1)
    return writer.path


def test_totals_weigh_windows_by_their_steps(log: Path) -> None:
    total = report.totals(report.read([log]))[0]
    assert (total["i"], total["j"], total["possible"], total["conflicts"]) == ("a", "b", 6, 2)
    assert total["mean"] == pytest.approx(1 / 3)
    assert (total["min"], total["max"]) == pytest.approx((-(0.5**0.5), 1))


def test_the_table_has_a_row_for_each_pair(log: Path) -> None:
    text = report.table(report.read([log]))
    assert "| a <- b" in text
    assert "| b <- a" in text
    assert "2 (33.3%)" in text
    assert "3 steps" in text


def test_the_command_prints_and_draws(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(log), "--output", str(log.parent / "pictures")]) == 0
    assert "+0.3333" in capsys.readouterr().out
    for name in ("conflicts.png", "conflicts-segments.png"):
        assert (log.parent / "pictures" / name).read_bytes().startswith(b"\x89PNG")


def test_one_task_in_several_segments_has_a_picture(tmp_path: Path) -> None:
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = wrap([first, second], tasks=("a",), grouping="tensor")
    optimizer.join([first.sum() + second.sum()]).backward()
    writer = ConflictLog(tmp_path / "one.jsonl")
    writer.write(optimizer.conflicts, step=1)
    assert report.draw(report.read([writer.path]), tmp_path) == [tmp_path / "one.png"]


def test_without_matplotlib_there_is_a_table_and_a_hint(
    log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "gradsurgery._plots", raising=False)
    monkeypatch.delattr("gradsurgery._plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert report.main([str(log)]) == 0
    assert "pip install matplotlib" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no window"),
        ('{"schema": 1}\nnonsense\n', "conflicts.jsonl:2: not JSON: 'nonsense'"),
        ('{"schema": 2}\n', "conflicts.jsonl:1: not a conflict log line of schema 1"),
        ("[1]\n", "conflicts.jsonl:1: not a conflict log line"),
    ],
)
def test_files_that_are_no_logs(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "conflicts.jsonl"
    path.write_text(text)
    assert report.main([str(path)]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl" in capsys.readouterr().err


def test_a_line_cut_off_by_a_killed_process_is_passed_over(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with log.open("a") as file:
        file.write('{"schema": 1, "st')
    assert len(report.read([log])) == 2
    assert "unfinished last line" in capsys.readouterr().err


def test_alterations_without_a_meaning_are_left_blank(log: Path, tmp_path: Path) -> None:
    lines = report.read([log])
    for line in lines:
        line["gradients"]["altered"] = None
        for pair in (*line["pairs"], *(p for s in line["by_segment"] for p in s["pairs"])):
            pair["altered"] = None
    assert report.totals(lines)[0]["altered"] is None
    cells = [cell.strip() for cell in report.table(lines).splitlines()[2].split("|")]
    assert cells[3:7] == ["6", "2 (33.3%)", "", "+0.3333"]
    assert "3 steps, 6 gradients, mean change" in report.table(lines)
    assert [path.name for path in report.draw(lines, tmp_path)] == [
        "conflicts.png",
        "conflicts-segments.png",
    ]


def test_a_log_of_an_earlier_version_reads_as_it_did() -> None:
    path = Path(__file__).parents[2] / "docs/study/first-run/gradvac.jsonl"
    lines = report.read([path])
    total = report.totals(lines)[0]
    assert total == {
        "i": "sst",
        "j": "para",
        "possible": 300,
        "conflicts": 148,
        "altered": 148,
        "min": -0.06766460262542674,
        "max": 0.06689359645636293,
        "mean": 0.0004624747358606517,
        "target": total["target"],
    }
    assert report.table(lines).splitlines()[2] == (
        "| GradVac(beta=0.01, update='always') | sst <- para | 300      | 148 (49.3%) | "
        "148 (49.3%) | +0.0005 | -0.0677 | +0.0669 | +0.0014 |"
    )
