"""Any method on the Gram matrix's running mean: surgery on signal, not on the noise of a batch.

With n_ij the steps in which tasks i and j were both there, and beta the smoothing,

    M_ij <- M_ij + (1 - beta) / (1 - beta^n_ij) (G_ij - M_ij),

which is the exponential mean with Adam's bias correction (Kingma & Ba 2015, section 3): the first
value is G itself, and constant gradients leave it as it is, to the bit. Absent tasks and pairs keep
theirs. Pairs that were there in different steps are means over different steps, which together may
be the Gram matrix of no vectors; then its cosines are those of the nearest that is, by clipping
negative eigenvalues.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor

from gradsurgery.methods.base import Method, State, Verdict
from gradsurgery.methods.components import symmetric_components

#: What a method is decided with: itself, or its kernel.
Decide = Callable[[Method, Tensor, State, Mapping[str, Tensor]], Verdict]

#: An eigenvalue of a matrix of cosines above its negative is zero but for rounding.
ROUNDING = 1e-12


@final
class Smoothed(Method):
    """``method`` on the running mean of the Gram matrix.

    Args:
        method: decides the weights.
        smoothing: beta, at least 0 and below 1.

    Raises:
        ValueError: for another ``smoothing``.

    Example:
        >>> from gradsurgery import Sum
        >>> smoothed, there = Smoothed(Sum(), 0.5), torch.ones(1, 2, dtype=torch.bool)
        >>> state = smoothed.init(1, 2)
        >>> for cosine in (0.0, 0.6):
        ...     gram = torch.tensor([[[1.0, cosine], [cosine, 1.0]]], dtype=torch.float64)
        ...     state = smoothed(gram, state=state, present=there).state
        >>> round(state["smoothed_gram"][0, 0, 1].item(), 3)
        0.4
    """

    def __init__(self, method: Method, smoothing: float) -> None:
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing is at least 0 and below 1, not {smoothing}")
        self.method, self.smoothing = method, smoothing
        self.needs = method.needs | {"present"}  # type: ignore[misc]
        self.seed, self.degree, self.task_only = method.seed, method.degree, method.task_only
        self._settings = repr(self)  # what tells ranks with different methods apart

    def init(self, segments: int, tasks: int) -> State:
        """Return the method's state, and the mean of no step."""
        zeros = torch.zeros(segments, tasks, tasks, dtype=torch.float64, device="cpu")
        means = {"smoothed_gram": zeros, "smoothed_count": zeros.clone()}
        return {**self.method.init(segments, tasks), **means}

    def check_state(self, state: State) -> None:
        """Check the method's, and the means."""
        super().check_state(state)
        self.method.check_state(state)

    def __call__(self, gram: Tensor, *, state: State, **facts: Any) -> Verdict:
        """Decide on the mean, and keep it."""
        return self.decide(gram, state, facts, _call)

    def decide(
        self, gram: Tensor, state: State, facts: Mapping[str, Tensor], decide: Decide
    ) -> Verdict:
        """Decide on the mean by ``decide``, and keep it."""
        present = facts["present"]
        pairs = present[:, :, None] & present[:, None, :]  # [S, K, K]
        count = state["smoothed_count"] + pairs
        mean = state["smoothed_gram"]
        pace = (1 - self.smoothing) / (1 - self.smoothing ** count.clamp(min=1))
        mean = torch.where(pairs, mean + pace * (gram - mean), mean)
        means = {"smoothed_gram": mean, "smoothed_count": count}
        shown = torch.where(pairs, mean, 0)
        if gram.is_cuda or _uneven(count, pairs):
            shown = _of_vectors(shown)
        needed = {name: facts[name] for name in self.method.needs}
        if "scale" in needed and self.method.degree == 1:  # which is not in the mean
            needed["scale"] = torch.ones_like(needed["scale"])
        kept = {name: value for name, value in state.items() if name not in means}
        verdict = decide(self.method, shown, kept, needed)
        there = gram.diagonal(dim1=-2, dim2=-1) > 0
        altered = verdict.altered
        if altered is not None:  # in this step, a gradient of zero is altered by nothing
            altered = altered & there[:, :, None] & there[:, None, :]
        return Verdict(verdict.weights, altered, {**verdict.state, **means})

    def __repr__(self) -> str:
        return f"{self.method!r} with smoothing={self.smoothing}"


def _call(method: Method, gram: Tensor, state: State, facts: Mapping[str, Tensor]) -> Verdict:
    return method(gram, state=state, **facts)


def _uneven(count: Tensor, pairs: Tensor) -> bool:
    """Whether the means of some segment's pairs are over different numbers of steps."""
    most = torch.where(pairs, count, 0).amax((1, 2), keepdim=True)
    return bool((pairs & (count != most)).any())


def _of_vectors(gram: Tensor) -> Tensor:
    """Return ``gram`` ([S, K, K]), or with its cosines clipped to those of vectors."""
    norm = gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    product = norm[:, :, None] * norm[:, None, :]
    unit = torch.eye(gram.shape[-1], dtype=torch.bool, device=gram.device)
    cosine = torch.where(unit | (product == 0), unit.to(gram.dtype), gram / product)
    cosine = torch.where(cosine.isfinite(), cosine, 0)  # a step that is not finite is dropped later
    values, vectors = symmetric_components(cosine)
    clipped = (vectors * values.clamp(min=0)[:, None, :]) @ vectors.mT
    scale = clipped.diagonal(dim1=-2, dim2=-1).sqrt()
    clipped = clipped / (scale[:, :, None] * scale[:, None, :]) * product
    clipped = torch.where(unit, gram, (clipped + clipped.mT) / 2)
    return torch.where(values[:, -1:, None] < -ROUNDING, clipped, gram)
