"""Averaging each task's gradients over a process group, while the next task's backward runs.

Every rank must send the same messages in the same order, though ranks may run different tasks and
reach different parameters. So messages go out in the order of ``tasks``, and what goes out early
is what all ranks did in the two steps before (with zeros where a rank has nothing this time). At
the end one small sum tells everybody who has what; whatever nobody expected goes in a second round.

A task's gradient is the mean over the ranks that ran it. Absent stays absent: a parameter that no
rank reached gets no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from gradsurgery.distributed import agreement
from gradsurgery.distributed.carriers import CARRIERS, Carrier, Shipment

#: In the sum over ranks: a gradient that is there, and one that was not sent yet.
PRESENT, LATE = 1, 1 << 31

#: Stands for the gradients that no task captured, beside the tasks' names.
BESIDE = ""


class Captured(Protocol):
    """What was captured for each task, and waits."""

    grads: dict[str, dict[Tensor, Tensor]]

    def send(self, task: str, left: dict[Tensor, Tensor]) -> None:
        """Part with a task's gradients but for those ``left``."""

    def clear(self) -> None:
        """Forget everything."""


class Averaging:
    """One optimizer's exchange with the other ranks.

    Args:
        group: the processes.
        tasks: the tasks' names, in order.
        exchange: of :data:`~gradsurgery.distributed.carriers.CARRIERS`.
    """

    def __init__(self, group: dist.ProcessGroup, tasks: Sequence[str], exchange: str) -> None:
        self.group = group
        self._tasks, self._ranks = tuple(tasks), dist.get_world_size(group)
        self.carrier: Carrier = CARRIERS[exchange](group)
        self._expected: Tensor | None = None  # [K, P] bool: what goes out early
        self._last: Tensor | None = None  # [K, P] bool: what all ranks together had before
        self._begin()

    def drop(self, parameters: Sequence[Tensor]) -> None:
        """Forget the step under way. All ranks that have begun it have to.

        What they expect of one another still goes out, or the next step's messages would meet this
        one's.
        """
        if self._ready:
            self._send_early({}, parameters, set(self._tasks))
        for shipment in self._sent.values():
            shipment.wait()
        self._begin()

    def _begin(self) -> None:
        self._sent: dict[str, Shipment] = {}
        self._had: dict[str, set[int]] = {}  # which of the sent gradients were this rank's
        self._ready: set[str] = set()
        self._next = 0  # the first of the tasks that has not had its turn

    def captured(
        self, task: str, capture: Captured, parameters: Sequence[Tensor], sync: bool
    ) -> None:
        """Take note that ``task`` has captured; send what can go out early.

        Args:
            task: its name.
            capture: what was captured so far; what is sent leaves it.
            parameters: of the optimizer.
            sync: False when more of this task follows.
        """
        _refuse_unaverageable(f"task {task!r}", capture.grads[task])
        if sync:
            self._ready.add(task)
            self._send_early(capture.grads, parameters, self._ready, capture.send)

    def finish(
        self, capture: Captured, parameters: Sequence[Tensor], code: int
    ) -> tuple[list[list[Tensor | None]], Tensor]:
        """Average what is left, and return everything.

        What is in ``.grad``, beside the tasks, is averaged in its place. (What was averaged before
        is the same on all ranks, and stays what it is.)

        Args:
            capture: what was captured and not sent.
            parameters: of the optimizer.
            code: a fingerprint of what all ranks must have in common.

        Returns:
            ``[K][P]`` averages in the carrier's form, and ``[K]`` bool, the tasks that any rank
            ran.

        Raises:
            RuntimeError: when the ranks' codes differ.
        """
        ran = [task in capture.grads or task in self._had for task in self._tasks]
        self._send_early(capture.grads, parameters, set(self._tasks), capture.send)
        position = {parameter: p for p, parameter in enumerate(parameters)}
        late = [
            {position[parameter]: grad for parameter, grad in capture.grads.get(task, {}).items()}
            for task in self._tasks
        ]
        beside = {p: p.grad for p in parameters if p.grad is not None}
        _refuse_unaverageable("a backward beside the tasks", beside)
        late.append({position[parameter]: grad for parameter, grad in beside.items()})
        table, ranks_that_ran = self._roll(ran, late, parameters, code)
        second = [
            self.carrier.send(parameters, (row >= LATE).nonzero().flatten().tolist(), grads)
            for row, grads in zip(table, late, strict=True)
        ]
        capture.clear()
        rows = [
            self._received(task, shipment, (row > 0).tolist(), count)
            for task, shipment, row, count in zip(
                (*self._tasks, BESIDE), second, table, (*ranks_that_ran, self._ranks), strict=True
            )
        ]
        for parameter, grad in zip(
            parameters, self.carrier.restored(parameters, rows.pop()), strict=True
        ):
            if grad is not None:
                parameter.grad = grad
        self._expect(table[:-1] > 0)
        self._begin()
        return rows, torch.tensor(ranks_that_ran) > 0

    def _send_early(
        self,
        grads: Mapping[str, Mapping[Tensor, Tensor]],
        parameters: Sequence[Tensor],
        ready: set[str],
        part_with: Callable[[str, dict[Tensor, Tensor]], None] = lambda task, left: None,
    ) -> None:
        """Send the expected ones of ``grads`` for the tasks whose turn it is."""
        if self._expected is None or self._expected.shape[1] != len(parameters):
            return
        while self._next < len(self._tasks) and self._tasks[self._next] in ready:
            task, positions = self._tasks[self._next], self._expected[self._next].nonzero()
            self._next += 1
            if not len(positions):
                continue
            expected, mine = positions.flatten().tolist(), grads.get(task, {})
            going = {p: mine[parameters[p]] for p in expected if parameters[p] in mine}
            if task in grads:
                self._had[task] = set(going)
                gone = {parameters[p] for p in going}
                part_with(task, {p: grad for p, grad in mine.items() if p not in gone})
            self._sent[task] = self.carrier.send(parameters, expected, going)

    def _roll(
        self,
        ran: Sequence[bool],
        late: Sequence[dict[int, Tensor]],
        parameters: Sequence[Tensor],
        code: int,
    ) -> tuple[Tensor, list[int]]:
        """Sum over the ranks who has what: [K + 1, P], the last beside the tasks; and the number of
        ranks that ran each task."""
        table = torch.zeros(len(late), len(parameters), dtype=torch.int64)
        for row, task, grads in zip(table, (*self._tasks, BESIDE), late, strict=True):
            row[sorted(self._had.get(task, ()))] = PRESENT
            row[sorted(grads)] = PRESENT + LATE
        votes = agreement.votes(code)
        message = torch.cat([table.flatten(), torch.tensor([*map(int, ran), *votes])])
        message = message.to(parameters[0].device)
        dist.all_reduce(message, group=self.group)
        message = message.cpu()
        *counts, total, squares = message[table.numel() :].tolist()
        if not agreement.unanimous([total, squares], self._ranks):
            raise RuntimeError(agreement.DIFFERENT_SETTINGS)
        return message[: table.numel()].view_as(table), counts

    def _received(
        self, task: str, second: Shipment, there: Sequence[bool], ran: int
    ) -> list[Tensor | None]:
        """Return one task's averages by position, from both rounds."""
        first = self._sent.get(task, Shipment({}, [], []))
        first.wait()
        second.wait()
        found = dict(first.found)
        for p, grad in second.found.items():
            found[p] = found[p].add_(grad) if p in found else grad
        row = [found[p] if present else None for p, present in enumerate(there)]
        if 0 < ran < self._ranks:
            # They were divided by all ranks.
            torch._foreach_mul_([grad for grad in row if grad is not None], self._ranks / ran)
        return row

    def _expect(self, present: Tensor) -> None:
        """What all ranks did twice in a row goes out early in the next step."""
        regular = self._last is not None and torch.equal(self._last, present)
        self._expected, self._last = (present if regular else None), present


def _refuse_unaverageable(whose: str, grads: dict[Tensor, Tensor]) -> None:
    for parameter, grad in grads.items():
        if grad.is_sparse:
            raise RuntimeError(
                f"{whose} left a sparse gradient for a parameter of shape "
                f"{list(parameter.shape)}: with process_group only dense gradients are averaged; "
                "build the embedding with sparse=False"
            )
        if hasattr(grad, "device_mesh"):
            raise RuntimeError(
                f"{whose} left a sharded gradient (DTensor): FSDP2 and tensor parallel "
                "average gradients themselves, so leave process_group out"
            )
