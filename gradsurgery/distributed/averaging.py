"""Averaging of each task's gradients over a process group, while the next task's backward runs.

Every rank must send the same messages in the same order, though ranks may run different tasks and
reach different parameters. So messages go out in the order of ``tasks``, and what goes out early
is what all ranks did in the two steps before (with zeros where a rank has nothing this time). At
the end a sum of a few numbers tells whether anybody has changed; if so, a table tells who has what,
and whatever was not expected goes in a second round.

A task's gradient is the mean over the ranks that ran it. Absent stays absent: a parameter that no
rank reached gets no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from gradsurgery.distributed import consistency, groups
from gradsurgery.distributed.collectives import Exchange, PendingAverages
from gradsurgery.distributed.local import LocalGradients
from gradsurgery.distributed.sharded import is_sharded
from gradsurgery.kernels import Columns
from gradsurgery.transfer import to_device

#: In the sum over ranks: a gradient that is there, and one that was not sent yet.
PRESENT, LATE = 1, 1 << 31

#: The numbers by which the ranks agree: two votes, whether anybody changed or is broken, the ranks
#: that have dropped the step, and the sum of their numbers.
HEAD = 6

#: Stands for the gradients that no task captured, beside the tasks' names.
BESIDE = ""


Grads = dict[Tensor, Tensor]  # by parameter

#: What one rank had of each task, and beside them: whether it ran, and which parameters.
Pattern = list[tuple[bool, frozenset[int]]]


class StepDropped(Exception):  # noqa: N818 - what another rank did, no error
    """A rank has dropped the step that this one was about to combine; says who."""


class Table(NamedTuple):
    """What all ranks together have.

    Attributes:
        present: ``[K + 1, P]`` bool, the gradients that any rank has; the last row is beside the
            tasks.
        late: of those, the ones that some rank has not sent yet.
        ran: for each task, the number of ranks that ran it.
    """

    present: Tensor
    late: Tensor
    ran: list[int]


class HandedOver(NamedTuple):
    """Gradients of one task that left the capture to be averaged.

    Attributes:
        task: its name.
        left: those that stay captured.
        sent: those that left, in the memory where they are being averaged.
    """

    task: str
    left: Grads
    sent: Grads


class Averaging:
    """One optimizer's exchange with the other ranks.

    Args:
        group: the processes.
        tasks: the tasks' names, in order.
        facts: what the ranks must have in common, by what it is called.

    Raises:
        RuntimeError: where the ranks build different optimizers.
    """

    def __init__(
        self, group: dist.ProcessGroup, tasks: Sequence[str], facts: Mapping[str, object]
    ) -> None:
        self._tasks, self._ranks = tuple(tasks), dist.get_world_size(group)
        self.group = groups.own_group(group, facts)
        self.exchange = Exchange(self.group)
        self._pattern: Pattern | None = None  # what this rank had before
        self._last: Table | None = None  # what all ranks together had before
        self._expected: Tensor | None = None  # [K, P] bool: what goes out early
        self._reset()

    def begin(self) -> None:
        """Take note that a task begins: the step will be finished, or dropped."""
        self._begun = True

    def failed(self, task: str) -> None:
        """Take note that ``task`` raised: what it has sent cannot be taken back."""
        if task in self._sent:
            self._broken.append(task)

    def drop(self, parameters: Sequence[Tensor], begin: bool = False) -> None:
        """Forget the step under way, if this rank has begun it, and have all ranks forget it.

        What they expect of one another still goes out, or the next step's messages would meet this
        one's; then the others learn of it where they ask who has what, and this rank waits for
        that.

        Args:
            parameters: of the optimizer.
            begin: drop a step that this rank has not begun, too.
        """
        if self._begun or begin:
            self._send_early({}, parameters, set(self._tasks))
            numbers = [0] * (HEAD - 2) + [1, self.exchange.rank]
            head = torch.tensor(numbers, dtype=torch.int64, device="cpu")
            self._summed(head, parameters[0].device)
        self._forget()

    def _forget(self) -> None:
        for pending in self._sent.values():
            pending.wait()
        self._reset()

    def _reset(self) -> None:
        self._begun = False
        self._ran: list[bool] = []  # by task, whether this rank ran it
        self._broken: list[str] = []
        self._sent: dict[str, PendingAverages] = {}
        self._had: dict[str, set[int]] = {}  # which of the sent gradients were this rank's
        self._ready: set[str] = set()
        self._next = 0  # the first of the tasks that has not had its turn

    def captured(
        self, task: str, captures: Mapping[str, Grads], parameters: Sequence[Tensor], sync: bool
    ) -> list[HandedOver]:
        """Take note that ``task`` has captured; begin to average what can go out early.

        Args:
            task: its name.
            captures: what was captured so far and not sent.
            parameters: of the optimizer.
            sync: False when more of this task follows.

        Returns:
            What went out.
        """
        _refuse_unaverageable(f"task {task!r}", captures[task])
        if not sync:
            return []
        self._ready.add(task)
        return self._send_early(captures, parameters, self._ready)

    def flush(
        self, captures: Mapping[str, Grads], parameters: Sequence[Tensor]
    ) -> list[HandedOver]:
        """Begin to average what was expected and has not gone out; every rank has to, in any case.

        Returns:
            What went out.
        """
        self._ran = [task in captures or task in self._had for task in self._tasks]
        self._begun = True  # by ranks without a task, too
        return self._send_early(captures, parameters, set(self._tasks))

    def finish(
        self,
        captures: Mapping[str, Grads],
        parameters: Sequence[Tensor],
        facts: Mapping[str, object],
    ) -> tuple[Columns, list[bool]]:
        """Average what is left after :meth:`flush`, and return everything.

        What is in ``.grad``, beside the tasks, is averaged in its place. (What was averaged before
        is the same on all ranks, and stays what it is.)

        Args:
            captures: what was captured and not sent.
            parameters: of the optimizer.
            facts: what all ranks must have in common, by what it is called.

        Returns:
            ``[P][K]`` averages, and for each task whether any rank ran it.

        Raises:
            StepDropped: when a rank has dropped the step; it is dropped here, too, then.
            RuntimeError: when the ranks' facts differ.
        """
        beside = {p: p.grad for p in parameters if p.grad is not None}
        _refuse_unaverageable("a backward beside the tasks", beside)
        position = {parameter: p for p, parameter in enumerate(parameters)}
        late = [
            {position[parameter]: grad for parameter, grad in grads.items()}
            for grads in (*(captures.get(task, {}) for task in self._tasks), beside)
        ]
        table = self._roll(late, parameters, facts)
        second = [
            self.exchange.average(parameters, row.nonzero().flatten().tolist(), grads)
            for row, grads in zip(table.late, late, strict=True)
        ]
        rows = [
            self._received(task, pending, row.tolist(), count)
            for task, pending, row, count in zip(
                (*self._tasks, BESIDE),
                second,
                table.present,
                (*table.ran, self._ranks),
                strict=True,
            )
        ]
        for parameter, grad in zip(parameters, rows.pop(), strict=True):
            if grad is not None:
                parameter.grad = grad
        self._reset()
        return list(zip(*rows, strict=True)), [count > 0 for count in table.ran]

    def _send_early(
        self, captures: Mapping[str, Grads], parameters: Sequence[Tensor], ready: set[str]
    ) -> list[HandedOver]:
        """Begin to average the expected gradients of the tasks whose turn it is."""
        handed: list[HandedOver] = []
        if self._expected is None or self._expected.shape[1] != len(parameters):
            return handed
        while self._next < len(self._tasks) and self._tasks[self._next] in ready:
            task, positions = self._tasks[self._next], self._expected[self._next].nonzero()
            self._next += 1
            if not len(positions):
                continue
            expected, grads = positions.flatten().tolist(), captures.get(task, {})
            going = {p: grads[parameters[p]] for p in expected if parameters[p] in grads}
            pending = self._sent[task] = self.exchange.average(parameters, expected, going)
            if task in captures:
                self._had[task] = set(going)
                sent = {parameters[p]: pending.averages[p] for p in going}
                left = {p: grad for p, grad in grads.items() if p not in sent}
                handed.append(HandedOver(task, left, sent))
        return handed

    def _roll(
        self,
        late: Sequence[dict[int, Tensor]],
        parameters: Sequence[Tensor],
        facts: Mapping[str, object],
    ) -> Table:
        """Ask who has what; where nobody has changed, in a message of a few numbers."""
        rows = [
            (does, frozenset(self._had.get(task, ())), frozenset(grads))
            for does, task, grads in zip(
                (*self._ran, True), (*self._tasks, BESIDE), late, strict=True
            )
        ]
        pattern = [(does, had | missing) for does, had, missing in rows]
        changed = pattern != self._pattern or any(missing for _, _, missing in rows)
        code = consistency.fingerprint(*facts.values())
        numbers = [*consistency.votes(code), int(changed), len(self._broken), 0, 0]
        head = torch.tensor(numbers, dtype=torch.int64, device="cpu")
        numbers = self._summed(head, parameters[0].device).tolist()
        *total, changes, broken, dropped, ranks = numbers
        if dropped:
            self._forget()
            raise StepDropped(
                f"rank {dist.get_global_rank(self.group, ranks)} has"
                if dropped == 1
                else f"{dropped} ranks have"
            )
        self._pattern = pattern
        if not consistency.unanimous(total, self._ranks):
            # All ranks know now, so all are here to tell what they have.
            groups.refuse_different(facts, self.group)
            raise RuntimeError(consistency.DIFFERENT_SETTINGS)
        if broken:
            raise RuntimeError(
                "a task raised after a part of its gradients had been averaged with the other "
                f"ranks ({', '.join(self._broken) or 'on another rank'}), which cannot be undone: "
                "drop the step with zero_grad() on all ranks"
            )
        if changes or self._last is None:
            table = self._asked(rows, len(parameters), parameters[0].device)
            regular = self._last is not None and torch.equal(self._last.present, table.present)
            self._expected = table.present[:-1] if regular else None
            self._last = table._replace(late=torch.zeros_like(table.late))
            return table
        return self._last

    def _asked(
        self,
        rows: Sequence[tuple[bool, frozenset[int], frozenset[int]]],
        count: int,
        device: torch.device,
    ) -> Table:
        """Ask for everything: what each rank has of ``count`` parameters, sent or not."""
        table = torch.zeros(len(rows), count, dtype=torch.int64, device="cpu")
        for row, (_, had, missing) in zip(table, rows, strict=True):
            row[sorted(had)] = PRESENT
            row[sorted(missing)] = PRESENT + LATE
        ran = torch.tensor([does for does, _, _ in rows], dtype=torch.int64, device="cpu")
        total = self._summed(torch.cat([table.flatten(), ran]), device)
        table, ran = total[: table.numel()].view_as(table), total[table.numel() :]
        return Table(table > 0, table >= LATE, ran[:-1].tolist())

    def _summed(self, numbers: Tensor, device: torch.device) -> Tensor:
        """Return the sum over the ranks. The host waits for it."""
        return self.exchange.summed(to_device(numbers, device)).cpu()

    def _received(
        self, task: str, second: PendingAverages, present: Sequence[bool], ran: int
    ) -> list[Tensor | None]:
        """Return one task's averages by position, from both rounds."""
        first = self._sent.get(task, PendingAverages({}, []))
        first.wait()
        second.wait()
        averages = dict(first.averages)
        for p, grad in second.averages.items():
            averages[p] = averages[p].add_(grad) if p in averages else grad
        row = [averages[p] if there else None for p, there in enumerate(present)]
        grads = [grad for grad in row if grad is not None]
        if grads and ran < self._ranks:
            # They were divided by all ranks.
            torch._foreach_mul_(grads, self._ranks / ran)
        return row


