"""A model's answers on a set of examples, without gradients, dropout or randomness."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from bert_mtl_demo.data.tokenization import EncodedSet
from bert_mtl_demo.model.multitask import MultitaskModel
from bert_mtl_demo.runtime import Precision
from bert_mtl_demo.tasks import Task
from bert_mtl_demo.training.display import Display
from bert_mtl_demo.training.processes import ALONE, Processes

BATCH_SIZE = 32  # examples of like length; a larger one is no faster on two cores, and pads more


@dataclass(frozen=True)
class Answers:
    """A model's answers to N examples of one task.

    `values` [N] are predicted classes, or scores on the scale of the labels; `probabilities` [N, C]
    are there for tasks of classes only. One logit stands for two classes; the second one is
    predicted where its probability is above one half.
    """

    task: Task
    values: NDArray[np.float64]
    probabilities: NDArray[np.float64] | None

    def score(self, labels: list[float] | list[int]) -> float:
        """The task's metric against the labels."""
        # Here, as SciPy and scikit-learn take longer to import than an answer takes.
        from bert_mtl_demo.training.metrics import METRICS

        return METRICS[self.task.metric](labels, self.values)

    def take(self, indices: list[int]) -> Answers:
        """The answers to the examples at these positions, in this order."""
        probabilities = None if self.probabilities is None else self.probabilities[indices]
        return Answers(self.task, self.values[indices], probabilities)

    def is_constant(self) -> bool:
        """Whether a task of regression got the same score everywhere, for which r is undefined."""
        return self.task.classes is None and float(np.ptp(self.values)) == 0.0


@torch.inference_mode()
def answer(
    model: MultitaskModel,
    examples: EncodedSet,
    precision: Precision,
    processes: Processes = ALONE,
    done: Callable[[int], object] = lambda examples: None,
) -> Answers:
    """The model's answers, in the order of the examples.

    Batches hold examples of like length, which leaves little padding; the order is restored
    afterwards. The batches are dealt out to the processes, and all of them have all answers.
    `done` is called with the number of examples of each batch, those of the other processes too.
    """
    was_training = model.training
    model.eval()
    lengths = examples.lengths()
    order = sorted(range(len(examples)), key=lambda i: lengths[i])
    starts = range(0, len(order), BATCH_SIZE)
    outputs = {}
    for start in starts[processes.rank :: processes.size]:
        batch = examples.collate(order[start : start + BATCH_SIZE], precision.device)
        with precision.autocast():
            outputs[start] = model(examples.task.name, batch).float().cpu()
        done(min(BATCH_SIZE * processes.size, len(order) - start))
    model.train(was_training)
    parts = {start: part for dealt in processes.gather(outputs) for start, part in dealt.items()}
    ordered = torch.cat([parts[start] for start in starts])
    restored = torch.empty_like(ordered)
    restored[order] = ordered
    return _answers(examples.task, restored)


def score_all(
    model: MultitaskModel,
    sets: Mapping[str, EncodedSet],
    precision: Precision,
    processes: Processes = ALONE,
    display: Display | None = None,
    split: str = "dev",
) -> dict[str, Answers]:
    """Answers for every task; the display says that they are being given."""
    total = sum(map(len, sets.values()))
    with (display or Display()).counting(f"scoring {total:,} {split} examples", total) as done:
        return {name: answer(model, dev, precision, processes, done) for name, dev in sets.items()}


def _answers(task: Task, raw: torch.Tensor) -> Answers:
    if task.classes is None:
        return Answers(task, raw.double().numpy() * task.unit + task.low, None)
    probabilities = _probabilities(raw.double()).numpy()
    return Answers(task, probabilities.argmax(-1).astype(np.float64), probabilities)


def _probabilities(raw: torch.Tensor) -> torch.Tensor:
    """[N, C] of logits [N, C], or [N, 2] of the one logit [N] that two classes may have."""
    if raw.ndim > 1:
        return torch.softmax(raw, dim=-1)
    # Each from its own sigmoid: 1 - p would lose a small probability of class 0 to rounding.
    return torch.stack([torch.sigmoid(-raw), torch.sigmoid(raw)], dim=-1)
