"""Theme ``peers``: the same gradients, and the same step, with other implementations.

A peer is timed only where its update is ours (:mod:`benchmarks.peers.equivalence`). One that fails,
or is not installed, is a row that says why. Timed rounds visit the tasks in each implementation's
own random order, as in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks import roofline, steps
from benchmarks.harness import Candidate, Times, alternate, ratio, seconds, spread
from benchmarks.options import Setting
from benchmarks.peers import equivalence, implementations, training_steps
from benchmarks.peers.equivalence import Verdict
from benchmarks.results import Result, Table, milliseconds
from benchmarks.themes.step import size_of

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

COLUMNS = (
    *("implementation", "median ms", "p20", "p80", "times ours", "over the floor"),
    *("differs by", "rounds"),
)

#: The comparison on which the targets are judged.
JUDGED = f"surgery alone, {CONFLICTS['one']}"


def aggregation(setting: Setting, conflicts: str) -> list[dict[str, Any]]:
    """Compare surgery alone, from K gradients to ``.grad``."""
    device = setting.device
    given = equivalence.gradients("mini" if setting.quick else "bert-base", conflicts, device)
    admit = partial(equivalence.admit_aggregation, given=given)
    verdicts, candidates = equivalence.admissions(implementations.PEERS, admit)
    elements = sum(parameter.numel() for parameter in given.parameters)
    probes = roofline.Probes(elements, device, setting.probe_bytes)
    effort = setting.effort(11, 120 if device.type == "cpu" else 10, warmup=1)
    times = alternate(probes.candidates() | candidates, effort, device, CONFLICTS[conflicts])
    least = probes.floor(times, roofline.whole_traffic(equivalence.TASKS, elements, 4))
    facts = {
        "comparison": f"surgery alone, {CONFLICTS[conflicts]}",
        "elements": elements,
        "bandwidths_gb_s": probes.bandwidths(times),
    }
    return figures(implementations.PEERS, verdicts, times, least, facts)


def training(setting: Setting) -> list[dict[str, Any]]:
    """Compare whole steps, one forward and K losses."""
    problem = steps.problem(size_of(setting), setting.device, dropout=0.0)
    admit = partial(equivalence.admit_step, problem=problem)
    verdicts, candidates = equivalence.admissions(training_steps.STEP_PEERS, admit)
    elements = sum(p.numel() for p in training_steps.shared(problem.model))
    probes = roofline.Probes(elements, setting.device, setting.probe_bytes)
    each = {steps.EACH: Candidate(steps.build(steps.EACH, problem, steps.SHARED))}
    effort = setting.effort(15, 120 if setting.device.type == "cpu" else 15)
    candidates = probes.candidates() | each | candidates
    times = alternate(candidates, effort, setting.device, "peers, a step")
    surgery = probes.floor(times, roofline.whole_traffic(len(steps.TASKS), elements, 4))
    least = [a + b for a, b in zip(seconds(times[steps.EACH]), surgery, strict=True)]
    facts = {
        "comparison": "a training step on one shared batch",
        "elements": elements,
        "bandwidths_gb_s": probes.bandwidths(times),
    }
    return figures(training_steps.STEP_PEERS, verdicts, times, least, facts)


def figures(
    rows: Sequence[equivalence.AnyPeer],
    verdicts: Mapping[str, Verdict],
    times: Times,
    least: list[float],
    facts: dict[str, Any],
) -> list[dict[str, Any]]:
    """Return a dict per peer; those without times have ``refused``."""
    ours, found = seconds(times[implementations.OURS]), []
    for peer in rows:
        verdict = verdicts[peer.name]
        row = {**facts, "implementation": peer.name, "note": peer.note, **verdict._asdict()}
        if not verdict.refused:
            taken = seconds(times[peer.name])
            row |= {
                "rounds": len(taken),
                "seconds": spread(taken)._asdict(),
                "times_ours": ratio(taken, ours),
                "over_floor": ratio(taken, least),
            }
        found.append(row)
    return found


def table(rows: list[dict[str, Any]]) -> Table:
    """Return one comparison's table."""
    lines = []
    for row in rows:
        if row["refused"]:
            lines.append([row["implementation"], row["refused"], *[""] * (len(COLUMNS) - 2)])
            continue
        ratios = (f"{row[name]:.2f}" for name in ("times_ours", "over_floor"))
        apart = "" if row["difference"] is None else f"{row['difference']:.0e}"
        taken = milliseconds(row["seconds"].values())
        lines.append([row["implementation"], *taken, *ratios, apart, str(row["rounds"])])
    return Table(rows[0]["comparison"].capitalize(), COLUMNS, lines)


def targets(rows: list[dict[str, Any]]) -> Table:
    """Judge the targets on one comparison."""
    found = {row["implementation"]: row.get("times_ours") for row in rows}
    lines = []
    for name, target in TARGETS.items():
        factor = found.get(name)
        if factor is None:
            lines.append([name, f"{target:.0f}", "", "not measured"])
        else:
            verdict = "met" if factor >= target else "missed"
            lines.append([name, f"{target:.0f}", f"{factor:.1f}", verdict])
    title = f"Targets: {rows[0]['comparison']}"
    return Table(title, ("implementation", "times ours, at least", "measured", "verdict"), lines)


def notes(rows: Sequence[equivalence.AnyPeer], where: str) -> list[str]:
    """Return what differs, peer by peer."""
    return [f"{where}, {peer.name}: {peer.note}." for peer in rows if peer.note]


def run(setting: Setting) -> Result:
    """Measure the theme."""
    result = Result(
        "peers",
        "surgery's bytes; of a step, the step loss by loss plus surgery's bytes; "
        + roofline.FORMULA[setting.device.type],
    )
    result.parameters = {
        "tasks": equivalence.TASKS,
        **size_of(setting)._asdict(),
        "precision": "fp32",
    }
    # All pairs in conflict is what loops are slowest at: two minutes more that nobody is judged by.
    cheap = setting.everything or setting.quick or setting.device.type == "cuda"
    chosen = CONFLICTS if cheap else ["one"]
    comparisons = [partial(aggregation, setting, conflicts) for conflicts in chosen]
    for compared in [*comparisons, partial(training, setting)]:
        if setting.late:
            result.notes.append("a further comparison: out of time")
            continue
        rows = compared()
        result.figures += rows
        result.tables.append(table(rows))
        if rows[0]["comparison"] == JUDGED and setting.device.type == "cpu" and not setting.quick:
            result.tables.append(targets(rows))
    result.bandwidths = result.figures[0]["bandwidths_gb_s"]
    result.notes += [*NOTES, *notes(implementations.PEERS, "surgery alone")]
    result.notes += notes(training_steps.STEP_PEERS, "step")
    return result


NOTES = [
    "times ours: the median over the rounds of its time over that of gradsurgery PCGrad; larger is "
    "slower.",
    "differs by: |update - ours| / |ours| with visits in ascending order on both sides; of our own "
    "rows and of plain sums nothing is asked.",
    "Targets are judged on the CPU alone, for BERT-base's 109M elements and K = 3.",
]
