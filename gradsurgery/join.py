"""join: ``sum(losses)`` with surgery in its backward.

The joined loss is a leaf of the autograd graph as far as the engine can see. Its backward runs the
K backward passes one after the other, each captured for its task, and combines. Whatever the caller
does to the joined loss on the way (scale it for AMP, divide it by K or by accumulation steps)
reaches every task's gradient as the factor that the engine hands to backward.

Where the losses alone decide on their weights, one backward pass of the weighted losses does.

With features, the K passes stop at the output of a shared trunk, and one goes on through it: see
:mod:`gradsurgery.features`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradsurgery.autograd_graph import Edge, edges_below
from gradsurgery.features import Boundary
from gradsurgery.pipeline import Pipeline

#: Nodes that keep no tensors, so that nothing is freed with them. Autocast shares its casts of the
#: weights among all forward passes of one context.
NOTHING_KEPT = {"ToCopyBackward0"}


def join(
    pipeline: Pipeline,
    losses: dict[str, Tensor],
    combine: bool,
    boundary: Boundary | None = None,
) -> Tensor:
    """Return the sum of ``losses``, whose backward captures each for its task.

    Args:
        pipeline: captures and combines.
        losses: checked, see :func:`gradsurgery.losses.named_losses`.
        combine: whether to combine once all are captured.
        boundary: of these losses, at a trunk's features; the trunk's backward follows when all are
            combined.

    Returns:
        A scalar in the losses' dtype. Under ``no_grad``, a plain sum.
    """
    if not torch.is_grad_enabled():
        return _total(losses)
    # The node's only input: no loss's graph is ours.
    anchor = torch.zeros((), dtype=torch.float32, device="cpu", requires_grad=True)
    backwards = _Backwards(pipeline, losses, combine)
    if boundary is not None:
        backwards = _BackwardsToFeatures(pipeline, losses, boundary)
    joined: Tensor = _Joined.apply(anchor, backwards)  # type: ignore[no-untyped-call]
    return joined


def _total(losses: Mapping[str, Tensor]) -> Tensor:
    first, *rest = (loss.detach().reshape(()) for loss in losses.values())
    total = first.clone()
    for loss in rest:
        total = total + loss
    return total


class _Backwards:
    """The K backward passes of one joined loss. They can run once, like any backward."""

    def __init__(self, pipeline: Pipeline, losses: dict[str, Tensor], combine: bool) -> None:
        self.pipeline, self.losses, self.combine = pipeline, losses, combine

    def run(self, scale: Tensor) -> None:
        if not self.losses:
            raise RuntimeError(
                "backward() ran a second time on a joined loss, whose graphs the first freed: "
                "call join() again"
            )
        losses, self.losses = self.losses, {}
        self.refuse_summed(losses)
        try:
            if self.combine and self.pipeline.weigh(losses):
                self.weighted(losses, scale)
            else:
                self.surgery(losses, scale)
        except BaseException:
            self.pipeline.discard()
            raise

    def refuse_summed(self, losses: Iterable[str]) -> None:
        """Refuse joined losses of one optimizer that one backward runs after it has combined."""
        backward = torch._C._current_graph_task_id()
        if self.pipeline.combined_in == backward:
            raise RuntimeError(
                f"the joined loss of {', '.join(losses)} was added to a later one, and backward() "
                "runs the last made first: that has combined already. Give combine=True to the "
                "first made alone, or call backward() on each, with combine=True on the last"
            )
        if self.combine:
            self.pipeline.combined_in = backward

    def weighted(self, losses: dict[str, Tensor], scale: Tensor) -> None:
        """Run one backward pass."""
        with self.pipeline.weighted() as weights:
            grads = [
                _like(loss, scale * weights[name].to(scale.device)) for name, loss in losses.items()
            ]
            torch.autograd.backward(list(losses.values()), grads)
        self.pipeline.combine(scale=scale)

    def surgery(self, losses: dict[str, Tensor], scale: Tensor) -> None:
        """Run K backward passes."""
        for (name, loss), keep in zip(losses.items(), shared(losses.values()), strict=True):
            with self.pipeline.task(name, sync=self.combine, loss=loss, factor=scale):
                torch.autograd.backward(loss, _like(loss, scale), retain_graph=keep)
        if self.combine:
            self.pipeline.combine()


class _BackwardsToFeatures(_Backwards):
    """K backward passes as far as a boundary, and one from there."""

    def __init__(self, pipeline: Pipeline, losses: dict[str, Tensor], boundary: Boundary) -> None:
        super().__init__(pipeline, losses, combine=True)
        self.boundary: Boundary | None = boundary

    def surgery(self, losses: dict[str, Tensor], scale: Tensor) -> None:
        boundary, self.boundary = self.boundary, None
        assert boundary is not None
        keeps = shared(losses.values(), boundary.edges)
        with self.pipeline.feature_leaves(boundary.leaves):
            for (name, loss), keep in zip(losses.items(), keeps, strict=True):
                with self.pipeline.task(name, loss=loss, factor=scale):
                    boundary.backward_above(name, loss, _like(loss, scale), keep)
            self.pipeline.combine()
        boundary.backward_trunk()


def _like(loss: Tensor, scale: Tensor) -> Tensor:
    """Return the gradient that a loss begins with."""
    return scale.to(loss.device, loss.dtype).expand_as(loss)


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, backwards: _Backwards) -> Tensor:
        ctx.backwards = backwards
        return _total(backwards.losses)

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a joined loss cannot be differentiated twice: surgery has no derivative. Call "
                "backward() without create_graph=True"
            )
        ctx.backwards.run(scale)
        return None, None


def shared(losses: Iterable[Tensor], cut: Collection[Edge] = frozenset()) -> list[bool]:
    """Tell for each loss whether a later one needs part of its graph, which is then to be retained.

    Separate batches have separate graphs: each can be freed as its backward goes, instead of all
    living until the last. Leaves (parameters) are shared by nature and hold nothing to free. What
    lies below ``cut`` is not looked at.

    Example:
        >>> w = torch.ones(2, requires_grad=True)
        >>> trunk = w.exp()
        >>> shared([trunk.sum(), trunk.prod(), w.sin().sum()])
        [True, False, False]
    """
    owned: set[Any] = set()  # by later losses
    keeps = []
    for loss in reversed(list(losses)):
        below = edges_below([(loss.grad_fn, 0)], cut=cut, visited=owned)
        nodes = {
            node
            for node, output in below
            if (node, output) not in cut
            # A leaf belongs to everybody.
            and node.next_functions
            and node.name() not in NOTHING_KEPT
        }
        keeps.append(not owned.isdisjoint(nodes))
        owned |= nodes
    return keeps[::-1]
