"""The table of methods: one row each, with the laws that it obeys. All tests import it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from gradsurgery import (
    FAMO,
    IMTLG,
    MGDA,
    AlignedMTL,
    CAGrad,
    ConFIG,
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
from tests.throwaway import DWA, Unit
from tests.throwaway import MGDA as ThrowawayMGDA  # noqa: N811

#: Laws that not every method obeys.
SCALE = "scaling all losses by s > 0 scales the update by s"
SYMMETRY = "tasks in another sequence get the same update"
ZERO_IS_ABSENT = "a zero gradient counts as absent: the others are decided on without it"
ALONE = "one task, and nothing but zeros, is left alone"
SEGMENTS = "segments are separate problems"
ON_DEVICE = "no value is read on the host, which would wait for a GPU"


@dataclass(frozen=True)
class Row:
    """A method.

    Attributes:
        make: makes it with a seed.
        laws: those that it obeys.
        target: where GradVac's targets start, for the oracle's bound on rounding.
    """

    make: Callable[[int], Method]
    laws: frozenset[str]
    target: float = 0.3

    def decide(
        self, gram: Tensor, order: Tensor, state: dict[str, Tensor] | None = None
    ) -> Verdict:
        """Decide on [K, K] or [S, K, K], from the state before the first step or a given one."""
        method = self.make(0)
        segments = gram.reshape(-1, *gram.shape[-2:])
        if state is None:
            state = method.init(len(segments), gram.shape[-1])
        return method(segments, state=state, **self.facts(segments, order))

    def facts(self, gram: Tensor, order: Tensor) -> dict[str, Any]:
        """Return what it needs: all tasks there, losses and scale of one."""
        tasks = gram.shape[-1]
        facts = {
            "order": order,
            "draws": torch.linspace(-1, 1, tasks, dtype=torch.float64),
            "present": torch.ones(gram.shape[:-1], dtype=torch.bool),
            "losses": torch.ones(tasks, dtype=torch.float64),
            "scale": torch.ones((), dtype=torch.float64),
        }
        return {need: facts[need] for need in self.make(0).needs}


_SURGERY = frozenset({SCALE, SYMMETRY, ZERO_IS_ABSENT, ALONE, SEGMENTS, ON_DEVICE})
#: What is solved for moves with the rounding of an ill-conditioned Gram matrix: test_solutions has
#: these laws for gradients where it doesn't, and with the methods' degrees.
_SOLVED = frozenset({SCALE})
_LINEAR = _SOLVED | {ON_DEVICE}
_NOT_LINEAR: frozenset[str] = frozenset()

#: Of the losses alone, so that the Gram matrix may be anything.
_WEIGHTING = frozenset({SCALE, SYMMETRY, SEGMENTS})

METHODS: dict[str, Row] = {
    "sum": Row(lambda seed: Sum(), _SURGERY),
    "pcgrad": Row(lambda seed: PCGrad(seed=seed), _SURGERY),
    "gradvac": Row(lambda seed: GradVac(beta=0.3, seed=seed), _SURGERY),
    "gradvac_from_0.9": Row(lambda seed: GradVac(beta=0.3, target=0.9, seed=seed), _SURGERY, 0.9),
    "gradvac_from_1": Row(lambda seed: GradVac(beta=0.3, target=1.0, seed=seed), _SURGERY, 1.0),
    "gradvac_on_alter": Row(
        lambda seed: GradVac(beta=0.3, update="on_alter", target=0.3, seed=seed), _SURGERY
    ),
    "uncertainty": Row(lambda seed: UncertaintyWeighting(), _WEIGHTING | {ON_DEVICE}),
    "dwa": Row(lambda seed: DynamicWeightAverage(period=2), _WEIGHTING | {ON_DEVICE}),
    "geometric": Row(lambda seed: GeometricMean(), _WEIGHTING),
    "tchebycheff": Row(lambda seed: SmoothTchebycheff(mu=0.3), _WEIGHTING | {ON_DEVICE}),
    "famo": Row(lambda seed: FAMO(), _WEIGHTING),
    "gradnorm": Row(lambda seed: GradNorm(), frozenset({SYMMETRY})),
    "mgda": Row(lambda seed: MGDA(), _SOLVED),
    "cagrad": Row(lambda seed: CAGrad(), _SOLVED),
    "cagrad_0.9": Row(lambda seed: CAGrad(c=0.9), _SOLVED),
    "imtl_g": Row(lambda seed: IMTLG(), _LINEAR),
    "nash_mtl": Row(lambda seed: NashMTL(), _NOT_LINEAR),
    "fairgrad": Row(lambda seed: FairGrad(), _NOT_LINEAR),
    "fairgrad_0.5": Row(lambda seed: FairGrad(alpha=0.5), _NOT_LINEAR),
    "fairgrad_5": Row(lambda seed: FairGrad(alpha=5), _NOT_LINEAR),
    "aligned_mtl": Row(lambda seed: AlignedMTL(), _LINEAR),
    "aligned_mtl_median": Row(lambda seed: AlignedMTL(scale="median"), _LINEAR),
    "aligned_mtl_rmse": Row(lambda seed: AlignedMTL(scale="rmse"), _LINEAR),
    "upgrad": Row(lambda seed: UPGrad(), _SOLVED),
    "dual_proj": Row(lambda seed: DualProj(), _SOLVED),
    "config": Row(lambda seed: ConFIG(), _LINEAR),
    "primary": Row(lambda seed: Primary(0), frozenset({SCALE, ALONE, SEGMENTS, ON_DEVICE})),
    "primary_pcgrad": Row(
        lambda seed: Primary(0, PCGrad(seed)), frozenset({SCALE, ALONE, SEGMENTS, ON_DEVICE})
    ),
    "random_weights": Row(
        lambda seed: RandomWeights(seed), frozenset({SCALE, SEGMENTS, ON_DEVICE})
    ),
    "throwaway mgda": Row(lambda seed: ThrowawayMGDA(), frozenset({SEGMENTS})),
    "throwaway dwa": Row(lambda seed: DWA(), frozenset({SCALE, SYMMETRY, SEGMENTS, ON_DEVICE})),
    "throwaway unit": Row(lambda seed: Unit(), frozenset({SYMMETRY, SEGMENTS, ON_DEVICE})),
}

#: A test that runs over all methods, or over those that obey a law.
every_method = pytest.mark.parametrize("name", METHODS)


#: A test of options that act on the tasks' gradients, which weights of losses refuse.
every_method_of_gradients = pytest.mark.parametrize(
    "name", [name for name, row in METHODS.items() if not isinstance(row.make(0), LossWeighting)]
)


def obeying(law: str) -> pytest.MarkDecorator:
    """Parametrize by the names of the methods that obey ``law``."""
    return pytest.mark.parametrize(
        "name", [name for name, row in METHODS.items() if law in row.laws]
    )
