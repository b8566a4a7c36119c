"""Every integration takes steps, and they are the same steps in all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("accelerate")
pytest.importorskip("lightning")
pytest.importorskip("peft")

from benchmarks import integrations_managed, integrations_manual, steps
from benchmarks.harness import Sample
from benchmarks.integrations_manual import EACH, JOIN, SUM, TASK, Bench
from benchmarks.options import Setting
from benchmarks.paused_loop import Fit, Turns
from benchmarks.themes import integrations
from benchmarks.themes.integrations import INTEGRATIONS, Integration

CPU = torch.device("cpu")
BENCH = Bench(steps.SIZES["quick"], CPU, threads=1, quick=True)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[torch.nn.Module]:
    """The models that are built from here on: without dropout, at a rate that shows."""
    built: list[torch.nn.Module] = []

    def problem(self: Bench, bf16: bool = False) -> steps.Problem:
        made = steps.problem(self.size, self.device, bf16, dropout=0.0)
        built.append(made.model)
        return made

    monkeypatch.setattr(integrations_manual, "RATE", 0.01)
    monkeypatch.setattr(Bench, "problem", problem)
    return built


def after_three_steps(
    build: Callable[[Bench], Any], kind: str, models: list[torch.nn.Module]
) -> Tensor:
    """All weights, behind each other."""
    with integrations.quiet():
        built = build(BENCH)
        step = built[kind]
        for _ in range(3):
            step.step() if isinstance(step, Fit) else step()
        if isinstance(step, Fit):
            step.step()  # its loader is one batch ahead
        for other in built.values():
            if isinstance(other, Fit):
                other.close()
        integrations._forget_accelerate()
    return torch.cat([p.detach().flatten() for p in models[-1].parameters()])


SAME = {
    "checkpointed": (integrations_manual.checkpointed, (SUM, EACH, JOIN, TASK)),
    "compiled": (integrations_manual.compiled, (SUM, TASK)),
    "accelerated": (integrations_manual.accelerated, (SUM, EACH, JOIN, TASK)),
    "fabric": (integrations_manual.fabric, (SUM, EACH, JOIN, TASK)),
    "trainer": (integrations_managed.trainer, (SUM, JOIN, TASK)),
    "lightning": (integrations_managed.lightning, (SUM, JOIN)),
    "lightning by hand": (integrations_managed.lightning_by_hand, (SUM, TASK)),
}


@pytest.mark.parametrize("name", SAME)
def test_it_does_the_plain_loops_work(name: str, models: list[torch.nn.Module]) -> None:
    """The same weights, with clipping: so what is compared is the same work."""
    build, kinds = SAME[name]
    for kind in kinds:
        ours = after_three_steps(build, kind, models)
        by_hand = after_three_steps(integrations_manual.plain, kind, models)
        assert torch.allclose(ours, by_hand, atol=1e-6), kind


def test_surgery_and_clipping_change_the_weights(
    models: list[torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    def apart(one: Tensor, other: Tensor) -> float:
        # Adam turns rounding into steps where a gradient is nearly nothing, so not the maximum.
        return (one - other).abs().mean().item()

    summed, each, joined, tasks = (
        after_three_steps(integrations_manual.plain, kind, models)
        for kind in (SUM, EACH, JOIN, TASK)
    )
    assert apart(summed, each) < 1e-5
    assert apart(joined, tasks) < 1e-5
    assert apart(summed, joined) > 1e-3
    # Adam also takes away a factor that stays the same: this one changes from step to step.
    monkeypatch.setattr(integrations_manual, "CLIP", 1e9)
    assert apart(summed, after_three_steps(integrations_manual.plain, SUM, models)) > 1e-4


def test_a_loop_takes_a_step_when_told_to() -> None:
    taken: list[int] = []

    def loop(turns: Turns) -> None:
        for batch in turns:
            taken.append(len(batch))

    fit = Fit(loop, {"a": torch.zeros(1)}, threads=1)
    assert taken == []
    fit.step()
    fit.step()
    assert taken == [1, 1]
    fit.close()
    assert taken == [1, 1]


def test_a_loops_error_is_told() -> None:
    def fails(turns: Turns) -> None:
        next(iter(turns))
        raise ValueError("out of luck")

    fit = Fit(fails, {}, threads=1)
    with pytest.raises(RuntimeError, match="ended by itself") as raised:
        fit.step()
    assert "out of luck" in str(raised.value.__cause__)


def test_a_missing_package_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Integration("something", integrations_manual.plain, "no_such_package")
    monkeypatch.setattr(integrations, "INTEGRATIONS", (missing, INTEGRATIONS[0]))
    found = integrations.run(Setting(CPU, tmp_path, quick=True))
    assert "something: no_such_package is not installed" in found.notes
    assert [row[0] for row in found.tables[0].rows] == ["plain loop"]


def test_the_verdict_knows_the_noise() -> None:
    """Of two rounds, with ratios `low` and `high`."""

    def rows(low: float, high: float) -> list[dict[str, Any]]:
        rounds = {SUM: (1.0, 2.0), EACH: (0.5, 1.0), JOIN: (low, 2 * high), TASK: (0.9, 1.8)}
        times = {kind: [Sample(t, t) for t in taken] for kind, taken in rounds.items()}
        return integrations.figures("a loop", times)

    groups = [rows(1.04, 1.04), rows(1.06, 1.06), rows(1.02, 1.12)]
    lines = integrations.ratios(groups, judged=True).rows
    ratios = ["1.040 ± 0.000", "0.900 ± 0.000", "1.800"]
    assert lines[0] == ["a loop", "1500", *ratios, "2", "met, met"]
    assert [line[-1] for line in lines[1:]] == ["missed, met", "open, met"]
