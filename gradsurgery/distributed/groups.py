"""The process group that averaging talks over: the user's ranks, in a group of its own.

Messages of ours are not sent over the user's group: ranks that run different tasks would send ours
and the user's in different orders. ``dist.new_group`` with ``use_local_synchronization`` names a
group by the number of groups that the rank is in, so ranks in different numbers of groups (one for
logging that only rank 0 is a member of, pipeline stages, experts) would wait for different names,
for ever. The ranks therefore compare their counts first, over the user's group, and with them what
they are about to build.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d as c10d

from gradsurgery.distributed.consistency import fingerprint

#: A fact of more characters is told by its fingerprint.
SHORT = 80

NOT_MEMBER = -100  # what new_group() returns to the ranks outside of the group


def check(group: object) -> None:
    """Refuse what is no process group that this rank is a member of.

    Raises:
        TypeError: for anything else.
        ValueError: on a rank outside of the group.
    """
    if group is None or (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        return
    outside = dist.GroupMember.NON_GROUP_MEMBER if dist.is_available() else NOT_MEMBER
    if group is outside or (isinstance(group, int) and group == NOT_MEMBER):
        raise ValueError(
            "this rank is not a member of the process_group, so it has no gradients to average "
            "over it: build the optimizer on the group's members only, or pass each rank the group "
            "that it belongs to"
        )
    raise TypeError(
        "process_group is a torch.distributed process group such as dist.group.WORLD (after "
        f"init_process_group), not a {type(group).__name__}"
    )


def own_group(group: dist.ProcessGroup, facts: Mapping[str, object]) -> dist.ProcessGroup:
    """Return a new group of the same ranks, backend and timeout; every member has to call this.

    Args:
        group: the user's.
        facts: what the ranks must have in common, by what it is called in the error.

    Raises:
        RuntimeError: on all ranks, where they are about to build different optimizers.
    """
    names = getattr(c10d._world, "pg_names", {})
    answers = gathered((told(facts), len(names)), group)
    _refuse([facts_there for facts_there, _ in answers], group)
    counts = [count for _, count in answers]
    ranks = dist.get_process_group_ranks(group)
    named = nullcontext() if len({*counts}) == 1 else _named(ranks, max(counts))
    with named:
        own: dist.ProcessGroup = dist.new_group(
            ranks,
            timeout=timeout_of(group),
            backend=c10d.get_backend_config(group),
            use_local_synchronization=True,
        )
    return own


def gathered(value: Any, group: dist.ProcessGroup) -> list[Any]:
    """Return every rank's ``value``, in the order of the group's ranks."""
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def told(facts: Mapping[str, object]) -> dict[str, str]:
    """Return each fact as a short text, equal where the facts are.

    Example:
        >>> told({"tasks": ("a", "b"), "segments": 12 * ["encoder.layer"]})
        {'tasks': "('a', 'b')", 'segments': 'of fingerprint 6b3f8'}
    """
    texts = {name: repr(fact) for name, fact in facts.items()}
    return {
        name: f"of fingerprint {fingerprint(facts[name]):05x}"
        if len(text) > SHORT or isinstance(facts[name], Tensor)
        else text
        for name, text in texts.items()
    }


def refuse_different(facts: Mapping[str, object], group: dist.ProcessGroup) -> None:
    """Compare ``facts`` over the group; every member has to call this.

    Raises:
        RuntimeError: on all ranks, where they differ; names what, and on which ranks.
    """
    _refuse(gathered(told(facts), group), group)


def _refuse(answers: Sequence[Mapping[str, str]], group: dist.ProcessGroup) -> None:
    ranks = dist.get_process_group_ranks(group)
    differences = []
    for name in dict.fromkeys(name for answer in answers for name in answer):
        values = [answer.get(name, NOT_LOADED) for answer in answers]
        others = [rank for rank, value in zip(ranks, values, strict=True) if value != values[0]]
        if others:
            there = values[ranks.index(others[0])]
            numbers = ", ".join(map(str, others))
            differences.append(f"{name}: {values[0]} on rank {ranks[0]}, {there} on rank {numbers}")
    if differences:
        raise RuntimeError(f"the ranks disagree on {'; '.join(differences)}. {REMEDY}")


#: Stands for what is told at a rank's first step and after it has loaded a checkpoint.
NOT_LOADED = "no checkpoint loaded"

REMEDY = (
    "Build the optimizers in the same order, with the same tasks, method, seed and parameters on "
    "every rank, and load the same checkpoint everywhere"
)


def timeout_of(group: dist.ProcessGroup) -> timedelta | None:
    """Return how long the group's collectives wait, or None where torch does not tell."""
    for kind in ("cpu", "cuda", "xpu"):
        try:
            backend = group._get_backend(torch.device(kind))
            timeout: timedelta = backend.options._timeout
        except (RuntimeError, AttributeError):
            continue
        return timeout
    return None


@contextmanager
def _named(ranks: Sequence[int], count: int) -> Iterator[None]:
    """Have the group that is made here be called the same on all ranks.

    Raises:
        RuntimeError: where this version of torch names groups otherwise.
    """
    if not hasattr(c10d, "_process_group_name"):
        raise RuntimeError(
            "the ranks are members of different numbers of process groups, and this version of "
            "torch names a new group by that number, so it would wait for ever: build the "
            "optimizer before the groups that not all ranks are members of"
        )
    original = c10d._process_group_name
    name = f"gradsurgery_{'_'.join(map(str, ranks))}_{count}"
    setattr(c10d, "_process_group_name", lambda *_, **__: name)  # noqa: B010
    try:
        yield
    finally:
        c10d._process_group_name = original
