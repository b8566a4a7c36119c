"""python -m benchmarks.bench_step: a training step with surgery beside a plain one, in one run.

There are two plain steps on one batch per task: ``sum(losses).backward()``, and the losses' own
backwards one after the other, each as soon as its forward is done, which frees memory sooner. Ours
is the second with ``optimizer.task`` around each backward and ``combine()`` before AdamW's
``step()``. Same model, same batches, alternated step by step: what the machine does besides hits
all. Prints medians, the medians of the ratios round by round, the cost of the statistics as a share
of a step, and (in processes of their own) peak memory.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from gradsurgery import ConflictStatistics, GradientSurgery, GradVac, Method, PCGrad, Sum

TASKS = ("sst", "para", "sts")
METHODS: dict[str, Method] = {"sum": Sum(), "pcgrad": PCGrad(), "gradvac": GradVac()}

#: all-MiniLM-L6's shape, 22.7M parameters; the weights do not matter to the clock.
MINILM = BertConfig(
    hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
)

Step = Callable[[], object]

JOINT, IN_TURN = "plain, sum(losses).backward()", "plain, task by task"


class ThreeTasks(nn.Module):
    """The encoder and a linear head per task."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = BertModel(MINILM, add_pooling_layer=False)
        self.heads = nn.ModuleDict({task: nn.Linear(384, 1) for task in TASKS})

    def forward(self, task: str, tokens: Tensor) -> Tensor:
        """The loss of ``tokens`` ([batch, length])."""
        hidden = self.encoder(tokens).last_hidden_state.mean(1)
        loss: Tensor = self.heads[task](hidden).square().mean()
        return loss


def build(batch: int, length: int) -> tuple[ThreeTasks, dict[str, Tensor], torch.optim.Optimizer]:
    """Return the model, a batch of tokens per task, and AdamW."""
    torch.manual_seed(0)
    model = ThreeTasks()
    batches = {task: torch.randint(0, 30522, (batch, length)) for task in TASKS}
    return model, batches, torch.optim.AdamW(model.parameters(), lr=1e-5)


def plain_step(
    model: ThreeTasks, batches: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> Step:
    """Sum of the losses, task after task."""

    def step() -> None:
        for task, tokens in batches.items():
            model(task, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def joint_step(
    model: ThreeTasks, batches: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> Step:
    """Sum of the losses, in one backward."""

    def step() -> None:
        sum(model(task, tokens) for task, tokens in batches.items()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def surgery_step(model: ThreeTasks, batches: dict[str, Tensor], optimizer: GradientSurgery) -> Step:
    """Surgery, task after task."""

    def step() -> None:
        for task, tokens in batches.items():
            with optimizer.task(task):
                model(task, tokens).backward()
        optimizer.combine()
        optimizer.step()
        optimizer.zero_grad()

    return step


def steps(method: str, batch: int, length: int) -> dict[str, Step]:
    """Return the three steps on one model: they train it in turn."""
    model, batches, base = build(batch, length)
    wrapped = GradientSurgery(base, METHODS[method], tasks=TASKS)
    return {
        JOINT: joint_step(model, batches, base),
        IN_TURN: plain_step(model, batches, base),
        method: surgery_step(model, batches, wrapped),
    }


def alternate(candidates: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Time the candidates in turn; seconds by name. The first two rounds only warm up."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 2):
        for name, step in candidates.items():
            start = time.perf_counter()
            step()
            if number >= 2:
                times[name].append(time.perf_counter() - start)
    return times


def statistics_seconds(rounds: int = 300) -> float:
    """Return the median time of counting one step of three tasks."""
    torch.manual_seed(0)
    jacobian = torch.randn(3, 9, dtype=torch.float64)
    gram, order = (jacobian @ jacobian.T)[None], torch.arange(3).expand(3, -1)
    verdict, active = PCGrad()(gram, order, {}), torch.ones(3, dtype=torch.bool)
    conflicts, times = ConflictStatistics(TASKS, "PCGrad()"), []
    for _ in range(rounds):
        start = time.perf_counter()
        conflicts.update(gram, verdict, ["model"], active)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_bytes(name: str, method: str, batch: int, length: int) -> int:
    """Return the peak resident memory of a fresh process that makes three such steps."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak, (name, method, batch, length))


def _peak(name: str, method: str, batch: int, length: int) -> int:
    step = steps(method, batch, length)[name]
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # begin the peak here, after building the model
    for _ in range(3):
        step()
    # Not getrusage: its peak counts what the parent held when it started this process.
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line)


def table(times: dict[str, list[float]]) -> str:
    """Return the medians, and the ratios to both plain steps, round by round."""
    head = ("step", "median s", "p20", "p80", "to the joint one", "to the one in turn")
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, seconds in times.items():
        low, _, _, high = statistics.quantiles(seconds, n=5)
        ratios = [_ratio(seconds, times[reference]) for reference in (JOINT, IN_TURN)]
        figures = [statistics.median(seconds), low, high, *ratios]
        rows.append(" | ".join([f"| {name}", *(f"{figure:.3f}" for figure in figures)]) + " |")
    return "\n".join(rows)


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_step", description=__doc__)
    parser.add_argument("--method", choices=METHODS, default="pcgrad")
    parser.add_argument("--batch-size", type=int, default=8, help="sentences per task")
    parser.add_argument("--length", type=int, default=48, help="tokens per sentence")
    parser.add_argument("--rounds", type=int, default=31)
    options: Any = parser.parse_args(arguments)
    size = (options.batch_size, options.length)

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor()}")
    times = alternate(steps(options.method, *size), options.rounds)
    print(table(times))
    counting = statistics_seconds()
    share = counting / statistics.median(times[options.method])
    print(f"statistics: {1e6 * counting:.0f} us a step, {100 * share:.3f}% of it")

    model = ThreeTasks()
    extra = (len(TASKS) - 1) * sum(p.numel() * p.element_size() for p in model.parameters())
    peaks = {name: peak_bytes(name, options.method, *size) for name in times}
    for name, peak in peaks.items():
        more = peak - peaks[JOINT]
        print(f"peak memory, {name}: {peak / 2**20:.0f} MiB ({more / 2**20:+.0f})")
    print(f"allowed on top of plain: (K - 1) x 4N = {extra / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
