"""GradientSurgery: an optimizer around any optimizer, that ends the conflicts between tasks first.

One invariant carries every integration: between ``combine()`` and ``step()``, the parameters'
``.grad`` is exactly what the base optimizer will use. GradScaler, clipping, hooks and loggers rely
on it.

The wrapper holds no copy of what belongs to the base (parameter groups, state, defaults are the
base's own), and its own state, the visiting order's generator and the method's tensors, lives in
``param_groups[0]["surgery"]``. So it is saved, loaded, copied and sharded along with everything
else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery import features as _features
from gradsurgery import grouping as _grouping
from gradsurgery import kernels
from gradsurgery.capture import Capture
from gradsurgery.combine import combined, deliver
from gradsurgery.distributed import consistency
from gradsurgery.distributed.placement import Processes
from gradsurgery.join import Losses, join, named_losses
from gradsurgery.kernels.address_tables import send
from gradsurgery.methods import Method, Verdict
from gradsurgery.methods.order import initial_rng, visiting_order
from gradsurgery.statistics import ConflictStatistics

#: The parameters' names, and what grouping makes of them.
_Segmented = tuple[list[str | None], tuple[list[int], list[str]]]

#: Where the wrapper's own state lives in ``param_groups[0]``.
KEY = "surgery"

#: Hook tables that the base runs itself when the wrapper delegates to it.
_SHARED_HOOKS = (
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


@final
class GradientSurgery(Optimizer):
    """Wrap a ``torch.optim`` optimizer: train several tasks without gradient conflicts.

    Each task's backward pass is captured apart. :meth:`combine` then replaces the plain sum of the
    tasks' gradients by the method's weighted sum, on the parameters that at least two tasks used;
    gradients of parameters with one task (heads) pass through untouched, and parameters without any
    keep ``grad is None``. Gradients are captured as the tensors autograd made, and combined in
    place.

    Args:
        base: any ``torch.optim.Optimizer``. Schedulers, GradScaler and everything else that takes
            an optimizer get the wrapper.
        method: :class:`PCGrad`, :class:`GradVac` or :class:`Sum`.
        tasks: the tasks' names, once and in order.
        grouping: what is compared as one vector: ``"model"``, ``"layer"``, ``"tensor"``, or a
            function from a parameter's name to its segment's name.
        process_group: average each task's gradients over these processes, after they are
            captured: forward and backward run inside ``ddp.no_sync()``, or on the bare module. A
            task counts the ranks that ran it in this step. None for one process, for gradients
            that DDP averages (a forward and backward per task), and for sharded parameters (FSDP2,
            tensor parallel), which know their own processes.
        exchange: how they are averaged. ``"all_reduce"``: in buckets, each task's while the next
            one's backward runs. ``"reduce_scatter"``: fewer bytes on the wire and less memory, see
            the page on scaling.
        named_parameters: the model's, for a grouping by name when ``base`` was not built from
            ``model.named_parameters()``.

    Attributes:
        base: the wrapped optimizer.
        method: the method.
        tasks: the tasks' names.
        conflicts: the :class:`ConflictStatistics` since its last ``reset()``.

    Raises:
        TypeError: when ``base`` or ``method`` is not what it should be.
        ValueError: for task names that are no names, or repeated, or an unknown grouping.

    Example:
        >>> from gradsurgery import GradientSurgery, PCGrad
        >>> model = torch.nn.Linear(2, 2)
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> optimizer = GradientSurgery(base, PCGrad(), tasks=("a", "b"))
        >>> out = model(torch.ones(1, 2))
        >>> optimizer.join({"a": out.sum(), "b": out.square().sum()}).backward()
        >>> optimizer.step()
        >>> optimizer.zero_grad()
    """

    def __init__(
        self,
        base: Optimizer,
        method: Method,
        *,
        tasks: Sequence[str],
        grouping: _grouping.Grouping = "model",
        process_group: dist.ProcessGroup | None = None,
        exchange: str = "all_reduce",
        named_parameters: Iterable[tuple[str, Tensor]] | None = None,
    ) -> None:
        _check_base(base)
        _check_method(method)
        self.base = base
        self.method = method
        self.tasks = _checked_tasks(tasks)
        self.conflicts = ConflictStatistics(self.tasks, repr(method))
        self._grouping = grouping
        _grouping.resolve(grouping)
        self._named = {p: name for name, p in named_parameters or ()}
        self._processes = Processes(process_group, self.tasks, exchange)
        self._capture = Capture(self.tasks)
        self._replayed: list[Tensor] = []  # orders that captured CUDA graphs read
        self._stand_ins: list[Tensor] = []  # for features, while a backward with them runs
        self._segmented: _Segmented = ([], ([], []))
        segments = self._segments()[1]
        self._surgery = {
            "tasks": list(self.tasks),
            "rng": initial_rng(method.seed),
            **method.init(len(segments), len(self.tasks)),
        }
        self._build_hooks()

    # ------------------------------------------------------------------ capturing and combining

    @contextmanager
    def task(self, name: str, *, sync: bool = True) -> Iterator[None]:
        """Capture the gradients of the backward passes run inside, for task ``name``.

        Entering the same task again adds to what it captured (gradient accumulation). ``.grad`` is
        left as it was found. If the body raises, what this task captured in this step is dropped.

        Args:
            name: one of ``tasks``.
            sync: with a ``process_group``, False says that more of this task follows before
                ``combine()``, so that its gradients are sent once, with the last.

        Raises:
            ValueError: for an unknown name.
            RuntimeError: inside another task, or when no gradient reached the parameters.

        Example:
            >>> from gradsurgery import GradientSurgery, PCGrad
            >>> model = torch.nn.Linear(2, 1)
            >>> base = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> optimizer = GradientSurgery(base, PCGrad(), tasks=("a", "b"))
            >>> for name in optimizer.tasks:
            ...     with optimizer.task(name):
            ...         model(torch.randn(4, 2)).mean().backward()
            >>> optimizer.combine()
        """
        parameters = self._parameters()
        try:
            with self._capture.record(name, parameters):
                self._processes.begin(name, parameters)
                yield
        except BaseException:
            self._processes.failed(name)
            raise
        self._processes.captured(name, self._capture, parameters, sync)

    def combine(self) -> None:
        """Combine what was captured, into ``.grad``.

        A ``.grad`` that is there already (an auxiliary loss outside of surgery) is added to, as any
        backward would. With a non-finite value in any captured gradient, also in that of a head,
        the plain sum is delivered, non-finite as it is for GradScaler to find; the method's state
        and the visiting order stay as they were, and the step is counted as non-finite.

        Raises:
            RuntimeError: when nothing was captured (with a ``process_group``: on no rank), or
                ranks disagree on what they do.
            ValueError: when captured gradients lie on several devices; nothing is changed then.
        """
        parameters = self._parameters()
        segments, names = self._segments()
        found = self._processes.everything(self._capture, parameters, self._common)
        if not any(found.active):
            raise RuntimeError(
                "combine() found nothing captured: run each task's backward inside "
                "optimizer.task(name), or use optimizer.join(losses).backward()"
            )
        active = torch.tensor(found.active)
        results = combined(
            found.rows,
            segments,
            len(names),
            lambda gram, finite: self._weights(gram, finite, names, active),
            found.placement,
        )
        for parameter, grad in zip(parameters, found.restored(results), strict=True):
            if grad is not None:
                deliver(parameter, grad)
        self._drop()

    def join(
        self,
        losses: Losses,
        combine: bool = True,
        *,
        features: _features.Features | None = None,
    ) -> Tensor:
        """Return the sum of the tasks' losses, whose ``backward()`` does capture and combination.

        The drop-in for ``sum(losses).backward()``. The losses may share one forward or have batches
        of their own. Factors applied to the result reach every task: ``scaler.scale(joined)``,
        ``joined / len(tasks)`` (the mean). Under ``no_grad`` it is a plain sum.

        Losses of one forward need K backward passes through what they share. With ``features``, the
        output of a trunk that they share, the passes end there, and the trunk has one. That is
        cheaper, and another algorithm: the tasks' gradients with respect to ``features`` are
        compared and combined, with those of the parameters above, and the parameters below receive
        what follows. For examples that all tasks share only: gradients at features of different
        examples never conflict.

        Args:
            losses: scalars by task name, or a sequence of one loss per task in order. A task that
                is left out of the mapping is absent from this step.
            combine: False captures only, for gradient accumulation: pass True with the last
                micro-batch.
            features: the tensor that the trunk returned, or several, and the heads were given; None
                for the exact way. Their segment is the one that ``grouping`` gives to the name
                "features".

        Returns:
            A scalar tensor in the losses' dtype.

        Raises:
            TypeError, ValueError: for losses or features that cannot be used; the message names the
                task. Also for features with ``combine=False``, whose graphs would have to live on.
            RuntimeError: for losses of one forward through a DDP that averages.
            NotImplementedError: for features with several processes, or sharded parameters.

        Example:
            >>> from gradsurgery import GradientSurgery, PCGrad
            >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
            >>> base = torch.optim.SGD([w], lr=0.1)
            >>> optimizer = GradientSurgery(base, PCGrad(), tasks=("a", "b"))
            >>> optimizer.join({"a": w[0], "b": w[1] - w[0]}).backward()
            >>> w.grad
            tensor([0.5000, 1.5000])
            >>> optimizer.zero_grad()
            >>> z = 2 * w
            >>> optimizer.join({"a": z[0], "b": z[1] - z[0]}, features=z).backward()
            >>> w.grad
            tensor([1., 3.])
        """
        named = named_losses(losses, self.tasks)
        self._processes.check_losses(named.values())
        if features is None or not torch.is_grad_enabled():
            return join(self, named, combine)
        if not combine:
            raise ValueError(
                "features= goes with combine=True: the trunk's backward needs the weights of all "
                "micro-batches, so all their graphs would have to live until the last; "
                f"{_features.EXACT}, or combine each micro-batch by itself"
            )
        return join(self, named, combine, self._cut(named, features))

    def discard(self) -> None:
        """Drop what was captured and not combined; ``.grad`` stays as it is."""
        self._drop()

    def redraw(self) -> None:
        """Draw the next visiting orders for ``combine()`` calls captured in CUDA graphs.

        A captured graph reads the order from where its capture put it: without this, every replay
        visits in the same order (which with two tasks is no loss). Call it between replays, when
        the one before is done.
        """
        rng = self._surgery["rng"]
        for order in self._replayed:
            fresh, rng = visiting_order(rng, len(self.tasks))
            order.copy_(fresh)
        self._surgery = {**self._surgery, "rng": rng}

    def _weights(self, gram: Tensor, finite: Tensor, segments: list[str], active: Tensor) -> Tensor:
        """Let the method decide on ``gram[S, K, K]``, keep its state, and count."""
        resident = kernels.fused_on(gram.device, len(self.tasks))
        if not resident and not finite:
            self._processes.compare(active, gram)
            self.conflicts.skip()
            return torch.ones(gram.shape[:-1], dtype=gram.dtype)
        order, rng = self._order(gram.device)
        before = self._state(len(segments), gram.device)
        verdict = self.method(gram, order, before)
        self._processes.compare(active, gram, order, verdict.weights)
        if resident:
            # Nobody waits to see whether all was finite: both cases are there to choose from.
            verdict = _if_finite(finite, verdict, before)
        self._keep(rng, before, verdict.state)
        self.conflicts.update(gram, verdict, segments, active, finite)
        return verdict.weights

    def _order(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the order of visits on the device, and the generator's next state."""
        tasks, rng = len(self.tasks), self._surgery["rng"]
        if not self.method.ordered:
            return torch.arange(tasks, device=device).expand(tasks, -1), rng
        order, rng = visiting_order(rng, tasks)
        held, order = send(order, device)
        if _capturing(device):
            self._replayed.append(held)
        return order, rng

    def _keep(self, rng: Tensor, before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
        """Keep the method's state for the next step."""
        if any(_capturing(value.device) for value in after.values()):
            # A captured graph finds its state where it was when captured.
            after = {name: before[name].copy_(value) for name, value in after.items()}
        # A new dict each step: a state_dict taken earlier keeps what it saw.
        self._surgery = {"tasks": list(self.tasks), "rng": rng, **after}

    # ------------------------------------------------------------------ the optimizer's interface

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Let the base optimizer step on what ``.grad`` holds.

        Args:
            closure: recomputes the loss, as for the base (LBFGS); it has to combine as well, which
                ``join(losses).backward()`` does.

        Returns:
            What the base's ``step`` returns.

        Raises:
            RuntimeError: when captured gradients wait to be combined.
        """
        if closure is None:
            self._refuse_waiting()
            return self.base.step()

        def checked() -> Any:
            loss = closure()
            self._refuse_waiting()
            return loss

        return self.base.step(checked)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear ``.grad``, as the base does, and drop what was captured and not combined."""
        self._drop()
        self.base.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state; the wrapper's own is part of its first parameter group.

        A run resumed from it is bitwise the run that never stopped. The statistics are not in it:
        they have a ``state_dict`` of their own.
        """
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned, or a checkpoint of the plain base optimizer.

        The latter knows nothing of surgery: visiting order and targets stay as they are.

        Raises:
            ValueError: when the checkpoint is of other tasks or segments; nothing is loaded then.
        """
        groups = state_dict.get("param_groups") or [{}]
        self._check_loadable(groups[0].get(KEY))
        mine = self._surgery
        self._drop()
        self.base.load_state_dict(state_dict)
        self.base.param_groups[0].setdefault(KEY, mine)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to the base; segments that come with it start afresh.

        Raises:
            ValueError: for what the base refuses, or a grouping by name without names.
        """
        self.base.add_param_group(param_group)
        try:
            segments = len(self._segments()[1])
        except ValueError:
            self.base.param_groups.pop()
            raise
        self._surgery = {**self._surgery, **self._state(segments)}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base's parameter groups."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        groups[0].setdefault(KEY, self._surgery)
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

    def __repr__(self) -> str:
        head = f"{type(self).__name__}({self.method!r}, tasks={self.tasks})"
        return f"{head} of {self.base!r}"

    def __getstate__(self) -> dict[str, Any]:
        # Without what was captured (it belongs to a step under way), without the hooks (as torch
        # does), and without the `step` that a scheduler patched into the instance.
        kept = ("base", "method", "tasks", "conflicts", "_grouping", "_named", "_processes")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._capture = Capture(self.tasks)
        self._replayed = []
        self._stand_ins = []
        self._segmented = ([], ([], []))
        self._build_hooks()

    # ------------------------------------------------------------------ inner parts

    def _common(self) -> tuple[object, ...]:
        """What the optimizers of all ranks must have in common."""
        settings = consistency.settings_of(self.method)
        return self.tasks, settings, self._segmented, self._surgery["rng"]

    def _drop(self) -> None:
        """Forget the step under way."""
        self._capture.clear()
        self._processes.drop(self._parameters())

    def _build_hooks(self) -> None:
        # Optimizer.__init__ would register the parameters a second time, with other defaults;
        # __setstate__ builds the tables that hooks and profiling need, and nothing more.
        super().__setstate__({})
        for name in _SHARED_HOOKS:
            setattr(self, name, getattr(self.base, name))

    @property
    def _surgery(self) -> dict[str, Any]:
        surgery: dict[str, Any] = self.base.param_groups[0][KEY]
        return surgery

    @_surgery.setter
    def _surgery(self, surgery: dict[str, Any]) -> None:
        self.base.param_groups[0][KEY] = surgery

    def _parameters(self) -> list[Tensor]:
        """The parameters as the groups hold them now: FSDP2 swaps them, so no list is kept."""
        own = [p for group in self.base.param_groups for p in group["params"]]
        return own + self._stand_ins

    @contextmanager
    def _counting(self, stand_ins: Sequence[Tensor]) -> Iterator[None]:
        """Count the features' stand-ins among the parameters."""
        self._refuse_waiting("features are joined")
        self._stand_ins = list(stand_ins)
        try:
            yield
        finally:
            self._stand_ins = []

    def _cut(self, losses: dict[str, Tensor], features: _features.Features) -> _features.Cut:
        """Return where the losses' backward passes stop, after checking that they can."""
        self._refuse_waiting("features are joined")
        parameters = self._parameters()
        _features.refuse_several_processes(self._processes.count)
        _features.refuse_sharded(parameters)
        _features.segment(self._grouping, self._segments()[1])
        names = _grouping.names(self.base.param_groups, self._named)
        return _features.Cut(features, losses, lambda: dict(zip(parameters, names, strict=True)))

    def _segments(self) -> tuple[list[int], list[str]]:
        """Each parameter's segment, and the segments' names."""
        names = _grouping.names(self.base.param_groups, self._named)
        if names != self._segmented[0]:
            self._segmented = names, _grouping.segments(names, self._grouping)
        indices, labels = self._segmented[1]
        if self._stand_ins:
            at_features = _features.segment(self._grouping, labels)
            return indices + [at_features] * len(self._stand_ins), labels
        return indices, labels

    def _state(self, segments: int, device: torch.device | None = None) -> dict[str, Tensor]:
        """The method's state; segments added since it was last written start afresh."""
        state = {}
        for name, start in self.method.init(segments, len(self.tasks)).items():
            kept = self._surgery.get(name, start)
            kept = kept.to(device or kept.device, start.dtype)
            if len(kept) < len(start):
                kept = torch.cat([kept, start[len(kept) :].to(kept.device)])
            state[name] = kept
        return state

    def _check_loadable(self, surgery: Mapping[str, Any] | None) -> None:
        if surgery is None:
            return
        if list(surgery["tasks"]) != list(self.tasks):
            raise ValueError(
                f"the checkpoint is of tasks {list(surgery['tasks'])} and this optimizer of "
                f"{list(self.tasks)}: build it with the same tasks in the same order"
            )
        segments = len(self._segments()[1])
        for name in self.method.init(segments, len(self.tasks)):
            if name in surgery and len(surgery[name]) != segments:
                raise ValueError(
                    f"the checkpoint holds {name}s of {len(surgery[name])} segments and this "
                    f"optimizer has {segments}: use the grouping that it was saved with"
                )

    def _refuse_waiting(self, until: str = "step()") -> None:
        waiting = self._capture.waiting
        if waiting:
            raise RuntimeError(
                f"captured gradients of {', '.join(waiting)} wait: call combine() before {until}, "
                "or zero_grad() to drop them"
            )


def _if_finite(finite: Tensor, verdict: Verdict, before: dict[str, Tensor]) -> Verdict:
    """The verdict, or where gradients are not finite the plain sum and the state before."""
    return Verdict(
        torch.where(finite, verdict.weights, 1.0),
        None if verdict.altered is None else verdict.altered & finite,
        {name: torch.where(finite, value, before[name]) for name, value in verdict.state.items()},
    )


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _check_base(base: Optimizer) -> None:
    if isinstance(base, GradientSurgery) or not isinstance(base, Optimizer):
        raise TypeError(
            f"GradientSurgery wraps a torch.optim.Optimizer, not a {type(base).__name__}"
        )


def _check_method(method: Method) -> None:
    if isinstance(method, type) or not isinstance(method, Method):
        raise TypeError(f"method is an object such as PCGrad(), not {method!r}")


def _checked_tasks(tasks: Sequence[str]) -> tuple[str, ...]:
    names = tuple(tasks)
    if isinstance(tasks, str) or not names or not all(isinstance(n, str) and n for n in names):
        raise ValueError(f"tasks is a sequence of names such as ('a', 'b'), not {tasks!r}")
    repeated = sorted({n for n in names if names.count(n) > 1})
    if repeated:
        raise ValueError(f"task {repeated[0]!r} is listed more than once in {names}")
    return names
