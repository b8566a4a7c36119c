"""Being a ``torch.optim.Optimizer`` around another: its groups, state, hooks, and pickling.

The wrapper holds no copy of what belongs to the base: parameter groups, state and defaults are the
base's own, since ``load_state_dict`` rebinds them.
"""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

#: Hook tables that the base runs itself when the wrapper delegates to it.
_SHARED_HOOKS = (
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


class OptimizerWrapper(Optimizer):
    """An optimizer around ``base``, whose groups, state and defaults it has.

    Args:
        base: the wrapped optimizer.
    """

    #: The attributes that a copy or a pickle takes along: without the hooks (as torch does), and
    #: without the ``step`` that a scheduler patched into the instance.
    _kept: tuple[str, ...] = ("base",)

    def __init__(self, base: Optimizer) -> None:
        self.base = base
        self._build_hooks()

    def _build_hooks(self) -> None:
        # Optimizer.__init__ would register the parameters a second time, with other defaults;
        # __setstate__ builds the tables that hooks and profiling need, and nothing more.
        super().__setstate__({})
        for name in _SHARED_HOOKS:
            setattr(self, name, getattr(self.base, name))

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state."""
        return self.base.state_dict()

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
        """The base's defaults."""
        return self.base.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.base.defaults = defaults

    def __getattr__(self, name: str) -> Any:
        # Public extras of the base (a schedule-free optimizer's train() and eval()). Private ones
        # stay hidden: GradScaler must not take the wrapper for a base that unscales by itself.
        if name.startswith("_") or "base" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.base, name)

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self._kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._build_hooks()
