"""Features: surgery at the output of a shared trunk, which leaves one backward for the trunk.

K losses of one forward need K backward passes through what they share. Sener & Koltun (2018,
"Multi-Task Learning as Multi-Objective Optimization", section 3.3) compare the losses' gradients
with respect to the trunk's output z instead: each loss's backward stops there, z counts as one more
shared parameter, and the combined gradient at z goes through the trunk once.

The graph is there already when the losses are joined, and cannot be cut. So each backward
differentiates with respect to z and to the parameters met above it, which does not enter the trunk;
a leaf beside z bears the gradient at z for the time of the surgery.
"""

from __future__ import annotations

import collections
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from gradsurgery import grouping as _grouping
from gradsurgery.autograd_graph import Edge, edge_of, edges_below
from gradsurgery.combine import deliver
from gradsurgery.distributed.sharded import is_sharded

#: The outputs of a trunk: one tensor, or several.
Features = Tensor | Sequence[Tensor]

#: The name that features go by where a grouping asks for one.
NAME = "features"

EXACT = "leave features out, which is the exact way"


class Boundary:
    """The boundary at which the backward passes of one joined loss stop, and its trunk's begins.

    Args:
        features: the trunk's output.
        losses: checked, by task.
        names: the parameters' names, for messages.

    Attributes:
        edges: the places at which a backward stops.
        leaves: bear the gradients at ``features``.

    Raises:
        TypeError: for features that are no tensors.
        ValueError: for features without a graph, with hooks, listed twice, or computed from one
            another; where no loss depends on them, or none shares any with another; and where
            losses reach a parameter around them that lies below them as well.
    """

    def __init__(
        self,
        features: Features,
        losses: Mapping[str, Tensor],
        names: Mapping[Tensor, str | None],
    ) -> None:
        self._features = _checked(features)
        places = [edge_of(z) for z in self._features]
        self.edges = frozenset(places)
        self.leaves = [z.detach().requires_grad_() for z in self._features]
        reached = {task: _reached([edge_of(loss)], self.edges) for task, loss in losses.items()}
        _check_users([met for met, _ in reached.values()])
        below = _below({place for met, _ in reached.values() for place in met})
        self._pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for task, (met, above) in reached.items():
            for leaf in above:
                if id(leaf) in below:
                    raise ValueError(_around(task, leaf, names))
            at_features = [
                (z, leaf)
                for z, leaf, place in zip(self._features, self.leaves, places, strict=True)
                if place in met
            ]
            self._pairs[task] = [*at_features, *((leaf, leaf) for leaf in above)]
        self._retained = [_grad_of(z) for z in self._features]

    def backward_above(self, task: str, loss: Tensor, grad: Tensor, keep: bool) -> None:
        """Run the part of a task's backward above the features.

        Gradients are put where autograd would put them, and those at the features into
        ``leaves``. They are copied: ``torch.autograd.grad`` may return memory that it shares.
        """
        # As in a plain backward, a parameter that was frozen since the forward gets nothing.
        pairs = [(source, leaf) for source, leaf in self._pairs[task] if source.requires_grad]
        if not pairs:
            return
        sources = [source for source, _ in pairs]
        grads = torch.autograd.grad(loss, sources, grad, retain_graph=keep, allow_unused=True)
        for (_, leaf), part in zip(pairs, grads, strict=True):
            if part is not None:
                deliver(leaf, _copied(part, leaf))

    def backward_trunk(self, keep: bool = False) -> None:
        """Run the trunk's backward, from the gradients that ``leaves`` bear."""
        for z, before in zip(self._features, self._retained, strict=True):
            if z.retains_grad:  # each task's gradient has been added up there
                z.grad = before
        pairs = zip(self._features, self.leaves, strict=True)
        roots = [(z, leaf.grad) for z, leaf in pairs if leaf.grad is not None]
        grads = [grad for _, grad in roots]
        for leaf in self.leaves:
            leaf.grad = None
        torch.autograd.backward([z for z, _ in roots], grads, retain_graph=keep)


def segment(grouping: _grouping.Grouping, segments: Sequence[str]) -> int:
    """Return the segment of features: the one that ``grouping`` gives to the name "features".

    Raises:
        ValueError: when no parameter has that segment.

    Example:
        >>> segment("model", ["model"])
        0
    """
    label = str(_grouping.resolve(grouping)(NAME))
    if label not in segments:
        raise ValueError(
            f"features are one vector, and grouping={grouping!r} gives them the segment {label!r}, "
            "which no parameter is in: use grouping='model', or a function that gives the name "
            f"{NAME!r} the segment of some parameter (of those below the features, say)"
        )
    return list(segments).index(label)


