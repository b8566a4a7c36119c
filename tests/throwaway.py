"""Three methods that the library does not have: two of the Gram matrix, one of the losses.

They stand for all methods to come. Each is written against the public contract, as a user would.
"""

from __future__ import annotations

from itertools import combinations
from typing import ClassVar, final

import torch
from torch import Tensor

from gradsurgery import Method, Verdict

State = dict[str, Tensor]


@final
class MGDA(Method):
    """The shortest point of the convex hull of the gradients that are there (Desideri 2012).

    Found among the faces of the hull: exact, and for a few tasks only.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"present"})

    def __call__(self, gram: Tensor, *, state: State, present: Tensor) -> Verdict:
        weights = torch.stack([_shortest(g, there) for g, there in zip(gram, present, strict=True)])
        return Verdict(weights, None, state)

    def __repr__(self) -> str:
        return "MGDA()"


def _shortest(gram: Tensor, present: Tensor) -> Tensor:
    """Return the weights [K] of the shortest point; ones where no task is there."""
    tasks = present.nonzero().flatten().tolist()
    best, length = torch.ones(len(gram), dtype=gram.dtype, device=gram.device), torch.inf
    for size in range(1, len(tasks) + 1):
        for face in combinations(tasks, size):
            part = gram[list(face)][:, list(face)]
            normal = torch.linalg.pinv(part, hermitian=True).sum(-1)
            if part.diagonal().min() == 0:  # a gradient of zero is the shortest point
                normal = (part.diagonal() == 0).to(gram.dtype)
            share = normal / normal.sum()
            squared = float(share @ part @ share)
            if share.isfinite().all() and (share >= 0).all() and squared < length * (1 - 1e-12):
                length = squared
                best = torch.zeros(len(gram), dtype=gram.dtype, device=gram.device)
                best[list(face)] = share
    return best


@final
class DWA(Method):
    """Dynamic weight average (Liu et al. 2019): more weight where the loss fell less.

    w_k = K softmax(r / T), r_k = L_k(t - 1) / L_k(t - 2); ones in the first two steps.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"losses"})

    def __init__(self, temperature: float = 2.0) -> None:
        self.temperature = temperature

    def init(self, segments: int, tasks: int) -> State:
        zeros = torch.zeros(2, tasks, dtype=torch.float64, device="cpu")  # zero: not known
        return {"history": zeros}

    def __call__(self, gram: Tensor, *, state: State, losses: Tensor) -> Verdict:
        before, last = state["history"].unbind()
        ratio = torch.where((last > 0) & (before > 0), last / before, 1.0)
        weights = len(losses) * torch.softmax(ratio / self.temperature, 0)
        history = torch.stack([last, torch.where(losses.isnan(), last, losses)])
        return Verdict(weights.expand(gram.shape[:-1]).clone(), None, {"history": history})

    def __repr__(self) -> str:
        return f"DWA(temperature={self.temperature})"


@final
class Unit(Method):
    """The sum of the unit gradients, whose length does not depend on that of the gradients."""

    degree = 0.0

    def __call__(self, gram: Tensor, *, state: State) -> Verdict:
        squared = gram.diagonal(dim1=-2, dim2=-1)
        return Verdict(torch.where(squared > 0, squared.rsqrt(), 0), None, state)

    def __repr__(self) -> str:
        return "Unit()"
