"""gradsurgery: multi-task training without gradient conflicts, at the cost of plain joint training.

Wrap any ``torch.optim`` optimizer in :class:`GradientSurgery` with a method (:class:`PCGrad`,
:class:`GradVac`, or the control :class:`Sum`), and replace ``sum(losses).backward()`` by
``optimizer.join(losses).backward()``.
"""

from gradsurgery import functional
from gradsurgery.log import ConflictLog
from gradsurgery.methods import GradVac, Method, PCGrad, Sum, Verdict
from gradsurgery.optimizer import GradientSurgery
from gradsurgery.split import split
from gradsurgery.statistics import ConflictStatistics

__all__ = [
    "ConflictLog",
    "ConflictStatistics",
    "GradVac",
    "GradientSurgery",
    "Method",
    "PCGrad",
    "Sum",
    "Verdict",
    "functional",
    "split",
]

__version__ = "0.1.0"
