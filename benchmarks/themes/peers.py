"""Theme ``peers``: the same gradients, and the same step, with other implementations.

A peer is timed only where its update is ours (:mod:`benchmarks.peers.equivalence`). One that fails,
or is not installed, is a row that says why. Timed rounds visit the tasks in each implementation's
own random order, as in training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks.harness import Case, Theme
from benchmarks.peers import equivalence
from benchmarks.peers.equivalence import TASKS, Verdict, admissions
from benchmarks.peers.implementations import PEERS
from benchmarks.peers.peer import OURS, Peer
from benchmarks.peers.training_steps import STEP_PEERS
from benchmarks.problems.multitask import problem
from benchmarks.roofline import Probes, whole_traffic
from benchmarks.steps.step import EACH, SHARED, step
from benchmarks.tables import ROUNDS, TIMES, Row, Table, decimals, field, milliseconds, table
from benchmarks.timing import Candidate, Effort, Times, alternate, ratio

#: How many times faster ours has to be on the CPU: 110M elements, K = 3. The 25 are against loops
#: over flattened gradients as they are published, with masks or with copies at every step; our own
#: loop without either is the leanest there can be, and held to the same figure.
TARGETS = {
    "torchjd, as it comes": 4.0,
    "torchjd, gramian path": 2.0,
    "LibMTL PCGrad": 15.0,
    "pytorch-optimizer PCGrad": 25.0,
    "flatten and loop, with masks": 25.0,
    "flatten and loop": 25.0,
}

CONFLICTS = {"one": "one of three pairs conflicts", "all": "all pairs conflict"}

STEP = "a training step on one shared batch"

#: The comparison on which the targets are judged.
JUDGED = f"surgery alone, {CONFLICTS['one']}"


def _median(row: Row) -> str:
    """Return the median, or why there is none."""
    return row["refused"] or milliseconds(row["seconds"]["median"])


class Peers(Theme):
    """Surgery alone by conflicts, and a whole step."""

    name = "peers"
    floor = "surgery's bytes; of a step, the step loss by loss plus surgery's bytes"
    title = "{comparison}"
    columns = (
        ("implementation", field("implementation")),
        ("median ms", _median),
        *TIMES[1:],
        ("times ours", field("times_ours", decimals(2))),
        ("over the floor", field("over_floor", decimals(2))),
        ("differs by", field("difference", "{:.0e}".format)),
        ROUNDS,
    )
    remarks = (
        "times ours: the median over the rounds of its time over that of gradsurgery PCGrad; "
        "larger is slower.",
        "differs by: |update - ours| / |ours| with visits in ascending order on both sides; of our "
        "own rows and of plain sums nothing is asked.",
        "Targets are judged on the CPU alone, for BERT-base's 109M elements and K = 3.",
        *(f"surgery alone, {peer.name}: {peer.note}." for peer in PEERS if peer.note),
        *(f"step, {peer.name}: {peer.note}." for peer in STEP_PEERS if peer.note),
    )

    def parameters(self, rows: Sequence[Row]) -> dict[str, Any]:
        return {**super().parameters(rows), "precision": "fp32"}

    def cases(self) -> Iterator[Case]:
        # All pairs in conflict is what loops are slowest at: two minutes more, without a target.
        cheap = self.options.everything or self.options.quick or self.options.cuda
        for conflicts in CONFLICTS if cheap else ["one"]:
            label = f"surgery alone, {CONFLICTS[conflicts]}"
            yield Case(label, partial(self._aggregation, label, conflicts))
        yield Case(STEP, self._step)

    def tables(self, rows: Sequence[Row]) -> list[Table]:
        tables = super().tables(rows)
        judged = [row for row in rows if row["comparison"] == JUDGED]
        if judged and not self.options.cuda and not self.options.quick:
            tables.insert(1, targets(judged))
        return tables

    def _aggregation(self, label: str, conflicts: str) -> list[Row]:
        """Compare surgery alone, from K gradients to ``.grad``."""
        shape = "mini" if self.options.quick else "bert-base"
        fixed = equivalence.gradients(shape, conflicts, self.options.device)
        admitted = admissions(PEERS, partial(equivalence.admit_aggregation, fixed=fixed))
        effort = self.options.effort(11, cpu=120, cuda=10, warmup=1)
        return self._compare(label, PEERS, admitted, fixed.elements, effort)

    def _step(self) -> list[Row]:
        """Compare whole steps, one forward and K losses."""
        model = problem(self.options, TASKS, dropout=0.0)
        elements = sum(parameter.numel() for parameter in model.trunk)
        verdicts, steps = admissions(STEP_PEERS, partial(equivalence.admit_step, problem=model))
        steps[EACH] = Candidate(step(EACH, model, SHARED))
        effort = self.options.effort(15, cpu=120, cuda=15)
        return self._compare(STEP, STEP_PEERS, (verdicts, steps), elements, effort, after=EACH)

    def _compare(
        self,
        label: str,
        peers: Sequence[Peer[Any, Any]],
        admitted: tuple[dict[str, Verdict], dict[str, Candidate]],
        elements: int,
        effort: Effort,
        after: str | None = None,
    ) -> list[Row]:
        device, (verdicts, candidates) = self.options.device, admitted
        probes = Probes(elements, device, self.options.probe_bytes)
        times = alternate(probes.candidates() | candidates, effort, device, label)
        floor = probes.floor(times, whole_traffic(TASKS, elements, 4), after)
        facts = {
            "comparison": label,
            "elements": elements,
            "bandwidths_gb_s": probes.bandwidths(times),
        }
        return [facts | row for row in figures(peers, verdicts, times, floor)]


def figures(
    peers: Sequence[Peer[Any, Any]],
    verdicts: Mapping[str, Verdict],
    times: Times,
    floor: Sequence[float],
) -> list[Row]:
    """Return a row for each peer; those without times have ``refused``."""
    rows = []
    for peer in peers:
        row = {"implementation": peer.name, "note": peer.note, **verdicts[peer.name]._asdict()}
        if peer.name in times:
            row |= times.figures(peer.name, times_ours=OURS)
            row["over_floor"] = ratio(times.seconds(peer.name), floor)
        rows.append(row)
    return rows


def targets(rows: Sequence[Row]) -> Table:
    """Judge the targets on one comparison."""
    factors = {row["implementation"]: row.get("times_ours") for row in rows}
    judged = [
        {"implementation": name, "target": target, "factor": factors.get(name)}
        for name, target in TARGETS.items()
    ]
    return table(
        f"Targets: {rows[0]['comparison']}",
        [
            ("implementation", field("implementation")),
            ("times ours, at least", field("target", decimals(0))),
            ("measured", field("factor", decimals(1))),
            ("verdict", _judgement),
        ],
        judged,
    )


def _judgement(row: Row) -> str:
    if row["factor"] is None:
        return "not measured"
    return "met" if row["factor"] >= row["target"] else "missed"
