"""The weights that a measured step leaves for the steps after it, see :mod:`gradsurgery.reuse`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

#: Stand for the task of a parameter that was used by several, by none, or was frozen.
SHARED, UNUSED, FROZEN = -1, -2, -3


class Kept:
    """The weights of a measured step, and whose parameters they were decided for.

    Args:
        weights: ``[K]`` float64, the method's.
        own: ``[K]`` float64, the weights of gradients of an only task.
        finite: scalar bool, whether they are those of a step with finite gradients. All three on
            one device; the host waits for a GPU's when it first needs the numbers.
        active: for each task, whether it ran, on any rank.
        shared: for each task, whether it had a gradient on a shared parameter.
        owners: for each parameter, the position of its only task, or one of the constants above.
        alters: whether the method tells which gradients it altered.

    Example:
        >>> weights, own = torch.tensor([[0.5, 2.0], [1.0, 1.0]], dtype=torch.float64)
        >>> kept = Kept(weights, own, torch.tensor(True), [True, True], [True, True], [SHARED, 1])
        >>> kept.loss_weights(1), kept.own_factors(1)
        ([0.5, 2.0], {1: 0.5})
    """

    def __init__(
        self,
        weights: Tensor,
        own: Tensor,
        finite: Tensor,
        active: Sequence[bool],
        shared: Sequence[bool],
        owners: Sequence[int],
        alters: bool = True,
    ) -> None:
        values = torch.cat([weights, own, finite.to(weights.dtype).reshape(1)])
        self._copied: torch.cuda.Event | None = None
        if values.is_cuda:
            host = torch.empty(values.shape, dtype=values.dtype, device="cpu", pin_memory=True)
            values = host.copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
        self._values = values
        self.active, self.shared, self.owners = list(active), list(shared), list(owners)
        self.alters = alters
        self._frozen = [p for p, owner in enumerate(self.owners) if owner == FROZEN]
        #: The parameters that no task used.
        self.unused = [p for p, owner in enumerate(self.owners) if owner in (UNUSED, FROZEN)]
        self._owned = [(p, owner) for p, owner in enumerate(self.owners) if owner >= 0]

    def __getstate__(self) -> dict[str, Any]:
        self._numbers()  # an event belongs to this process
        return vars(self)

    def fit(self, parameters: Sequence[Tensor]) -> bool:
        """Whether they were decided for these parameters, none of them trained since then only."""
        return len(parameters) == len(self.owners) and not any(
            parameters[p].requires_grad for p in self._frozen
        )

    @property
    def weights(self) -> list[float]:
        """The method's weights, by task."""
        return self._numbers()[: len(self.active)]

    def loss_weights(self, divisor: int) -> list[float]:
        """Return what each loss is multiplied by; ``divisor`` divides the shared parameters'."""
        own = self._numbers()[len(self.active) : -1]
        return [
            weight / divisor if shared else alone
            for weight, alone, shared in zip(self.weights, own, self.shared, strict=True)
        ]

    def own_factors(self, divisor: int) -> dict[int, float] | None:
        """Return what makes the gradient of a weighted loss that of a parameter's only task.

        Returns:
            By parameter, where it is not one. None where the weights are not to be used: those of
            gradients that were not finite, or beyond float32, and where a task with parameters of
            its own has a weight of zero, or so small that float32 gradients could vanish under it.
        """
        *_, finite = numbers = self._numbers()
        own, factors = numbers[len(self.active) : -1], {}
        losses, float32 = self.loss_weights(divisor), torch.finfo(torch.float32)
        if not finite or max(map(abs, losses)) > float32.max:
            return None
        for p, task in self._owned:
            if own[task] == losses[task]:
                continue
            if abs(losses[task]) <= abs(own[task]) * float32.eps:
                return None
            factors[p] = own[task] / losses[task]
        return factors

    def _numbers(self) -> list[float]:
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None
        numbers: list[float] = self._values.tolist()
        return numbers

    # ------------------------------------------------------------------ checkpoints

    def saved(self) -> dict[str, Any]:
        """Return them in plain Python values; of parameters, runs of equal owners."""
        return {
            "values": self._numbers(),
            "active": self.active,
            "shared": self.shared,
            "owners": [[owner, len(list(run))] for owner, run in groupby(self.owners)],
            "alters": self.alters,
        }

    @staticmethod
    def restored(saved: Any, tasks: int) -> Kept | None:
        """Return what :meth:`saved` returned, None for None.

        Raises:
            ValueError: for what no step can have left.
        """
        if saved is None:
            return None
        try:
            return _restored(saved, tasks)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"the checkpoint's 'kept' are no weights that a measured step left ({error}): "
                "delete them, and the next step measures anew"
            ) from None


def _restored(saved: Mapping[str, Any], tasks: int) -> Kept:
    values = torch.tensor(saved["values"], dtype=torch.float64, device="cpu")
    if values.shape != (2 * tasks + 1,) or not bool(values.isfinite().all()):
        raise ValueError(f"{2 * tasks + 1} finite numbers, not {saved['values']!r}")
    for name in ("active", "shared"):
        if len(saved[name]) != tasks or not {True, False}.issuperset(saved[name]):
            raise ValueError(f"{name!r} says of each of {tasks} tasks whether, not {saved[name]!r}")
    owners: list[int] = []
    for owner, length in saved["owners"]:
        if not FROZEN <= owner < tasks or not 0 < length < math.inf:
            raise ValueError(f"{length!r} parameters of owner {owner!r}")
        owners += [int(owner)] * length
    weights, own, finite = values[:tasks], values[tasks:-1], values[-1]
    return Kept(
        weights, own, finite, saved["active"], saved["shared"], owners, bool(saved["alters"])
    )
