"""The themes' own arithmetic, and all of them at once on tiny shapes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import command, main
from benchmarks.options import Options
from benchmarks.peers.weightings import PAIRINGS
from benchmarks.problems.multitask import problem
from benchmarks.steps.step import EACH, FEATURES, JOIN, OWN, SHARED, SUM, TASK
from benchmarks.steps.step import step as build_step
from benchmarks.tables import tables
from benchmarks.themes import THEMES, memory, methods, scaling, step, surgery
from gradsurgery import CAGrad


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_a_quick_run_of_everything_writes_every_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--quick", "--device", "cpu", "--results", str(tmp_path)]) == 0
    paths = {path.stem.partition("_")[0]: path for path in tmp_path.glob("*.json")}
    assert set(paths) == {f"{theme}-quick" for theme in THEMES}
    for path in paths.values():
        facts = json.loads(path.read_text())
        assert facts["figures"]
        assert str(tmp_path) not in path.read_text()
        assert path.with_suffix(".md").exists()
        assert f"python -m benchmarks {facts['theme']}" in facts["command"]
    assert len(list(tmp_path.glob("scaling-quick_*.png"))) == 1
    printed = capsys.readouterr().out
    for words in ("over the floor", "to sum(losses)", "of the bound", "exponent", "times ours"):
        assert words in printed


def test_an_unknown_theme_is_refused() -> None:
    with pytest.raises(SystemExit, match="unknown theme 'speed': the themes are surgery, step"):
        main(["speed"])


def test_cuda_where_there_is_none_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit, match="no CUDA device"):
        main(["step", "--device", "cuda"])


def test_a_theme_that_fails_is_told_and_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(theme: surgery.Surgery) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(surgery.Surgery, "cases", fails)
    arguments = ["surgery", "scaling", "--quick", "--device", "cpu", "--results", str(tmp_path)]
    assert main(arguments) == 1
    streams = capsys.readouterr()
    assert "out of luck" in streams.err
    assert "failed: surgery" in streams.err
    assert "Whole surgery against N" in streams.out


def test_the_command_says_how_it_was_measured_and_not_where_it_was_written() -> None:
    options = Options(torch.device("cpu"), Path("/somewhere"), everything=True, threads=2)
    words = command(["surgery"], options, minutes=2.5)
    assert words == "python -m benchmarks surgery --device cpu --threads 2 --all --minutes 2.5"


@pytest.mark.parametrize("name", PAIRINGS)
def test_the_residual_of_a_method_is_that_of_its_condition(name: str) -> None:
    """And not of any update: the mean's breaks it."""
    pair = PAIRINGS[name]
    assert methods.residual(pair) <= 1e-6
    assert not methods.residual(replace(pair, ours=lambda: CAGrad(c=0.0))) <= 1e-6


def test_methods_are_one_line_each() -> None:
    theme = methods.Methods(Options(torch.device("cpu"), Path(), quick=True))
    rows = [
        {"method": "a", "tasks": 3, "residual": 1e-9, "length": 2.0},
        {"method": "b", "tasks": 3},
    ]
    first = theme.tables(rows)[0]
    assert [line[:2] for line in first.rows] == [["a", "1e-09"], ["b", ""]]
    assert first.rows[0][-1] == "2.00"


def test_memory_is_compared_process_by_process() -> None:
    peaks = {SUM: [100, 200, 300], EACH: [90, 190, 290], "pcgrad": [110, 205, 330]}
    rows = memory.figures(peaks, bound=20, batches="batches")
    assert [row["over_plain_bytes"] for row in rows] == [0, -10, 10]
    [table] = tables(memory.Memory.title, memory.Memory.columns, rows)
    assert table.rows[2][-1] == "50%"


def test_the_bound_is_that_of_the_encoder(tmp_path: Path) -> None:
    theme = memory.Memory(Options(torch.device("cpu"), tmp_path))
    assert theme.bound == 2 * 4 * 22_565_376


def test_exponents_of_a_sweep() -> None:
    rows = [
        {"tasks": k, "elements": 10, "seconds": {"median": k**2}, "floor_seconds": 2 * k}
        for k in (2, 4, 8)
    ]
    assert scaling.exponents("K", rows) == pytest.approx({"measured": 2.0, "floor": 1.0})


OWN_KINDS = [(kind, OWN) for kind in (SUM, EACH, JOIN, TASK)]
SHARED_KINDS = [(kind, SHARED) for kind in (SUM, EACH, JOIN, FEATURES)]


def updates(directory: Path, conflict: bool) -> dict[tuple[str, str], torch.Tensor]:
    """The gradients that each kind of step leaves, of two tasks on one batch."""
    bare = problem(Options(torch.device("cpu"), directory, quick=True), tasks=2, dropout=0.0)
    model = bare._replace(batches=dict.fromkeys(bare.tasks, bare.tokens))
    first, second = model.model.heads.values()
    if not conflict:
        second.load_state_dict(first.state_dict())
    grads = {}
    for kind, feed in OWN_KINDS + SHARED_KINDS:
        model.model.zero_grad()
        taken = build_step(kind, model, feed)
        taken.passes()
        taken.combine()
        grads[kind, feed] = torch.cat([p.grad.flatten() for p in model.trunk if p.grad is not None])
    return grads


def test_without_conflicts_all_kinds_of_step_do_the_same_work(tmp_path: Path) -> None:
    grads = updates(tmp_path, conflict=False)
    assert all(torch.allclose(g, grads[SUM, OWN], atol=1e-6) for g in grads.values())


def test_with_conflicts_surgery_is_the_same_on_both_feeds_and_another_at_the_features(
    tmp_path: Path,
) -> None:
    grads = updates(tmp_path, conflict=True)
    for same in (
        [(SUM, OWN), (EACH, OWN), (SUM, SHARED), (EACH, SHARED)],
        [(JOIN, OWN), (TASK, OWN), (JOIN, SHARED)],
    ):
        assert all(torch.allclose(grads[key], grads[same[0]], atol=1e-6) for key in same)
    different = [grads[SUM, OWN], grads[JOIN, OWN], grads[FEATURES, SHARED]]
    for number, grad in enumerate(different):
        assert all(not torch.allclose(grad, g, atol=1e-3) for g in different[:number])


def test_a_clocked_function_is_the_function_and_lets_errors_through() -> None:
    seconds: list[float] = []
    assert step.clocked(lambda a, b=0: a + b, seconds)(1, b=2) == 3
    with pytest.raises(ZeroDivisionError):
        step.clocked(lambda: 1 / 0, seconds)()
    assert len(seconds) == 2
