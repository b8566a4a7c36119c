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
    DynamicWeightAverage,
    GeometricMean,
    GradNorm,
    GradVac,
    Method,
    PCGrad,
    SmoothTchebycheff,
    Sum,
    UncertaintyWeighting,
    Verdict,
)
from tests.throwaway import DWA, MGDA

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
            "present": torch.ones(gram.shape[:-1], dtype=torch.bool),
            "losses": torch.ones(tasks, dtype=torch.float64),
            "scale": torch.ones((), dtype=torch.float64),
        }
        return {need: facts[need] for need in self.make(0).needs}


_SURGERY = frozenset({SCALE, SYMMETRY, ZERO_IS_ABSENT, ALONE, SEGMENTS, ON_DEVICE})

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
    "throwaway mgda": Row(lambda seed: MGDA(), frozenset({SEGMENTS})),
    "throwaway dwa": Row(lambda seed: DWA(), frozenset({SCALE, SYMMETRY, SEGMENTS, ON_DEVICE})),
}

#: A test that runs over all methods, or over those that obey a law.
every_method = pytest.mark.parametrize("name", METHODS)


def obeying(law: str) -> pytest.MarkDecorator:
    """Parametrize by the names of the methods that obey ``law``."""
    return pytest.mark.parametrize(
        "name", [name for name, row in METHODS.items() if law in row.laws]
    )
