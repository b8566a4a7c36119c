"""Statistics: every figure against numbers worked out by hand, and measuring changes nothing."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradsurgery import (
    ConflictLog,
    ConflictStatistics,
    GradientSurgery,
    GradVac,
    Method,
    PCGrad,
    Sum,
    SurgeryWarning,
    Verdict,
)
from gradsurgery.evidence import Evidence
from gradsurgery.methods import State
from tests.gradsurgery.problems import linear_losses, same, vectors, wrap

KEYS = {
    "schema",
    "run",
    "crc32",
    "step",
    "epoch",
    "window",
    "method",
    "tasks",
    "segments",
    "gradients",
    "pairs",
    "norms",
    "weights",
    "change",
    "nonfinite",
}


def run(method: Method, *steps: list[tuple[float, ...]], tasks: Any = ("a", "b")) -> Any:
    """The optimizer after one step on each of the given gradients."""
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], method, tasks=tasks)
    for rows in steps:
        optimizer.join(linear_losses([w], vectors(*rows))).backward()
        optimizer.zero_grad()
    return optimizer


def test_every_figure_of_two_steps() -> None:
    """Gradients at 135 degrees, then at 45: one conflict, altered both ways."""
    summary = run(PCGrad(), [(1, 0), (-1, 1)], [(2, 0), (1, 1)]).conflicts.summary()
    low, high = -math.sqrt(0.5), math.sqrt(0.5)
    assert summary["window"] == 2
    assert summary["gradients"] == {"possible": 4, "altered": 2}
    for pair, names in zip(summary["pairs"], [("a", "b"), ("b", "a")], strict=True):
        assert (pair["i"], pair["j"]) == names
        assert (pair["possible"], pair["conflicts"], pair["altered"]) == (2, 1, 1)
        assert pair["cosine"]["mean"] == pytest.approx(0, abs=1e-7)
        assert (pair["cosine"]["min"], pair["cosine"]["max"]) == pytest.approx((low, high))
        assert pair["target"] is None
    assert summary["norms"] == pytest.approx({"a": 1.5, "b": math.sqrt(2)})
    assert summary["weights"] == pytest.approx({"a": 1.5, "b": 1.25})
    # u = (0.5, 1.5), s = (0, 1); then u = s.
    assert summary["change"]["max"] == pytest.approx(math.sqrt(0.5))
    assert summary["change"]["mean"] == pytest.approx(math.sqrt(0.5) / 2)


def test_change_is_relative_to_the_plain_sum() -> None:
    small = run(PCGrad(), [(1, 0), (-1, 1)]).conflicts.summary()["change"]["mean"]
    large = run(PCGrad(), [(8, 0), (-8, 8)]).conflicts.summary()["change"]["mean"]
    assert small == large == pytest.approx(math.sqrt(0.5))


def test_alterations_have_a_direction() -> None:
    """Task a's target says 0.9, task b's says 0: only a is pulled."""
    target = torch.tensor([[0.0, 0.9], [-1.0, 0.0]])
    summary = run(GradVac(beta=0.5, target=target), [(1, 0), (0, 1)]).conflicts.summary()
    assert [pair["altered"] for pair in summary["pairs"]] == [1, 0]
    assert [pair["conflicts"] for pair in summary["pairs"]] == [0, 0]
    assert [pair["target"] for pair in summary["pairs"]] == pytest.approx([0.45, -0.5])
    assert summary["gradients"]["altered"] == 1


def test_the_control_counts_and_changes_nothing() -> None:
    summary = run(Sum(), [(1, 0), (-1, 1)]).conflicts.summary()
    assert summary["pairs"][0]["conflicts"] == 1
    assert summary["gradients"] == {"possible": 2, "altered": 0}
    assert summary["weights"] == {"a": 1, "b": 1}
    assert summary["change"] == {"mean": 0, "max": 0}


def test_absent_tasks_make_no_pairs() -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w])
    optimizer.join({"a": w[0], "c": w[1]}).backward()
    summary = optimizer.conflicts.summary()
    possible = {(p["i"], p["j"]): p["possible"] for p in summary["pairs"]}
    assert [names for names, count in possible.items() if count] == [("a", "c"), ("c", "a")]
    assert summary["gradients"]["possible"] == 2
    assert summary["norms"]["b"] is None


def test_an_empty_window_has_no_figures() -> None:
    optimizer = wrap([nn.Parameter(torch.zeros(2))])
    for _ in range(2):
        summary = optimizer.conflicts.summary()
        assert summary["window"] == 0
        assert summary["pairs"][0]["cosine"] == {"mean": None, "min": None, "max": None}
        assert summary["change"] == {"mean": None, "max": None}
        assert optimizer.conflicts.scalars() == {"surgery/nonfinite": 0.0}
        optimizer.conflicts.reset()


def test_cancelling_gradients_leave_change_undefined() -> None:
    """The plain sum is zero: no ratio to it exists, and none is made up."""
    assert run(PCGrad(), [(1, 0), (-1, 0)]).conflicts.summary()["change"]["mean"] is None


def test_scalars_are_flat_floats_without_gaps() -> None:
    scalars = run(GradVac(), [(1, 0), (-1, 1)]).conflicts.scalars()
    assert all(isinstance(value, float) and math.isfinite(value) for value in scalars.values())
    assert scalars["surgery/conflicts/a-b"] == 1.0
    assert scalars["surgery/cosine/a-b"] == pytest.approx(-math.sqrt(0.5))
    assert "surgery/cosine/b-a" not in scalars
    assert "surgery/target/b-a" in scalars


def test_reading_and_resetting_change_no_training() -> None:
    weights = []
    for measured in (True, False):
        w = nn.Parameter(torch.tensor([1.0, 2.0]))
        optimizer = wrap([w], GradVac(beta=0.5, seed=2))
        for _ in range(5):
            optimizer.join([w[0].exp(), (w[1] - w[0]).square(), w.prod()]).backward()
            optimizer.step()
            optimizer.zero_grad()
            if measured:
                optimizer.conflicts.summary()
                optimizer.conflicts.reset()
        weights.append((w.detach(), optimizer.state_dict()))
    assert same(*weights)


def test_a_window_survives_a_checkpoint(tmp_path: Path) -> None:
    steps = ([(1, 0), (-1, 1)], [(2, 0), (1, 1)])
    whole = run(GradVac(), *steps)
    begun = run(GradVac(), steps[0])
    torch.save(
        {"optimizer": begun.state_dict(), "conflicts": begun.conflicts.state_dict()},
        tmp_path / "last.pt",
    )
    resumed: GradientSurgery = run(GradVac())
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    resumed.load_state_dict(saved["optimizer"])
    resumed.conflicts.load_state_dict(saved["conflicts"])
    w = resumed.param_groups[0]["params"][0]
    resumed.join(linear_losses([w], vectors(*steps[1]))).backward()
    assert resumed.conflicts.summary() == whole.conflicts.summary()


def test_the_log_has_one_json_object_a_window(tmp_path: Path) -> None:
    log = ConflictLog(tmp_path / "deep" / "conflicts.jsonl")
    optimizer = run(PCGrad(), [(1, 0), (-1, 1)])
    log.write(optimizer.conflicts, step=1, epoch=1)
    log.write(optimizer.conflicts, step=2)
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [(line["step"], line["epoch"], line["window"]) for line in lines] == [
        (1, 1, 1),
        (2, None, 0),
    ]
    assert all(set(line) == KEYS for line in lines)
    assert lines[0]["schema"] == 1
    assert lines[0]["method"] == "PCGrad(seed=0)"


def test_adding_up_late_or_at_once_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps wait to be added up together; when they are must not show."""
    generator = torch.Generator().manual_seed(0)
    steps = [
        [tuple(row) for row in torch.randn(2, 2, generator=generator).tolist()] for _ in range(40)
    ]
    summaries = []
    for waiting in (1, 7, 1000):
        monkeypatch.setattr("gradsurgery.statistics.WAITING", waiting)
        summaries.append(run(GradVac(beta=0.1), *steps).conflicts.summary())
    assert summaries[0] == summaries[1] == summaries[2]
    assert summaries[0]["window"] == 40


