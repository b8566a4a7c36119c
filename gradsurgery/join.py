"""join: ``sum(losses)`` with surgery in its backward.

The joined loss is a leaf of the autograd graph as far as the engine can see. Its backward runs the
K backward passes one after the other, each captured for its task, and combines. Whatever the caller
does to the joined loss on the way (scale it for AMP, divide it by K or by accumulation steps)
reaches every task's gradient as the factor that the engine hands to backward.

With features, the K passes stop at what a shared trunk returned, and one goes on through it: see
:mod:`gradsurgery.features`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from gradsurgery.features import Cut, Edge

#: Nodes that keep no tensors, so that nothing is freed with them. Autocast shares its casts of the
#: weights among all forward passes of one context.
NOTHING_KEPT = {"ToCopyBackward0"}

Losses = Mapping[str, Tensor] | Sequence[Tensor]


class Surgeon(Protocol):
    """What a joined loss needs of the optimizer that made it."""

    def task(self, name: str, *, sync: bool = True) -> AbstractContextManager[None]:
        """Capture for one task; False for ``sync`` where more of it follows before ``combine``."""

    def combine(self) -> None:
        """Combine what was captured."""

    def _counting(self, stand_ins: Sequence[Tensor]) -> AbstractContextManager[None]:
        """Count these leaves among the parameters for a while."""

    def discard(self) -> None:
        """Drop what was captured."""


def named_losses(losses: Losses, tasks: Sequence[str]) -> dict[str, Tensor]:
    """Return ``losses`` by task name, after checking that each can be a task's loss.

    Raises:
        TypeError: for a loss that is not a tensor.
        ValueError: for an unknown task, a sequence of the wrong length, no loss at all, a loss with
            more than one element, or one without a graph (unless gradients are switched off).
    """
    if not isinstance(losses, Mapping):
        if len(losses) != len(tasks):
            raise ValueError(
                f"got {len(losses)} losses for {len(tasks)} tasks ({', '.join(tasks)}): pass one "
                "loss per task in that order, or a mapping from task names"
            )
        losses = dict(zip(tasks, losses, strict=True))
    if not losses:
        raise ValueError(f"no loss given: pass the loss of at least one of {', '.join(tasks)}")
    for name, loss in losses.items():
        _check(name, loss, tasks)
    return dict(losses)


def _check(name: str, loss: Tensor, tasks: Sequence[str]) -> None:
    if name not in tasks:
        raise ValueError(f"unknown task {name!r}: the tasks are {', '.join(tasks)}")
    if not isinstance(loss, Tensor):
        raise TypeError(f"the loss of task {name!r} is a {type(loss).__name__}, not a tensor")
    if loss.numel() != 1:
        raise ValueError(
            f"the loss of task {name!r} has shape {list(loss.shape)}: reduce it to a scalar, "
            "with .mean() or .sum()"
        )
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise ValueError(
            f"the loss of task {name!r} does not require grad: it was detached, computed under "
            "no_grad, or depends on frozen parameters only; leave the task out of this step"
        )


def join(
    surgeon: Surgeon, losses: dict[str, Tensor], combine: bool, cut: Cut | None = None
) -> Tensor:
    """Return the sum of ``losses``, whose backward captures each for its task.

    Args:
        surgeon: captures and combines.
        losses: checked, see :func:`named_losses`.
        combine: whether to combine once all are captured.
        cut: of these losses, at a trunk's features; its backward follows when all are combined.

    Returns:
        A scalar in the losses' dtype. Under ``no_grad``, a plain sum.
    """
    if not torch.is_grad_enabled():
        return _total(losses)
    anchor = torch.zeros((), requires_grad=True)  # the node's only input: no loss's graph is ours
    backwards = _Backwards(surgeon, losses, combine)
    if cut is not None:
        backwards = _ToFeatures(surgeon, losses, cut)
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

    def __init__(self, surgeon: Surgeon, losses: dict[str, Tensor], combine: bool) -> None:
        self.surgeon, self.losses, self.combine = surgeon, losses, combine

    def run(self, scale: Tensor) -> None:
        if not self.losses:
            raise RuntimeError(
                "backward() ran a second time on a joined loss, whose graphs the first freed: "
                "call join() again"
            )
        losses, self.losses = self.losses, {}
        try:
            self.surgery(losses, scale)
        except BaseException:
            self.surgeon.discard()
            raise

    def surgery(self, losses: dict[str, Tensor], scale: Tensor) -> None:
        for (name, loss), keep in zip(losses.items(), shared(losses.values()), strict=True):
            with self.surgeon.task(name, sync=self.combine):
                torch.autograd.backward(loss, _like(loss, scale), retain_graph=keep)
        if self.combine:
            self.surgeon.combine()


class _ToFeatures(_Backwards):
    """K backward passes as far as a cut, and one from there."""

    def __init__(self, surgeon: Surgeon, losses: dict[str, Tensor], cut: Cut) -> None:
        super().__init__(surgeon, losses, combine=True)
        self.cut: Cut | None = cut

    def surgery(self, losses: dict[str, Tensor], scale: Tensor) -> None:
        cut, self.cut = self.cut, None
        assert cut is not None
        keeps = shared(losses.values(), cut.edges)
        with self.surgeon._counting(cut.stand_ins):
            for (name, loss), keep in zip(losses.items(), keeps, strict=True):
                with self.surgeon.task(name):
                    cut.backward(name, loss, _like(loss, scale), keep)
            self.surgeon.combine()
        cut.descend()


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
    owners: dict[Any, int] = {}
    roots = [loss.grad_fn for loss in losses]
    keeps = [_claim(root, index, owners, cut) for index, root in reversed(list(enumerate(roots)))]
    return keeps[::-1]


def _claim(root: Any, index: int, owners: dict[Any, int], cut: Collection[Edge]) -> bool:
    """Mark the graph below ``root`` as loss ``index``'s; tell whether another owns part of it."""
    met, stack = False, [root]
    while stack:
        node = stack.pop()
        if node is None or not node.next_functions:
            continue
        if node in owners:
            met |= owners[node] != index
            continue
        if node.name() not in NOTHING_KEPT:
            owners[node] = index
        stack += [edge[0] for edge in node.next_functions if edge not in cut]
    return met
