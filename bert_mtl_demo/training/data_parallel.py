"""Data parallelism: a shard of every batch, own dropout and the same initial weights per process.

A batch of N examples is dealt out to W processes, n_r of them to process r, and gradsurgery
averages the gradients. With l_r the mean loss of a shard, the weight n_r W / N makes the average
that of the whole batch:

    1/W sum_r (n_r W / N) grad l_r  =  1/N sum over all N examples of their gradients

It holds for losses that are a mean over examples. Those that compare the examples of a batch are
refused: on a shard they are another loss.

A process that has nothing of a small batch takes its first example with weight 0: it would wait
for the others anyway, and so all of them run the same tasks in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bert_mtl_demo.batching.streams import seed_of
from bert_mtl_demo.config import Config
from bert_mtl_demo.errors import ConfigError
from bert_mtl_demo.runtime import random_state, seed_all, set_random_state
from bert_mtl_demo.training.processes import Processes

# Losses of similarity that are a mean over examples.
BY_EXAMPLE = ("mse", "huber", "cosine_embedding")


@dataclass(frozen=True)
class Shard:
    """One process's part of a batch.

    >>> shards = [Shard.of([7, 8, 9], Processes(rank, 2)) for rank in range(2)]
    >>> [shard.indices for shard in shards], [round(shard.weight, 2) for shard in shards]
    ([[7, 9], [8]], [1.33, 0.67])
    """

    indices: list[int]  # what is run, at least one
    fraction: float  # of the batch: n / N
    weight: float  # of the mean loss: n W / N
    batch_size: int  # N

    @classmethod
    def of(cls, indices: Sequence[int], processes: Processes) -> Shard:
        """Every W-th example; shards differ by one example at most."""
        dealt = list(indices[processes.rank :: processes.size])
        fraction = len(dealt) / len(indices)
        return cls(dealt or list(indices[:1]), fraction, fraction * processes.size, len(indices))


def refuse_comparing(config: Config, processes: Processes) -> None:
    """A loss that compares the examples of a batch is refused in several processes.

    >>> refuse_comparing(Config(sts_loss="simcse"), Processes(size=1))
    """
    compared = config.sts_loss not in BY_EXAMPLE and config.trained_of("similarity")
    if processes.size > 1 and compared:
        raise ConfigError(
            f"sts_loss = {config.sts_loss} in {processes.size} processes: this loss compares the "
            "pairs of a batch with each other, and each process sees only its shard. Use "
            f"one process, or --sts-loss {', '.join(BY_EXAMPLE[:-1])} or {BY_EXAMPLE[-1]}."
        )


def warnings(config: Config, processes: Processes) -> list[str]:
    """Sentences about what is allowed in this many processes but probably not meant.

    >>> warnings(Config(batch_size=2), Processes(size=4))[0][:33]
    'batch_size 2 in 4 processes: of a'
    """
    if config.batch_size >= processes.size:
        return []
    return [
        f"batch_size {config.batch_size} in {processes.size} processes: of a batch, "
        f"{processes.size - config.batch_size} processes have nothing. batch_size counts the "
        "examples of all processes together."
    ]


def begin_alike(model: torch.nn.Module, group: Any) -> None:
    """Give every process main's weights; `group` is `Processes.gradients`, None alone."""
    if group is None:
        return
    import torch.distributed as dist

    for tensor in model.state_dict().values():
        dist.broadcast(tensor, src=0, group=group)


def draw_apart(config: Config, processes: Processes, step: int = 0) -> None:
    """Have each process draw its own dropout from here on; main's is a single process's.

    After `step` steps, which is where a run goes on in another number of processes.
    """
    if not processes.is_main or step:
        seed_all(seed_of(f"{config.seed}/step {step}/process {processes.rank} of {processes.size}"))


def random_states(processes: Processes) -> dict[str, Any]:
    """The random state of every process, for the checkpoint.

    >>> list(random_states(Processes(size=1)))
    ['random', 'random_elsewhere']
    """
    main, *others = processes.gather(random_state())
    return {"random": main, "random_elsewhere": others}


def restore_random(state: Mapping[str, Any], config: Config, processes: Processes) -> None:
    """Restore the generators; those of another number of processes are seeded anew."""
    states = [state["random"], *state.get("random_elsewhere", [])]
    if len(states) == processes.size:
        set_random_state(states[processes.rank])
    else:
        draw_apart(config, processes, state["progress"]["step"])