def test_a_reset_window_is_an_empty_one() -> None:
    conflicts = run(GradVac(), [(1, 0), (-1, 1)]).conflicts
    conflicts.skip()
    conflicts.reset()
    assert conflicts.summary() == run(GradVac()).conflicts.summary()


def test_sums_follow_the_gradients_to_their_device_and_are_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A meta tensor has no value: a step that looked at one would fail."""
    monkeypatch.setattr("gradsurgery.statistics.WAITING", 2)
    conflicts = ConflictStatistics(("a", "b"), "PCGrad()")
    gram = torch.eye(2, dtype=torch.float64)[None]
    verdict = PCGrad()(gram, torch.tensor([[0, 1], [0, 1]]), {})
    conflicts.update(gram, verdict, ["model"], torch.tensor([True, True]))
    begun = conflicts.state_dict()  # makes sums on the CPU, as a checkpoint does
    conflicts.load_state_dict(begun)
    meta = Verdict(verdict.weights.to("meta"), verdict.altered.to("meta"), {})
    for _ in range(5):
        conflicts.update(gram.to("meta"), meta, ["model"], torch.tensor([True, True]))
    assert {value.device.type for value in conflicts._sums.values()} == {"meta"}


def test_what_waits_is_bounded_by_its_size() -> None:
    conflicts = ConflictStatistics(("a", "b"), "PCGrad()")
    segments = [str(s) for s in range(100_000)]
    gram = torch.eye(2, dtype=torch.float64).expand(100_000, 2, 2).contiguous()
    verdict = PCGrad()(gram, torch.tensor([[0, 1], [0, 1]]), {})
    for _ in range(5):
        conflicts.update(gram, verdict, segments, torch.tensor([True, True]))
        assert len(conflicts._waiting) <= 2
    assert conflicts.summary()["window"] == 5


def test_a_step_found_nonfinite_on_the_device_is_only_counted() -> None:
    """Without a GPU: the flag that the host did not look at."""
    conflicts = ConflictStatistics(("a", "b"), "GradVac()")
    order, active = torch.tensor([[0, 1], [0, 1]]), torch.tensor([True, True])
    method = GradVac(beta=0.5)
    state = method.init(1, 2)
    good = torch.tensor([[[1.0, -0.5], [-0.5, 1.0]]], dtype=torch.float64)
    bad = torch.tensor([[[math.inf, math.nan], [math.nan, 1.0]]], dtype=torch.float64)
    verdict = method(good, order, state)
    ones = torch.ones(1, 2, dtype=torch.float64)
    broken = Verdict(ones, torch.zeros(1, 2, 2, dtype=torch.bool), verdict.state)
    conflicts.update(good, verdict, ["model"], active, torch.tensor(True))
    alone = conflicts.summary()
    conflicts.update(bad, broken, ["model"], active, torch.tensor(False))
    summary = conflicts.summary()
    assert summary == {**alone, "window": 2, "nonfinite": 1}


class Halves(Method):
    """Half of each gradient, and no notion of one gradient altered because of another."""

    def __call__(self, gram: Tensor, state: State) -> Verdict:
        return Verdict(torch.full(gram.shape[:-1], 0.5, dtype=gram.dtype), None, {})

    def __repr__(self) -> str:
        return "Halves()"


def test_alterations_without_a_meaning_are_none_and_all_else_is_counted(tmp_path: Path) -> None:
    steps = ([(1, 0), (-1, 1)], [(2, 0), (1, 1)])
    optimizer, plain = run(Halves(), *steps), run(Sum(), *steps)
    summary, reference = optimizer.conflicts.summary(), plain.conflicts.summary()
    for pair, same_pair in zip(summary["pairs"], reference["pairs"], strict=True):
        assert pair == {**same_pair, "altered": None}
    assert summary["gradients"] == {"possible": 4, "altered": None}
    assert summary["norms"] == reference["norms"]
    assert summary["change"]["mean"] == pytest.approx(0.5)
    scalars, numbers = optimizer.conflicts.scalars(), plain.conflicts.scalars()
    assert set(numbers) - set(scalars) == {
        *("surgery/altered", "surgery/altered/a-b", "surgery/altered/b-a"),
    }
    resumed = run(Halves())
    resumed.conflicts.load_state_dict(optimizer.conflicts.state_dict())
    assert resumed.conflicts.summary() == summary
    line = ConflictLog(tmp_path / "c.jsonl").write(optimizer.conflicts, step=2)
    assert json.loads((tmp_path / "c.jsonl").read_text()) == line
    assert optimizer.conflicts.summary()["gradients"] == {"possible": 0, "altered": 0}


def _put(state: dict[str, Any], name: str, value: object) -> None:
    state["sums"][name] = value


WINDOW_DAMAGE: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda state: state.update(tasks=["b", "a"]), r"of tasks \['b', 'a'\]"),
    (lambda state: state.pop("skipped"), "no skipped"),
    (lambda state: state.pop("sums"), "no sums"),
    (lambda state: state.update(skipped=-1), "'skipped'.*-1"),
    (lambda state: state.update(skipped="2"), "'skipped'.*'2'"),
    (lambda state: state.update(begun=10), "'begun'.*10"),
    (lambda state: state.update(segments=["model", "other"]), "shape.*2 segments"),
    (lambda state: state["sums"].pop("cosine"), "sums are"),
    (lambda state: _put(state, "more", torch.zeros(1)), "sums are"),
    (lambda state: _put(state, "cosine", torch.zeros(1, 3, 3)), "'cosine'.*\\[1, 3, 3\\]"),
    (lambda state: _put(state, "steps", [1.0]), "steps.*no tensors"),
    (lambda state: state["sums"]["conflicts"].fill_(-1), "'conflicts' cannot be"),
    (lambda state: state["sums"]["norm"].fill_(math.nan), "'norm' cannot be"),
]


@pytest.mark.parametrize(("damage", "message"), WINDOW_DAMAGE)
def test_a_damaged_window_is_refused_and_the_one_under_way_kept(
    damage: Callable[[dict[str, Any]], Any], message: str
) -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], PCGrad(), tasks=("a", "b"))
    for _ in range(3):
        optimizer.join(linear_losses([w], vectors((1, 0), (-1, 1)))).backward()
    state = copy.deepcopy(optimizer.conflicts.state_dict())
    optimizer.join(linear_losses([w], vectors((1, 0), (-1, 1)))).backward()
    before = optimizer.conflicts.state_dict()
    optimizer.join(linear_losses([w], vectors((1, 0), (-1, 1)))).backward()  # one that waits
    damage(state)
    with pytest.raises(ValueError, match=message):
        optimizer.conflicts.load_state_dict(state)
    assert optimizer.conflicts.summary()["window"] == 5
    optimizer.conflicts.load_state_dict(before)
    assert optimizer.conflicts.summary()["window"] == 4


@pytest.mark.parametrize("sums", [None, [1.0] * 5, [1.0, math.nan] * 3, ["1"] * 6])
def test_evidence_that_is_none_is_refused(sums: object) -> None:
    with pytest.raises(ValueError, match="six finite sums"):
        Evidence.from_json({"sums": sums})


@pytest.mark.parametrize("window", [7, 100])
def test_many_steps_in_a_row_without_finite_gradients_are_told_of_once(window: int) -> None:
    """A label that is missing and not masked out makes a run of nothing but such steps."""
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = GradientSurgery(torch.optim.SGD([weight], lr=0.0), PCGrad(), tasks=("a", "b"))
    labels = torch.tensor([1.0, math.nan])

    def train(steps: int, label: Tensor) -> None:
        for number in range(1, steps + 1):
            optimizer.join([weight.square().sum(), (weight - label).square().sum()]).backward()
            optimizer.zero_grad()
            if number % window == 0:
                optimizer.conflicts.reset()

    with pytest.warns(SurgeryWarning, match="last 20 steps .* the loss of b") as caught:
        train(30, labels)
    assert len(caught) == 1
    train(1, labels[:1])  # a finite step ends the row
    train(19, labels)


def test_a_window_without_finite_gradients_is_told_of_when_it_is_read() -> None:
    """On a device that the host does not read in every step."""
    conflicts = ConflictStatistics(("a", "b"), "PCGrad()")
    gram = torch.eye(2, dtype=torch.float64)[None]
    verdict = PCGrad()(gram, torch.tensor([[0, 1], [0, 1]]), {})
    for _ in range(20):
        conflicts.update(gram, verdict, ["model"], torch.ones(2).bool(), torch.tensor(False))
    with pytest.warns(SurgeryWarning, match="last 20 steps"):
        assert conflicts.summary()["nonfinite"] == 20
