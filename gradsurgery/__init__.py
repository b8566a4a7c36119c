"""gradsurgery: multi-task training without gradient conflicts, at the cost of plain joint training.

Wrap any ``torch.optim`` optimizer in :class:`GradientSurgery` with a method (:class:`PCGrad`,
:class:`GradVac`, a dozen others, or the control :class:`Sum`), and replace
``sum(losses).backward()`` by ``optimizer.join(losses).backward()``.
"""

from gradsurgery import functional
from gradsurgery.log import ConflictLog
from gradsurgery.methods import (
    IMTLG,
    MGDA,
    AlignedMTL,
    CAGrad,
    ConFIG,
    Constant,
    DualProj,
    FairGrad,
    GradVac,
    Method,
    NashMTL,
    PCGrad,
    Primary,
    RandomWeights,
    Sum,
    UPGrad,
    Verdict,
)
from gradsurgery.optimizer import GradientSurgery
from gradsurgery.split import split
from gradsurgery.statistics import ConflictStatistics

__all__ = [
    "IMTLG",
    "MGDA",
    "AlignedMTL",
    "CAGrad",
    "ConFIG",
    "ConflictLog",
    "ConflictStatistics",
    "Constant",
    "DualProj",
    "FairGrad",
    "GradVac",
    "GradientSurgery",
    "Method",
    "NashMTL",
    "PCGrad",
    "Primary",
    "RandomWeights",
    "Sum",
    "UPGrad",
    "Verdict",
    "functional",
    "split",
]

__version__ = "0.1.0"
