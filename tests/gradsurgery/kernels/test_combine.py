"""Kernels, second pass: the weighted sum, in place, with one rounding."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.gradsurgery.kernels.implementations import (
    Grads,
    Kernel,
    every_dtype,
    every_kernel,
    random,
)
from tests.gradsurgery.kernels.layouts import GAPPY, LAYOUTS, SHAPE, surroundings

WEIGHTS = [[0.5, 1.25, -2.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1e6, -1e6, 3.0], [1.0, 0.0, 1e-3]]


def _sum(column: Sequence[Tensor | None], weights: Sequence[float]) -> Tensor:
    """The weighted sum in float64 (complex128)."""
    wide = torch.complex128 if any(g is not None and g.is_complex() for g in column) else None
    terms = [
        g.to(wide or torch.float64) * w
        for g, w in zip(column, weights, strict=True)
        if g is not None
    ]
    return torch.stack(terms).sum(0)


def _size(column: Sequence[Tensor | None], weights: Sequence[float]) -> Tensor:
    """What rounding of an element is relative to: sum_k |w_k g_k|."""
    return torch.stack(
        [g.abs().double() * abs(w) for g, w in zip(column, weights, strict=True) if g is not None]
    ).sum(0)


def check(kernel: Kernel, grads: Grads, weights: Tensor, segments: list[int]) -> None:
    """Each result is one of the inputs, and the sum of float64 rounded once."""
    parameters = len(grads[0])
    columns = [[row[p] for row in grads] for p in range(parameters)]
    old = [[None if g is None else g.clone() for g in column] for column in columns]
    around = [
        [surroundings(g) if g is not None and g.numel() else None for g in column]
        for column in columns
    ]
    results = kernel.combine_(grads, weights, segments)
    assert len(results) == parameters
    for p, result in enumerate(results):
        if all(g is None for g in columns[p]):
            assert result is None
            continue
        assert any(result is g for g in columns[p])
        row = weights[segments[p]].tolist()
        expected, size = _sum(old[p], row), _size(old[p], row)
        dtype = torch.view_as_real(result).dtype if result.is_complex() else result.dtype
        eps = torch.finfo(dtype).eps
        # One rounding (half an ulp, one allowed), of a sum accumulated in float32 or better.
        accumulated = 1e-15 if dtype == torch.float64 else 4e-7
        allowed = eps * expected.abs() + accumulated * size + torch.finfo(dtype).tiny * eps
        error = (result.to(expected.dtype) - expected).abs()
        assert (error <= allowed).all(), f"parameter {p}: off by {error.max():.3g}"
        for g, edge in zip(columns[p], around[p], strict=True):
            if edge is not None:  # nothing was written beside the gradient
                assert torch.equal(surroundings(g), edge)


def _weights(kernel: Kernel, *rows: Sequence[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64, device=kernel.device)


@every_kernel
@every_dtype
@pytest.mark.parametrize("row", WEIGHTS, ids=str)
def test_weights_of_every_kind(kernel: Kernel, dtype: torch.dtype, row: list[float]) -> None:
    if dtype == torch.float16 and max(row) > 1e3:
        pytest.skip("float16 ends at 65504")
    grads: Grads = [
        [random(kernel, dtype, shape, 10 * k + p) for p, shape in enumerate([(31, 3), (), (0,)])]
        for k in range(3)
    ]
    check(kernel, grads, _weights(kernel, row), [0, 0, 0])


@every_kernel
@pytest.mark.parametrize("size", [5_000_000, 2**16 + 1, 50_000, 1])
def test_long_vectors(kernel: Kernel, size: int) -> None:
    if size > kernel.most:
        pytest.skip(f"{kernel} takes {kernel.most} elements")
    grads: Grads = [[random(kernel, torch.float32, (size,), k)] for k in range(2)]
    check(kernel, grads, _weights(kernel, [0.7, -1.3]), [0])


@every_kernel
@pytest.mark.parametrize("size", [50_000, 2**16 + 3])
def test_weights_of_one_are_the_plain_sum_to_the_bit(kernel: Kernel, size: int) -> None:
    """((g_0 + g_1) + g_2) in float32: surgery that finds no conflict changes nothing."""
    size = min(size, kernel.most)
    a, b, c = (random(kernel, torch.float32, (size,), k) for k in range(3))
    expected = a + b + c
    assert torch.equal(
        kernel.combine_([[a], [b], [c]], _weights(kernel, [1, 1, 1]), [0])[0], expected
    )


@every_kernel
@every_dtype
def test_a_single_gradient_of_weight_one_keeps_its_bits(kernel: Kernel, dtype: torch.dtype) -> None:
    g = random(kernel, dtype, (1001,), 0)
    old = g.clone()
    result = kernel.combine_([[None], [g], [None]], _weights(kernel, [3, 1, 5]), [0])[0]
    assert result is g
    assert torch.equal(g, old)


@every_kernel
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_rounded_once(kernel: Kernel, dtype: torch.dtype) -> None:
    """256 + 1 + 1 - 256 is 2; rounding after each term would make it 0 (or 1) in bf16."""
    big = 256.0 if dtype == torch.bfloat16 else 2048.0
    terms = [big, 1.0, 1.0, -big]
    grads: Grads = [[torch.full((70,), v, dtype=dtype, device=kernel.device)] for v in terms]
    result = kernel.combine_(grads, _weights(kernel, [1, 1, 1, 1]), [0])[0]
    assert (result == 2).all()
    third = torch.tensor(1 / 3, dtype=dtype)
    grads = [[third.repeat(40).to(kernel.device)] for _ in range(3)]
    exact = torch.tensor(float(third) * 3.3, dtype=torch.float64).to(dtype)
    result = kernel.combine_(grads, _weights(kernel, [1.1, 1.1, 1.1]), [0])[0]
    assert (result.cpu() == exact).all()


@every_kernel
@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_memory_layout(kernel: Kernel, dtype: torch.dtype, layout: str) -> None:
    grads: Grads = [[LAYOUTS[layout](random(kernel, dtype, SHAPE, k))] for k in range(3)]
    strides = grads[0][0].stride()
    check(kernel, grads, _weights(kernel, WEIGHTS[0]), [0])
    assert all(row[0].stride() == strides for row in grads)


@every_kernel
@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", *GAPPY])
def test_tasks_whose_layouts_differ(kernel: Kernel, layout: str, second: str) -> None:
    grads: Grads = [
        [LAYOUTS[name](random(kernel, torch.float32, SHAPE, k))]
        for k, name in enumerate((layout, second, layout))
    ]
    check(kernel, grads, _weights(kernel, WEIGHTS[0]), [0])


@every_kernel
def test_every_segment_has_its_weights(kernel: Kernel) -> None:
    grads: Grads = [
        [random(kernel, torch.float32, (5 + p,), 10 * k + p) for p in range(5)] for k in range(3)
    ]
    grads[0][1] = grads[1][3] = None
    for row in grads:
        row[4] = None
    check(kernel, grads, _weights(kernel, *WEIGHTS[:4]), [3, 0, 1, 0, 2])


@every_kernel
def test_dtypes_that_differ_between_parameters(kernel: Kernel) -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.float32]
    grads: Grads = [
        [random(kernel, dtype, (41,), 10 * k + p) for p, dtype in enumerate(dtypes)]
        for k in range(3)
    ]
    check(kernel, grads, _weights(kernel, WEIGHTS[0]), [0] * 5)


@every_kernel
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_is_a_pair_of_reals(kernel: Kernel, dtype: torch.dtype) -> None:
    grads: Grads = [
        [torch.view_as_complex(random(kernel, torch.float64, (9, 5, 2), k)).to(dtype)]
        for k in range(3)
    ]
    check(kernel, grads, _weights(kernel, WEIGHTS[0]), [0])


@every_kernel
def test_a_thousand_tiny_tensors_and_many_tasks(kernel: Kernel) -> None:
    tiny: Grads = [
        [random(kernel, torch.float32, (1 + p % 3,), 1000 * k + p) for p in range(1000)]
        for k in range(2)
    ]
    check(kernel, tiny, _weights(kernel, [0.7, -1.3], [2.0, 0.1]), [p % 2 for p in range(1000)])
    many: Grads = [[random(kernel, torch.float32, (77,), k)] for k in range(64)]
    check(kernel, many, _weights(kernel, [0.1 * k - 3 for k in range(64)]), [0])


@every_kernel
@pytest.mark.parametrize("exponent", [-20, 20])
def test_scales(kernel: Kernel, exponent: int) -> None:
    grads: Grads = [
        [(random(kernel, torch.float64, (500,), k) * 10.0**exponent).float()] for k in range(3)
    ]
    check(kernel, grads, _weights(kernel, WEIGHTS[0]), [0])


@every_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_infinity_and_nan_arrive_where_they_were(kernel: Kernel, dtype: torch.dtype) -> None:
    """GradScaler has to see them; elements beside them are the plain sum."""
    a, b = (random(kernel, dtype, (20,), k) for k in range(2))
    b[3], b[11], a[12] = float("inf"), float("nan"), float("-inf")
    expected = a + b
    result = kernel.combine_([[a], [b]], _weights(kernel, [1, 1]), [0])[0]
    assert result[3] == float("inf")
    assert result[11].isnan()
    assert result[12] == float("-inf")
    rest = torch.tensor([i not in (3, 11, 12) for i in range(20)])
    torch.testing.assert_close(result[rest], expected[rest])


@every_kernel
def test_an_expanded_gradient_is_read(kernel: Kernel) -> None:
    """One element seen everywhere cannot hold a result, and may stand second."""
    number = torch.full((), 2.0, device=kernel.device)
    grads: Grads = [[random(kernel, torch.float32, (6, 7), 0)], [number.expand(6, 7)]]
    expected = 3.0 * grads[0][0] + 0.5 * number
    result = kernel.combine_(grads, _weights(kernel, [3.0, 0.5]), [0])[0]
    assert result is grads[0][0]
    torch.testing.assert_close(result, expected)
    assert number == 2


@every_kernel
@every_dtype
@pytest.mark.parametrize("exponent", [-260, -130, -101, 101, 130, 260])
@pytest.mark.parametrize("layout", ["contiguous", "every_second"])
def test_weights_beyond_float32(
    kernel: Kernel, dtype: torch.dtype, exponent: int, layout: str
) -> None:
    """What one weight takes from a gradient, the gradient has, down to subnormal numbers."""
    info = torch.finfo(dtype)
    smallest = info.smallest_normal * info.eps * 8
    if kernel.name == "interpreted" and dtype == torch.bfloat16:  # it reads subnormal ones as zero
        smallest = info.smallest_normal
    size = max(min(2.0**-exponent, info.max / 64), smallest)
    for place in range(2):
        grads: Grads = [[random(kernel, dtype, SHAPE, k).clamp(-4, 4)] for k in range(2)]
        grads[place] = [(grads[place][0].double() * size).to(dtype)]
        shaped = [[LAYOUTS[layout](row[0])] for row in grads]
        weights = [1.0, 1.0]
        weights[place] = 2.0**exponent
        if size * 2.0**exponent > info.max / 64:
            weights[place] = info.max / 64 / size
        check(kernel, shaped, _weights(kernel, weights), [0])
