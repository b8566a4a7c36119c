"""Is a peer's update ours? Asked before anything is timed.

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

from benchmarks import workloads
from benchmarks.harness import Candidate
from benchmarks.peers import implementations, training_steps
from benchmarks.peers.fixed_gradients import Given
from benchmarks.peers.fixed_order import Ascending, ascending_visits
from benchmarks.steps import Problem

TASKS = 3

#: Largest difference from our update, relative to its length: small gradients, those timed, steps.
SMALL, LARGE, STEP = 1e-4, 5e-2, 1e-2


class Verdict(NamedTuple):
    """What the check found: the difference from our update, and why there are no times if so."""

    difference: float | None = None
    refused: str = ""


AnyPeer = implementations.Peer | training_steps.StepPeer

P = TypeVar("P", implementations.Peer, training_steps.StepPeer)

#: A verdict, and what may be timed.
Admission = tuple[Verdict, Candidate | None]


def judged(difference: float, tolerance: float) -> Verdict:
    """Accept a difference or refuse it; NaN is refused."""
    if difference <= tolerance:
        return Verdict(difference)
    return Verdict(
        difference, f"not timed: its update differs from ours by {difference:.1e} of its length"
    )


def attempt(peer: P, admit: Callable[[P], Admission]) -> Admission:
    """Let a peer be admitted; one that is missing or breaks is refused, with the reason."""
    try:
        return admit(peer)
    except ImportError as error:
        if peer.package and (error.name or "").split(".")[0] == peer.package:
            return Verdict(refused=f"not installed: {implementations.INSTALL[peer.package]}"), None
        return Verdict(refused=f"cannot be imported: {error}"), None
    except Exception as error:  # whatever one peer does, the others are still to be measured
        return Verdict(refused=f"fails here: {type(error).__name__}: {error}".splitlines()[0]), None


def admissions(
    rows: Sequence[P], admit: Callable[[P], Admission]
) -> tuple[dict[str, Verdict], dict[str, Candidate]]:
    """Return every peer's verdict, and the candidates of those that may be timed."""
    verdicts: dict[str, Verdict] = {}
    candidates: dict[str, Candidate] = {}
    for peer in rows:
        verdicts[peer.name], candidate = attempt(peer, admit)
        if candidate is not None and not verdicts[peer.name].refused:
            candidates[peer.name] = candidate
    return verdicts, candidates


def admit_aggregation(peer: implementations.Peer, given: Given) -> Admission:
    """Check a peer on small gradients, then on the given ones."""
    verdict = vet(peer, given.device)
    if verdict.refused:
        return verdict, None
    candidate = peer.build(given)
    verdict = compare(peer, given, candidate, times=1, tolerance=LARGE)
    given.clear()
    return verdict, candidate


def admit_step(peer: training_steps.StepPeer, problem: Problem) -> Admission:
    """Check what a peer's training step leaves in ``.grad`` of the encoder."""
    trainer = peer.build(problem)
    verdict = compare_steps(peer, problem, trainer)
    problem.model.zero_grad()
    return verdict, Candidate(trainer.step)


def difference(update: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return |update - expected| / |expected|."""
    apart = [(a - b).norm().double() for a, b in zip(update, expected, strict=True)]
    size = [b.norm().double() for b in expected]
    return float(torch.stack(apart).norm() / torch.stack(size).norm())


def gradients(name: str, conflicts: str, device: torch.device) -> Given:
    """Return gradients of three tasks, shaped like ``name``, with ``one`` or ``all`` conflicts."""
    work = workloads.workload(name)
    cosines = workloads.conflict_cosines(TASKS, conflicts)
    return Given(work, workloads.gradients(work.shapes, TASKS, device, cosines=cosines))


def vet(peer: implementations.Peer, device: torch.device) -> Verdict:
    """Compare on small gradients, three times in a row: GradVac's targets move in between."""
    verdict = Verdict()
    for conflicts in ("one", "all"):
        given = gradients("mini", conflicts, device)
        verdict = compare(peer, given, peer.build(given), times=3, tolerance=SMALL)
        if verdict.refused:
            break
    return verdict


def compare(
    peer: implementations.Peer, given: Given, candidate: Candidate, times: int, tolerance: float
) -> Verdict:
    """Compare the update of the last of some aggregations."""
    if peer.same_as is None:
        return Verdict()
    found = _aggregated(candidate, given, times)
    method = peer.same_as
    ours = implementations.ours(given, lambda: Ascending(method()))
    return judged(difference(found, _aggregated(ours, given, times)), tolerance)


def compare_steps(
    peer: training_steps.StepPeer, problem: Problem, trainer: training_steps.Trainer
) -> Verdict:
    """Compare what a training step leaves in ``.grad`` of the encoder."""
    if peer.same_as is None:
        return Verdict()
    method = peer.same_as
    ours = training_steps.ours(problem, lambda: Ascending(method()))
    expected = _update(ours.backward, training_steps.shared(ours.model))
    found = _update(trainer.backward, training_steps.shared(trainer.model))
    trainer.optimizer.zero_grad()
    return judged(difference(found, expected), STEP)


def _aggregated(candidate: Candidate, given: Given, times: int) -> list[Tensor]:
    def run() -> None:
        candidate.prepare()
        candidate.run()

    return [_update(run, given.parameters) for _ in range(times)][-1]


def _update(run: Callable[[], object], parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return what ``run`` leaves in ``.grad``, visits in ascending order."""
    for parameter in parameters:
        parameter.grad = None
    with ascending_visits():
        run()
    return [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
