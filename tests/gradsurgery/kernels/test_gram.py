"""Kernels, first pass: the Gram matrix against float64 numpy, whatever tensors autograd left."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.gradsurgery.kernels.implementations import (
    DTYPES,
    Grads,
    Kernel,
    every_dtype,
    every_kernel,
    random,
)
from tests.gradsurgery.kernels.layouts import LAYOUTS, SHAPE


def _numbers(tensor: Tensor) -> np.ndarray:
    """The same numbers in float64; a complex one is a pair."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.detach().cpu().double().reshape(-1).numpy()


def reference(grads: Grads, segments: Sequence[int], count: int) -> np.ndarray:
    """G[s, i, j] = sum over p in s of g_i[p] . g_j[p], in float64."""
    tasks = len(grads)
    gram = np.zeros((count, tasks, tasks))
    for p, segment in enumerate(segments):
        rows = [None if grads[k][p] is None else _numbers(grads[k][p]) for k in range(tasks)]
        for i in range(tasks):
            for j in range(i + 1):
                if rows[i] is not None and rows[j] is not None:
                    gram[segment, i, j] += np.dot(rows[i], rows[j])
                    gram[segment, j, i] = gram[segment, i, j]
    return gram


def check(
    kernel: Kernel, grads: Grads, segments: list[int], count: int, tolerance: float = 1e-6
) -> Tensor:
    """G is the reference, relative to sqrt(G_ii G_jj), symmetric, and reading changed nothing."""
    before = [[None if g is None else g.clone() for g in row] for row in grads]
    versions = [[None if g is None else g._version for g in row] for row in grads]
    gram = kernel.gram(grads, segments, count)
    expected = reference(grads, segments, count)
    assert gram.shape == (count, len(grads), len(grads))
    assert gram.dtype == torch.float64
    norms = np.sqrt(expected.diagonal(axis1=1, axis2=2))
    scale = norms[:, :, None] * norms[:, None, :]
    error = np.abs(gram.cpu().numpy() - expected)
    assert (error <= tolerance * scale).all(), f"relative error {(error / scale).max():.2g}"
    assert torch.equal(gram, gram.mT)
    for row, old, version in zip(grads, before, versions, strict=True):
        for g, o, v in zip(row, old, version, strict=True):
            assert g is None or (torch.equal(g, o) and g._version == v)
    return gram


@every_kernel
@every_dtype
@pytest.mark.parametrize("tasks", [1, 2, 3, 8, 64])
def test_any_number_of_tasks(kernel: Kernel, dtype: torch.dtype, tasks: int) -> None:
    shapes = [(33, 5), (7,), (1,), (128,)]
    grads: Grads = [
        [random(kernel, dtype, shape, 100 * k + p) for p, shape in enumerate(shapes)]
        for k in range(tasks)
    ]
    check(kernel, grads, [0, 0, 0, 0], 1)
    check(kernel, grads, [0, 1, 1, 2], 3)


@every_kernel
@pytest.mark.parametrize("size", [5_000_000, 2**16 - 1, 2**16, 2**16 + 1, 50_000])
def test_long_float32_vectors(kernel: Kernel, size: int) -> None:
    if size > kernel.most:
        pytest.skip(f"{kernel} takes {kernel.most} elements")
    grads: Grads = [[random(kernel, torch.float32, (size,), k)] for k in range(3)]
    check(kernel, grads, [0], 1)


@every_kernel
@pytest.mark.parametrize("mean", [1.0, 1000.0, -3e5])
def test_vectors_on_which_naive_float32_sums_drift(kernel: Kernel, mean: float) -> None:
    """A large mean: every partial sum is far larger than its next term."""
    size = min(2_000_000, kernel.most)
    grads: Grads = [
        [random(kernel, torch.float32, (size,), k).mul_(0.1 * mean).add_(mean)] for k in range(2)
    ]
    grads.append([grads[0][0].neg()])
    check(kernel, grads, [0], 1)


