"""A peer: another implementation, as one row of a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from gradsurgery import Method, PCGrad

P = TypeVar("P")
C = TypeVar("C")

#: The row that all others are compared with.
OURS = "gradsurgery PCGrad"

INSTALL = {
    "torchjd": "pip install torchjd[quadprog_projector,cagrad,nash_mtl]==0.18.0",
    "pytorch_optimizer": "pip install pytorch-optimizer==4.1.0",
    # Its requirement torchvision is for models that the comparison does not touch.
    "LibMTL": "pip install --no-deps LibMTL==1.1.5",
}


@dataclass(frozen=True)
class Peer(Generic[P, C]):
    """One row of the table.

    Attributes:
        name: in the table.
        build: makes what is timed from the problem; raises ImportError where the package is
            missing.
        package: to import; empty for code of this repository.
        same_as: the method whose update it has to deliver, None for a row that is no surgery or
            is what the others are compared with.
        note: where it differs.
        copies: whether it needs a model of its own, since its hooks would slow down the others.
    """

    name: str
    build: Callable[[P], C]
    package: str = ""
    same_as: Callable[[], Method] | None = PCGrad
    note: str = ""
    copies: bool = False
