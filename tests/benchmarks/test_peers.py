"""A peer is timed where its update is ours, refused where it is not, and keeps its inputs."""

from __future__ import annotations

import importlib.util
from functools import partial

import pytest
import torch

from benchmarks import steps
from benchmarks.harness import Candidate, Effort, alternate
from benchmarks.peers import equivalence, implementations, training_steps
from benchmarks.peers.fixed_gradients import Given
from benchmarks.peers.fixed_order import Ascending
from benchmarks.themes import peers as theme
from gradsurgery import PCGrad

CPU = torch.device("cpu")

#: torch says so once a process, when torchjd batches the backward of attention on the CPU.
SLOW_VMAP = "ignore:There is a performance drop:UserWarning"


def installed(peer: equivalence.AnyPeer) -> None:
    if peer.package and importlib.util.find_spec(peer.package) is None:
        pytest.skip(implementations.INSTALL[peer.package])


def by_name(peer: equivalence.AnyPeer) -> str:
    return peer.name


def given(conflicts: str = "all") -> Given:
    return equivalence.gradients("mini", conflicts, CPU)


def twice(problem: Given) -> Candidate:
    """A wrong peer: its update is twice the first gradient."""
    return Candidate(lambda: problem.deliver([2 * grad for grad in problem.grads[0]]))


def broken(problem: Given) -> Candidate:
    raise ValueError("no such dtype")


def missing(problem: Given) -> Candidate:
    raise ModuleNotFoundError("No module named 'torchjd'", name="torchjd.autojac")


@pytest.mark.parametrize("peer", implementations.PEERS, ids=by_name)
def test_every_peer_delivers_our_update(peer: implementations.Peer) -> None:
    installed(peer)
    assert equivalence.vet(peer, CPU).refused == ""


@pytest.mark.parametrize("peer", implementations.PEERS, ids=by_name)
def test_every_peer_keeps_what_it_was_given(peer: implementations.Peer) -> None:
    installed(peer)
    problem, fresh = given(), given()
    candidate = peer.build(problem)
    for _ in range(2):
        candidate.prepare()
        candidate.run()
        assert all(parameter.grad is not None for parameter in problem.parameters)
    for mine, untouched in zip(problem.grads, fresh.grads, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, untouched, strict=True))


@pytest.mark.filterwarnings(SLOW_VMAP)
@pytest.mark.parametrize("peer", training_steps.STEP_PEERS, ids=by_name)
def test_every_peer_steps_like_ours(peer: training_steps.StepPeer) -> None:
    installed(peer)
    problem = steps.problem(steps.SIZES["quick"], CPU, dropout=0.0)
    verdict, candidate = equivalence.admit_step(peer, problem)
    assert verdict.refused == ""
    assert candidate is not None
    before = [p.clone() for p in problem.model.heads.parameters()]
    candidate.run()
    if "autogram" not in peer.name:  # which trains its copy
        moved = zip(before, problem.model.heads.parameters(), strict=True)
        assert all(not torch.equal(a, b) for a, b in moved)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (twice, "not timed: its update differs from ours by"),
        (implementations.plain_sum, "not timed: its update differs from ours by"),
        (broken, "fails here: ValueError: no such dtype"),
        (missing, "not installed: pip install torchjd==0.18.0"),
    ],
)
def test_a_peer_that_is_wrong_or_broken_or_missing_is_a_row_without_times(
    build: object, said: str
) -> None:
    wrong = implementations.Peer("wrong", build, "torchjd")  # type: ignore[arg-type]
    rows, problem = [implementations.PEERS[0], wrong], given()
    admit = partial(equivalence.admit_aggregation, given=problem)
    verdicts, candidates = equivalence.admissions(rows, admit)
    assert list(candidates) == [implementations.OURS]
    times = alternate(candidates, Effort(2, 2, 0), CPU)
    least = [1e-3] * 2
    found = theme.figures(rows, verdicts, times, least, {"comparison": "test"})
    assert found[1]["refused"].startswith(said)
    assert "seconds" not in found[1]
    assert theme.table(found).rows[1][1].startswith(said)


def test_an_update_right_at_full_size_only_is_refused() -> None:
    """The check on small gradients is the strict one: 1% off passes for rounding only later."""

    def off(problem: Given) -> Candidate:
        right = implementations.ours(problem, lambda: Ascending(PCGrad()))

        def run() -> None:
            right.run()
            for parameter in problem.parameters:
                assert parameter.grad is not None
                parameter.grad.mul_(1.01)

        return Candidate(run, right.prepare)

    assert equivalence.vet(implementations.Peer("off", off), CPU).refused
    problem = given()
    candidate = off(problem)
    verdict = equivalence.compare(
        implementations.Peer("off", off), problem, candidate, 1, equivalence.LARGE
    )
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
