"""gradsurgery: multi-task training without gradient conflicts, at the cost of plain joint training.

Wrap any ``torch.optim`` optimizer in :class:`GradientSurgery` with a method (:class:`PCGrad`,
:class:`GradVac`, or the control :class:`Sum`), and replace ``sum(losses).backward()`` by
``optimizer.join(losses).backward()``.
"""

from gradsurgery import functional
from gradsurgery.log import ConflictLog
from gradsurgery.methods import (
    FAMO,
    DynamicWeightAverage,
    GeometricMean,
    GradNorm,
    GradVac,
    LossWeighting,
    Method,
    PCGrad,
    SmoothTchebycheff,
    Sum,
    UncertaintyWeighting,
    Verdict,
)
from gradsurgery.optimizer import GradientSurgery
from gradsurgery.split import split
from gradsurgery.statistics import ConflictStatistics

__all__ = [
    "FAMO",
    "ConflictLog",
    "ConflictStatistics",
    "DynamicWeightAverage",
    "GeometricMean",
    "GradNorm",
    "GradVac",
    "GradientSurgery",
    "LossWeighting",
    "Method",
    "PCGrad",
    "SmoothTchebycheff",
    "Sum",
    "UncertaintyWeighting",
    "Verdict",
    "functional",
    "split",
]

__version__ = "0.1.0"
