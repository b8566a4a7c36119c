"""Several optimizers as one: their groups, states and checkpoints, one after the other.

The chain holds no copy of what belongs to its optimizers. What it saves has the form that one
optimizer of all their groups would save, which is what ``torch.distributed.checkpoint`` expects.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from functools import cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery import grouping


def chained(bases: Sequence[Optimizer], named: Mapping[Tensor, str]) -> Optimizer:
    """Return the optimizer of ``bases``: a single one as it is.

    Args:
        bases: the optimizers, one or more.
        named: the parameters' names, where the optimizers do not know them.

    Raises:
        ValueError: for no optimizers, a parameter that two of them hold, or one whose ``step``
            cannot do without a closure, as LBFGS's, beside others.
    """
    if not bases:
        raise ValueError("base is an optimizer or a sequence of at least one, not an empty one")
    if len(bases) == 1:
        return bases[0]
    refuse_shared(bases, named)
    for base in bases:
        closure = inspect.signature(base.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise ValueError(
                f"{type(base).__name__}.step() evaluates its closure several times, on which "
                "optimizers beside it would not step: wrap it alone"
            )
    return ChainedOptimizer(bases)


def refuse_shared(bases: Sequence[Optimizer], named: Mapping[Tensor, str]) -> None:
    """Refuse a parameter that two optimizers hold, and that would be trained twice.

    Raises:
        ValueError: when there is one; the message has its name, or its position.
    """
    holders: dict[Tensor, int] = {}
    groups = [group for base in bases for group in base.param_groups]
    names = iter(enumerate(grouping.names(groups, dict(named))))
    for index, base in enumerate(bases):
        for parameter in _parameters(base):
            position, name = next(names)
            first = holders.setdefault(parameter, index)
            if first != index:
                kinds = [type(bases[i]).__name__ for i in (first, index)]
                raise ValueError(
                    f"{name or f'parameter {position}'} is held by two optimizers, {kinds[0]} "
                    f"(number {first}) and {kinds[1]} (number {index}): give it to one of them"
                )


class ChainedOptimizer(Optimizer):
    """Optimizers that step one after the other, each on its own parameters.

    Args:
        bases: two optimizers or more, without a parameter in common.
    """

    def __init__(self, bases: Sequence[Optimizer]) -> None:
        self.__setstate__({"bases": tuple(bases)})

    def step(self, closure: Callable[[], Any] | None = None, **options: Any) -> Any:
        """Evaluate the closure once, if there is one, and let every optimizer step.

        Raises:
            TypeError: for an option that none of them takes; none has stepped then.
        """
        for name in options:
            if not any(_takes(type(base).step, name) for base in self.bases):
                kinds = ", ".join(type(base).__name__ for base in self.bases)
                raise TypeError(f"step() of none of {kinds} takes an argument {name!r}")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for base in self.bases:
            step = type(base).step
            base.step(**{name: value for name, value in options.items() if _takes(step, name)})
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear ``.grad`` as each optimizer does."""
        for base in self.bases:
            clear(base, set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the last optimizer."""
        self.bases[-1].add_param_group(param_group)

    # ------------------------------------------------------------------ groups, state, defaults

    @property
    def param_groups(self) -> Any:
        """All groups; a tuple, as appending to it would reach no optimizer."""
        return tuple(group for base in self.bases for group in base.param_groups)

    @param_groups.setter
    def param_groups(self, groups: Sequence[dict[str, Any]]) -> None:
        indices = [self._holder(group) for group in groups]
        for index, base in enumerate(self.bases):
            base.param_groups = [g for g, i in zip(groups, indices, strict=True) if i == index]

    def _holder(self, group: dict[str, Any]) -> int:
        """Return the index of the optimizer that holds the group's parameters."""
        parameters = set(group["params"])
        holders = [i for i, base in enumerate(self.bases) if parameters & set(_parameters(base))]
        if len(holders) != 1:
            raise ValueError(
                f"a parameter group has parameters of {len(holders)} of the wrapped optimizers, "
                "and goes to the one that has them all: assign to the param_groups of "
                "optimizer.bases instead"
            )
        return holders[0]

    @property
    def state(self) -> Any:
        """The state of every parameter; what is assigned goes to the optimizer that holds it."""
        return _ChainedState(self.bases)

    @state.setter
    def state(self, state: Mapping[Any, Any]) -> None:
        entries = dict(state)
        for base in self.bases:
            base.state = defaultdict(dict)
        self.state.update(entries)

    @property
    def defaults(self) -> dict[str, Any]:
        """The defaults of the first, for options that all have: schedulers look which there are."""
        first, *others = (base.defaults for base in self.bases)
        return {key: first[key] for key in first if all(key in other for other in others)}

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        raise AttributeError("several optimizers have defaults of their own: set theirs")

    # ------------------------------------------------------------------ checkpoints and copies

    def state_dict(self) -> dict[str, Any]:
        """Return what one optimizer of all groups would; parameters are numbered through.

        Raises:
            NotImplementedError: for an optimizer that saves more than states of its parameters.
        """
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        state: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        for base in self.bases:
            saved, first = base.state_dict(), sum(len(group["params"]) for group in groups)
            count = sum(len(group["params"]) for group in saved["param_groups"])
            if saved.keys() != {"state", "param_groups"} or set(saved["state"]) - set(range(count)):
                raise NotImplementedError(
                    f"{type(base).__name__} saves more than the states of its parameters: save "
                    "[base.state_dict() for base in optimizer.bases] instead, which has everything"
                )
            state |= {first + number: value for number, value in saved["state"].items()}
            groups += [
                group | {"params": [first + number for number in group["params"]]}
                for group in saved["param_groups"]
            ]
        state_dict: dict[str, Any] = {"state": state, "param_groups": groups}
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            state_dict = post_hook(self, state_dict) or state_dict
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned.

        Raises:
            ValueError: when groups differ in number or size; nothing is loaded then.
        """
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = pre_hook(self, state_dict) or state_dict
        groups, state = list(state_dict["param_groups"]), state_dict["state"]
        sizes, expected = ([len(g["params"]) for g in gs] for gs in (groups, self.param_groups))
        if sizes != expected:
            raise ValueError(
                f"the checkpoint has parameter groups of {sizes} parameters and these optimizers "
                f"of {expected}: build them as they were when it was saved, in the same order"
            )
        for base in self.bases:
            taken = [groups.pop(0) for _ in base.param_groups]
            numbers = chain.from_iterable(group["params"] for group in taken)
            states = {number: state[number] for number in numbers if number in state}
            base.load_state_dict({"state": states, "param_groups": taken})
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"bases": self.bases}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.bases: tuple[Optimizer, ...] = state["bases"]
        super().__setstate__({})  # the tables of hooks, and nothing more

    # ------------------------------------------------------------------ extras

    def __getattr__(self, name: str) -> Any:
        # A schedule-free optimizer's train() and eval(), of all that have them.
        bases = () if name.startswith("_") else self.__dict__.get("bases", ())
        values = [getattr(base, name) for base in bases if hasattr(base, name)]
        if len(values) == 1:
            return values[0]
        if not values or not all(map(callable, values)):
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}"
                + (", as several of its optimizers have one each" if values else "")
            )
        return lambda *args, **kwargs: [value(*args, **kwargs) for value in values]

    def __setattr__(self, name: str, value: Any) -> None:
        # What is read through is written through.
        elsewhere = name.startswith("_") or name == "bases" or hasattr(type(self), name)
        holders = [] if elsewhere else [base for base in self.bases if hasattr(base, name)]
        if len(holders) > 1:
            kinds = ", ".join(type(base).__name__ for base in holders)
            raise AttributeError(
                f"{kinds} have an attribute {name!r} each: set it on optimizer.bases[i]"
            )
        if holders:
            setattr(holders[0], name, value)
        else:
            super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"[{', '.join(map(repr, self.bases))}]"


class _ChainedState(MutableMapping[Any, Any]):
    """The states of several optimizers, by parameter."""

    def __init__(self, bases: Sequence[Optimizer]) -> None:
        self._bases = bases

    def _of(self, key: Any) -> Any:
        """Return the state that has ``key``, or that of the optimizer that holds it."""
        for base in self._bases:
            if key in base.state:
                return base.state
        for base in self._bases:
            if any(parameter is key for parameter in _parameters(base)):
                return base.state
        raise KeyError(key)

    def __getitem__(self, key: Any) -> Any:
        return self._of(key)[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._of(key)[key] = value

    def __delitem__(self, key: Any) -> None:
        del self._of(key)[key]

    def __contains__(self, key: object) -> bool:
        return any(key in base.state for base in self._bases)

    def get(self, key: Any, default: Any = None) -> Any:
        # As in a torch optimizer, only subscripting begins a state.
        return next((b.state[key] for b in self._bases if key in b.state), default)

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(base.state for base in self._bases)

    def __len__(self) -> int:
        return sum(len(base.state) for base in self._bases)


def _parameters(base: Optimizer) -> list[Tensor]:
    return [parameter for group in base.param_groups for parameter in group["params"]]


def clear(optimizer: Optimizer, set_to_none: bool) -> None:
    """Clear ``.grad`` by an optimizer's own ``zero_grad``, which need not know ``set_to_none``."""
    if _takes(type(optimizer).zero_grad, "set_to_none"):
        optimizer.zero_grad(set_to_none=set_to_none)
    else:
        optimizer.zero_grad()


@cache
def _takes(function: Callable[..., Any], argument: str) -> bool:
    """Tell whether ``function`` can be given ``argument`` by name."""
    parameters = inspect.signature(function).parameters.values()
    return any(p.name == argument or p.kind is p.VAR_KEYWORD for p in parameters)
