"""The state of surgery: the visiting order's generator and the method's tensors.

A checkpoint has it in each parameter group, under ``"surgery"`` and in plain Python values, so that
it is saved, loaded, sharded and copied along with everything else, whatever becomes of the groups.
The groups of a live optimizer have the tasks' names there: tools that load by the keys of the live
groups find the key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakMethod

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery.kept import Kept
from gradsurgery.methods import Method, State
from gradsurgery.methods.order import check_rng, initial_rng

#: Its key in a parameter group.
KEY = "surgery"

#: Parts of a parameter's path that wrappers around a module add: DDP, torch.compile and others.
_WRAPPERS = re.compile(r"\b(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


class SurgeryState:
    """What surgery remembers from step to step.

    Args:
        base: the optimizer whose checkpoints carry it.
        method: gives the tensors that it starts with.
        tasks: the tasks' names, in order.
        segments: the S segments' names.
        counting: whether to count the steps since gradients were last measured, and to remember the
            weights that these left.
    """

    def __init__(
        self,
        base: Optimizer,
        method: Method,
        tasks: Sequence[str],
        segments: Sequence[str],
        counting: bool = False,
    ) -> None:
        self._base, self._method, self._tasks = base, method, list(tasks)
        self._segments, self._counting = list(segments), counting
        #: What live parameter groups have under the key.
        self._mark = {"tasks": self._tasks}
        for group in base.param_groups:  # another wrapper's, from before
            group.pop(KEY, None)
        self.keep(initial_rng(method.seed), method.init(len(segments), len(tasks)))
        self.attach()
        self._hook()

    def _hook(self) -> None:
        """Have a base that is saved by itself carry the state, too."""
        add = WeakMethod(self._add)  # an optimizer that was wrapped again goes on without the first

        def hook(base: Optimizer, state_dict: dict[str, Any]) -> None:
            method = add()
            if method is not None:
                method(state_dict)

        for base in getattr(self._base, "bases", (self._base,)):
            if hasattr(base, "_optimizer_state_dict_post_hooks"):
                base.register_state_dict_post_hook(hook)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._hook()

    # ------------------------------------------------------------------ from step to step

    @property
    def values(self) -> dict[str, Any]:
        """The generator's state, the method's tensors and the counter, by name."""
        self.attach()
        return self._values

    @property
    def unmeasured(self) -> int:
        """The steps since gradients were last measured, 0 where nobody counts."""
        count: int = self.values.get("unmeasured", 0)
        return count

    @property
    def kept(self) -> Kept | None:
        """The weights of the last measured step, where later ones may reuse them."""
        kept: Kept | None = self.values.get("kept")
        return kept

    def keep(
        self, rng: Tensor, state: State, unmeasured: int = 0, kept: Kept | None = None
    ) -> None:
        """Remember the visiting order's generator, the method's tensors, :attr:`unmeasured` and
        :attr:`kept`."""
        counter = {"unmeasured": unmeasured, "kept": kept} if self._counting else {}
        self._values = {"rng": rng, **counter, **state}

    def reused(self) -> None:
        """Count a step that reused :attr:`kept`."""
        self._values = {**self.values, "unmeasured": self.unmeasured + 1}

    def forget(self) -> None:
        """Have the next step measured, whatever was kept."""
        self._values = {**self.values, "kept": None}

    def grow(self, segments: Sequence[str]) -> None:
        """Make room for more segments, which start afresh."""
        self.keep(self.values["rng"], self.of_method(segments), self.unmeasured)

    def of_method(self, segments: Sequence[str], device: torch.device | None = None) -> State:
        """Return the method's tensors; segments added since they were kept start afresh."""
        values, state = self.values, {}
        for name, start in self._method.init(len(segments), len(self._tasks)).items():
            kept = values.get(name, start)
            kept = kept.to(device or kept.device, start.dtype)
            if len(kept) < len(start):
                kept = torch.cat([kept, start[len(kept) :].to(kept.device)])
            state[name] = kept
        self._segments = list(segments)
        return state

    # ------------------------------------------------------------------ checkpoints

    def saved(self) -> dict[str, Any]:
        """Return the state in plain Python values, for a checkpoint. The host waits for it."""
        saved: dict[str, Any] = {"tasks": list(self._tasks), "segments": list(self._segments)}
        saved["rng"] = bytes(self.values["rng"].tolist()).hex()
        if self._counting:
            saved["unmeasured"] = self.unmeasured
            if self.kept is not None:
                saved["kept"] = self.kept.saved()
        state = self.of_method(self._segments)
        return saved | {name: value.tolist() for name, value in state.items()}

    def added_to(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Return a checkpoint of the base with the state in its parameter groups."""
        self._add(state_dict)
        return state_dict

    def _add(self, state_dict: dict[str, Any]) -> None:
        saved = self.saved()
        for group in saved_groups(state_dict):
            group[KEY] = saved

    def attach(self) -> None:
        """Take over what the base has loaded, if it has, and mark its parameter groups.

        Raises:
            ValueError: when what was loaded does not fit.
        """
        fresh = [group for group in self._base.param_groups if group.get(KEY) is not self._mark]
        if not fresh:
            return
        restored = self._restored(fresh, self._segments)
        for group in fresh:
            group[KEY] = self._mark
        if restored is not None:
            self._values = restored

    def check_loadable(self, groups: Sequence[Mapping[str, Any]], segments: Sequence[str]) -> None:
        """Check that what a checkpoint's parameter ``groups`` carry fits.

        Raises:
            ValueError: when it is of other tasks or segments, or what no step can have left.
        """
        try:
            self._restored(groups, segments)
        except ValueError:
            sizes, expected = (
                [len(group.get("params", ())) for group in of]
                for of in (groups, self._base.param_groups)
            )
            if sizes == expected:
                raise
            raise ValueError(
                f"the checkpoint has parameter groups of {sizes} parameters and this optimizer of "
                f"{expected}: build it with the same groups (add_param_group() those that came "
                "later) before loading"
            ) from None
        self._segments = list(segments)

    def _restored(
        self, groups: Sequence[Mapping[str, Any]], segments: Sequence[str]
    ) -> dict[str, Any] | None:
        """Return the values that a checkpoint's groups carry, None where they carry none."""
        carried = [group[KEY] for group in groups if KEY in group]
        for value in carried:
            if not isinstance(value, Mapping):
                raise ValueError(
                    f"the checkpoint's parameter groups have {value!r} under {KEY!r}, which no "
                    "optimizer saved: load another checkpoint, or delete the key from its groups "
                    "to keep the base's moments alone"
                )
        saved = next((value for value in carried if value.keys() != {"tasks"}), None)
        if saved is None:
            return None
        if list(saved.get("tasks", ())) != self._tasks:
            raise ValueError(
                f"the checkpoint is of tasks {list(saved.get('tasks', ()))} and this optimizer of "
                f"{self._tasks}: build it with the same tasks in the same order, or keep the "
                f"base's moments alone: delete {KEY!r} from the checkpoint's parameter groups "
                f"(group.pop({KEY!r}, None) for each) and load it again"
            )
        unmeasured = saved.get("unmeasured", 0)
        if not isinstance(unmeasured, int) or unmeasured < 0:
            raise ValueError(
                f"the checkpoint's 'unmeasured' is a number of steps, not {unmeasured!r}"
            )
        kept = Kept.restored(saved.get("kept"), len(self._tasks)) if self._counting else None
        counter = {"unmeasured": unmeasured, "kept": kept} if self._counting else {}
        state = self._restored_state(saved, list(segments))
        self._method.check_state(state)
        return {"rng": _restored_rng(saved.get("rng")), **counter, **state}

    def _restored_state(self, saved: Mapping[str, Any], segments: list[str]) -> State:
        """Return the method's tensors, each segment's where this optimizer has it."""
        count = len(self._tasks)
        starts = self._method.init(len(segments), count)
        longer = self._method.init(len(segments) + 1, count)
        state = {}
        for name, start in starts.items():
            if name not in saved:  # a checkpoint of another method
                continue
            value = _tensor(name, saved[name], start.dtype)
            if start.shape != longer[name].shape:
                value = _by_segment(name, value, saved.get("segments"), segments)
            if value.shape != start.shape:
                raise ValueError(
                    f"the checkpoint holds {name!r} of shape {list(value.shape)}, and this "
                    f"optimizer's is {list(start.shape)}: build it with the method and the tasks "
                    "that it was saved with"
                )
            state[name] = value
        return state


def saved_groups(state_dict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the parameter groups in a checkpoint, also of an optimizer within the base's."""
    if "param_groups" in state_dict:
        return list(state_dict["param_groups"] or [])
    inner = (value for value in state_dict.values() if isinstance(value, Mapping))
    return [group for value in inner for group in saved_groups(value)]


def _tensor(name: str, value: Any, dtype: torch.dtype) -> Tensor:
    """Return a saved tensor: nested lists, or of an older checkpoint as it is."""
    try:
        return torch.as_tensor(value, dtype=dtype, device="cpu").clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the checkpoint's {name!r} is no tensor of numbers: {error}") from None


def _by_segment(name: str, value: Tensor, saved: Any, segments: list[str]) -> Tensor:
    """Return the rows of ``value`` ([S, ...]) in the order of ``segments``.

    Args:
        name: of the value.
        value: saved.
        saved: the segments that it was saved with; None in a checkpoint from before they were.
        segments: this optimizer's.
    """
    wanted = _bare(segments)
    labels = _bare(saved) if saved is not None else wanted
    if len(value) != len(labels) or sorted(labels) != sorted(wanted):
        raise ValueError(
            f"the checkpoint holds {name!r} of {len(value)} segments"
            f"{'' if saved is None else f' ({_some(saved)})'} and this optimizer has "
            f"{len(segments)} ({_some(segments)}): use the grouping and the parameter groups that "
            "it was saved with"
        )
    return value[[labels.index(label) for label in wanted]]


def _bare(segments: Sequence[object]) -> list[str]:
    """Return segments' names without the wrappers' parts."""
    return [_WRAPPERS.sub("", str(segment)) for segment in segments]


def _some(labels: Sequence[object]) -> str:
    return ", ".join(map(str, labels[:3])) + (", .." if labels[3:] else "")


def _restored_rng(saved: Any) -> Tensor:
    """Return the generator's state from the digits that stand for it, or of old the tensor."""
    try:
        digits = bytearray.fromhex(saved) if isinstance(saved, str) else saved
        rng = torch.as_tensor(digits, dtype=torch.uint8, device="cpu").clone()
        check_rng(rng)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"the checkpoint's 'rng' is no generator's state ({error}): without it, the visiting "
            "order would not go on where it stopped"
        ) from None
    return rng
