"""GradVac: pull every pair of gradients up to its usual cosine (Wang et al. 2020, Algorithm 1).

"Gradient Vaccine", arXiv:2010.05874. For each task i, over the other tasks j in random order, with
g_i' starting as g_i, c = cos(g_i', g_j) and t the target of the ordered pair (i, j):

    if c < t:   g_i' <- g_i' + a g_j,                                       (2)
                a = |g_i'| (t sqrt(1 - c^2) - c sqrt(1 - t^2)) / (|g_j| sqrt(1 - t^2))
    always:     t <- (1 - beta) t + beta c                                  (3)

after (2) cos(g_i', g_j) = t. A target of 0 makes (2) PCGrad's projection.

One departure. Equation (2) makes |g_i'| grow by sqrt(1 - c^2) / sqrt(1 - t^2), without bound as t
nears 1, as it does between two copies of one task. So the target used in (2) is capped such that no
visit carries |g_i'| beyond 100 |s| / K, s being the plain sum of the K gradients: the update stays
within 100 times the plain sum. Where the plain sum itself has all but cancelled, the cap ends at t
= 0, PCGrad's projection, which lengthens nothing. The cap leaves (3) alone. A gradient that has
grown to its bound is not altered by a visit that could only lengthen it: with ``update="on_alter"``
that pair's target stays.
"""

from __future__ import annotations

from typing import Literal, final, get_args

import torch
from torch import Tensor

from gradsurgery.methods.base import Method, State, Verdict
from gradsurgery.methods.projection import CANCELLED, Visits
from gradsurgery.transfer import float64

UpdateRule = Literal["always", "on_alter"]

#: The update is kept within this many times the plain sum of the gradients.
CAP = 100.0

#: A target acts as at most this: at 1, rounding between two copies of one task would look like an
#: angle to close, and closing it takes an infinite step.
HIGHEST = 1 - 1e-15


def gradvac(
    gram: Tensor, order: Tensor, target: Tensor, beta: float, update: UpdateRule = "always"
) -> Verdict:
    """GradVac on a Gram matrix.

    Args:
        gram: ``[..., K, K]`` float64, the dot products of the K gradients (any leading shape).
        order: ``[K, K]`` int64, row i a permutation of the tasks: the order of i's visits.
        target: ``[..., K, K]`` float64, the cosine that gradient i is to have with gradient j.
        beta: rate in [0, 1] at which targets follow the cosines, equation (3).
        update: ``"always"`` moves a target at each visit (the paper); ``"on_alter"`` only when the
            gradient was altered, as a much-copied implementation does. There targets can only sink.

    Returns:
        The :class:`~gradsurgery.methods.base.Verdict`; ``state["target"]`` holds the new targets.

    Example:
        Two orthogonal gradients that usually have cosine 0.6 are pulled together:

        >>> gram, order = torch.eye(2, dtype=torch.float64), torch.tensor([[0, 1], [0, 1]])
        >>> verdict = gradvac(gram, order, torch.full((2, 2), 0.6, dtype=torch.float64), beta=0.5)
        >>> verdict.weights.tolist(), verdict.state["target"][0, 1].item()
        ([1.75, 1.75], 0.3)
    """
    visits = Visits(gram, order)
    count = (visits.norms > 0).sum(-1, keepdim=True).clamp(min=1)  # of the gradients that are there
    bound = CAP * gram.sum((-1, -2), keepdim=True).clamp(min=0).sqrt() / count  # 100 |s| / K
    wanted = target.gather(-1, visits.order)
    t = wanted.clamp(max=HIGHEST)
    root = ((1 - t) * (1 + t)).sqrt()
    altered, moving, cosines = [], [], []
    for (partner, other, possible), goal, goal_root in zip(
        visits, torch.split(t, 1, -1), torch.split(root, 1, -1), strict=True
    ):
        dot, square, pieces = visits.measure(partner)
        least = (CANCELLED * pieces) ** 2
        acts = possible & (square > least)  # elsewhere, what follows has no meaning
        norm = torch.where(acts, square, 1).sqrt()
        dot = torch.where(dot.abs() > CANCELLED**2 * pieces * other, dot, 0)
        cosine = (dot / (norm * other)).clamp(-1, 1)
        across = norm * (1 - cosine**2).sqrt()  # length of g_i' across g_j: no visit changes it
        along, before = _along(across, goal, goal_root, bound), dot / other
        # At the bound already: what is left to add is zero, or what rounding makes of it.
        grows = (dot < 0) | ((bound - norm) * bound > least)
        alter = acts & (before < along) & grows
        visits.add(partner, (along - before) / other, alter)
        altered.append(alter)
        moving.append(acts if update == "always" else alter)
        cosines.append(cosine)
    cosine, moves = visits.by_task(cosines), visits.by_task(moving)
    target = torch.where(moves, (1 - beta) * target + beta * cosine, target)
    return Verdict(visits.weights, visits.by_task(altered), {"target": target})


