"""The state of surgery: the visiting order's generator and the method's tensors.

It lives in a parameter group of the base optimizer, under ``"surgery"``, so it is saved, loaded,
copied and sharded along with everything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery.methods import Method, State
from gradsurgery.methods.order import initial_rng

#: Its key in a parameter group.
KEY = "surgery"


class SurgeryState:
    """What surgery remembers from step to step.

    Args:
        base: the optimizer whose first parameter group carries it.
        method: gives the tensors that it starts with.
        tasks: the tasks' names, in order.
        segments: the number of segments S.
        counting: whether to count the steps since gradients were last measured.
    """

    def __init__(
        self,
        base: Optimizer,
        method: Method,
        tasks: Sequence[str],
        segments: int,
        counting: bool = False,
    ) -> None:
        self._base, self._method, self._tasks = base, method, list(tasks)
        self._counting = counting
        self._values: dict[str, Any] = {}
        self.keep(initial_rng(method.seed), method.init(segments, len(tasks)))

    @property
    def values(self) -> dict[str, Any]:
        """Everything, by name; put back where a user has rebuilt the parameter groups."""
        self.attach()
        return self._values

    def attach(self) -> None:
        """Take what the parameter groups carry, or have them carry it again."""
        if not self._base.param_groups:  # a user is about to rebuild them
            return
        carrier = self._carrier()
        carried = carrier.setdefault(KEY, self._values)
        if carried is not self._values:  # loaded into the base, not into the wrapper around it
            self._check_tasks(carried)
        self._values = carried
        for group in self._base.param_groups:
            if group is not carrier:
                group.pop(KEY, None)  # copied along with a group; it would be stale after a step

    def grow(self, segments: int) -> None:
        """Make room for more segments, which start afresh."""
        self.keep(self.values["rng"], self.of_method(segments), self.unmeasured)

    def keep(self, rng: Tensor, state: State, unmeasured: int = 0) -> None:
        """Remember the visiting order's generator, the method's tensors, and :attr:`unmeasured`."""
        counter = {"unmeasured": unmeasured} if self._counting else {}
        # A new dict each time: a state_dict taken earlier keeps what it saw.
        self._values = self._carrier()[KEY] = {"tasks": self._tasks, "rng": rng, **counter, **state}

    @property
    def unmeasured(self) -> int:
        """The steps since gradients were last measured, 0 where nobody counts."""
        count: int = self.values.get("unmeasured", 0)
        return count

    def _carrier(self) -> dict[str, Any]:
        groups = self._base.param_groups
        current = [group for group in groups if group.get(KEY) is self._values]
        return (current or [group for group in groups if KEY in group] or groups)[0]

    def of_method(self, segments: int, device: torch.device | None = None) -> State:
        """Return the method's tensors; segments added since they were kept start afresh."""
        values, state = self.values, {}
        for name, start in self._method.init(segments, len(self._tasks)).items():
            kept = values.get(name, start)
            kept = kept.to(device or kept.device, start.dtype)
            if len(kept) > len(start):
                raise ValueError(
                    f"the parameter groups carry {name}s of {len(kept)} segments and this "
                    f"optimizer has {len(start)}: optimizer.load_state_dict(), not the base's, "
                    "would have refused this checkpoint, of another grouping"
                )
            if len(kept) < len(start):
                kept = torch.cat([kept, start[len(kept) :].to(kept.device)])
            state[name] = kept
        return state

    def check_loadable(self, groups: Sequence[Mapping[str, Any]], segments: int) -> None:
        """Check that what a checkpoint's parameter ``groups`` carry fits.

        Raises:
            ValueError: when it is of other tasks or segments.
        """
        saved = next((group[KEY] for group in groups if KEY in group), None)
        if saved is None:
            return
        self._check_tasks(saved)
        sizes, expected = (
            [len(group["params"]) for group in gs] for gs in (groups, self._base.param_groups)
        )
        for name, start in self._method.init(segments, len(self._tasks)).items():
            if name in saved and len(saved[name]) != len(start) and sizes != expected:
                raise ValueError(
                    f"the checkpoint has parameter groups of {sizes} parameters and this optimizer "
                    f"of {expected}: build it with the same groups (add_param_group() those that "
                    "came later) before loading"
                )
            if name in saved and len(saved[name]) != len(start):
                raise ValueError(
                    f"the checkpoint holds {name}s of {len(saved[name])} segments and this "
                    f"optimizer has {segments}: use the grouping that it was saved with"
                )

    def _check_tasks(self, saved: Mapping[str, Any]) -> None:
        if list(saved["tasks"]) != self._tasks:
            raise ValueError(
                f"the checkpoint is of tasks {list(saved['tasks'])} and this optimizer of "
                f"{self._tasks}: build it with the same tasks in the same order, or keep the "
                f"base's moments alone: delete {KEY!r} from the checkpoint's parameter groups "
                "(group.pop('surgery', None) for each) and load it again"
            )
