"""Theme ``methods``: the K x K maths of every method: how exact, how fast, how long the update.

Ours and torchjd's weightings get the same Gram matrix in float64 on the CPU, where the K x K maths
run, and take turns. What the difference of the updates is, is said beside the times: with torchjd's
defaults, some of which regularize or stop early, and with as little of that as its arguments allow.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Case, Theme
from benchmarks.peers.weightings import PAIRINGS, Pairing, difference, weights
from benchmarks.tables import ROUNDS, TIMES, Row, Table, decimals, field, milliseconds, table
from benchmarks.timing import Candidate, alternate
from gradsurgery import GradVac, Method, PCGrad, Primary

TASKS = (3, 8, 32)

#: Those that torchjd has in another form (a random order), or does not have.
ALONE: dict[str, Callable[[], Method]] = {
    "PCGrad": PCGrad,
    "GradVac": GradVac,
    "Primary": lambda: Primary(0),
}

Family = Callable[[Tensor], Tensor]  # of random gradients [K, N], in general position

#: Gradients that the papers' conditions are checked on, at losses of ``SCALES``.
FAMILIES: dict[str, Family] = {
    "general position": lambda grads: grads,
    "norms 1 : 1e4": lambda grads: grads * torch.logspace(-4, 0, len(grads))[:, None].double(),
    "nearly parallel": lambda grads: 30 * grads[:1] + grads,
    "nearly against each other": lambda grads: grads - 0.95 * grads.mean(0),
}
SCALES = (1e-12, 1.0, 1e12)

#: Equal gradients of length one, whose update is measured.
EQUAL = 4


def random_gradients(tasks: int, seed: int = 0) -> Tensor:
    """Return ``[K, 4 K]`` float64 in general position."""
    generator = torch.Generator().manual_seed(tasks + 100 * seed)
    return torch.randn(tasks, 4 * tasks, dtype=torch.float64, generator=generator)


def random_gram(tasks: int) -> Tensor:
    """Return ``[K, K]`` float64 of gradients in general position, 4 K elements each."""
    gradients = random_gradients(tasks)
    return gradients @ gradients.mT


def residual(pair: Pairing) -> float:
    """Return by how much the paper's condition is broken at most, over families and scales."""
    method, broken = pair.ours(), []
    for tasks, seed, family, scale in product((2, 3, 8, 16), range(3), FAMILIES, SCALES):
        gradients = scale * FAMILIES[family](random_gradients(tasks, seed))
        gram = gradients @ gradients.mT
        broken.append(pair.condition(gram.numpy(), weights(method, gram).numpy()))
    return float(np.max(broken))  # NaN if any is


def length(method: Method) -> float:
    """Return the length of the update of ``EQUAL`` equal gradients of length one."""
    return float(weights(method, torch.ones(EQUAL, EQUAL, dtype=torch.float64)).sum())


class Methods(Theme):
    """Methods by number of tasks."""

    name = "methods"
    title = "K = {tasks}"
    columns = (
        ("method", field("method")),
        *TIMES,
        ("torchjd ms", field("torchjd_seconds.median", milliseconds)),
        ("torchjd over ours", field("torchjd_over_ours", decimals(1))),
        ("difference of the updates", field("difference", "{:.0e}".format)),
        ROUNDS,
    )
    remarks = (
        "One segment, float64, on the CPU; the passes over the gradients are the theme surgery's.",
        "residual: by how much the paper's own condition (benchmarks/peers/conditions.py) is "
        "broken at most, relative, beyond the rounding of the Gram matrix: K = 2, 3, 8 and 16, "
        f"{', '.join(FAMILIES)}, losses times 1e-12, 1 and 1e12. Zero: not at all.",
        "difference: |u - v| / |v| of our update u and torchjd's v, on gradients in general "
        "position; as it comes, and strict: with as little regularization and as late a stop as "
        "its arguments allow.",
        f"length: of the update of {EQUAL} equal gradients of length one.",
        *(f"{name}: {pair.reason}." for name, pair in PAIRINGS.items() if pair.reason),
    )

    def parameters(self, rows: Sequence[Row]) -> dict[str, Any]:
        return {"tasks": list(self._tasks)}

    @property
    def _tasks(self) -> tuple[int, ...]:
        return TASKS[:1] if self.options.quick else TASKS

    def tables(self, rows: Sequence[Row]) -> list[Table]:
        """Return a line for each method, and the tables by number of tasks."""
        lines: dict[str, Row] = {}
        for row in rows:
            line = lines.setdefault(row["method"], {"method": row["method"]})
            line |= {name: row[name] for name in ("residual", "length") if name in row}
            line[str(row["tasks"])] = row
        columns = [("method", field("method")), ("residual", field("residual", "{:.0e}".format))]
        for tasks in self._tasks:
            columns += [
                (f"K = {tasks}, ms", field(f"{tasks}.seconds.median", milliseconds)),
                ("torchjd, ms", field(f"{tasks}.torchjd_seconds.median", milliseconds)),
            ]
        columns += [
            ("differs by", field(f"{self._tasks[0]}.difference", "{:.0e}".format)),
            ("strict", field(f"{self._tasks[0]}.strict", "{:.0e}".format)),
            ("length", field("length", decimals(2))),
        ]
        return [table("All methods", columns, lines.values()), *super().tables(rows)]

    def notes(self, rows: Sequence[Row]) -> list[str]:
        missing = [] if _torchjd_installed() else ["torchjd is not installed: ours alone"]
        return [*super().notes(rows), *missing]

    def cases(self) -> Iterator[Case]:
        for tasks, name in product(self._tasks, (*PAIRINGS, *ALONE)):
            yield Case(f"{name}, K = {tasks}", partial(self._measured, name, tasks))

    def _measured(self, name: str, tasks: int) -> Iterator[Row]:
        pair, gram = PAIRINGS.get(name), random_gram(tasks)
        method = pair.ours() if pair else ALONE[name]()
        row: Row = {"method": name, "tasks": tasks, "length": length(method)}
        if pair and tasks == self._tasks[0]:
            row["residual"] = residual(pair)
        candidates = {"ours": Candidate(lambda: weights(method, gram))}
        with warnings.catch_warnings(), torch.no_grad():  # as in a step
            warnings.simplefilter("ignore")  # of the solvers, about how their problem is put
            if pair and _torchjd_installed():
                theirs = pair.theirs(tasks, False)
                candidates["torchjd"] = Candidate(lambda: theirs(gram))
                for label, weighting in (
                    ("difference", theirs),
                    ("strict", pair.theirs(tasks, True)),
                ):
                    update, factor = weighting(gram), pair.factor(tasks)
                    row[label] = difference(weights(method, gram), update, gram, factor)
            effort = self.options.effort(51, cpu=2, cuda=2)
            times = alternate(candidates, effort, torch.device("cpu"), f"{name}, K = {tasks}")
        row |= times.figures("ours")
        if "torchjd" in candidates:
            row["torchjd_seconds"] = times.figures("torchjd")["seconds"]
            row["torchjd_over_ours"] = times.ratio("torchjd", "ours")
        yield row


def _torchjd_installed() -> bool:
    return importlib.util.find_spec("torchjd") is not None