def _along(across: Tensor, target: Tensor, root: Tensor, bound: Tensor) -> Tensor:
    """Return the length along g_j that g_i' is to have, given its length ``across`` g_j.

    Equation (2) in other words: ``along / |g_i'| = t``, so ``along = across t / sqrt(1 - t^2)``,
    which has the ``root``; where that would exceed ``bound``, what makes ``|g_i'|`` exactly
    ``bound``.
    """
    capped = ((bound - across).clamp(min=0) * (bound + across)).sqrt()
    # A target of -1 gives minus infinity, or NaN where nothing lies across: no cosine is below it.
    return torch.minimum(across * target / root, capped)


@final
class GradVac(Method):
    """Gradient vaccine with EMA similarity targets (Wang et al. 2020, Algorithm 1).

    There is one target per ordered pair of tasks and segment.

    Args:
        beta: EMA rate in [0, 1]; the paper's 1e-2. Zero keeps the targets where they start.
        update: ``"always"`` (the paper) or ``"on_alter"``, see :func:`gradvac`.
        target: where the targets start: None for 0 (the paper), a number, or a ``[K, K]`` tensor,
            in [-1, 1].
        seed: of the visiting order.

    Raises:
        ValueError: for a ``beta`` or ``target`` out of range, or an unknown ``update``.

    Example:
        >>> GradVac(beta=0.05)
        GradVac(beta=0.05, update='always')
    """

    needs = frozenset({"order"})

    def __init__(
        self,
        beta: float = 1e-2,
        update: UpdateRule = "always",
        target: float | Tensor | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 <= beta <= 1:
            raise ValueError(f"beta is a rate in [0, 1], not {beta}")
        if update not in get_args(UpdateRule):
            raise ValueError(f"update is one of {get_args(UpdateRule)}, not {update!r}")
        start = float64(0.0 if target is None else target).cpu()
        if not bool((start.abs() <= 1).all()):
            raise ValueError(f"target is a cosine in [-1, 1], not {target}")
        self.beta, self.update, self.seed = beta, update, seed
        self._start = start

    def init(self, segments: int, tasks: int) -> State:
        """Return the starting targets, ``[segments, tasks, tasks]`` float64."""
        if self._start.dim() and self._start.shape != (tasks, tasks):
            raise ValueError(
                f"target of shape {list(self._start.shape)} does not fit {tasks} tasks: "
                f"pass a number or a tensor of shape {[tasks, tasks]}"
            )
        return {"target": self._start.expand(segments, tasks, tasks).clone()}

    def check_state(self, state: State) -> None:
        """Check that targets are cosines."""
        target = state.get("target")
        if target is not None and not bool((target.abs() <= 1).all()):
            value = target[~(target.abs() <= 1)][0].item()
            raise ValueError(
                f"GradVac's targets are cosines in [-1, 1], and one of them is {value}"
            )

    def __call__(self, gram: Tensor, order: Tensor, state: State) -> Verdict:
        """Decide; ``state["target"]`` is [..., K, K]."""
        return gradvac(gram, order, state["target"], self.beta, self.update)

    def __repr__(self) -> str:
        return f"GradVac(beta={self.beta}, update={self.update!r})"
