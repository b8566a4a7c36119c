"""The methods that have a Triton kernel: the same decision in one launch, on the device.

Every other method runs as plain torch there, a launch for each operation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from gradsurgery.kernels import triton_methods
from gradsurgery.methods.base import Method, State, Verdict
from gradsurgery.methods.gradvac import CAP, HIGHEST, GradVac
from gradsurgery.methods.pcgrad import PCGrad
from gradsurgery.methods.projection import CANCELLED
from gradsurgery.methods.smoothing import Smoothed


def decide(method: Method, gram: Tensor, state: State, facts: Mapping[str, Tensor]) -> Verdict:
    """Return the verdict of ``method``, by its kernel where it has one."""
    if isinstance(method, Smoothed):
        return method.decide(gram, state, facts, decide)
    kernel = KERNELS.get(type(method))
    if kernel is None:
        return method(gram, state=state, **facts)
    return kernel(method, gram, state=state, **facts)


def pcgrad(method: PCGrad, gram: Tensor, *, state: State, order: Tensor) -> Verdict:
    """PCGrad, see :func:`gradsurgery.methods.pcgrad.pcgrad`."""
    weights, altered, _ = triton_methods.visits(gram, order, cancelled=CANCELLED)
    return Verdict(weights, altered, {})


def gradvac(method: GradVac, gram: Tensor, *, state: State, order: Tensor) -> Verdict:
    """GradVac, see :func:`gradsurgery.methods.gradvac.gradvac`."""
    weights, altered, target = triton_methods.visits(
        gram,
        order,
        state["target"],
        cancelled=CANCELLED,
        cap=CAP,
        highest=HIGHEST,
        beta=method.beta,
        always=method.update == "always",
    )
    assert target is not None
    return Verdict(weights, altered, {"target": target})


KERNELS: dict[type[Method], Callable[..., Verdict]] = {PCGrad: pcgrad, GradVac: gradvac}
