"""GradientSurgery: an optimizer around any other, that first ends the conflicts between tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ContextDecorator
from functools import partial
from typing import Any, Literal, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery import features as _features
from gradsurgery._chained import chained, refuse_shared
from gradsurgery._warnings import warn
from gradsurgery._wrapper import OptimizerWrapper
from gradsurgery.features import Boundary, Features
from gradsurgery.grouping import Grouping
from gradsurgery.hooks import warn_of_samples
from gradsurgery.join import join
from gradsurgery.losses import Losses, named_losses
from gradsurgery.methods import Method, Sum
from gradsurgery.methods.base import check_method
from gradsurgery.pipeline import Pipeline
from gradsurgery.state import saved_groups
from gradsurgery.statistics import ConflictStatistics


@final
class GradientSurgery(OptimizerWrapper):
    """Wrap a ``torch.optim`` optimizer: train several tasks without gradient conflicts.

    K tasks have gradients g_1 .. g_K. Where plain joint training steps along their sum, this
    optimizer steps along

        u = sum_k w_k g_k,

    with weights w that the method decides on the K x K matrix of dot products g_i . g_j, once per
    segment of parameters. Parameters that only one task used (heads) keep that task's gradient as
    it is (see ``task_only``), and parameters without a gradient keep ``grad is None``.

    Each task's backward pass is captured apart, as the tensors autograd made, and combined in
    place. Between :meth:`combine` and :meth:`step`, ``.grad`` is exactly what the base optimizer
    will use: GradScaler, clipping, hooks and loggers rely on nothing else.

    Args:
        base: any ``torch.optim.Optimizer``, or a sequence of them (Muon for the matrices, AdamW for
            the rest), over whose parameters surgery is one. Schedulers, GradScaler and everything
            else that takes an optimizer get the wrapper.
        method: :class:`PCGrad`, :class:`GradVac`, :class:`Sum`, or another :class:`Method`. A
            :class:`LossWeighting` decides by the losses alone, and has one backward pass under
            :meth:`join`.
        tasks: the tasks' names, once and in order.
        grouping: what is compared as one vector, a segment: ``"model"``, ``"layer"``, ``"tensor"``,
            or a function from a parameter's name to its segment's name.
        process_group: average each task's gradients over these processes, after they are
            captured: forward and backward run inside ``ddp.no_sync()``, or on the bare module. A
            task counts the ranks that ran it in this step. None for one process, for gradients
            that DDP averages (a forward and backward per task), and for sharded parameters (FSDP2,
            tensor parallel), which know their own processes.
        named_parameters: the model's, for a grouping by name when ``base`` was not built from
            ``model.named_parameters()``, or from those of several modules, which repeat.
        task_only: what parameters of one task get: ``"plain"``, its gradient; ``"weighted"``, w_k
            times that, with the task's weight in the parameter's segment, and 1 in a segment where
            it shares nothing with others. None for the method's own ``task_only``: plain, but for
            methods that weight losses.
        reduction: ``"mean"`` divides the update of shared parameters by the number of tasks that
            ran, so that the learning rate of code that takes the mean carries over. Parameters of
            one task are not divided; dividing the joined loss divides all alike.
        smoothing: 0 to decide on this step's Gram matrix, beta in (0, 1) to decide on its
            exponential mean over the steps (0.9 is usual), with bias correction. Absent tasks and
            pairs keep theirs. The statistics stay this step's.
        observe_every: methods of the losses alone run one backward pass under :meth:`join`, which
            measures no conflict; with N, every Nth step runs one pass for each task and measures
            them. It changes no update. None for never. Other methods measure at every step, or as
            ``every`` says.
        every: R to decide the weights at every Rth step and to keep them for the R - 1 steps after
            it, which run one backward pass of sum_k w_k loss_k under :meth:`join` (PSMGD): the
            weights of their updates are up to R - 1 steps old. Parameters of one task get what they
            always get: the pass gives them w_k g_k, and w_k is divided out. A step is measured all
            the same where other tasks run than in the last measured one, where parameters were
            added or unfrozen, where w_k is zero and the task has parameters of its own, and under
            :meth:`task`. For one segment.

    Attributes:
        base: the wrapped optimizer; of several, one that stands for all of them.
        bases: the wrapped optimizers, in order.
        method: the method.
        tasks: the tasks' names.
        conflicts: the :class:`ConflictStatistics` since its last ``reset()``.

    Raises:
        TypeError: when ``base`` or ``method`` is not what it should be.
        ValueError: for task names that are no names, or repeated, an unknown grouping,
            ``task_only`` or ``reduction``, two parameters of one name in a grouping by name, a
            ``smoothing`` outside [0, 1), an ``observe_every`` or ``every`` below 1, an ``every``
            with several segments, options that a method of the
            losses alone cannot have, no base, a parameter that two bases hold, or LBFGS beside
            others.

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

    _kept = (*OptimizerWrapper._kept, "method", "tasks", "_pipeline")

    def __init__(
        self,
        base: Optimizer | Sequence[Optimizer],
        method: Method,
        *,
        tasks: Sequence[str],
        grouping: Grouping = "model",
        process_group: dist.ProcessGroup | None = None,
        named_parameters: Iterable[tuple[str, Tensor]] | None = None,
        task_only: Literal["plain", "weighted"] | None = None,
        reduction: Literal["sum", "mean"] = "sum",
        smoothing: float = 0.0,
        observe_every: int | None = None,
        every: int = 1,
    ) -> None:
        bases = _checked_bases(base)
        check_method(method)
        _check_choice("task_only", task_only, (None, "plain", "weighted"))
        _check_choice("reduction", reduction, ("sum", "mean"))
        self.tasks = _checked_tasks(tasks)
        self.method = method.bind(self.tasks)
        _warn_of_line_search(bases, method)
        named = {p: name for name, p in named_parameters or ()}
        for option, steps in {"observe_every": observe_every, "every": every}.items():
            if steps is not None and not steps >= 1:
                raise ValueError(f"{option} is a number of steps of at least 1, not {steps}")
        base = chained(bases, named)
        _refuse_layouts(p for group in base.param_groups for p in group["params"])
        self._pipeline = Pipeline(
            base,
            self.method,
            self.tasks,
            grouping,
            named,
            process_group,
            task_only=task_only,
            reduction=reduction,
            smoothing=smoothing,
            observe_every=observe_every,
            every=every,
        )
        super().__init__(base)

    @property
    def conflicts(self) -> ConflictStatistics:
        """The statistics since their last ``reset()``."""
        return self._pipeline.conflicts

    # ------------------------------------------------------------------ capturing and combining

    def task(
        self, name: str, *, sync: bool = True, loss: Tensor | float | None = None
    ) -> AbstractContextManager[None]:
        """Capture the gradients of the backward passes run inside, for task ``name``.

        Entering the same task again adds to what it captured (gradient accumulation). ``.grad`` is
        left as it was found, but for a zero gradient of one small parameter: if that is gone when
        the next task begins, gradients were cleared (``model.zero_grad()``), and what was captured
        belongs to a batch that was skipped. If the body raises, what was captured in this step is
        dropped; with a ``process_group``, of this task alone.

        Args:
            name: one of ``tasks``.
            sync: with a ``process_group``, False says that more of this task follows before
                ``combine()``, so that its gradients are sent once, with the last.
            loss: the value of the loss, a scalar, where it is known on entering; only methods that
                decide by the losses need it, and :meth:`combine` takes them too. Losses of one task
                add up, as its gradients do.

        Raises:
            ValueError: for an unknown name.
            RuntimeError: inside another task, or when no gradient reached the parameters. Inside
                the block :meth:`combine`, :meth:`step`, :meth:`zero_grad`, :meth:`discard`,
                :meth:`load_state_dict` and :meth:`add_param_group` raise one, too.

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
        self.refuse_superseded()
        return _Task(name, loss, partial(self._pipeline.task, name, sync=sync, loss=loss))

    def combine(
        self,
        *,
        losses: Mapping[str, Tensor | float] | None = None,
        scale: Tensor | float | None = None,
    ) -> None:
        """Combine what was captured, into ``.grad``.

        A ``.grad`` that is there already (an auxiliary loss outside of surgery) is added to, as any
        backward would. With a non-finite value in any captured gradient, also in that of a head,
        the plain sum is delivered (after one backward pass of weighted losses, theirs), non-finite
        as it is for GradScaler to find; the method's state and the visiting order stay as they
        were, and the step is counted as non-finite. So it is with weights that are not finite.
        Finite ones may be of any size: a gradient of subnormal numbers is projected as any other.

        Args:
            losses: the tasks' losses in this step, by name, for methods that decide by them and
                were not told by :meth:`task` or :meth:`join`.
            scale: the factor that the whole gradients of the step carry, such as
                ``scaler.get_scale()``. It is undone for methods whose ``degree`` is not 1, and with
                ``smoothing``. None for what :meth:`join` knows (of a task, the sum of the factors
                that its backward passes were given; of the step, the largest of its tasks'), and 1
                for gradients captured by :meth:`task`.

        Raises:
            RuntimeError: when nothing was captured (with a ``process_group``: on no rank), a loss
                that the method needs is unknown, ranks disagree on what they do, a CUDA graph is
                being captured, a task is open, or an earlier call was cut while it wrote ``.grad``.
            ValueError: when captured gradients lie on several devices; nothing is changed then.
        """
        self._pipeline.combine(losses, scale)

    def join(
        self, losses: Losses, combine: bool = True, *, features: Features | None = None
    ) -> Tensor:
        """Return the sum of the tasks' losses, whose ``backward()`` does capture and combination.

        The drop-in for ``sum(losses).backward()``. The losses may share one forward or have batches
        of their own. Factors applied to the result reach every task: ``scaler.scale(joined)``,
        ``joined / len(tasks)`` (the mean). They multiply the update, whatever the method: a method
        whose update is not proportional to the losses (``degree``) does not see them. For gradient
        accumulation, divide the result rather than each loss. Under ``no_grad`` it is a plain sum.

        A :class:`LossWeighting` runs one backward pass, of the weighted losses. For other methods,
        losses of one forward need K backward passes through what they share. With ``features``, the
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
            A scalar tensor in the losses' dtype. Its ``backward(inputs=...)`` has gradients for
            these parameters alone, and ``retain_graph=True`` keeps the losses' graphs.

        Raises:
            TypeError, ValueError: for losses or features that cannot be used; the message names the
                task. Also for features with ``combine=False``, whose graphs would have to live on,
                and with ``every``.
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
        self.refuse_superseded()
        named = named_losses(losses, self.tasks)
        self._pipeline.processes.check_losses(named.values())
        if features is None or not torch.is_grad_enabled():
            return join(self._pipeline, named, combine)
        if self._pipeline.every > 1:
            raise ValueError(
                f"features= does not go with every={self._pipeline.every}: both save backward "
                "passes through the trunk, and with features= there is one at every step already. "
                "Leave one of the two out"
            )
        if not combine:
            raise ValueError(
                "features= goes with combine=True: the trunk's backward needs the weights of all "
                "micro-batches, so all their graphs would have to live until the last; "
                f"{_features.EXACT}, or combine each micro-batch by itself"
            )
        return join(self._pipeline, named, combine, self._boundary(named, features))

    def discard(self) -> None:
        """Drop what was captured and not combined; ``.grad`` stays as it is.

        With a ``process_group`` a step is one of all ranks, and one rank drops it for all: call
        this, once, in the place of ``combine()`` or the joined backward. The others find out in
        theirs, which leaves no gradient, so that their ``step()`` changes nothing; see
        :attr:`dropped`. ``zero_grad()`` does the same once this rank has begun the step.
        """
        self._pipeline.refuse_open("discard()")
        self._pipeline.discard(begin=True)
        self._pipeline.lifecycle.forgive()

    @property
    def dropped(self) -> int:
        """The number of steps that another rank of the ``process_group`` has dropped."""
        return self._pipeline.dropped

    def _boundary(self, losses: dict[str, Tensor], features: Features) -> Boundary:
        """Return where the losses' backward passes stop, after checking that they can."""
        pipeline = self._pipeline
        pipeline.refuse_waiting("features are joined")
        parameters = pipeline.parameters()
        _features.refuse_several_processes(pipeline.processes.count)
        _features.refuse_sharded(parameters)
        pipeline.feature_segment(pipeline.segments()[1])
        return Boundary(features, losses, dict(zip(parameters, pipeline.names(), strict=True)))

    # ------------------------------------------------------------------ the optimizer's interface

    def step(self, closure: Callable[[], Any] | None = None, *args: Any, **options: Any) -> Any:
        """Let the base optimizer step on what ``.grad`` holds; of several, one after the other.

        Args:
            closure: recomputes the loss, as for the base (LBFGS); it has to combine as well, which
                ``join(losses).backward()`` does. For several bases it is called once.
            *args: passed on to the base.
            **options: passed on to the base (``hessian=``); of several bases, to those that take
                them.

        Returns:
            What the base's ``step`` returns.

        Raises:
            RuntimeError: when captured gradients wait to be combined, a task is open, or
                ``combine()`` was cut while it wrote ``.grad``.
        """
        self._pipeline.refuse_open("step()")
        warn_of_samples(p for group in self.param_groups for p in group["params"])
        if closure is None:
            self._pipeline.begin_step()
            result = self.base.step(*((None, *args) if args else ()), **options)
        else:

            def checked() -> Any:
                loss = closure()
                self._pipeline.begin_step()
                return loss

            result = self.base.step(checked, *args, **options)
        self._pipeline.lifecycle.stepped()
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear ``.grad``, as the base does, and drop what was captured and not combined."""
        self._pipeline.refuse_open("zero_grad()")
        self._pipeline.drop("zero_grad() was called")
        super().zero_grad(set_to_none=set_to_none)
        self._pipeline.lifecycle.zeroed()

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state; the wrapper's own is part of its parameter groups, under
        ``"surgery"`` and in plain Python values.

        A run resumed from it is bitwise the run that never stopped. The statistics are not in it:
        they have a ``state_dict`` of their own.
        """
        return self._pipeline.state.added_to(super().state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned, or a checkpoint of the plain base optimizer.

        The latter knows nothing of surgery: visiting order and targets stay as they are.

        Raises:
            ValueError: when the checkpoint is of other tasks, segments or parameter groups, or
                damaged; nothing is loaded then, and what was captured stays.
        """
        self._pipeline.refuse_open("load_state_dict()")
        state, segments = self._pipeline.state, self._pipeline.segments()[1]
        state.check_loadable(saved_groups(state_dict), segments)
        super().load_state_dict(state_dict)
        self._pipeline.discard()
        self._pipeline.processes.loaded()
        state.attach()

    def add_param_group(self, param_group: dict[str, Any], base: Optimizer | None = None) -> None:
        """Add a parameter group to a base; segments that come with it start afresh.

        Args:
            param_group: the group, as for the base.
            base: one of ``bases``; None for the last.

        Raises:
            ValueError: for what the base refuses, a parameter that another base holds, a grouping
                by name without names, or by tensor, with none, for a base that is not the last.
        """
        self._pipeline.refuse_open("add_param_group()")
        base = self.bases[-1] if base is None else base
        if not any(base is known for known in self.bases):
            raise ValueError("base is one of optimizer.bases; this optimizer is not wrapped here")
        if base is not self.bases[-1] and self._pipeline.numbered():
            raise ValueError(
                "grouping='tensor' numbers parameters that have no names, and a group among them "
                "would renumber them: build the bases from model.named_parameters(), or add it to "
                "the last base"
            )
        base.add_param_group(param_group)
        try:
            _refuse_layouts(base.param_groups[-1]["params"])
            refuse_shared(self.bases, self._pipeline.named)
            segments = self._pipeline.segments()[1]
        except ValueError:
            base.param_groups.pop()
            raise
        self._pipeline.state.grow(segments)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base's parameter groups."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base.param_groups = groups
        self._pipeline.state.attach()

    def __repr__(self) -> str:
        head = f"{type(self).__name__}({self.method!r}, tasks={self.tasks})"
        return f"{head} of {self.base!r}"


class _Task(ContextDecorator, AbstractContextManager[None]):
    """The with block of a task, which may be kept and entered in every step."""

    def __init__(
        self, name: str, loss: object, begin: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._name, self._loss, self._begin = name, loss, begin
        self._block: AbstractContextManager[None] | None = None

    def __enter__(self) -> None:
        if self._loss is not None and self._block is not None:
            raise RuntimeError(
                f"task({self._name!r}, loss=...) was entered a second time, and its loss would "
                "count again: call optimizer.task() with the new loss"
            )
        block = self._begin()
        block.__enter__()
        self._block = block

    def __exit__(self, *exception: Any) -> bool | None:
        assert self._block is not None
        return self._block.__exit__(*exception)


def _refuse_layouts(parameters: Iterable[Tensor]) -> None:
    for position, parameter in enumerate(parameters):
        if parameter.layout not in (torch.strided, torch.sparse_coo):
            raise ValueError(
                f"parameter {position} (of shape {list(parameter.shape)}) has layout "
                f"{parameter.layout}, whose gradient torch does not put into .grad: train a dense "
                "parameter, or the values() of a sparse one"
            )


def _checked_bases(base: object) -> list[Optimizer]:
    bases = []
    for wrapped in base if isinstance(base, list | tuple) else [base]:
        if isinstance(wrapped, GradientSurgery):
            raise TypeError(
                "this optimizer is a GradientSurgery already: use it as it is, or wrap "
                "optimizer.base, the optimizer in it, anew"
            )
        if not isinstance(wrapped, Optimizer):
            raise TypeError(
                f"GradientSurgery wraps a torch.optim.Optimizer, not a {type(wrapped).__name__}"
            )
        if any(kind.__name__ == "AcceleratedOptimizer" for kind in type(wrapped).__mro__):
            raise TypeError(
                "an AcceleratedOptimizer is what accelerator.prepare() made of an optimizer: wrap "
                "first, then prepare the wrapper, accelerator.prepare(GradientSurgery(base, ...))"
            )
        bases.append(wrapped)
    return bases


def _warn_of_line_search(bases: Sequence[Optimizer], method: Method) -> None:
    groups = [group for base in bases for group in base.param_groups]
    searches = {search for group in groups if (search := group.get("line_search_fn"))}
    if searches and not isinstance(method, Sum):
        kinds = ", ".join(type(base).__name__ for base in bases)
        warn(
            f"{kinds} searches a step length ({searches.pop()}) by the closure's loss, the plain "
            f"sum, along a direction that {method!r} has altered and that need not lower it: the "
            "search then uses up its evaluations on steps that hardly move. Use "
            "line_search_fn=None, or Sum()"
        )


def _check_choice(option: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise ValueError(f"{option} is one of {', '.join(map(repr, choices))}, not {value!r}")


def _checked_tasks(tasks: Sequence[str]) -> tuple[str, ...]:
    names = tuple(tasks)
    if isinstance(tasks, str) or not names or not all(isinstance(n, str) and n for n in names):
        raise ValueError(f"tasks is a sequence of names such as ('a', 'b'), not {tasks!r}")
    names = tuple(map(str.__str__, names))  # also of an enumeration, or numpy: checkpoints are read
    repeated = sorted({n for n in names if names.count(n) > 1})
    if repeated:
        raise ValueError(f"task {repeated[0]!r} is listed more than once in {names}")
    return names
