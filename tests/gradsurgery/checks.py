"""How answers of the library are compared with the oracle's, in one place."""

import numpy as np
import torch
from torch import Tensor

from gradsurgery import Verdict
from gradsurgery import functional as F
from tests import oracles
from tests.families import ROUNDING, Problem, joined

# What a Gram matrix of gradients of a dtype is known to, and what is asked of the update.
PRECISION = {torch.float64: 1e-14}
TOLERANCE = {torch.float64: 1e-9}
COARSE_PRECISION, COARSE_TOLERANCE = 2e-7, 1e-5


def dtype_of(problem: Problem) -> torch.dtype:
    return problem.grads[0][0].dtype


def precision(problem: Problem) -> float:
    return PRECISION.get(dtype_of(problem), COARSE_PRECISION)


def update_of(problem: Problem, verdict: Verdict) -> np.ndarray:
    """The update [N] that a verdict means."""
    combined = F.combine(problem.grads, verdict.weights.reshape(-1, problem.tasks))
    return joined([piece for piece in combined if piece is not None])


def check_update(problem: Problem, update: np.ndarray, answer: oracles.Answer) -> None:
    """The update is the oracle's, relative to the sum of norms and to one rounding at the end."""
    dtype = dtype_of(problem)
    allowed = TOLERANCE.get(dtype, COARSE_TOLERANCE) * problem.norms.sum() + answer.doubt
    allowed += ROUNDING[dtype] * np.linalg.norm(answer.update)
    if dtype == torch.float16:  # its smallest step
        allowed += 2.0**-24 * np.sqrt(answer.update.size)
    error = np.linalg.norm(update - answer.update)
    assert error <= allowed, f"update off by {error:.3g}, allowed {allowed:.3g}: {problem}"


def check_altered(problem: Problem, altered: Tensor, answer: oracles.Answer) -> None:
    """Every decision that is beyond rounding is the oracle's."""
    wrong = (altered.numpy() != answer.altered) & answer.certain
    assert not wrong.any(), f"decisions {np.argwhere(wrong).tolist()} differ: {problem}"


def check_target(problem: Problem, target: Tensor, answer: oracles.Answer) -> None:
    """Targets are the oracle's."""
    tolerance = TOLERANCE.get(dtype_of(problem), COARSE_TOLERANCE)
    wrong = np.abs(target.numpy() - answer.target) > tolerance + answer.target_doubt
    assert not wrong.any(), f"targets {np.argwhere(wrong).tolist()} differ: {problem}"


def gram_of(problem: Problem) -> Tensor:
    """The Gram matrix [K, K] float64."""
    return F.gram(problem.grads)[0]
