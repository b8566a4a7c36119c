"""A soak: thousands of steps of every method in turn, whose memory and time must not grow.

    python -m tests.soak --steps 3000

Each method trains a small network with two heads, a third task that comes and goes, an embedding
with sparse gradients, an overflow now and then, a window of statistics every hundred steps, and a
checkpoint that is loaded again. Steps are taken in tenths. Of each the script prints the time of a
step (the median), the resident memory, and how many tensors and Python objects are alive; the exit
status is 1 where the last tenth holds more tensors or objects than the second, or the memory grew
by more than ``--allowed`` MiB. Times are printed for people: another process can make them grow.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from gradsurgery import GradientSurgery, SurgeryWarning
from tests.methods import METHODS

TASKS = ("a", "b", "c")
TENTHS = 10


class Network(nn.Module):
    """An embedding, a trunk, and a head for each task."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(200, 16, sparse=True)
        self.trunk = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh())
        self.heads = nn.ModuleDict({task: nn.Linear(16, 1) for task in TASKS})

    def losses(self, words: Tensor, tasks: tuple[str, ...]) -> dict[str, Tensor]:
        """Squared errors of labels that the words decide, on one forward."""
        hidden = self.trunk(self.words(words).mean(1))
        labels = (words.float().mean(1) / 100 - 1).sin()
        return {
            task: (self.heads[task](hidden)[:, 0] - (k - 1) * labels).square().mean() + 0.1
            for k, task in enumerate(TASKS)
            if task in tasks
        }


class Training:
    """One method's run."""

    def __init__(self, method: str) -> None:
        torch.manual_seed(0)
        self.method, self.model = method, Network()
        self.optimizer = self._optimizer()
        self.generator = torch.Generator().manual_seed(0)

    def _optimizer(self) -> GradientSurgery:
        named = dict(self.model.named_parameters())
        words = {"params": [("words.weight", named.pop("words.weight"))]}
        bases = [torch.optim.SparseAdam([words], lr=1e-3), torch.optim.AdamW(named.items())]
        return GradientSurgery(bases, METHODS[self.method].make(0), tasks=TASKS, grouping="layer")

    def step(self, number: int) -> None:
        words = torch.randint(200, (8, 4), generator=self.generator)
        tasks = TASKS if number % 3 else TASKS[:2]
        losses = self.model.losses(words, tasks)
        if number % 50 == 49:
            losses["a"] = losses["a"] * torch.inf
        if number % 2:
            self.optimizer.join(losses).backward()
        else:
            (self.optimizer.join(losses, combine=False) / 2).backward()
            losses = self.model.losses(words, tasks)
            (self.optimizer.join(losses) / 2).backward()
        if number % 50 != 49:
            nn.utils.clip_grad_norm_(self.model.trunk.parameters(), 1.0)
            self.optimizer.step()
        self.optimizer.zero_grad()
        if number % 100 == 99:
            json.dumps(self.optimizer.conflicts.summary())
            self.optimizer.conflicts.reset()
        if number % 500 == 499:
            state = self.optimizer.state_dict()
            self.optimizer = self._optimizer()
            self.optimizer.load_state_dict(state)

    def tenth(self, first: int, steps: int) -> dict[str, float]:
        """Take ``steps`` steps from number ``first`` on, and measure."""
        seconds = []
        for number in range(first, first + steps):
            start = time.perf_counter()
            self.step(number)
            seconds.append(time.perf_counter() - start)
        self.optimizer.conflicts.summary()  # adds up the steps that wait for it
        gc.collect()
        alive = gc.get_objects()
        return {
            "ms": 1e3 * statistics.median(seconds),
            "MiB": resident(),
            "tensors": sum(issubclass(type(thing), Tensor) for thing in alive),
            "objects": len(alive),
        }


def resident() -> float:
    """The resident memory of this process in MiB; zero where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def grew(rows: list[dict[str, float]], allowed: float) -> list[str]:
    """What the last tenth has more of than the second: in the first, everything is new."""
    second, last = rows[1], rows[-1]
    reasons = [
        f"{last[kind]:.0f} {kind}, {second[kind]:.0f} before"
        for kind in ("tensors", "objects")
        if last[kind] > second[kind] * 1.01
    ]
    if last["MiB"] > second["MiB"] + allowed:
        reasons.append(f"{last['MiB']:.1f} MiB, {second['MiB']:.1f} before")
    return reasons


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000, help="of each method")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--allowed", type=float, default=2.0, help="growth of the memory, in MiB")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", SurgeryWarning)
    per_tenth = max(arguments.steps // TENTHS, 1)
    status = 0
    print("| method | steps | ms a step, 2nd and last tenth | MiB | tensors | grew |")
    print("|---|---|---|---|---|---|")
    for method in arguments.methods:
        training = Training(method)
        rows = [training.tenth(k * per_tenth, per_tenth) for k in range(TENTHS)]
        reasons = grew(rows, arguments.allowed)
        status |= bool(reasons)
        second, last = rows[1], rows[-1]
        figures = [
            f"{second['ms']:.2f}, {last['ms']:.2f}",
            f"{second['MiB']:.1f}, {last['MiB']:.1f}",
            f"{second['tensors']:.0f}, {last['tensors']:.0f}",
        ]
        cells = [method, TENTHS * per_tenth, *figures, "; ".join(reasons) or "no"]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
        del training
    return status


if __name__ == "__main__":
    sys.exit(main())
