"""Equivalence of a peer's update and ours, checked before anything is timed.

PCGrad and GradVac visit the other tasks in random order, so both sides visit them in ascending
order here. Surgery alone is compared twice: on small gradients, of which one pair or all pairs
conflict, where only rounding may differ; and on the very gradients that are timed, where long
float32 dot products may cost a peer some digits, and the table shows how many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from benchmarks.peers import implementations, training_steps
from benchmarks.peers.fixed_order import Ascending, ascending_visits
from benchmarks.peers.peer import INSTALL, Peer
from benchmarks.problems.encoders import parameters
from benchmarks.problems.gradients import FixedGradients, conflict_cosines, random_gradients
from benchmarks.problems.multitask import Problem
from benchmarks.steps.step import Step
from benchmarks.timing import Candidate

TASKS = 3

#: Largest difference from our update, relative to its length: small gradients, those timed, steps.
SMALL, LARGE, STEP = 1e-4, 5e-2, 1e-2

P = TypeVar("P")
C = TypeVar("C")


class Verdict(NamedTuple):
    """The difference from our update, and the reason why a peer is not timed ("" if it is)."""

    difference: float | None = None
    refused: str = ""


#: A verdict, and what may be timed.
Admission = tuple[Verdict, Candidate | None]


def admissions(
    peers: Sequence[Peer[P, C]], admit: Callable[[Peer[P, C]], Admission]
) -> tuple[dict[str, Verdict], dict[str, Candidate]]:
    """Return every peer's verdict, and the candidates of those that may be timed."""
    verdicts: dict[str, Verdict] = {}
    candidates: dict[str, Candidate] = {}
    for peer in peers:
        try:
            verdicts[peer.name], candidate = admit(peer)
        except Exception as error:  # whatever one peer does, the others are still to be measured
            verdicts[peer.name], candidate = Verdict(refused=_reason(peer, error)), None
        if candidate is not None and not verdicts[peer.name].refused:
            candidates[peer.name] = candidate
    return verdicts, candidates


def _reason(peer: Peer[P, C], error: Exception) -> str:
    if not isinstance(error, ImportError):
        return f"fails here: {type(error).__name__}: {error}".splitlines()[0]
    if peer.package and (error.name or "").split(".")[0] == peer.package:
        return f"not installed: {INSTALL[peer.package]}"
    return f"cannot be imported: {error}"


def admit_aggregation(peer: Peer[FixedGradients, Candidate], fixed: FixedGradients) -> Admission:
    """Compare a peer's update on small gradients, then on those that are timed."""
    verdict = compare_small(peer, fixed.device)
    if verdict.refused:
        return verdict, None
    candidate = peer.build(fixed)
    verdict = compare(peer, fixed, candidate, times=1, tolerance=LARGE)
    fixed.clear()
    return verdict, candidate


def admit_step(peer: Peer[Problem, Step], problem: Problem) -> Admission:
    """Compare what a peer's training step leaves in ``.grad`` of the encoder."""
    expected = None
    if peer.same_as is not None:
        ours = training_steps.ours(problem, _ascending(peer))
        expected = _update(ours.passes, problem.trunk)
    copy = problem.copy() if peer.copies else problem
    step, verdict = peer.build(copy), Verdict()
    if expected is not None:
        verdict = judged(difference(_update(step.passes, copy.trunk), expected), STEP)
        step.optimizer.zero_grad()
    problem.model.zero_grad()
    return verdict, Candidate(step)


def compare_small(peer: Peer[FixedGradients, Candidate], device: torch.device) -> Verdict:
    """Compare on small gradients, three times in a row: GradVac's targets move in between."""
    verdict = Verdict()
    for conflicts in ("one", "all"):
        fixed = gradients("mini", conflicts, device)
        verdict = compare(peer, fixed, peer.build(fixed), times=3, tolerance=SMALL)
        if verdict.refused:
            break
    return verdict


def compare(
    peer: Peer[FixedGradients, Candidate],
    fixed: FixedGradients,
    candidate: Candidate,
    times: int,
    tolerance: float,
) -> Verdict:
    """Compare the last update of some aggregations."""
    if peer.same_as is None:
        return Verdict()
    update = _aggregated(candidate, fixed, times)
    ours = implementations.ours(fixed, _ascending(peer))
    return judged(difference(update, _aggregated(ours, fixed, times)), tolerance)


def judged(difference: float, tolerance: float) -> Verdict:
    """Accept a difference or refuse it; NaN is refused."""
    if difference <= tolerance:
        return Verdict(difference)
    return Verdict(
        difference, f"not timed: its update differs from ours by {difference:.1e} of its length"
    )


def difference(update: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return |update - expected| / |expected|."""
    apart = [(a - b).norm().double() for a, b in zip(update, expected, strict=True)]
    size = [b.norm().double() for b in expected]
    return float(torch.stack(apart).norm() / torch.stack(size).norm())


def gradients(name: str, conflicts: str, device: torch.device) -> FixedGradients:
    """Return gradients of three tasks, shaped like ``name``, with ``one`` or ``all`` conflicts."""
    shaped, cosines = parameters(name), conflict_cosines(TASKS, conflicts)
    grads = random_gradients(shaped.shapes, TASKS, device, cosines=cosines)
    return FixedGradients(shaped, grads)


def _ascending(peer: Peer[P, C]) -> Callable[[], Ascending]:
    assert peer.same_as is not None
    method = peer.same_as
    return lambda: Ascending(method())


def _aggregated(candidate: Candidate, fixed: FixedGradients, times: int) -> list[Tensor]:
    def run() -> None:
        candidate.prepare()
        candidate.run()

    return [_update(run, fixed.parameters) for _ in range(times)][-1]


def _update(run: Callable[[], object], parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return what ``run`` leaves in ``.grad``, visits in ascending order."""
    for parameter in parameters:
        parameter.grad = None
    with ascending_visits():
        run()
    return [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
