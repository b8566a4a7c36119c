"""The log: lines that stay whole, in the file that was meant, and each run told from the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gradsurgery import ConflictLog, ConflictStatistics, PCGrad, SurgeryWarning, report

TASKS = ("a", "b")


def window(steps: int, tasks: tuple[str, ...] = TASKS) -> ConflictStatistics:
    """Statistics of that many steps in conflict."""
    statistics = ConflictStatistics(tasks, "PCGrad(seed=0)")
    count = len(tasks)
    gram = torch.eye(count, dtype=torch.float64)[None] * 1.5 - 0.5
    order = torch.arange(count).repeat(count, 1)
    for _ in range(steps):
        verdict = PCGrad()(gram, order, {})
        statistics.update(gram, verdict, ["model"], torch.ones(count, dtype=torch.bool))
    return statistics


def write(log: ConflictLog, *ends: int, steps: int = 10, **settings: Any) -> None:
    for end in ends:
        log.write(window(steps, **settings), step=end)


def steps_of(lines: list[report.Line]) -> dict[str | None, list[int]]:
    """The step of each line, by run."""
    runs: dict[str | None, list[int]] = {}
    for line in lines:
        runs.setdefault(line["run"], []).append(line["step"])
    return runs


def unnamed(path: Path) -> None:
    """Make it the log of a version without run ids and checksums."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if k not in ("run", "crc32")} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in kept))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "conflicts.jsonl"


def test_what_is_written_after_a_cut_line_is_a_line_of_its_own(path: Path) -> None:
    write(ConflictLog(path), 10)
    with path.open("a") as file:
        file.write('{"schema": 1, "run": "4')
    write(ConflictLog(path), 20)
    with pytest.warns(SurgeryWarning, match=r"jsonl:2: passed over a line that was cut off: '{"):
        assert [line["step"] for line in report.read([path])] == [10, 20]


@pytest.mark.parametrize(
    "cut", ["{", '{"schema": 1, "st', '{"schema": 1, "tasks": ["a", "\\u12', "\0\0"]
)
def test_a_line_glued_to_a_cut_one_is_read(cut: str, path: Path) -> None:
    """As versions wrote that did not look at the file's end."""
    write(ConflictLog(path), 10, 20)
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{cut}{second}\n")
    if cut.strip("\0"):
        with pytest.warns(SurgeryWarning, match="jsonl:2: passed over"):
            lines = report.read([path])
    else:
        lines = report.read([path])
    assert [line["step"] for line in lines] == [10, 20]


@pytest.mark.parametrize("size", range(1, 60))
def test_a_log_cut_anywhere_near_its_end_keeps_its_other_lines(size: int, path: Path) -> None:
    write(ConflictLog(path), 10, 20)
    path.write_bytes(path.read_bytes()[: -7 * size])
    with pytest.warns(SurgeryWarning, match="jsonl:2: passed over"):
        assert [line["step"] for line in report.read([path])] == [10]


def test_a_last_line_without_its_newline_is_whole(path: Path) -> None:
    write(ConflictLog(path), 10)
    path.write_text(path.read_text().rstrip("\n"))
    assert len(report.read([path])) == 1


def test_a_relative_path_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    log = ConflictLog("runs/c.jsonl")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    write(log, 10)
    assert log.path == tmp_path / "runs/c.jsonl"
    assert len(report.read([log.path])) == 1


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write(ConflictLog("~/c.jsonl"), 10)
    assert (tmp_path / "c.jsonl").exists()
    assert len(report.read(["~/c.jsonl"])) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_window_that_could_not_be_written_is_kept() -> None:
    log, statistics = ConflictLog("/dev/full"), window(10)
    with pytest.raises(OSError, match="No space left"):
        log.write(statistics, step=10)
    assert statistics.summary()["window"] == 10


def test_steps_may_be_any_whole_number(path: Path) -> None:
    assert ConflictLog(path).write(window(1), step=torch.tensor(3))["step"] == 3  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        ConflictLog(path).write(window(1), step=4.5)  # type: ignore[arg-type]


def test_a_resumed_run_goes_on_with_its_id(path: Path) -> None:
    write(ConflictLog(path), 10, 20)
    write(ConflictLog(path), 30)
    assert len({json.loads(line)["run"] for line in path.read_text().splitlines()}) == 1
    assert steps_of(report.read([path])) == {None: [10, 20, 30]}


