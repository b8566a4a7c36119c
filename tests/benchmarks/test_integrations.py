"""Every integration takes steps, and they are the same steps in all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("accelerate")
pytest.importorskip("lightning")
pytest.importorskip("peft")

from benchmarks import harness
from benchmarks.options import Options
from benchmarks.problems import multitask
from benchmarks.problems.multitask import Problem
from benchmarks.steps import managed_loops, manual_loops, step
from benchmarks.steps.paused_loop import PausedLoop, Turns
from benchmarks.steps.step import EACH, JOIN, SUM, TASK
from benchmarks.themes import integrations
from benchmarks.themes.integrations import INTEGRATIONS, Integration, Integrations
from benchmarks.timing import Sample, Times

OPTIONS = Options(torch.device("cpu"), Path("nowhere"), quick=True)

BUILDS = {integration.name: integration.build for integration in INTEGRATIONS}


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[torch.nn.Module]:
    """The models that are built from here on: without dropout, at a rate that shows."""
    built: list[torch.nn.Module] = []

    def problem(options: Options, bf16: bool = False) -> Problem:
        built.append((problem := multitask.problem(options, bf16=bf16, dropout=0.0)).model)
        return problem

    monkeypatch.setattr(step, "RATE", 0.01)
    monkeypatch.setattr(manual_loops, "problem", problem)
    monkeypatch.setattr(managed_loops, "problem", problem)
    return built


def after_three_steps(name: str, kind: str, models: list[torch.nn.Module]) -> Tensor:
    """All weights, behind each other."""
    with integrations.quiet():
        steps = BUILDS[name](OPTIONS)
        # A framework's loader is one batch ahead.
        for _ in range(4 if isinstance(steps[kind], PausedLoop) else 3):
            steps[kind]()
        integrations.close(steps)
    return torch.cat([p.detach().flatten() for p in models[-1].parameters()])


@pytest.mark.parametrize(
    ("name", "kinds"),
    {
        "activation checkpointing": (SUM, EACH, JOIN, TASK),
        "torch.compile": (SUM, TASK),
        "Accelerate": (SUM, EACH, JOIN, TASK),
        "Fabric": (SUM, EACH, JOIN, TASK),
        "HF Trainer": (SUM, JOIN, TASK),
        "Lightning, automatic": (SUM, JOIN),
        "Lightning, manual": (SUM, TASK),
    }.items(),
)
def test_it_does_the_plain_loops_work(
    name: str, kinds: tuple[str, ...], models: list[torch.nn.Module]
) -> None:
    """The same weights, with clipping: so what is compared is the same work."""
    for kind in kinds:
        ours = after_three_steps(name, kind, models)
        by_hand = after_three_steps("plain loop", kind, models)
        assert torch.allclose(ours, by_hand, atol=1e-6), kind


def test_surgery_and_clipping_change_the_weights(
    models: list[torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    def apart(weights: Tensor, others: Tensor) -> float:
        # Adam turns rounding into steps where a gradient is nearly nothing, so not the maximum.
        return (weights - others).abs().mean().item()

    summed, each, joined, tasks = (
        after_three_steps("plain loop", kind, models) for kind in (SUM, EACH, JOIN, TASK)
    )
    assert apart(summed, each) < 1e-5
    assert apart(joined, tasks) < 1e-5
    assert apart(summed, joined) > 1e-3
    # Adam also takes away a factor that stays the same: this one changes from step to step.
    monkeypatch.setattr(manual_loops, "CLIP", 1e9)
    assert apart(summed, after_three_steps("plain loop", SUM, models)) > 1e-4


def test_a_loop_takes_a_step_when_told_to() -> None:
    taken: list[int] = []

    def loop(turns: Turns) -> None:
        for batch in turns:
            taken.append(len(batch))

    paused = PausedLoop(loop, {"a": torch.zeros(1)}, threads=1)
    assert taken == []
    paused()
    paused()
    assert taken == [1, 1]
    paused.close()
    assert taken == [1, 1]


def test_a_loops_error_is_told() -> None:
    def fails(turns: Turns) -> None:
        next(iter(turns))
        raise ValueError("out of luck")

    paused = PausedLoop(fails, {}, threads=1)
    with pytest.raises(RuntimeError, match="ended by itself") as raised:
        paused()
    assert "out of luck" in str(raised.value.__cause__)


def test_a_missing_package_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Integration("something", BUILDS["plain loop"], "no_such_package")
    monkeypatch.setattr(integrations, "INTEGRATIONS", (missing, INTEGRATIONS[0]))
    result = harness.run(Integrations(OPTIONS))
    assert "skipped: something: no_such_package is not installed" in result.notes
    assert [row[0] for row in result.tables[0].rows] == ["plain loop"]


def test_the_verdict_knows_the_noise() -> None:
    """Of two rounds, with ratios `low` and `high`."""

    def rows(name: str, low: float, high: float) -> list[dict[str, Any]]:
        rounds = {SUM: (1.0, 2.0), EACH: (0.5, 1.0), JOIN: (low, 2 * high), TASK: (0.9, 1.8)}
        times = Times({kind: [Sample(t, t) for t in taken] for kind, taken in rounds.items()})
        return integrations.figures(name, times)

    figures = [*rows("a", 1.04, 1.04), *rows("b", 1.06, 1.06), *rows("c", 1.02, 1.12)]
    lines = integrations.ratios(figures, judged=True).rows
    ratios = ["1.040 ± 0.000", "0.900 ± 0.000", "1.800"]
    assert lines[0] == ["a", "1500", *ratios, "2", "met, met"]
    assert [line[-1] for line in lines[1:]] == ["missed, met", "open, met"]
