"""The search of autograd's graph: which nodes a loss depends on."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

#: A place in the graph, as ``next_functions`` lists them: a node, and which of its outputs.
Edge = tuple[Any, int]


def edge_of(tensor: Tensor) -> Edge:
    """Return the place in the graph that ``tensor`` comes from."""
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def edges_below(
    roots: Iterable[Edge],
    *,
    cut: Collection[Edge] = frozenset(),
    visited: Collection[Any] = frozenset(),
    names: Collection[str] = frozenset(),
) -> list[Edge]:
    """Return the edges below ``roots``, depth first: each node once, edges of ``cut`` each time.

    Args:
        roots: where the search begins; they are returned too.
        cut: edges that are not followed.
        visited: nodes that are not followed.
        names: names of nodes that are not followed.

    Example:
        >>> import torch
        >>> w = torch.ones(2, requires_grad=True)
        >>> [node.name() for node, _ in edges_below([edge_of(w.exp().sum())])]
        ['SumBackward0', 'ExpBackward0', 'torch::autograd::AccumulateGrad']
    """
    edges: list[Edge] = []
    seen: set[Any] = set()
    stack = list(roots)
    while stack:
        edge = stack.pop()
        node = edge[0]
        if edge in cut:
            edges.append(edge)
        elif node is not None and node not in seen:
            seen.add(node)
            edges.append(edge)
            if node not in visited and not (names and node.name() in names):
                stack += node.next_functions
    return edges