@pytest.mark.parametrize("named", [True, False])
def test_a_run_started_again_is_told_apart(named: bool, path: Path) -> None:
    for _ in range(2):
        write(ConflictLog(path), 10, 20, 30)
    if not named:
        unnamed(path)
    with pytest.warns(SurgeryWarning, match="holds 2 runs, which are kept apart"):
        lines = report.read([path])
    assert list(steps_of(lines).values()) == [[10, 20, 30]] * 2
    table = report.table(lines)
    assert table.count(": 30 steps, ") == 2
    assert table.count("| 30       | 30 (100.0%)") == 4


def test_the_same_log_object_used_again_begins_a_run(path: Path) -> None:
    """A notebook's cell that is run once more."""
    log = ConflictLog(path)
    write(log, 10, 20, 10, 20)
    with pytest.warns(SurgeryWarning, match="holds 2 runs"):
        assert list(steps_of(report.read([path])).values()) == [[10, 20]] * 2


@pytest.mark.parametrize("named", [True, False])
def test_ranks_that_write_one_log_are_not_added_up(named: bool, path: Path) -> None:
    ranks = [ConflictLog(path) for _ in range(3)]
    for end in range(100, 2001, 100):
        for rank in ranks:
            write(rank, end, steps=100)
    if not named:
        unnamed(path)
    with pytest.warns(SurgeryWarning, match="holds 3 runs"):
        lines = report.read([path])
    assert list(steps_of(lines).values()) == [list(range(100, 2001, 100))] * 3
    assert report.table(lines).count(": 2000 steps, ") == 3


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("size", [10, 5])
def test_steps_done_again_from_an_older_checkpoint_count_once(
    named: bool, size: int, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps 1 to 50, then 31 to 40 from a checkpoint of step 30: 40 steps, not 60."""
    write(ConflictLog(path), 10, 20, 30, 40, 50)
    write(ConflictLog(path), *range(30 + size, 41, size), steps=size)
    if not named:
        unnamed(path)
    with pytest.warns(SurgeryWarning, match="left out 2 windows, whose steps were done again"):
        lines = report.read([path])
    assert sum(line["window"] for line in lines) == 40
    assert len(steps_of(lines)) == 1
    assert report.main([str(path)]) == 0
    out, err = capsys.readouterr()
    assert ": 40 steps, " in out
    assert "left out 2 windows" in err


@pytest.mark.parametrize("unit", [1, 4, 0.1])
def test_resuming_is_seen_in_any_count_of_steps(unit: float, path: Path) -> None:
    """Micro-batches or epochs, where optimizer steps were meant."""
    ends = [round(10 * n * unit) for n in range(1, 8)]
    write(ConflictLog(path), *ends[:4])
    write(ConflictLog(path), *ends[4:])
    assert steps_of(report.read([path])) == {None: ends}


def test_two_optimizers_may_share_a_log(path: Path) -> None:
    log = ConflictLog(path)
    for end in (10, 20):
        write(log, end)
        write(log, end, tasks=("c", "d"))
    with pytest.warns(SurgeryWarning, match="holds 2 runs"):
        lines = report.read([path])
    assert list(steps_of(lines).values()) == [[10, 20]] * 2


def test_every_flipped_bit_is_noticed(path: Path) -> None:
    """A checksum finds what is still a line: another number."""
    write(ConflictLog(path), 10)
    text = path.read_bytes()
    right = report.read([path])
    for at in range(len(text)):
        path.write_bytes(text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :])
        try:
            lines = report.read([path])
        except (ValueError, SurgeryWarning) as error:
            complaint = str(error)
        else:  # the flip fell on the checksum's name or the newline, and on no number
            complaint, numbers = "", {k: v for k, v in right[0].items() if k != "crc32"}
            assert len(lines) == 1
            assert lines[0].items() >= numbers.items()
        assert not complaint or "conflicts.jsonl:" in complaint


def test_a_folder_that_cannot_be_made_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        ConflictLog(tmp_path / "file" / "c.jsonl")


def test_ids_are_drawn_from_no_generator_of_training(path: Path) -> None:
    state = torch.get_rng_state()
    write(ConflictLog(path), 10)
    assert torch.equal(torch.get_rng_state(), state)
