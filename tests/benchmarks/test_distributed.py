"""Several ranks: formulas, the parent's limit, and the wire's counter."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import ProcessRaisedException

from benchmarks import launch
from benchmarks.options import Options
from benchmarks.steps import averaged
from benchmarks.themes import distributed

ELEMENTS = 1 << 20


def options(directory: Path) -> Options:
    return Options(torch.device("cpu"), directory, quick=True)


def wire(device: torch.device) -> dict[str, float]:
    """Bytes that collectives send, over those of their elements."""
    count = launch.Wire()
    if not count.counts:
        return {}
    part, whole = torch.ones(ELEMENTS // 2), torch.ones(ELEMENTS)
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    works = {
        "nothing": lambda: None,
        "all-reduce": lambda: dist.all_reduce(whole),
        "all-gather": lambda: gather(whole, part),
        "reduce-scatter": lambda: scatter(part, whole),
    }
    return {name: count.sent(work, 3) / (4 * ELEMENTS) for name, work in works.items()}


def fails_on_the_second(device: torch.device) -> None:
    if dist.get_rank() == 1:
        raise ValueError("out of luck")
    time.sleep(60)  # in a collective, the first rank may fail first, of the lost connection


def sleeps(device: torch.device) -> None:
    time.sleep(60)


def test_the_wire_is_what_collectives_send(tmp_path: Path) -> None:
    """Between two ranks; gloo's reduce-scatter is an all-reduce.

    At least: other tests' processes may be using the loopback device.
    """
    sent, _ = launch.start(wire, 2, (), options(tmp_path), limit=120)
    if not sent:
        pytest.skip("no counter of the loopback device")
    assert sent["all-reduce"] > 0.95
    assert sent["all-gather"] > 0.45
    assert sent["reduce-scatter"] > 0.95


def test_the_wire_counts_without_barriers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A world of two in which nothing else happens: a barrier sends 7 bytes."""
    sent = 0

    def send(count: int) -> None:
        nonlocal sent
        sent += count

    monkeypatch.setattr(dist, "barrier", lambda: send(7))
    monkeypatch.setattr(dist, "get_backend", lambda: "gloo")
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(launch, "loopback_bytes", lambda: sent)
    assert launch.Wire().sent(lambda: send(1000), 3) == 500


def test_a_rank_that_fails_ends_the_others(tmp_path: Path) -> None:
    with pytest.raises(ProcessRaisedException, match="out of luck"):
        launch.start(fails_on_the_second, 2, (), options(tmp_path), limit=60)


def test_ranks_that_hang_are_ended(tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match="2 ranks were not done after 1 s"):
        launch.start(sleeps, 2, (), options(tmp_path), limit=1)
    assert time.monotonic() - begun < 20
    assert threading.active_count() < 20


def test_formulas() -> None:
    """Of 10 elements, 6 of them in layers, 3 tasks and 2 ranks."""
    amounts = averaged.amounts(3, 10, 6, 2)
    assert {name: amount.sent() for name, amount in amounts.items()} == {
        averaged.ALONE: 0,
        averaged.DDP_SUM: 10,
        averaged.DDP_EACH: 30,
        averaged.DDP_TASK: 30,
        averaged.ALL_REDUCE: 30,
        averaged.FSDP_SUM: 18 + 2 + 5,
        averaged.FSDP_EACH: 18 + 6 + 15,
        averaged.FSDP_TASK: 18 + 6 + 15,
    }
    assert amounts[averaged.FSDP_TASK].sent(scatters_as_all_reduce=True) == 18 + 6 + 2 * 15
    assert amounts[averaged.FSDP_TASK].held == 15


def test_a_round_is_as_slow_as_its_slowest_rank(tmp_path: Path) -> None:
    def rank(*taken: float) -> dict[str, object]:
        return {
            "elements": 10,
            "layered": 6,
            "seconds": {name: list(taken) for name in averaged.KINDS}
            | {averaged.ALL_REDUCE: [2 * t for t in taken]},
            "sent": dict.fromkeys(averaged.KINDS, 60),
            "held": dict.fromkeys(averaged.KINDS, 40),
        }

    rows = distributed.figures([rank(1.0, 5.0), rank(3.0, 4.0)], tasks=3)
    plain, ours = rows[1], rows[4]
    assert plain["seconds"]["median"] == 4.0
    assert ours["seconds"]["median"] == 8.0
    assert ours["to_ddp_sum"] == 2.0
    theme = distributed.Distributed(options(tmp_path))
    assert theme.tables(rows)[1].rows[4][3] == f"{60 / 120:.2f}"
