"""Controls of gradient surgery: methods that do a part of what PCGrad does, and not the rest.

PCGrad adds to the sum, for each pair whose cosine c is below 0, -c |g_i| / |g_j| times g_j. So it
does three things: it gives each task a mean weight above 1, it raises that weight in the very steps
that conflict, and it acts on single batches, whose cosines are mostly noise. `NoiseWeights` keeps
the first alone, the demo's `Sham` (`bert_mtl_demo.training.sham`) the first and the weights'
spread, `DenoisedPCGrad` takes the noise out of the cosines, and `EqualNorms` is a reweighting that
any surgery must beat in size.

Each is written against the library's public contract (`gradsurgery.Method`), on the Gram matrix
alone.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from gradsurgery import Method, PCGrad, Verdict

State = dict[str, Tensor]


def norms_of(gram: Tensor) -> Tensor:
    """Lengths of the gradients, [..., K], of their Gram matrix, [..., K, K]."""
    return gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()


def cosines_of(gram: Tensor) -> Tensor:
    """Cosines of the gradients, [..., K, K]; 0 where one of the two is zero.

    >>> cosines_of(torch.tensor([[4.0, -1.0], [-1.0, 1.0]])).tolist()
    [[1.0, -0.5], [-0.5, 1.0]]
    """
    norms = norms_of(gram)
    lengths = norms[..., :, None] * norms[..., None, :]
    return torch.where(lengths > 0, gram / lengths, 0.0).clamp(-1, 1)


def noise_weights(spread: Tensor, norms: Tensor) -> Tensor:
    """Mean weights that PCGrad gives to gradients whose cosines are noise around 0, [..., K].

    A cosine c from N(0, s^2) has E max(-c, 0) = s / sqrt(2 pi), so the weight of task j becomes
    1 + sum over i of s_ij / sqrt(2 pi) |g_i| / |g_j|, to first order in s.

    Args:
        spread: [..., K, K], the standard deviation s of each pair's cosine; the diagonal is
            ignored.
        norms: [..., K], the lengths of the gradients; a zero one keeps weight 1 and adds nothing.

    >>> spread = torch.full((2, 2), math.sqrt(2 * math.pi) / 10)
    >>> [round(weight, 3) for weight in noise_weights(spread, torch.tensor([2.0, 1.0])).tolist()]
    [1.05, 1.2]
    """
    tasks = norms.shape[-1]
    ratio = torch.where(norms[..., None, :] > 0, norms[..., :, None] / norms[..., None, :], 0.0)
    others = 1 - torch.eye(tasks, dtype=norms.dtype, device=norms.device)
    return 1 + (spread / math.sqrt(2 * math.pi) * ratio * others).sum(-2)


class _Running:
    """Running means: plain over the first 1 / rate values, exponential from there on."""

    def __init__(self, rate: float) -> None:
        if not 0 < rate <= 1:
            raise ValueError(f"rate is in (0, 1], not {rate}")
        self.rate = rate

    def step(self, mean: Tensor, value: Tensor, count: Tensor, there: Tensor) -> Tensor:
        """The mean with one more value, the `count`-th, where there is one."""
        weight = (1 / count.clamp(min=1)).clamp(min=self.rate)
        return torch.where(there, mean + weight * (value - mean), mean)


def _start(segments: int, tasks: int, *names: str) -> State:
    return {name: torch.zeros(segments, tasks, tasks, dtype=torch.float64) for name in names}


@final
class NoiseWeights(Method):
    """Fixed weights, those that PCGrad has on average where cosines are noise around 0.

    The spread of the cosines and the lengths of the gradients are running means, so the weights
    hardly move from step to step and do not know whether this step's tasks conflict. See
    `noise_weights` for the formula.

    Args:
        rate: of the running means, once 1 / rate steps are seen.

    Raises:
        ValueError: for a rate out of (0, 1].

    Example:
        >>> NoiseWeights()
        NoiseWeights(rate=0.01)
    """

    def __init__(self, rate: float = 0.01) -> None:
        self.rate = rate
        self._running = _Running(rate)

    def init(self, segments: int, tasks: int) -> State:
        """Zeros, [S, K, K]: steps seen, means of c and c^2; and of the lengths on a diagonal."""
        return _start(segments, tasks, "count", "cosine", "square", "length")

    def __call__(self, gram: Tensor, state: State) -> Verdict:
        """Take this step into the means, and return their weights."""
        cosines, norms = cosines_of(gram), norms_of(gram)
        there = (norms[..., :, None] > 0) & (norms[..., None, :] > 0)
        count = state["count"] + there
        values = {"cosine": cosines, "square": cosines**2, "length": torch.diag_embed(norms)}
        means = {
            name: self._running.step(state[name], value, count, there)
            for name, value in values.items()
        }
        spread = (means["square"] - means["cosine"] ** 2).clamp(min=0).sqrt()
        lengths = means["length"].diagonal(dim1=-2, dim2=-1)
        weights = noise_weights(spread, torch.where(norms > 0, lengths, 0.0))
        return Verdict(weights, None, {"count": count, **means})

    def __repr__(self) -> str:
        return f"NoiseWeights(rate={self.rate})"


@final
class EqualNorms(Method):
    """Gradients stretched to one length, the mean of theirs.

    Example:
        >>> gram = torch.diag(torch.tensor([1.0, 9.0]))[None]
        >>> EqualNorms()(gram, {}).weights
        tensor([[2.0000, 0.6667]])
    """

    def __call__(self, gram: Tensor, state: State) -> Verdict:
        """Return the mean length over each; 1 for a gradient of zero."""
        norms = norms_of(gram)
        mean = norms.sum(-1, keepdim=True) / (norms > 0).sum(-1, keepdim=True).clamp(min=1)
        return Verdict(torch.where(norms > 0, mean / norms, 1.0), None, state)

    def __repr__(self) -> str:
        return "EqualNorms()"


@final
class DenoisedPCGrad(Method):
    """PCGrad on the running mean of each pair's cosine, with this step's lengths.

    A batch's cosine is mostly noise; its mean over steps is not, so tasks are projected apart only
    when they conflict in the long run. The matrix that PCGrad gets is a mean of matrices of
    cosines, hence a Gram matrix again. Lengths keep their noise, which shrinks a mean cosine below
    that of the expected gradients: the projections err on the small side.

    Args:
        rate: of the running mean, once 1 / rate steps are seen.
        seed: of the visiting order.

    Raises:
        ValueError: for a rate out of (0, 1].

    Example:
        >>> DenoisedPCGrad(rate=0.1)
        DenoisedPCGrad(rate=0.1, seed=0)
    """

    needs: ClassVar[frozenset[str]] = frozenset({"order"})

    def __init__(self, rate: float = 0.01, seed: int = 0) -> None:
        self.rate, self.seed = rate, seed
        self._running, self._surgery = _Running(rate), PCGrad(seed=seed)

    def init(self, segments: int, tasks: int) -> State:
        """Zeros, [S, K, K]: steps seen, and the mean cosines."""
        return _start(segments, tasks, "count", "cosine")

    def __call__(self, gram: Tensor, state: State, order: Tensor) -> Verdict:
        """Take this step's cosines into the means, and operate on those."""
        norms = norms_of(gram)
        lengths = norms[..., :, None] * norms[..., None, :]
        count = state["count"] + (lengths > 0)
        means = self._running.step(state["cosine"], cosines_of(gram), count, lengths > 0)
        verdict = self._surgery(means * lengths, order=order, state={})
        return verdict._replace(state={"count": count, "cosine": means})

    def __repr__(self) -> str:
        return f"DenoisedPCGrad(rate={self.rate}, seed={self.seed})"


