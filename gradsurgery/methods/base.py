"""The contract of a method: pure arithmetic on the K x K Gram matrix of the task gradients.

A method never sees a parameter or a random number generator, nor a task's name: it knows the tasks
by position, unless it asks for their names once (:meth:`Method.bind`). It is called as

    ``method(gram, state=state, **facts) -> Verdict``

with ``gram[S, K, K]``, the dot products of the K original gradients, once per segment; its own
tensors from the step before (GradVac's targets), or an empty state; and of the step's other facts
exactly those that its class lists in ``needs``:

=========  =================  =====================================================================
order      ``[K, K]`` int64   row i: the random order in which task i visits the tasks, itself among
                              them; without this need no random number is drawn
present    ``[S, K]`` bool    whether task k has a gradient on a shared parameter of segment s
losses     ``[K]`` float64    the tasks' losses in this step, averaged over the ranks and added up
                              over micro-batches as gradients are; NaN for a task that did not run
scale      ``[]`` float64     the factor that the gradients carry, such as a GradScaler's; not in
                              ``gram`` where the method's ``degree`` is not 1
draws      ``[K]`` float64    a standard normal number for each task, afresh at every step
=========  =================  =====================================================================

A task that is absent, or whose gradient is zero, has a zero row and column in ``gram``; ``present``
tells the two apart. A zero gradient has no direction, but it is there: the shortest vector of a
hull that it belongs to is zero. An absent one is no part of the problem.

Everything lies on one device. On a GPU with the fused kernels that is the GPU, where reading a
value would make every step wait.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor

State = dict[str, Tensor]

#: The facts of a step that a method may need.
NEEDS = ("order", "present", "losses", "scale", "draws")


class Verdict(NamedTuple):
    """The decision of a method.

    Attributes:
        weights: ``[..., K]`` float64. The update is ``sum_k weights[k] * g_k``.
        altered: ``[..., K, K]`` bool. ``[i, j]``: gradient i received a multiple of gradient j.
            None where a method does not alter one gradient by another.
        state: the tensors that the next call is to be given; new ones, never edited in place.
    """

    weights: Tensor
    altered: Tensor | None
    state: State


class Method(ABC):
    """A gradient surgery method, ``(gram, state, facts) -> Verdict``.

    Subclasses are final, hold configuration only, and are pure: same arguments, same answer.

    Example:
        >>> import torch
        >>> class Mean(Method):
        ...     def __call__(self, gram, state):
        ...         return Verdict(torch.full(gram.shape[:-1], 1 / gram.shape[-1]), None, state)
        >>> Mean()(torch.eye(2), {}).weights.tolist()
        [0.5, 0.5]
    """

    #: The facts of a step that the method is given, by keyword.
    needs: ClassVar[frozenset[str]] = frozenset()
    #: Where the generator of the visiting order and of the draws starts.
    seed: int = 0
    #: Losses times s give the update times s**degree: 1 where it grows with them, 0 where its
    #: length does not depend on their scale. With another degree than 1, a loss scale that the
    #: gradients carry changes the update.
    degree: float = 1.0
    #: What parameters get that only one task has: ``"plain"``, its gradient as it is, or
    #: ``"weighted"``, times the task's weight, where that is the weight of a loss.
    task_only: Literal["plain", "weighted"] = "plain"

    def bind(self, tasks: Sequence[str]) -> Method:
        """Return the method for tasks of these names, in order: itself, if names tell it nothing.

        :class:`GradientSurgery` calls this once, before everything else.
        """
        return self

    def init(self, segments: int, tasks: int) -> State:
        """Return the state before the first step; no tensor in it is empty."""
        return {}

    def check_state(self, state: State) -> None:
        """Check what was loaded from a checkpoint, of the shapes and dtypes that :meth:`init` has.

        Raises:
            ValueError: for what no step can have left: here, numbers that are not finite.

        Example:
            >>> import torch
            >>> from gradsurgery import GradVac
            >>> GradVac().check_state({"target": torch.zeros(1, 2, 2)})
        """
        for name, value in state.items():
            if not bool(value.isfinite().all()):
                raise ValueError(f"the state {name!r} of {self!r} is finite, not {_bad(value)}")

    @abstractmethod
    def __call__(self, gram: Tensor, *args: Any, **kwargs: Any) -> Verdict:
        """Decide the weights for ``gram`` ([S, K, K] float64)."""


def _bad(value: Tensor) -> object:
    """Return the first number that is not finite."""
    return value[~value.isfinite()][0].item()


def check_method(method: Method) -> None:
    """Check that ``method`` is one, and can be called with what it says that it needs.

    Raises:
        TypeError: for a class, another object, or a ``__call__`` that takes other facts than the
            class lists in ``needs``.
    """
    if isinstance(method, type) or not isinstance(method, Method):
        raise TypeError(f"method is an object such as PCGrad(), not {method!r}")
    unknown = method.needs - set(NEEDS)
    if unknown:
        raise TypeError(
            f"{type(method).__name__}.needs lists {sorted(unknown)}: a method may need "
            f"{', '.join(NEEDS)}"
        )
    try:
        inspect.signature(method).bind(None, state=None, **dict.fromkeys(method.needs))
    except TypeError as error:
        raise TypeError(
            f"{type(method).__name__}.__call__ cannot be called as (gram, state=..., "
            f"{', '.join(f'{need}=...' for need in sorted(method.needs))}): {error}. List in "
            f"{type(method).__name__}.needs what it takes beside gram and state, of "
            f"{', '.join(NEEDS)}"
        ) from None
