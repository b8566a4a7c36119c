"""join: ``sum(losses)`` with surgery in its backward.

The joined loss is a leaf of the autograd graph as far as the engine can see. Its backward runs the
K backward passes one after the other, each captured for its task, and combines. Whatever the caller
does to the joined loss on the way (scale it for AMP, divide it by K or by accumulation steps)
reaches every task's gradient as the factor that the engine hands to backward.

Where the losses alone decide on their weights, or those of an earlier step are reused, one backward
pass of the weighted losses does.

With features, the K passes stop at the output of a shared trunk, and one goes on through it: see
:mod:`gradsurgery.features`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gradsurgery.autograd_graph import Edge, edges_below
from gradsurgery.features import Boundary
from gradsurgery.multiplied import warn_of_multiplied
from gradsurgery.pipeline import Pipeline
from gradsurgery.transfer import float64

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
    joined: JoinedLoss = _Joined.apply(anchor, backwards)  # type: ignore[no-untyped-call]
    joined.anchor, joined.backwards = anchor, backwards
    pipeline.lifecycle.joined()
    return joined


class JoinedLoss(Tensor):
    """The sum of joined losses: a tensor like any, and what is computed from it is a plain one.

    It knows what a node of the graph cannot: the ``inputs`` that its backward is asked for, and
    that it was added to something whose graph may be shared with the joined losses.
    """

    anchor: Tensor
    backwards: _Backwards

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute as a plain tensor would.

        Raises:
            RuntimeError: for ``torch.autograd.grad``, which has no place for a combination.
        """
        if func is torch.autograd.grad:
            raise RuntimeError(
                "torch.autograd.grad() of a joined loss: surgery writes to .grad, in its backward. "
                "Call backward() on the joined loss, or torch.autograd.grad() on the tasks' losses"
            )
        with torch._C.DisableTorchFunctionSubclass():
            operands = [x for x in args if isinstance(x, Tensor) and x.requires_grad]
            for joined in operands if len(operands) > 1 else ():
                if isinstance(joined, JoinedLoss):
                    joined.backwards.retain = True
            return func(*args, **(kwargs or {}))

    def backward(
        self,
        gradient: Tensor | None = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: Any = None,
    ) -> None:
        """Run the tasks' backward passes, with ``inputs`` for these parameters only."""
        if inputs is not None:
            inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
            self.backwards.inputs = inputs
            inputs = [self.anchor, *inputs]
        torch.autograd.backward(self, gradient, retain_graph, create_graph, inputs=inputs)


def _total(losses: Mapping[str, Tensor]) -> Tensor:
    first, *rest = (loss.detach().reshape(()) for loss in losses.values())
    total = first.clone()
    for loss in rest:
        total = total + loss
    return total


class _Backwards:
    """The K backward passes of one joined loss. They can run once, like any backward.

    Attributes:
        inputs: the parameters that gradients are wanted for, None for all.
        retain: whether something else needs the losses' graphs after them.
    """

    def __init__(self, pipeline: Pipeline, losses: dict[str, Tensor], combine: bool) -> None:
        self.pipeline, self.losses, self.combine = pipeline, losses, combine
        self.inputs: list[Tensor] | None = None
        self.retain = False

    def run(self, scale: Tensor, retain: bool) -> None:
        """Run them.

        Args:
            scale: the gradient of the joined loss.
            retain: whether they can run once more.
        """
        if not self.losses:
            raise RuntimeError(
                "backward() ran a second time on a joined loss, whose graphs the first freed: "
                "call join() again, or backward(retain_graph=True) the first time"
            )
        losses, self.losses = self.losses, self.losses if retain else {}
        self.retain |= retain
        self.refuse_summed(losses)
        self.pipeline.lifecycle.ran()
        try:
            if self.pipeline.weigh(losses, self.combine):
                self.weighted(losses, scale)
            else:
                self.surgery(losses, scale)
        except BaseException as error:
            self.pipeline.drop(f"the joined backward raised {type(error).__name__}")
            if "backward through the graph a second time" in str(error):
                raise RuntimeError(_FREED) from error
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
            factor = float64(scale)
            grads = [
                _like(loss, factor * weights[name].to(factor.device))
                for name, loss in losses.items()
            ]
            torch.autograd.backward(
                list(losses.values()), grads, retain_graph=self.retain, inputs=self.inputs
            )
        if self.combine:
            self.pipeline.combine(scale=scale)

    def surgery(self, losses: dict[str, Tensor], scale: Tensor) -> None:
        """Run K backward passes."""
        if not self.pipeline.seen_graph:
            warn_of_multiplied(losses.values())
            self.pipeline.seen_graph = True
        again = False  # whether a part of the graph has been walked before
        for (name, loss), keep in zip(losses.items(), shared(losses.values()), strict=True):
            with self.pipeline.task(name, sync=self.combine, loss=loss, factor=scale):
                grad = _like(loss, scale)
                with _explained(again):
                    torch.autograd.backward(
                        loss, grad, retain_graph=keep or self.retain, inputs=self.inputs
                    )
            again |= keep
        if self.combine:
            self.pipeline.combine()


class _BackwardsToFeatures(_Backwards):
    """K backward passes as far as a boundary, and one from there."""

    def __init__(self, pipeline: Pipeline, losses: dict[str, Tensor], boundary: Boundary) -> None:
        super().__init__(pipeline, losses, combine=True)
        self.boundary: Boundary | None = boundary

    def surgery(self, losses: dict[str, Tensor], scale: Tensor) -> None:
        if self.inputs is not None:
            raise NotImplementedError(
                "backward(inputs=...) does not go with features=: leave one of the two out"
            )
        boundary, self.boundary = self.boundary, self.boundary if self.retain else None
        assert boundary is not None
        keeps = shared(losses.values(), boundary.edges)
        with self.pipeline.feature_leaves(boundary.leaves):
            for (name, loss), keep in zip(losses.items(), keeps, strict=True):
                with self.pipeline.task(name, loss=loss, factor=scale):
                    boundary.backward_above(name, loss, _like(loss, scale), keep or self.retain)
            self.pipeline.combine()
        boundary.backward_trunk(self.retain)


@contextmanager
def _explained(again: bool) -> Iterator[None]:
    """Add to an error what may have caused it: graphs that can be walked once only."""
    try:
        yield
    except (AssertionError, LookupError, RuntimeError) as error:
        if again and not isinstance(error, torch.OutOfMemoryError) and hasattr(error, "add_note"):
            error.add_note(_ONCE_ONLY)
        raise


def _like(loss: Tensor, scale: Tensor) -> Tensor:
    """Return the gradient that a loss begins with."""
    return scale.to(loss.device, loss.dtype).expand_as(loss)


_ONCE_ONLY = (
    "gradsurgery: another task's backward went through this graph before. One that can be walked "
    "only once (offloaded activations, reversible blocks) needs a forward for each task, inside "
    "optimizer.task(name), or optimizer.join(losses, features=...), which walks the trunk once"
)
_FREED = (
    "a backward before this one freed a graph that the joined losses need: two joined losses, or "
    "one and another loss, share a forward. Give the earlier backward retain_graph=True, join all "
    "losses of the forward at once, or make the other loss part of a task's"
)


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, backwards: _Backwards) -> Tensor:
        ctx.backwards = backwards
        return Tensor._make_subclass(JoinedLoss, _total(backwards.losses))

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a joined loss cannot be differentiated twice: surgery has no derivative. Call "
                "backward() without create_graph=True"
            )
        ctx.backwards.run(scale, torch._C._autograd._get_current_graph_task_keep_graph())
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
