"""A peer is timed where its update is ours, refused where it is not, and keeps its inputs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.options import Options
from benchmarks.peers import equivalence, implementations, training_steps
from benchmarks.peers.fixed_order import Ascending
from benchmarks.peers.peer import INSTALL, OURS, Peer
from benchmarks.problems.gradients import FixedGradients
from benchmarks.problems.multitask import problem
from benchmarks.themes import peers as theme
from benchmarks.timing import Candidate, Effort, alternate
from gradsurgery import PCGrad

CPU = torch.device("cpu")

#: torch says so once a process, when torchjd batches the backward of attention on the CPU.
SLOW_VMAP = "ignore:There is a performance drop:UserWarning"


def installed(peer: Peer) -> None:
    if peer.package and importlib.util.find_spec(peer.package) is None:
        pytest.skip(INSTALL[peer.package])


def by_name(peer: Peer) -> str:
    return peer.name


def gradients(conflicts: str = "all") -> FixedGradients:
    return equivalence.gradients("mini", conflicts, CPU)


def twice(fixed: FixedGradients) -> Candidate:
    """A wrong peer: its update is twice the first gradient."""
    return Candidate(lambda: fixed.deliver([2 * grad for grad in fixed.grads[0]]))


def broken(fixed: FixedGradients) -> Candidate:
    raise ValueError("no such dtype")


def missing(fixed: FixedGradients) -> Candidate:
    raise ModuleNotFoundError("No module named 'torchjd'", name="torchjd.autojac")


@pytest.mark.parametrize("peer", implementations.PEERS, ids=by_name)
def test_every_peer_delivers_our_update(peer: Peer) -> None:
    installed(peer)
    assert equivalence.compare_small(peer, CPU).refused == ""


@pytest.mark.parametrize("peer", implementations.PEERS, ids=by_name)
def test_every_peer_keeps_its_inputs(peer: Peer) -> None:
    installed(peer)
    fixed, fresh = gradients(), gradients()
    candidate = peer.build(fixed)
    for _ in range(2):
        candidate.prepare()
        candidate.run()
        assert all(parameter.grad is not None for parameter in fixed.parameters)
    for used, untouched in zip(fixed.grads, fresh.grads, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(used, untouched, strict=True))


@pytest.mark.filterwarnings(SLOW_VMAP)
@pytest.mark.parametrize("peer", training_steps.STEP_PEERS, ids=by_name)
def test_every_peer_steps_like_ours(peer: Peer, tmp_path: Path) -> None:
    installed(peer)
    model = problem(Options(CPU, tmp_path, quick=True), dropout=0.0)
    verdict, candidate = equivalence.admit_step(peer, model)
    assert verdict.refused == ""
    assert candidate is not None
    before = [p.clone() for p in model.model.heads.parameters()]
    candidate.run()
    moved = zip(before, model.model.heads.parameters(), strict=True)
    assert all(torch.equal(a, b) == peer.copies for a, b in moved)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (twice, "not timed: its update differs from ours by"),
        (implementations.plain_sum, "not timed: its update differs from ours by"),
        (broken, "fails here: ValueError: no such dtype"),
        (missing, f"not installed: {INSTALL['torchjd']}"),
    ],
)
def test_a_peer_that_is_wrong_or_broken_or_missing_is_a_row_without_times(
    build: Callable[[FixedGradients], Candidate], reason: str, tmp_path: Path
) -> None:
    peers, fixed = [implementations.PEERS[0], Peer("wrong", build, "torchjd")], gradients()
    admit = partial(equivalence.admit_aggregation, fixed=fixed)
    verdicts, candidates = equivalence.admissions(peers, admit)
    assert list(candidates) == [OURS]
    times = alternate(candidates, Effort(2, 2, 0), CPU)
    rows = theme.figures(peers, verdicts, times, [1e-3] * 2)
    assert rows[1]["refused"].startswith(reason)
    assert "seconds" not in rows[1]
    [table] = theme.Peers(Options(CPU, tmp_path)).tables([{"comparison": "c", **r} for r in rows])
    assert table.rows[1][1].startswith(reason)


def test_an_update_right_at_full_size_only_is_refused() -> None:
    """The check on small gradients is the strict one: 1% off passes for rounding only later."""

    def off(fixed: FixedGradients) -> Candidate:
        right = implementations.ours(fixed, lambda: Ascending(PCGrad()))

        def run() -> None:
            right.run()
            for parameter in fixed.parameters:
                assert parameter.grad is not None
                parameter.grad.mul_(1.01)

        return Candidate(run, right.prepare)

    peer, fixed = Peer("off", off), gradients()
    assert equivalence.compare_small(peer, CPU).refused
    verdict = equivalence.compare(peer, fixed, off(fixed), 1, equivalence.LARGE)
    assert verdict.difference == pytest.approx(0.01, rel=1e-3)


def test_nan_is_refused() -> None:
    assert equivalence.judged(float("nan"), 1.0).refused


def test_targets_are_judged_on_what_was_measured() -> None:
    rows = [
        {"comparison": "c", "implementation": "torchjd, as it comes", "times_ours": 4.5},
        {"comparison": "c", "implementation": "torchjd, gramian path", "times_ours": 1.5},
    ]
    verdicts = [row[-1] for row in theme.targets(rows).rows]
    assert verdicts == ["met", "missed", *["not measured"] * (len(theme.TARGETS) - 2)]
