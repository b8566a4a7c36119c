"""gradsurgery: multi-task training without gradient conflicts, at the cost of plain joint training.

Wrap any ``torch.optim`` optimizer in :class:`GradientSurgery` with a method (:class:`PCGrad`,
:class:`GradVac`, a dozen others, or the control :class:`Sum`), and replace
``sum(losses).backward()`` by ``optimizer.join(losses).backward()``.
"""

from gradsurgery import functional
from gradsurgery._warnings import SurgeryWarning
from gradsurgery.log import ConflictLog
from gradsurgery.methods import (
    FAMO,
    IMTLG,
    MGDA,
    AlignedMTL,
    CAGrad,
    ConFIG,
    Constant,
    DualProj,
    DynamicWeightAverage,
    FairGrad,
    GeometricMean,
    GradNorm,
    GradVac,
    LossWeighting,
    Method,
    NashMTL,
    PCGrad,
    Primary,
    RandomWeights,
    SmoothTchebycheff,
    Sum,
    UncertaintyWeighting,
    UPGrad,
    Verdict,
)
from gradsurgery.optimizer import GradientSurgery
from gradsurgery.split import split
from gradsurgery.statistics import ConflictStatistics

__all__ = [
    "FAMO",
    "IMTLG",
    "MGDA",
    "AlignedMTL",
    "CAGrad",
    "ConFIG",
    "ConflictLog",
    "ConflictStatistics",
    "Constant",
    "DualProj",
    "DynamicWeightAverage",
    "FairGrad",
    "GeometricMean",
    "GradNorm",
    "GradVac",
    "GradientSurgery",
    "LossWeighting",
    "Method",
    "NashMTL",
    "PCGrad",
    "Primary",
    "RandomWeights",
    "SmoothTchebycheff",
    "Sum",
    "SurgeryWarning",
    "UPGrad",
    "UncertaintyWeighting",
    "Verdict",
    "functional",
    "split",
]

__version__ = "0.1.0"
