"""The passes of surgery over fixed gradients, to be timed.

``gram`` and ``combine`` are timed at the seam :mod:`gradsurgery.kernels`, which only this file
calls; ``whole`` through the public API: gradients are captured first, untimed, and
``optimizer.combine()`` is timed. The three work on the same tensors, in place. Weights sum to one,
so ``combine`` keeps values bounded; the first gradient of ``whole`` is its update, so it grows by
the others' sum each round.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks import roofline
from benchmarks.problems.encoders import Parameters
from benchmarks.problems.gradients import FixedGradients, Gradients
from benchmarks.tables import Row
from benchmarks.timing import Candidate, Times, ratio, spread
from gradsurgery import GradientSurgery, PCGrad, kernels
from gradsurgery.grouping import segments

TRAFFIC = {
    "gram": roofline.gram_traffic,
    "combine": roofline.combine_traffic,
    "whole": roofline.whole_traffic,
}


class Passes:
    """The three candidates on one set of gradients.

    Args:
        parameters: names and shapes.
        grads: ``[K][P]``; the first row is overwritten at each round.
        grouping: of the segments.
    """

    def __init__(self, parameters: Parameters, grads: Gradients, grouping: str = "model") -> None:
        self._fixed = FixedGradients(parameters, grads)
        self._optimizer = GradientSurgery(
            torch.optim.SGD(self._fixed.named),
            PCGrad(),
            tasks=self._fixed.tasks,
            grouping=grouping,
        )
        self._segment_of, names = segments(parameters.names, grouping)
        self.segments = len(names)
        # On the gradients' device: the fused kernels decide there, and the eager ones ask for it.
        self._weights = mixing(len(grads)).repeat(self.segments, 1).to(self._fixed.device)

    def candidates(self) -> dict[str, Candidate]:
        """Return the passes by name."""
        columns, tasks = list(zip(*self._fixed.grads, strict=True)), len(self._fixed.grads)
        segment_of, count, weights = self._segment_of, self.segments, self._weights
        return {
            "gram": Candidate(lambda: kernels.gram(columns, segment_of, count, tasks)),
            "combine": Candidate(lambda: kernels.combine_(columns, weights, segment_of)),
            "whole": Candidate(self._optimizer.combine, self._capture),
        }

    def _capture(self) -> None:
        self._fixed.clear()
        for task, grads in zip(self._fixed.tasks, self._fixed.grads, strict=True):
            with self._optimizer.task(task):
                self._fixed.deliver(grads)


def mixing(tasks: int) -> Tensor:
    """Return ``[K]`` float64 weights that sum to one, half of it on the first."""
    weights = torch.full((tasks,), 0.5 / max(tasks - 1, 1), dtype=torch.float64)
    weights[0] = 0.5
    return weights


def figures(times: Times, name: str, floor: Sequence[float]) -> Row:
    """Return a pass's figures in seconds, beside its floor round by round."""
    return {
        **times.figures(name),
        "floor_seconds": spread(floor)["median"],
        "over_floor": ratio(times.seconds(name), floor),
        "host_seconds": spread([sample.host for sample in times[name]])["median"],
    }
