"""Being a ``torch.optim.Optimizer`` around another: its groups, state, hooks, and pickling.

The wrapper holds no copy of what belongs to the base: parameter groups, state and defaults are the
base's own, since ``load_state_dict`` rebinds them.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any
from weakref import WeakKeyDictionary

from torch.optim import Optimizer

from gradsurgery._chained import ChainedOptimizer, clear

#: Hook tables that the base runs itself when the wrapper delegates to it.
_SHARED_HOOKS = (
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)

#: What the wrapper that was last built around each optimizer is known by.
_holders: WeakKeyDictionary[Optimizer, object] = WeakKeyDictionary()


class OptimizerWrapper(Optimizer):
    """An optimizer around ``base``, whose groups, state and defaults it has.

    Args:
        base: the wrapped optimizer.
    """

    #: The attributes that a copy or a pickle takes along: without the hooks (as torch does), and
    #: without the ``step`` that a scheduler patched into the instance.
    _kept: tuple[str, ...] = ("base", "_identity")

    def __init__(self, base: Optimizer) -> None:
        self.base = base
        self._identity = object()  # of shallow copies too, which share the base and all else
        self._build_hooks()

    def _build_hooks(self) -> None:
        # Optimizer.__init__ would register the parameters a second time, with other defaults;
        # __setstate__ builds the tables that hooks and profiling need, and nothing more.
        super().__setstate__({})
        #: Whether the base never called Optimizer.__init__, as wrappers often do not: it has no
        #: tables then, and runs no hooks.
        self._runs_hooks = not all(hasattr(self.base, name) for name in _SHARED_HOOKS)
        for name in _SHARED_HOOKS:
            table = OrderedDict() if self._runs_hooks else getattr(self.base, name)
            object.__setattr__(self, name, table)
        for base in self.bases:
            _holders[base] = self._identity

    @property
    def bases(self) -> tuple[Optimizer, ...]:
        """The wrapped optimizers, in order."""
        return self.base.bases if isinstance(self.base, ChainedOptimizer) else (self.base,)

    def refuse_superseded(self) -> None:
        """Refuse to go on when a later wrapper has taken over a base.

        Raises:
            RuntimeError: when one has.
        """
        for base in self.bases:
            if _holders[base] is not self._identity:
                raise RuntimeError(
                    f"this {type(base).__name__} was wrapped a second time, and the later wrapper "
                    "has taken over: used in turn, each would have a visiting order and state "
                    "of its own, of which the base's checkpoint has the later one's only. Wrap it "
                    "once, with the tasks of all phases (a task that does not run in a step is "
                    "absent from it), or have the later wrapper replace this one"
                )

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state."""
        if not self._runs_hooks:
            return self.base.state_dict()
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        state_dict = self.base.state_dict()
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            state_dict = post_hook(self, state_dict) or state_dict
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the base's state."""
        if self._runs_hooks:
            for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
                state_dict = pre_hook(self, state_dict) or state_dict
        self.base.load_state_dict(state_dict)
        if self._runs_hooks:
            for post_hook in self._optimizer_load_state_dict_post_hooks.values():
                post_hook(self)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear ``.grad`` as the base does."""
        clear(self.base, set_to_none)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base's parameter groups."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base.param_groups = groups

    @property
    def state(self) -> Any:
        """The base's state."""
        return self.base.state

    @state.setter
    def state(self, state: Any) -> None:
        self.base.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """The base's defaults; a wrapper that hands none on has none."""
        return getattr(self.base, "defaults", {})

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.base.defaults = defaults

    def __getattr__(self, name: str) -> Any:
        # Public extras of the base (a schedule-free optimizer's train() and eval()). Private ones
        # stay hidden: GradScaler must not take the wrapper for a base that unscales by itself.
        message = f"{type(self).__name__!r} object has no attribute {name!r}"
        if "base" not in self.__dict__:
            raise AttributeError(message)
        if not name.startswith("_"):
            return getattr(self.base, name)
        if not name.startswith("__") and hasattr(self.base, name):
            message += (
                f": it is private to the wrapped {type(self.base).__name__}. Pass optimizer.base "
                "to what asks for it"
            )
        raise AttributeError(message)

    def __setattr__(self, name: str, value: Any) -> None:
        # What is read through is written through, or the base would go on with the old value.
        if name in self._kept and name in self.__dict__:
            raise AttributeError(
                f"{name} was decided when this {type(self).__name__} was built: wrap "
                "optimizer.base again to change it"
            )
        if name.startswith("_") or name in self.__dict__ or hasattr(type(self), name):
            super().__setattr__(name, value)
        elif "base" in self.__dict__ and any(hasattr(base, name) for base in self.bases):
            setattr(self.base, name, value)
        else:
            super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self._kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._build_hooks()
