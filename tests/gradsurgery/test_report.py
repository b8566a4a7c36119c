"""The report: right totals, a picture per log, and clear words for files that are no logs."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gradsurgery import ConflictLog, GradVac, SurgeryWarning, report
from gradsurgery._thinning import add_up
from gradsurgery.evidence import Evidence, sentence
from gradsurgery.summary import pair_names, ranked
from tests.gradsurgery.problems import linear_losses, vectors, wrap
from tests.gradsurgery.test_log import window, write

#: Each does something else to a terminal, a table, a page or a picture.
NAMES = (
    "\x1b[31mred",
    "a|b",
    "<script>x</script>",
    "[x](http://y)",
    "$x^$",
    "_a",
    "数据",
    "\ud800",
)


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
        ("nonsense\n", "conflicts.jsonl:1: not JSON: 'nonsense'"),
        ('{"schema": 1}\n', "conflicts.jsonl:1: not a conflict log line: "),
        ("[" * 100_000 + "\n", "conflicts.jsonl:1: not JSON: '["),
        ('{"schema": ' + "9" * 5000 + "}\n", "conflicts.jsonl:1: not JSON: '{"),
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
    with pytest.warns(SurgeryWarning, match="conflicts.jsonl:3: passed over a line that was cut"):
        assert len(report.read([log])) == 2
    assert report.main([str(log)]) == 0
    assert "note: " in capsys.readouterr().err


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


def command(
    *words: str, encoding: str = "utf-8", **settings: Any
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONWARNINGS": "error"}
    line = [sys.executable, "-m", "gradsurgery.report", *words]
    settings = {"stdout": subprocess.PIPE, **settings}
    return subprocess.run(line, stderr=subprocess.PIPE, text=True, env=environment, **settings)


def test_logs_of_one_name_have_pictures_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / folder / "conflicts.jsonl" for folder in ("a", "b", "c/a")]
    for path in paths:
        write(ConflictLog(path), 10)
    assert report.main(list(map(str, paths))) == 0
    assert all(path.with_suffix(".png").exists() for path in paths)
    assert report.main([*map(str, paths), "--output", str(tmp_path / "all")]) == 0
    names = {path.name for path in (tmp_path / "all").iterdir()}
    assert names == {"conflicts.png", "b-conflicts.png", "a-conflicts.png"}
    assert "all/b-conflicts.png" in capsys.readouterr().out


def test_a_run_folder_is_its_log(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(log.parent)]) == 0
    assert "3 steps" in capsys.readouterr().out
    (log.parent / "empty").mkdir()
    assert report.main([str(log.parent / "empty")]) == 2
    assert "empty/conflicts.jsonl" in capsys.readouterr().err


def test_a_log_named_twice_is_read_once(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(log), str(log.parent)]) == 0
    out, err = capsys.readouterr()
    assert ": 3 steps" in out
    assert "named twice" in err


def test_runs_of_one_log_have_pictures_of_their_own(tmp_path: Path) -> None:
    for _ in range(2):
        write(ConflictLog(tmp_path / "c.jsonl"), 10)
    with pytest.warns(SurgeryWarning, match="2 runs"):
        files = report.draw(report.read([tmp_path / "c.jsonl"]), tmp_path)
    assert len(set(files)) == 2


def test_an_output_that_cannot_be_made_is_found_before_the_work(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (log.parent / "file").touch()
    assert report.main([str(log), "--output", str(log.parent / "file")]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert str(log.parent / "file") in err


def test_pictures_that_cannot_be_written_are_an_error(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (log.parent / "conflicts.png").mkdir()
    assert report.main([str(log)]) == 2
    out, err = capsys.readouterr()
    assert "a <- b" in out
    assert err.startswith("error: ")


@pytest.mark.parametrize("text", [b"\xef\xbb\xbf%s", b"\n%s\n\n", b"  %s", b"%s\r\n"])
def test_marks_and_blank_lines_of_editors_are_passed_over(text: bytes, log: Path) -> None:
    lines = report.read([log])
    log.write_bytes(text % log.read_bytes())
    assert report.read([log]) == lines


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_other_encodings_are_named_with_their_file(encoding: str, log: Path) -> None:
    log.write_bytes(log.read_text().replace("GradVac", "\xe9").encode(encoding))
    with pytest.raises(ValueError, match=r"conflicts.jsonl(: is UTF-16|:1: not (JSON|UTF-8))"):
        report.read([log])


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_reach_neither_terminal_nor_page_raw(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    write(ConflictLog(path), 100, steps=100, tasks=NAMES)
    done = command(str(path), "--all-pairs", encoding=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\x1b\\[31mred" in done.stdout
    assert "\x1b" not in done.stdout
    assert "<script>" not in done.stdout
    assert "a\\|b <- " in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith("| PCGrad")]
    assert {row.replace("\\|", "").count("|") for row in rows} == {10}
    assert "Verdict: " in done.stdout


def test_a_closed_pipe_and_a_full_disk_end_in_no_traceback(log: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = command(str(log), stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
    assert log.with_suffix(".png").exists()
    if Path("/dev/full").exists():
        with Path("/dev/full").open("w") as full:
            done = command(str(log), stdout=full)
        assert done.returncode == 2
        assert done.stderr.splitlines() == ["error: [Errno 28] No space left on device"]


def test_the_pairs_that_matter_come_first_and_the_rest_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = tuple(f"t{n}" for n in range(12))
    path = tmp_path / "c.jsonl"
    write(ConflictLog(path), 10, 20, steps=10, tasks=tasks)
    lines = report.read([path])
    for line in lines:
        for pair in line["pairs"]:
            if {pair["i"], pair["j"]} == {"t10", "t11"}:
                pair["cosine"] = {"mean": -0.9, "min": -1.0, "max": -0.8}
    text = report.table(lines)
    rows = [row for row in text.splitlines() if row.startswith("| PCGrad")]
    assert len(rows) == 40
    assert "t10 <- t11" in rows[0]
    assert "t11 <- t10" in rows[1]
    assert "Listed are 20 of 66 pairs" in text
    assert len(report.table(lines, pairs=None).splitlines()) == 2 + 132 + 2
    assert report.judgement(lines).count("\n- ") == 20
    assert report.judgement(lines, pairs=None).count("\n- ") == 66
    assert report.main([str(path), "--all-pairs"]) == 0
    assert capsys.readouterr().out.count("| PCGrad") == 132


def test_evidence_of_conflict_comes_before_low_cosines() -> None:
    sure = report.PairCounts(
        100, 100, 0, -10, evidence=sum([Evidence.of_batch([-0.1] * 10)] * 10, Evidence())
    )
    few = report.PairCounts(1, 1, 0, -0.9, evidence=Evidence.of_batch([-0.9]))
    assert ranked({("a", "b"): few, ("a", "c"): sure}) == [("a", "c"), ("a", "b")]


@pytest.mark.parametrize("count", [1, 3, 5, 12])
def test_pictures_of_any_number_of_tasks(count: int, tmp_path: Path) -> None:
    tasks = tuple(NAMES[n] if n < len(NAMES) else f"t{n}" for n in range(count))
    write(ConflictLog(tmp_path / "c.jsonl"), 10, 20, tasks=tasks)
    files = report.draw(report.read([tmp_path / "c.jsonl"]), tmp_path)
    assert [file.name for file in files] == ["c.png", "c-pairs.png"][: 1 + (count > 4)]
    for file in files:
        height, width = matplotlib.image.imread(file).shape[:2]
        assert max(height, width) < 3000


def test_a_long_log_is_read_into_windows_that_add_up_to_the_same(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    write(ConflictLog(path), *range(3, 3001, 3), steps=3)
    lines = report.read([path])
    fewer, _ = report._read([path], 20)
    assert len(lines) == 1000
    assert len(fewer) <= 20
    for total in (report.gradient_totals, report.table, report.judgement):
        assert total(fewer) == total(lines)
    assert report.mean_change(fewer) == pytest.approx(report.mean_change(lines))


def test_windows_without_a_change_do_not_weigh_in_what_was_added_up(log: Path) -> None:
    lines = report.read([log])
    lines[0]["change"] = {"mean": None, "max": None}
    total = add_up(lines)
    assert report.mean_change([total]) == report.mean_change(lines)
    assert report.mean_change([total, *lines]) == report.mean_change(lines)


def test_names_that_join_to_one_are_told_apart(tmp_path: Path) -> None:
    tasks = ("en", "de-fr", "en-de", "fr")
    statistics = window(10, tasks)
    names = [name for name in statistics.scalars() if "/cosine/" in name]
    assert len(names) == 6
    assert {"surgery/cosine/en-fr", "surgery/cosine/en-de-fr.0-1"} < set(names)
    slashed = window(10, ("a/b", "c", "a", "b/c"))
    line = ConflictLog(tmp_path / "c.jsonl").write(slashed, step=10)
    assert len(report.evidence([line])) == 6


@given(st.lists(st.text("ab-.01", min_size=1, max_size=6), unique=True, min_size=2, max_size=6))
def test_every_pair_has_a_name_of_its_own(tasks: list[str]) -> None:
    pairs = list(itertools.permutations(tasks, 2))
    names = pair_names(pairs, "-")
    assert len(set(names.values())) == len(pairs)
    plain = [f"{i}-{j}" for i, j in pairs]
    if len(set(plain)) == len(plain):
        assert list(names.values()) == plain


def test_a_sentence_names_ten_pairs_at_most() -> None:
    sure = sum([Evidence.of_batch([-0.1] * 10)] * 10, Evidence())
    text = sentence({f"t{n}/x|": sure for n in range(30)})
    assert text.count("/x") == 10
    assert "/x\\|" in text
    assert "and 20 more pairs conflict" in text
