"""Weights of the tasks' losses: from a raw loss to the scalar that is minimised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from bert_mtl_demo.errors import ConfigError
from bert_mtl_demo.tasks import Task


class Unweighted(nn.Module):
    """Every loss as it is.

    >>> Unweighted([])("sst", torch.tensor(2.0), {"sst": 8})
    tensor(2.)
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()

    def forward(self, task: str, loss: Tensor, sizes: Mapping[str, int]) -> Tensor:
        """The loss."""
        return loss


class Uncertainty(nn.Module):
    """One learned log-variance s per task, from 0: Kendall, Gal and Cipolla (2018), eq. 7 and 10.

        classes: exp(-s) L + s / 2        similarity: exp(-s) L / 2 + s / 2

    with s = log sigma^2. The half in front of L is that of a Gaussian's log-likelihood. A task is
    one of classes by its labels, whatever its loss is. s is a parameter like the others: it has the
    same learning rate, and no weight decay, since it is no matrix.

    >>> from bert_mtl_demo.tasks import TASKS
    >>> weigh = Uncertainty(list(TASKS.values()))
    >>> [weigh(name, torch.tensor(2.0), {}).item() for name in ("sst", "sts")]
    [2.0, 1.0]
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.share = {task.name: 0.5 if task.classes is None else 1.0 for task in tasks}
        # [1] and not a scalar: every optimizer and file format takes a vector.
        self.log_variance = nn.ParameterDict(
            {task.name: nn.Parameter(torch.zeros(1)) for task in tasks}
        )

    def forward(self, task: str, loss: Tensor, sizes: Mapping[str, int]) -> Tensor:
        """The formula of the task's kind."""
        spread = self.log_variance[task].squeeze()
        weighted: Tensor = self.share[task] * torch.exp(-spread) * loss + spread / 2
        return weighted


class InverseShare(nn.Module):
    """loss * (examples of the other tasks in this step) / (its own): bert_mastery, eq. 2.

    Batches in proportion to the sets would let the largest task decide; this takes the proportion
    out again.

    >>> from bert_mtl_demo.tasks import resolve
    >>> InverseShare(resolve(["sst", "para"]))("sst", torch.tensor(1.0), {"sst": 2, "para": 30})
    tensor(15.)
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        if len(tasks) < 2:
            raise ConfigError(
                f"weighting = inverse_share with tasks = {', '.join(task.name for task in tasks)}: "
                "the weight of a task is the share of the others, and there are none. Use "
                "--weighting none, or name more tasks."
            )

    def forward(self, task: str, loss: Tensor, sizes: Mapping[str, int]) -> Tensor:
        """The loss times the ratio."""
        return loss * ((sum(sizes.values()) - sizes[task]) / sizes[task])


WEIGHTINGS: dict[str, Callable[[Sequence[Task]], nn.Module]] = {
    "none": Unweighted,
    "uncertainty": Uncertainty,
    "inverse_share": InverseShare,
}


def build_weighting(name: str, tasks: Sequence[Task]) -> nn.Module:
    """A module (task name, raw loss, task name -> examples in this step) -> what is minimised.

    >>> from bert_mtl_demo.tasks import resolve
    >>> [name for name, _ in build_weighting("uncertainty", resolve(["sst"])).named_parameters()]
    ['log_variance.sst']
    """
    return WEIGHTINGS[name](tasks)