def refuse_several_processes(count: int) -> None:
    """Refuse to compare features of one process among ``count`` that train together.

    Raises:
        NotImplementedError: unless this process is alone.
    """
    if count > 1:
        raise NotImplementedError(
            f"features= is for one process, and this one is of {count}: each would decide on its "
            f"own part of the batch; {EXACT}"
        )


def refuse_sharded(tensors: Iterable[Tensor]) -> None:
    """Refuse DTensors.

    Raises:
        NotImplementedError: where there is one.
    """
    for tensor in tensors:
        if is_sharded(tensor):
            raise NotImplementedError(
                f"features= does not know sharded parameters, and one is a {type(tensor).__name__} "
                f"of shape {list(tensor.shape)}; {EXACT}"
            )


def _checked(features: Features) -> list[Tensor]:
    listed = [features] if isinstance(features, Tensor) else list(features)
    for z in listed:
        if not isinstance(z, Tensor):
            raise TypeError(f"features is a tensor or several, not a {type(z).__name__}")
        if not z.requires_grad:
            raise ValueError(
                f"the features of shape {list(z.shape)} do not require grad: they were detached, "
                f"computed under no_grad, or the trunk is frozen; {EXACT}"
            )
        if z._backward_hooks:
            raise ValueError(
                f"the features of shape {list(z.shape)} have hooks, which would run for each task "
                "and once more for the trunk: remove them, or pass features that lie before or "
                "behind the tensor with hooks"
            )
    if not listed:
        raise ValueError(f"features is an empty sequence: pass what the trunk returned, or {EXACT}")
    refuse_sharded(listed)
    if len({edge_of(z) for z in listed}) != len(listed):
        raise ValueError("features lists a tensor twice")
    return listed


def _reached(
    roots: Sequence[Edge], cut: Collection[Edge] = frozenset()
) -> tuple[set[Edge], list[Tensor]]:
    """Walk the graph below ``roots``; return which edges of ``cut`` stopped the walk, and the
    leaves met."""
    met: set[Edge] = set()
    leaves: list[Tensor] = []
    for edge in edges_below(roots, cut=cut):
        if edge in cut:
            met.add(edge)
        elif not edge[0].next_functions and isinstance(
            variable := getattr(edge[0], "variable", None), Tensor
        ):
            leaves.append(variable)
    return met, leaves


def _below(used: Collection[Edge]) -> set[int]:
    """Return the ids of the leaves that features depend on."""
    children = [child for node, _ in used for child in node.next_functions]
    nested, leaves = _reached(children, used)
    if nested:
        # Engines differentiate with respect to the lower one through the upper one.
        raise ValueError(
            "one of the features was computed from another: pass the lower one alone, and what "
            "lies between the two counts as above the features"
        )
    return {id(leaf) for leaf in leaves}


def _check_users(met: Sequence[set[Edge]]) -> None:
    """``met``: for each loss, which features it depends on."""
    users = collections.Counter(place for places in met for place in places)
    if not users:
        raise ValueError(
            "no loss depends on the features: pass the very tensor that the heads were given, not "
            "a copy, a slice of it or what was computed from it"
        )
    if max(users.values()) == 1 and sum(map(bool, met)) > 1:
        raise ValueError(
            "each of the features belongs to a single loss, so there is nothing to compare: "
            f"features are for one forward that the losses share; {EXACT}"
        )


def _around(task: str, leaf: Tensor, names: Mapping[Tensor, str | None]) -> str:
    name = names.get(leaf)
    which = f"parameter {name!r}" if name else f"a parameter of shape {list(leaf.shape)}"
    return (
        f"the loss of task {task!r} reaches {which} around the features, which depend on it too: "
        "weights are tied across the features, or heads read from the trunk in other places; pass "
        f"all of the trunk's outputs, or the lowest tensor that heads read alone, or {EXACT}"
    )


def _copied(grad: Tensor, leaf: Tensor) -> Tensor:
    """Return a copy in the leaf's memory layout, as autograd itself would keep it."""
    if grad.is_sparse:
        return grad.clone()
    return torch.empty_like(leaf, dtype=grad.dtype, requires_grad=False).copy_(grad)


def _grad_of(z: Tensor) -> Tensor | None:
    """What ``retain_grad()`` has kept so far."""
    return z.grad.clone() if z.retains_grad and z.grad is not None else None
