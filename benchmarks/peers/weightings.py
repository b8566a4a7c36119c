"""torchjd's weightings beside our methods, on one Gram matrix each.

Where torchjd regularizes or stops early by default, ``strict`` switches that off as far as its
arguments go: two exact solutions of one problem can then be compared.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.conditions import CONDITIONS, Condition, aligned_condition
from gradsurgery import (
    IMTLG,
    MGDA,
    AlignedMTL,
    CAGrad,
    ConFIG,
    DualProj,
    FairGrad,
    Method,
    NashMTL,
    UPGrad,
)

Weighting = Callable[[Tensor], Tensor]  # [K, K] -> [K]


@dataclass(frozen=True)
class Pairing:
    """One method in both libraries.

    Attributes:
        ours: makes ours.
        theirs: makes torchjd's for K tasks, as it comes or strict; None where it takes the
            gradients themselves, which :func:`jacobian` gives it.
        condition: what the paper asks of the weights.
        factor: what our update is in theirs, as a function of K.
        tolerance: of the relative difference of the updates on well-scaled gradients.
        reason: for a tolerance above 1e-6, or a factor.
    """

    ours: Callable[[], Method]
    theirs: Callable[[int, bool], Weighting]
    condition: Condition
    factor: Callable[[int], float] = lambda tasks: 1.0
    tolerance: float = 1e-6
    reason: str = ""


def weights(method: Method, gram: Tensor) -> Tensor:
    """Return the weights ([K]) that a method gives the gradients of ``gram`` ([K, K])."""
    tasks = len(gram)
    facts = {
        "present": torch.ones(1, tasks, dtype=torch.bool),
        "order": torch.arange(tasks).expand(tasks, tasks),
    }
    needed = {need: facts[need] for need in method.needs}
    state = method.init(1, tasks)
    return method(gram[None], state=state, **needed).weights[0]


def jacobian(gram: Tensor) -> Tensor:
    """Return gradients ([K, K]) whose Gram matrix is ``gram``."""
    values, vectors = torch.linalg.eigh(gram)
    root: Tensor = vectors * values.clamp(min=0).sqrt()
    return root


def _torchjd() -> Any:
    return importlib.import_module("torchjd.aggregation")


def _projector(strict: bool) -> Any:
    projector = importlib.import_module("torchjd.linalg").QuadprogProjector
    return projector(reg_eps=1e-13) if strict else projector()


def _of_gradients(aggregator: Any) -> Weighting:
    """Return the weights that an aggregator of gradients gives, from its update."""

    def weighting(gram: Tensor) -> Tensor:
        gradients = jacobian(gram)
        update = aggregator(gradients)[:, None]
        solution: Tensor = torch.linalg.lstsq(gradients.mT, update).solution
        return solution[:, 0]

    return weighting


def _aligned(scale: Any) -> Pairing:
    return Pairing(
        lambda: AlignedMTL(scale=scale),
        lambda tasks, strict: _torchjd().AlignedMTLWeighting(scale_mode=scale),
        partial(aligned_condition, scale=scale),
        factor=float,
        reason="torchjd prefers each task by 1/K, the paper's B 1 sums",
    )


PAIRINGS: dict[str, Pairing] = {
    "MGDA": Pairing(
        MGDA,
        lambda tasks, strict: _torchjd().MGDAWeighting(*((1e-12, 20_000) if strict else ())),
        CONDITIONS["mgda"],
        tolerance=1e-2,
        reason="Frank-Wolfe, which closes in slowly",
    ),
    "CAGrad(c=0.5)": Pairing(
        lambda: CAGrad(c=0.5),
        lambda tasks, strict: _torchjd().CAGradWeighting(0.5, *((1e-12,) if strict else ())),
        CONDITIONS["cagrad"],
        tolerance=1e-3,
        reason="an interior-point solver's default accuracy",
    ),
    "IMTLG": Pairing(
        IMTLG, lambda tasks, strict: _torchjd().IMTLGWeighting(), CONDITIONS["imtl_g"]
    ),
    "NashMTL": Pairing(
        NashMTL,
        lambda tasks, strict: _of_gradients(
            _torchjd().NashMTL(n_tasks=tasks, max_norm=0.0 if strict else 1.0)
        ),
        CONDITIONS["nash_mtl"],
        reason="cut to length one as it comes",
    ),
    "FairGrad(alpha=2)": Pairing(
        lambda: FairGrad(alpha=2.0),
        lambda tasks, strict: _torchjd().FairGradWeighting(2.0),
        CONDITIONS["fairgrad"],
    ),
    **{f"AlignedMTL({scale!r})": _aligned(scale) for scale in ("min", "median", "rmse")},
    "UPGrad": Pairing(
        UPGrad,
        lambda tasks, strict: _torchjd().UPGradWeighting(projector=_projector(strict)),
        CONDITIONS["upgrad"],
    ),
    "DualProj": Pairing(
        DualProj,
        lambda tasks, strict: _torchjd().DualProjWeighting(projector=_projector(strict)),
        CONDITIONS["dual_proj"],
    ),
    "ConFIG": Pairing(
        ConFIG,
        lambda tasks, strict: _of_gradients(_torchjd().ConFIG()),
        CONDITIONS["config"],
    ),
}


def difference(ours: Tensor, theirs: Tensor, gram: Tensor, factor: float = 1.0) -> float:
    """Return |u - f v| / |f v| of the updates that two weights mean, f being ``factor``."""
    gap = ours - factor * theirs
    scale = factor**2 * theirs @ gram @ theirs
    return float(((gap @ gram @ gap).clamp(min=0) / scale).sqrt())
