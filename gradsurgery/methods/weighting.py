"""Weights of the losses: methods that decide by the tasks' losses alone, without a Gram matrix.

Their update is the gradient of sum_k w_k L_k, with w held constant. So the weights can be decided
before the backward, and one backward pass gives the update: ``join`` runs K of them only where
gradients are wanted for their own sake, see ``observe_every`` of ``GradientSurgery``.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, final

from torch import Tensor

from gradsurgery.methods.base import Method, State, Verdict


class LossWeighting(Method):
    """A method that decides by the losses alone, ``(losses, state) -> (weights, state)``.

    The weight is that of a loss: the gradients of parameters that only one task has are multiplied
    by it as well.

    Example:
        >>> import torch
        >>> class Inverse(LossWeighting):
        ...     def weigh(self, losses, state):
        ...         return torch.where(losses > 0, 1 / losses, 1.0), state
        >>> Inverse().weigh(torch.tensor([2.0, torch.nan], dtype=torch.float64), {})[0].tolist()
        [0.5, 1.0]
    """

    needs: ClassVar[frozenset[str]] = frozenset({"losses"})
    task_only = "weighted"

    @abstractmethod
    def weigh(self, losses: Tensor, state: State) -> tuple[Tensor, State]:
        """Decide the weights of one step.

        Args:
            losses: ``[K]`` float64, NaN for an absent task.
            state: the method's tensors, on the device of ``losses``.

        Returns:
            ``[K]`` float64 weights, one for an absent task (a NaN among the weights of the others
            would be taken for their loss), and the tensors that the next step is to be given.
        """

    @final
    def __call__(self, gram: Tensor, *, losses: Tensor, state: State) -> Verdict:
        """Decide for ``gram`` ([S, K, K]), of which only the shape counts."""
        weights, state = self.weigh(losses, state)
        return Verdict(weights.expand(gram.shape[:-1]).clone(), None, state)


def check_positive(losses: Tensor, method: Method) -> None:
    """Refuse losses below zero. On a GPU the host waits for them.

    An infinite one belongs to a non-finite step, which is skipped.

    Raises:
        ValueError: for a negative loss.
    """
    if bool(((losses < 0) & losses.isfinite()).any()):
        raise ValueError(
            f"{method!r} compares the losses by their ratios, and they are {losses.tolist()} (NaN: "
            "absent): add a constant, such that no loss can fall below zero"
        )
