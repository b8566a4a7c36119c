"""The themes' own arithmetic, and all of them at once on tiny shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import steps
from benchmarks.__main__ import THEMES, command, main
from benchmarks.harness import Sample
from benchmarks.options import Setting
from benchmarks.themes import memory, scaling, step, trunk


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_a_quick_run_of_everything_writes_every_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--quick", "--device", "cpu", "--results", str(tmp_path)]) == 0
    found = {path.stem.partition("_")[0]: path for path in tmp_path.glob("*.json")}
    assert set(found) == {f"{theme}-quick" for theme in THEMES}
    for path in found.values():
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
    def fails(setting: Setting) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setitem(THEMES, "surgery", fails)  # type: ignore[arg-type]
    arguments = ["surgery", "scaling", "--quick", "--device", "cpu", "--results", str(tmp_path)]
    assert main(arguments) == 1
    streams = capsys.readouterr()
    assert "out of luck" in streams.err
    assert "failed: surgery" in streams.err
    assert "Whole surgery against N" in streams.out


def test_the_command_says_how_it_was_measured_and_not_where_it_was_written() -> None:
    setting = Setting(torch.device("cpu"), Path("/somewhere"), everything=True, threads=2)
    said = command(["surgery"], setting, minutes=2.5)
    assert said == "python -m benchmarks surgery --device cpu --threads 2 --all --minutes 2.5"


def test_memory_is_compared_process_by_process() -> None:
    peaks = {steps.PLAIN: [100, 200, 300], steps.EACH: [90, 190, 290], "pcgrad": [110, 205, 330]}
    rows = memory.figures(peaks, allowed=20, feed=steps.OWN)
    assert [row["over_plain_bytes"] for row in rows] == [0, -10, 10]
    assert memory.table(rows).rows[2][-1] == "50%"


def test_the_bound_is_that_of_the_encoder(tmp_path: Path) -> None:
    setting = Setting(torch.device("cpu"), tmp_path)
    assert memory.bound(setting) == 2 * 4 * 22_565_376


def test_exponents_of_a_sweep() -> None:
    rows = [
        {"tasks": k, "elements": 10, "seconds": {"median": k**2}, "floor_seconds": 2 * k}
        for k in (2, 4, 8)
    ]
    found = scaling.exponents("K", rows)
    assert found == pytest.approx({"measured": 2.0, "floor": 1.0})


def test_a_trunks_ratios_are_taken_within_rounds() -> None:
    taken = {
        trunk.JOINT: [1.0, 2.0, 4.0],
        trunk.EACH: [2.0, 4.0, 8.0],
        trunk.EXACT: [3.0, 6.0, 12.0],
        trunk.FEATURES: [1.5, 2.0, 4.0],
    }
    times = {kind: [Sample(s, s) for s in seconds] for kind, seconds in taken.items()}
    rows = [{"tasks": 3, "part": "backward", **row} for row in trunk.figures(times)]
    assert [row["to_joint"] for row in rows] == [1, 2, 3, 1]
    assert [row["to_loss_by_loss"] for row in rows] == [0.5, 1, 1.5, 0.5]
    assert trunk.table(rows).rows[2][4:] == ["3.00", "1.50", "3"]


def test_a_trunks_kinds_do_the_same_work() -> None:
    """Without conflicts and dropout all leave the same gradients."""
    torch.manual_seed(0)
    model = trunk.Trunk("mini", 2).eval()
    model.heads[1].load_state_dict(model.heads[0].state_dict())
    tokens = torch.randint(0, 100, (2, 8))
    found = []
    for kind in trunk.KINDS:
        step = trunk.Step(kind, model, tokens)
        step.forward()
        step.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        found.append(torch.cat([grad.flatten() for grad in grads]))
    for other in found[1:]:
        assert torch.allclose(other, found[0], atol=1e-6)


def test_a_stopwatch_counts_and_passes_through() -> None:
    watch = step.Stopwatch()
    assert watch.around(lambda a, b=0: a + b)(1, b=2) == 3
    assert len(watch.seconds) == 1


def test_a_stopwatch_lets_errors_through() -> None:
    watch = step.Stopwatch()
    with pytest.raises(ZeroDivisionError):
        watch.around(lambda: 1 / 0)()
