"""Theme ``methods``: the K x K maths of every method, beside torchjd's weightings.

Both get the same Gram matrix in float64 on the CPU, where the K x K maths run, and take turns.
What the difference of the updates is, is said beside the times: with torchjd's defaults, some of
which regularize or stop early.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Case, Theme
from benchmarks.peers.weightings import PAIRINGS, difference, weights
from benchmarks.tables import ROUNDS, TIMES, Row, decimals, field, milliseconds
from benchmarks.timing import Candidate, alternate
from gradsurgery import GradVac, Method, PCGrad, Primary

TASKS = (3, 8, 32)

#: Those that torchjd has in another form (a random order), or does not have.
ALONE: dict[str, Callable[[], Method]] = {
    "PCGrad": PCGrad,
    "GradVac": GradVac,
    "Primary": lambda: Primary(0),
}


def random_gram(tasks: int) -> Tensor:
    """Return ``[K, K]`` float64 of gradients in general position, 4 K elements each."""
    gradients = torch.randn(
        tasks, 4 * tasks, dtype=torch.float64, generator=torch.Generator().manual_seed(tasks)
    )
    return gradients @ gradients.mT


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
        "difference: |u - v| / |v| of our update u and torchjd's v with its defaults.",
        *(f"{name}: {pair.reason}." for name, pair in PAIRINGS.items() if pair.reason),
    )

    def parameters(self, rows: list[Row]) -> dict[str, Any]:  # type: ignore[override]
        return {"tasks": list(self._tasks)}

    @property
    def _tasks(self) -> tuple[int, ...]:
        return TASKS[:1] if self.options.quick else TASKS

    def cases(self) -> Iterator[Case]:
        for tasks in self._tasks:
            for name in PAIRINGS:
                yield Case(
                    f"{name}, K = {tasks}", partial(self._beside, name, tasks), package="torchjd"
                )
            for name in ALONE:
                yield Case(f"{name}, K = {tasks}", partial(self._alone, name, tasks))

    def _alone(self, name: str, tasks: int) -> Iterator[Row]:
        gram, method = random_gram(tasks), ALONE[name]()
        times = self._times({"ours": Candidate(lambda: weights(method, gram))}, name)
        yield {"method": name, "tasks": tasks, **times.figures("ours")}

    def _beside(self, name: str, tasks: int) -> Iterator[Row]:
        pair, gram = PAIRINGS[name], random_gram(tasks)
        method, theirs = pair.ours(), pair.theirs(tasks, False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the solvers, about how their problem is put
            gap = difference(weights(method, gram), theirs(gram), gram, pair.factor(tasks))
            candidates = {
                "ours": Candidate(lambda: weights(method, gram)),
                "torchjd": Candidate(lambda: theirs(gram)),
            }
            times = self._times(candidates, f"{name}, K = {tasks}")
        yield {
            "method": name,
            "tasks": tasks,
            **times.figures("ours"),
            "torchjd_seconds": times.figures("torchjd")["seconds"],
            "torchjd_over_ours": times.ratio("torchjd", "ours"),
            "difference": gap,
        }

    def _times(self, candidates: dict[str, Candidate], label: str) -> Any:
        return alternate(
            candidates, self.options.effort(51, cpu=4, cuda=2), torch.device("cpu"), label
        )