@final
class Recorded(Method):
    """Another method, with the Gram matrix and the weights of every step kept in its state.

    The state is saved with the optimizer, so a resumed run has the record of all its steps.

    Args:
        method: the one that decides; it may need the visiting order, and nothing else.
        steps: room for so many; later ones are decided and not kept.

    Raises:
        TypeError: when the method needs more than the visiting order.

    Example:
        >>> Recorded(PCGrad(seed=2), steps=400)
        PCGrad(seed=2)
    """

    needs: ClassVar[frozenset[str]] = frozenset({"order"})
    KEPT: ClassVar[tuple[str, ...]] = ("kept", "kept_gram", "kept_weights")

    def __init__(self, method: Method, steps: int) -> None:
        if method.needs - self.needs:
            raise TypeError(f"{method!r} needs {sorted(method.needs)}: only the order is recorded")
        self.method, self.steps, self.seed = method, steps, method.seed

    def init(self, segments: int, tasks: int) -> State:
        """The method's own, and zeros: steps [S], Gram matrices [S, T, K, K], weights [S, T, K]."""
        kept = (
            torch.zeros(segments, dtype=torch.int64),
            torch.zeros(segments, self.steps, tasks, tasks, dtype=torch.float64),
            torch.zeros(segments, self.steps, tasks, dtype=torch.float64),
        )
        return {**self.method.init(segments, tasks), **dict(zip(self.KEPT, kept, strict=True))}

    def __call__(self, gram: Tensor, state: State, order: Tensor) -> Verdict:
        """Let the method decide, and keep what it saw and said."""
        facts: dict[str, Any] = {"order": order} if self.method.needs else {}
        inner = {name: value for name, value in state.items() if name not in self.KEPT}
        verdict = self.method(gram, state=inner, **facts)
        steps, grams, weights = (state[name] for name in self.KEPT)
        here = torch.arange(self.steps, device=gram.device) == steps[:, None]  # [S, T]
        kept = (
            steps + 1,
            torch.where(here[..., None, None], gram[:, None], grams),
            torch.where(here[..., None], verdict.weights[:, None], weights),
        )
        state = {**verdict.state, **dict(zip(self.KEPT, kept, strict=True))}
        return verdict._replace(state=state)

    def __repr__(self) -> str:
        return repr(self.method)
