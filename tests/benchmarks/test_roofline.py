from __future__ import annotations

import pytest
import torch

from benchmarks import roofline
from benchmarks.timing import Effort, Sample, Times, alternate

CPU = torch.device("cpu")


def measured(read: float, copy: float) -> Times:
    fill = copy / 2
    probes = {roofline.READ: read, roofline.COPY: copy, roofline.FILL: fill}
    return Times({name: [Sample(value, value)] for name, value in probes.items()})


def probes() -> roofline.Probes:
    return roofline.Probes(1000, CPU, min_bytes=0)  # 4000 bytes


def test_traffic_is_two_reads_of_each_gradient_and_one_write() -> None:
    size = (3, 10, 4)
    assert roofline.gram_traffic(*size) == (120, 0)
    assert roofline.combine_traffic(*size) == (120, 40)
    assert roofline.whole_traffic(*size) == (240, 40)


def test_on_the_cpu_reads_and_writes_are_taken_apart() -> None:
    [least] = probes().floor(measured(read=4.0, copy=10.0), roofline.Traffic(8000, 4000))
    assert least == pytest.approx(2 * 4.0 + 1 * (10.0 - 4.0))


def test_the_floor_may_come_after_other_work() -> None:
    times = measured(read=4.0, copy=10.0)
    times["step"] = [Sample(100.0, 100.0)]
    assert probes().floor(times, roofline.Traffic(4000, 0), after="step") == [104.0]


def test_a_copy_faster_than_a_read_makes_writing_free() -> None:
    [least] = probes().floor(measured(read=4.0, copy=3.0), roofline.Traffic(4000, 4000))
    assert least == pytest.approx(4.0)


def test_on_cuda_all_bytes_go_at_the_copys_bandwidth() -> None:
    found = probes()
    found.device = torch.device("cuda")
    [least] = found.floor(measured(read=4.0, copy=10.0), roofline.Traffic(8000, 4000))
    assert least == pytest.approx(10.0 * 12000 / 8000)


def test_bandwidths_count_both_directions_of_a_copy() -> None:
    found = probes().bandwidths(measured(read=1e-6, copy=1e-6))
    assert found == {"read": 4.0, "copy": 8.0, "fill": 8.0}


def test_probes_are_large_enough_for_no_cache_to_hold_them() -> None:
    assert roofline.Probes(1, CPU).bytes == 64 << 20
    assert roofline.Probes(1 << 25, CPU).bytes == 4 << 25


def test_probes_run() -> None:
    times = alternate(probes().candidates(), Effort(2, 2, 0), CPU)
    assert set(times) == {roofline.READ, roofline.COPY, roofline.FILL}
