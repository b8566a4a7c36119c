"""Grouping: the partition of the parameters into segments, each with a Gram matrix of its own.

A *segment* is a set of parameters on which gradients are compared and altered as one vector. The
papers' experiments use the whole model (one segment); by layer or by tensor, two tasks may agree in
the lower layers and conflict in the upper ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

#: "model", "layer", "tensor", or a function from a parameter's name to its segment's name.
Grouping = str | Callable[[str], object]


def by_model(name: str) -> str:
    """Everything in one segment."""
    return "model"


def by_layer(name: str) -> str:
    """The first numbered block of a parameter's path, or else the module that owns it.

    Example:
        >>> by_layer("bert.encoder.layer.11.output.dense.weight")
        'bert.encoder.layer.11'
        >>> by_layer("bert.embeddings.LayerNorm.weight")
        'bert.embeddings.LayerNorm'
    """
    numbered = re.match(r"(?:[^.]+\.)*?\d+(?=\.)", name)
    return numbered.group() if numbered else name.rpartition(".")[0] or name


def by_tensor(name: str) -> str:
    """Each parameter a segment of its own."""
    return name


GROUPINGS: dict[str, Callable[[str], str]] = {
    "model": by_model,
    "layer": by_layer,
    "tensor": by_tensor,
}


def resolve(grouping: Grouping) -> Callable[[str], object]:
    """Return the function behind a grouping.

    Raises:
        ValueError: for a string that names no grouping.
    """
    if callable(grouping):
        return grouping
    if grouping not in GROUPINGS:
        known = ", ".join(map(repr, GROUPINGS))
        raise ValueError(f"grouping is {known} or a function of a name, not {grouping!r}")
    return GROUPINGS[grouping]


def segments(
    names: Sequence[str | None], grouping: Grouping, known: Sequence[str] = ()
) -> tuple[list[int], list[str]]:
    """Return each parameter's segment index, and the segments' names in order of appearance.

    Args:
        names: the parameters' names, None where unknown.
        grouping: the partition.
        known: names of segments that have appeared before, and keep their indices.

    Raises:
        ValueError: when a grouping by name meets a parameter without one, or two of one name.

    Example:
        >>> segments(["a.0.weight", "a.1.weight", "a.0.bias"], "layer")
        ([0, 1, 0], ['a.0', 'a.1'])
    """
    segment_of = resolve(grouping)
    if grouping != "model":
        _refuse_equal(names, grouping)
    index_of = {label: index for index, label in enumerate(known)}
    indices = []
    for position, name in enumerate(names):
        if name is None and grouping not in ("model", "tensor"):
            raise ValueError(
                f"grouping={grouping!r} goes by parameter names, and parameter {position} has "
                "none: build the base optimizer from model.named_parameters(), or pass "
                "named_parameters=model.named_parameters()"
            )
        label = str(segment_of(f"parameter {position}" if name is None else name))
        indices.append(index_of.setdefault(label, len(index_of)))
    return indices, list(index_of)


def names(
    param_groups: Iterable[dict[str, Any]], named: dict[Tensor, str] | None = None
) -> list[str | None]:
    """Return the parameters' names in the order of ``param_groups``, None where unknown.

    Args:
        param_groups: of an optimizer; built from ``model.named_parameters()`` they hold the names.
        named: names by parameter, which count before those.
    """
    labels: list[str | None] = []
    for group in param_groups:
        known = group.get("param_names") or [None] * len(group["params"])
        if named:
            known = [named.get(p, name) for p, name in zip(group["params"], known, strict=True)]
        labels += known
    return labels


def _refuse_equal(names: Sequence[str | None], grouping: Grouping) -> None:
    """Refuse a name that two parameters have: two modules' layers would be one segment."""
    first: dict[str, int] = {}
    for position, name in enumerate(names):
        if name is not None and first.setdefault(name, position) != position:
            raise ValueError(
                f"grouping={grouping!r} goes by parameter names, and parameters {first[name]} and "
                f"{position} are both called {name!r}: tell their modules apart, as in "
                "named_parameters=[(f'encoder.{name}', p) for name, p in encoder.named_parameters()"
                "] + [(f'decoder.{name}', p) for name, p in decoder.named_parameters()]"
            )
