"""The passes in C beyond the tests of all kernels: threads, lengths, tasks that differ, errors."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from gradsurgery import kernels
from gradsurgery.kernels import compiled, eager, native

pytestmark = pytest.mark.skipif(not native.available(), reason="no C compiler")

DTYPES = list(native.KINDS)
LENGTHS = [0, 1, 33, 255, 511, 512, 513, 2047, 2049, 30_011]


def columns(
    tasks: int, lengths: Sequence[int], dtypes: Sequence[torch.dtype], absent: float = 0.0
) -> list[list[Tensor | None]]:
    """Random gradients; some are absent, and so may be all of a parameter."""
    rng = torch.Generator().manual_seed(0)
    missing = torch.rand(len(lengths), tasks, generator=rng) < absent
    return [
        [
            None if gone else torch.randn(length, generator=rng).to(dtypes[p % len(dtypes)])
            for gone in missing[p].tolist()
        ]
        for p, length in enumerate(lengths)
    ]


def copied(grads: Sequence[Sequence[Tensor | None]]) -> list[list[Tensor | None]]:
    return [[None if g is None else g.clone() for g in column] for column in grads]


def check_gram(grads: Sequence[Sequence[Tensor | None]], segments: list[int], tasks: int) -> Tensor:
    """Within float32's rounding of the same products in float64."""
    count = max(segments) + 1
    result = native.gram(grads, segments, count, tasks)
    wide = [[None if g is None else g.double() for g in column] for column in grads]
    expected = eager.gram(wide, segments, count, tasks)
    norms = expected.diagonal(dim1=1, dim2=2).sqrt()
    assert ((result - expected).abs() <= 1e-6 * norms[:, :, None] * norms[:, None, :]).all()
    assert torch.equal(result, result.mT)
    return result


@pytest.mark.parametrize("tasks", [1, 2, 3, 4, 5, 7, 8, 9, 13, 33])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lengths(tasks: int, dtype: torch.dtype) -> None:
    for length in LENGTHS:
        check_gram(columns(tasks, [length], [dtype]), [0], tasks)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("tasks", [3, 10])
def test_threads_share_elements(threads: int, tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a thread's part ends: in a tensor, a segment, or what is packed; all dtypes."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(native, "SHARE", 1)
    lengths = [700, 3, 0, 12, 2000, 1, 1, 64, 300, 5000] * 4
    for absent in (0.0, 0.6):
        for segments in ([0] * 40, [p // 9 for p in range(40)], [p % 7 for p in range(40)]):
            grads = columns(tasks, lengths, DTYPES, absent)
            result = check_gram(grads, segments, tasks)
            assert torch.equal(result, native.gram(grads, segments, max(segments) + 1, tasks))
            weights = torch.linspace(-1, 2, tasks, dtype=torch.float64).repeat(max(segments) + 1, 1)
            expected = eager.combine_(copied(grads), weights, segments)
            sums = native.combine_(grads, weights, segments)
            for one_sum, other in zip(sums, expected, strict=True):
                assert (one_sum is None) == (other is None)
                if one_sum is not None:
                    torch.testing.assert_close(one_sum, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_sum_does_not_depend_on_threads(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    grads = columns(3, [1000, 77, 3001], [dtype])
    weights = torch.tensor([[0.3, -1.7, 0.9]], dtype=torch.float64)
    alone = native.combine_(copied(grads), weights, [0, 0, 0])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    monkeypatch.setattr(native, "SHARE", 1)
    together = native.combine_(copied(grads), weights, [0, 0, 0])
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_tasks_of_their_own_beside_shared_ones() -> None:
    """Heads: many tasks, each with tensors that no other has, large and small."""
    tasks = 12
    grads: list[list[Tensor | None]] = columns(tasks, [4000, 5], [torch.float32])
    for k in range(tasks):
        for length in (1500, 7):
            column: list[Tensor | None] = [None] * tasks
            column[k] = torch.randn(length)
            grads.append(column)
    result = check_gram(grads, [0, 0] + [1] * 2 * tasks, tasks)
    assert torch.equal(result[1], result[1].diagonal().diag())


def test_addresses_between_cache_lines() -> None:
    grads = [[torch.randn(5003)[k + 1 : k + 4999] for k in range(3)]]
    check_gram(grads, [0], 3)


def test_equal_elements_are_the_worst_case() -> None:
    vector = torch.full((1 << 20,), 0.3337)
    exact = float(vector.double() @ vector.double())
    assert float(native.gram([[vector]], [0], 1, 1)) == pytest.approx(exact, rel=1e-6)


def test_a_task_of_zeros_costs_no_accuracy_and_an_absent_one_nothing() -> None:
    grads = columns(3, [3000], [torch.float32])
    grads[0][1] = torch.zeros(3000)
    check_gram(grads, [0], 3)
    grads[0][1] = None
    check_gram(grads, [0], 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_all_half_precision_numbers_are_widened_and_rounded_as_torch_does(
    dtype: torch.dtype,
) -> None:
    """All 65,536 of them through both ways: the sum with a zero, and with a small neighbour."""
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    weights = torch.ones(1, 2, dtype=torch.float64)
    for other in (torch.zeros_like(every), every.roll(1), every.roll(777)):
        expected = (every.float() + other.float()).to(dtype)
        result = native.combine_([[every.clone(), other]], weights, [0])[0]
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("variable", "value", "called"),
    [
        ("GRADSURGERY_KERNELS", "auto", True),
        ("GRADSURGERY_KERNELS", "eager", False),
        ("GRADSURGERY_NATIVE", "0", False),
    ],
)
def test_choice(variable: str, value: str, called: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADSURGERY_KERNELS", raising=False)
    monkeypatch.setenv(variable, value)
    assert (kernels._implementation([[torch.ones(2)]], 1) is native) == called


def test_autograd_is_told_what_was_overwritten() -> None:
    """A backward that still needs it then says so, as after an operator of torch's."""
    first, second = torch.randn(5), torch.randn(5)
    factor = torch.randn(5, requires_grad=True)
    product = (factor * first).sum()
    native.combine_([[first, second]], torch.ones(1, 2, dtype=torch.float64), [0])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_segments_out_of_range() -> None:
    grads = columns(2, [5, 5], [torch.float32])
    for segments in ([0, 3], [0, -1]):
        with pytest.raises(IndexError, match="segments go from 0 to 1, found"):
            native.gram(grads, segments, 2, 2)
        with pytest.raises(IndexError, match="segments go from 0 to 1, found"):
            native.combine_(grads, torch.ones(2, 2, dtype=torch.float64), segments)


def test_no_room_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def gram(self, *_: object) -> int:
            return 1

    monkeypatch.setattr(compiled, "library", Full)
    with pytest.raises(MemoryError, match="2 tasks"):
        native.gram(columns(2, [5], [torch.float32]), [0], 1, 2)