class Averaged:
    """A step's gradients after they were averaged, the same on all ranks: a placement.

    Args:
        exchange: of the ranks.
        columns: ``[P][K]``, the averages.
    """

    def __init__(self, exchange: Exchange, columns: Columns) -> None:
        self._exchange = exchange
        self._alone = [sum(grad is not None for grad in column) == 1 for column in columns]

    def gram(self, local: LocalGradients) -> Tensor:
        """See :class:`~gradsurgery.distributed.placement.Placement`."""
        return self._exchange.gram(local.columns, local.segments, local.segment_count, local.tasks)

    def largest(self, value: Tensor) -> Tensor:
        """See :class:`~gradsurgery.distributed.placement.Placement`."""
        return value

    def restored(self, update: Sequence[Tensor | None]) -> list[Tensor | None]:
        """See :class:`~gradsurgery.distributed.placement.Placement`."""
        # A head's gradient would keep the bucket alive that all of its task came in.
        return [
            grad.clone() if grad is not None and alone and _is_part(grad) else grad
            for grad, alone in zip(update, self._alone, strict=True)
        ]


class StepLossMeans(NamedTuple):
    """The losses of a step over all ranks.

    Attributes:
        losses: ``[K]`` float64, the means over the ranks that ran each task, NaN where none did.
        active: for each task, whether any rank ran it.
        factors: ``[K]`` float64, for each task, the ranks that ran any over those that ran it.
        apart: whether some rank captures each task's gradients apart.
    """

    losses: Tensor
    active: list[bool]
    factors: Tensor
    apart: bool