@every_kernel
def test_one_large_element_among_many_small_ones(kernel: Kernel) -> None:
    """In float32 a running sum of 1e8 no longer notices the rest, which is here half of it."""
    size = min(2_000_000, kernel.most)
    grads: Grads = [[torch.ones(size, device=kernel.device)] for _ in range(2)]
    for row in grads:
        row[0][0] = float(size) ** 0.5
    check(kernel, grads, [0], 1)


@every_kernel
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_summed_in_more(kernel: Kernel, dtype: torch.dtype) -> None:
    """A sum in bf16 would stop growing at 256.

    Ties, frequent with so few bits, round to even and bias a float32 sum by up to 1e-5.
    """
    size = min(300_000, kernel.most)
    grads: Grads = [[random(kernel, dtype, (size,), k).add_(1)] for k in range(3)]
    check(kernel, grads, [0], 1, tolerance=3e-5)


@every_kernel
def test_float64_is_kept(kernel: Kernel) -> None:
    grads: Grads = [[random(kernel, torch.float64, (10_007,), k)] for k in range(3)]
    check(kernel, grads, [0], 1, tolerance=1e-13)


@every_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("exponent", [-20, -12, 0, 12, 19, 20])
def test_no_scale_overflows_or_vanishes(kernel: Kernel, dtype: torch.dtype, exponent: int) -> None:
    """Squares of float32's 1e-20 and 1e20 are out of float32, and within float64."""
    base = [random(kernel, torch.float64, (1000,), k) * 10.0**exponent for k in range(2)]
    gram = check(kernel, [[g.to(dtype)] for g in base], [0], 1)
    assert gram.isfinite().all()
    assert (gram.diagonal(dim1=1, dim2=2) > 0).all()


@every_kernel
def test_scales_that_differ_between_tasks_and_parameters(kernel: Kernel) -> None:
    scales = [[1e-20, 1e-18], [1e20, 1e15], [1.0, 1e-10]]
    grads: Grads = [
        [
            random(kernel, torch.float64, (300,), 2 * k + p).mul_(scale).float()
            for p, scale in enumerate(row)
        ]
        for k, row in enumerate(scales)
    ]
    check(kernel, grads, [0, 0], 1)
    check(kernel, grads, [1, 0], 2)


@every_kernel
def test_absent_gradients(kernel: Kernel) -> None:
    """A row and column are zero where a task has nothing; a parameter may have no task at all."""
    x = [random(kernel, torch.float32, (n,), n) for n in range(3, 12)]
    grads: Grads = [[x[0], None, None, x[4]], [x[0].neg(), x[1], None, None], [None] * 4]
    gram = check(kernel, grads, [0, 0, 1, 2], 3)
    assert (gram[:, 2] == 0).all()
    assert (gram[1] == 0).all()
    nothing = kernel.gram([[None], [None]], [0], 1)
    assert nothing.tolist() == [[[0.0, 0.0], [0.0, 0.0]]]


@every_kernel
def test_empty_segments_empty_tensors_and_no_parameters(kernel: Kernel) -> None:
    grads: Grads = [
        [random(kernel, torch.float32, shape, k) for shape in ((), (0,), (3, 0, 2), (4,))]
        for k in range(2)
    ]
    gram = check(kernel, grads, [0, 0, 2, 4], 5)
    assert (gram[[1, 2, 3]] == 0).all()
    assert kernel.gram([[], []], [], 1).shape == (1, 2, 2)


@every_kernel
@every_dtype
@pytest.mark.parametrize("tasks", [1, 8, 9, 65])
def test_segments_of_empty_tensors(kernel: Kernel, dtype: torch.dtype, tasks: int) -> None:
    shapes = [(0,), (3, 0), (4,)]
    grads: Grads = [
        [random(kernel, dtype, shape, 10 * k + p) for p, shape in enumerate(shapes)]
        for k in range(tasks)
    ]
    gram = check(kernel, grads, [0, 0, 1], 2)
    assert (gram[0] == 0).all()
    assert (kernel.gram([row[:2] for row in grads], [0, 0], 1) == 0).all()


