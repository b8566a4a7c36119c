"""Singular values and vectors on the device: against torch's, and as exact as the rows are.

Interpreted in the process that ``test_fused.py`` starts, on a GPU as they are.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

interpreted = os.environ.get("TRITON_INTERPRET") == "1"
cuda = torch.cuda.is_available() and not interpreted
DEVICE = "cuda" if cuda else "cpu"
running = pytest.mark.skipif(not (interpreted or cuda), reason="no GPU and no interpreter")
EPSILON = 2.0**-52


def cosines(grads: Tensor) -> Tensor:
    units = grads / grads.norm(dim=-1, keepdim=True)
    return units @ units.mT


def matrices(tasks: int) -> dict[str, Tensor]:
    """Matrices [K, K] of cosines: in general position, of low rank, nearly dependent, repeated."""
    generator = torch.Generator().manual_seed(tasks)
    grads = torch.randn(tasks, 2 * tasks, dtype=torch.float64, generator=generator)
    signs = torch.where(torch.arange(tasks) % 2 == 0, 1.0, -1.0).double().unsqueeze(-1)
    return {
        "general": cosines(grads),
        "low rank": cosines(grads[:, : max(1, tasks // 2)]),
        "nearly parallel": cosines(grads[:1] + 1e-6 * grads),
        "opposite": cosines(signs * grads[:1]),
        "conflicting": cosines(grads - 0.95 * grads.mean(0)),
        "rank one": torch.ones(tasks, tasks).double(),
        "orthogonal": torch.eye(tasks).double(),
        "pairs": torch.kron(torch.eye(tasks), torch.ones(2, 2))[:tasks, :tasks].double(),
        "one of zeros": torch.diag((torch.arange(tasks) == tasks // 2).double()),
        "zero": torch.zeros(tasks, tasks).double(),
    }


def check(matrix: Tensor) -> None:
    """A = U diag(s) V', U orthogonal, s descending and torch's."""
    from gradsurgery.kernels import triton_svd

    sizes, vectors = (value.cpu() for value in triton_svd.left_svd(matrix.to(DEVICE)))
    tasks, largest = matrix.shape[-1], matrix.abs().amax().clamp(min=1) * matrix.shape[-1]
    rounding = 8 * tasks * EPSILON
    identity = torch.eye(tasks, dtype=torch.float64)
    assert (vectors.mT @ vectors - identity).abs().max() <= rounding
    rows = vectors.mT @ matrix
    off = rows @ rows.mT - torch.diag_embed(sizes**2)
    assert off.abs().max() <= rounding * largest**2
    assert (sizes - torch.linalg.svdvals(matrix)).abs().max() <= rounding * largest
    assert (sizes.diff(dim=-1) <= rounding * largest).all()


@running
@pytest.mark.parametrize("tasks", [1, 2, 3, 5, 8])
def test_the_decomposition_is_torchs(tasks: int) -> None:
    check(torch.stack(list(matrices(tasks).values())))


@running
@pytest.mark.parametrize("name", ["general", "low rank", "opposite"])
@pytest.mark.parametrize("tasks", [16, 32])
def test_the_decomposition_of_many_tasks(tasks: int, name: str) -> None:
    check(matrices(tasks)[name].unsqueeze(0))


@running
@pytest.mark.parametrize("name", ["general", "low rank", "conflicting"])
@pytest.mark.parametrize("tasks", [2, 3, 5, 8])
def test_eigenvectors_of_cosines(tasks: int, name: str) -> None:
    """Where the matrix is positive semidefinite, they are torch.linalg.eigh's."""
    from gradsurgery.kernels import triton_svd

    matrix = matrices(tasks)[name]
    sizes, vectors = (v[0].cpu() for v in triton_svd.left_svd(matrix[None].to(DEVICE)))
    values, theirs = torch.linalg.eigh(matrix)
    assert torch.allclose(sizes, values.flip(0), atol=1e-13)
    cut = sizes > 1e-9  # the others are any basis of what is left
    kept = vectors[:, cut]
    assert torch.allclose(kept @ kept.mT, theirs.flip(1)[:, cut] @ theirs.flip(1)[:, cut].mT)
    assert torch.allclose(matrix @ kept, kept * sizes[cut])


@running
@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("tasks", [2, 3, 5, 8])
def test_rows_of_very_different_length_keep_their_digits(tasks: int, up: bool) -> None:
    """Norms 1 : 1e6, squares 1 : 1e12: relative accuracy, of each value."""
    from gradsurgery.kernels import triton_svd

    values, vectors = torch.linalg.eigh(matrices(tasks)["general"])
    norms = torch.logspace(-6, 0, tasks, dtype=torch.float64)
    norms = norms if up else norms.flip(0)
    factor = norms.unsqueeze(-1) * vectors * values.sqrt()
    sizes = triton_svd.left_svd(factor[None].to(DEVICE))[0].cpu()
    exact = torch.tensor(exact_sizes(factor), dtype=torch.float64)
    assert ((sizes[0] - exact).abs() <= 1e-13 * exact).all()


def exact_sizes(matrix: Tensor) -> list[float]:
    """Singular values, descending, by Jacobi's method on A A' with sixty digits."""
    from mpmath import mp, mpf

    with mp.workdps(60):
        exact = mp.matrix([[mpf(x) for x in row] for row in matrix.tolist()])
        values = mp.eigsy(exact * exact.T, eigvals_only=True)
        return sorted((float(mp.sqrt(value)) for value in values), reverse=True)


@pytest.mark.skipif(interpreted, reason="the interpreter does not compile")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("tasks", [2, 3, 8, 16, 32, 64])
def test_the_program_compiles_and_stays_in_registers(
    tasks: int, capability: int, tmp_path: Path
) -> None:
    """For A100 and H100, without a GPU: nothing is spilled, and all warps find room."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from gradsurgery.kernels import triton_svd

    program, constants = triton_svd._jacobi_kernel, triton_svd._shape(tasks)
    options = {"num_warps": constants.pop("num_warps"), "enable_fp_fusion": False}
    signature = dict.fromkeys(program.arg_names, "constexpr")
    signature |= dict.fromkeys(("matrix", "sizes", "vectors"), "*fp64")
    source = ASTSource(program, signature, {"K": tasks, **constants})
    code = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    binary = tmp_path / "program.cubin"
    binary.write_bytes(code.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run(
        [tool, "-res-usage", binary], capture_output=True, text=True, check=True
    ).stdout
    used = dict(part.split(":") for part in usage.split() if ":" in part and part[-1].isdigit())
    assert used["STACK"] == used["LOCAL"] == "0", usage
    assert int(used["REG"]) * 32 * options["num_warps"] <= 1 << 16, usage