def mean_losses(
    losses: Tensor, ran: Sequence[bool], apart: bool, groups: Sequence[dist.ProcessGroup]
) -> StepLossMeans:
    """Average the losses. The host waits for them.

    Args:
        losses: ``[K]`` float64, on the groups' device.
        ran: for each task, whether this rank ran it.
        apart: whether this rank captures each task's gradients apart.
        groups: summed over one after the other, the dimensions of a mesh.
    """
    counts = torch.tensor([*ran, any(ran), apart], dtype=losses.dtype, device="cpu")
    counts = to_device(counts, losses.device)
    sums = torch.where(counts[:-2] > 0, losses, 0)
    totals = torch.cat([sums, counts])
    for group in groups:
        dist.all_reduce(totals, group=group)
    totals = totals.cpu()
    sums, counts, everywhere = totals[: len(sums)], totals[len(sums) : -2], totals[-2]
    factors = everywhere / counts.clamp(min=1)
    return StepLossMeans(sums / counts, (counts > 0).tolist(), factors, bool(totals[-1] > 0))


def _is_part(grad: Tensor) -> bool:
    """Whether ``grad`` is a view of more than itself."""
    return grad.untyped_storage().nbytes() > 2 * grad.numel() * grad.element_size()


def _refuse_unaverageable(whose: str, grads: Grads) -> None:
    for parameter, grad in grads.items():
        if grad.is_sparse:
            raise RuntimeError(
                f"{whose} left a sparse gradient for a parameter of shape "
                f"{list(parameter.shape)}: with process_group only dense gradients are averaged; "
                "build the embedding with sparse=False"
            )
        if is_sharded(grad):
            raise RuntimeError(
                f"{whose} left a sharded gradient (DTensor), whose mesh does its own averaging: "
                "leave process_group out. Tensor parallel averages over its own dimension of the "
                "mesh alone: for data parallelism beside it, apply fully_shard(model, "
                "mesh=mesh['dp']) after parallelize_module"
            )