@every_kernel
@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_memory_layout(kernel: Kernel, dtype: torch.dtype, layout: str) -> None:
    grads: Grads = [[LAYOUTS[layout](random(kernel, dtype, SHAPE, k))] for k in range(3)]
    check(kernel, grads, [0], 1)


@every_kernel
@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every_second"])
def test_tasks_whose_layouts_differ(kernel: Kernel, layout: str, second: str) -> None:
    """Element by element, not address by address."""
    pair = [LAYOUTS[name](random(kernel, torch.float32, SHAPE, 1)) for name in (layout, second)]
    gram = check(kernel, [[g] for g in pair], [0], 1)
    assert gram[0, 0, 1] == pytest.approx(float(gram[0, 0, 0]), rel=1e-6)


@every_kernel
def test_expanded_gradients(kernel: Kernel) -> None:
    """The gradient of a plain sum: one element, seen everywhere."""
    number = torch.ones((), device=kernel.device)
    grads: Grads = [[number.expand(30, 7)], [random(kernel, torch.float32, (30, 7), 0)]]
    grads.append([random(kernel, torch.float32, (7,), 1).expand(30, 7)])
    check(kernel, grads, [0], 1)


@every_kernel
def test_dtypes_that_differ_between_parameters(kernel: Kernel) -> None:
    grads: Grads = [
        [random(kernel, dtype, (41,), 10 * k + p) for p, dtype in enumerate(DTYPES * 2)]
        for k in range(3)
    ]
    check(kernel, grads, [0] * 8, 1)
    check(kernel, grads, [0, 1, 2, 3] * 2, 4)


@every_kernel
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_is_a_pair_of_reals(kernel: Kernel, dtype: torch.dtype) -> None:
    real = [random(kernel, torch.float64, (9, 5, 2), k) for k in range(3)]
    grads: Grads = [[torch.view_as_complex(x).to(dtype)] for x in real]
    check(kernel, grads, [0], 1)
    grads[0] = [grads[0][0].conj()]
    check(kernel, grads, [0], 1)


@every_kernel
def test_a_thousand_tiny_tensors(kernel: Kernel) -> None:
    grads: Grads = [
        [random(kernel, torch.float32, (1 + p % 3,), 1000 * k + p) for p in range(1000)]
        for k in range(3)
    ]
    check(kernel, grads, [0] * 1000, 1)
    some = 1000 if kernel.most > 50_000 else 100
    check(kernel, [row[:some] for row in grads], [p % 7 for p in range(some)], 7)


@every_kernel
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_non_finite_gradients_are_seen(kernel: Kernel, dtype: torch.dtype, bad: float) -> None:
    grads: Grads = [[random(kernel, dtype, (50,), 2 * k + p) for p in range(2)] for k in range(2)]
    grads[1][1][17] = bad
    gram = kernel.gram(grads, [0, 1], 2)
    assert gram[0].isfinite().all()
    assert not gram[1, 1, 1].isfinite()
    assert gram[1, 0, 0].isfinite()


@every_kernel
def test_reading_twice_gives_the_same_bits(kernel: Kernel) -> None:
    grads: Grads = [[random(kernel, torch.float32, (100_003,), k)] for k in range(3)]
    if kernel.most < 100_003:
        grads = [[row[0][: kernel.most]] for row in grads]
    assert torch.equal(kernel.gram(grads, [0], 1), kernel.gram(grads, [0], 1))


@every_kernel
def test_equal_gradients_give_equal_entries(kernel: Kernel) -> None:
    """Copies and exact opposites are recognised as such: no rounding between G_ii and G_ij."""
    g = random(kernel, torch.float32, (5003,), 0)
    gram = kernel.gram([[g], [g.clone()], [g.neg()]], [0], 1)[0]
    assert (gram.abs() == gram[0, 0]).all()
