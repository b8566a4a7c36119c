"""The Triton kernels: what they promise beyond the tests that all kernels share.

The interpreter runs them on the CPU in a process of its own (``test_under_the_interpreter``), which
collects this file again. On a GPU everything here runs as it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gradsurgery import GradientSurgery, GradVac, Method, PCGrad, Verdict, kernels
from gradsurgery.methods import State
from gradsurgery.methods.order import initial_rng, visiting_order
from tests.gradsurgery.problems import TwoHeads, losses_of, state_of
from tests.methods import METHODS, ON_DEVICE, every_method, obeying

pytest.importorskip("triton")

HERE = Path(__file__).parent
SHARED = ("test_gram.py", "test_combine.py", "../test_combine.py", "test_fused.py", "test_svd.py")

interpreted = os.environ.get("TRITON_INTERPRET") == "1"
cuda = torch.cuda.is_available() and not interpreted
DEVICE = "cuda" if cuda else "cpu"
running = pytest.mark.skipif(not (interpreted or cuda), reason="no GPU and no interpreter")
on_cuda = pytest.mark.skipif(not cuda, reason="no GPU")


@pytest.mark.skipif(interpreted or cuda, reason="the kernels run in this process")
def test_under_the_interpreter() -> None:
    """Triton decides when it is imported, so the interpreted tests take a process of their own."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "GRADSURGERY_KERNELS": "fused"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider"]
    # numpy, which the interpreter computes with, warns of the overflows that the tests are about.
    command += ["-W", "ignore::RuntimeWarning", *(str(HERE / name) for name in SHARED)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout


# ------------------------------------------------------------------ the maths on the device


def problems(tasks: int) -> list[Tensor]:
    """Gram matrices [2, K, K] of gradients in general position, opposite, absent and scaled."""
    generator = torch.Generator().manual_seed(tasks)
    grads = torch.randn(6, 2, tasks, 40, dtype=torch.float64, generator=generator)
    grads[1, :, -1] = -2 * grads[1, :, 0]
    grads[2, 0, tasks // 2] = 0
    grads[3, 1] = 0
    grads[4] *= torch.logspace(-12, 12, tasks, dtype=torch.float64)[:, None]
    grads[5] += 3 * torch.randn(40, dtype=torch.float64, generator=generator)
    return [(g @ g.mT).to(DEVICE) for g in grads]


def both(method: Method, gram: Tensor, order: Tensor, state: State) -> tuple[Verdict, Verdict]:
    """The verdicts of the kernel and of the plain maths."""
    from gradsurgery.methods import fused

    facts = {"order": order}
    return fused.decide(method, gram, state, facts), method(gram, state=state, **facts)


@running
@pytest.mark.parametrize("tasks", [1, 2, 3, 5, 16, 33])
def test_pcgrad_is_the_cpus(tasks: int) -> None:
    order = visiting_order(initial_rng(tasks), tasks)[0].to(DEVICE)
    for gram in problems(tasks):
        ours, theirs = both(PCGrad(), gram, order, {})
        torch.testing.assert_close(ours.weights, theirs.weights, rtol=1e-12, atol=1e-12)
        assert torch.equal(ours.altered, theirs.altered)


@running
@pytest.mark.parametrize("update", ["always", "on_alter"])
@pytest.mark.parametrize("tasks", [1, 2, 3, 5, 16])
def test_gradvac_is_the_cpus(tasks: int, update: Any) -> None:
    order = visiting_order(initial_rng(tasks), tasks)[0].to(DEVICE)
    generator = torch.Generator().manual_seed(tasks)
    draws = torch.rand(2, tasks, tasks, dtype=torch.float64, generator=generator)
    for low, high in [(-1.0, 0.5), (0.0, 0.3), (-1.0, -1.0), (0.0, 0.0)]:
        target = (low + (high - low) * draws).to(DEVICE)
        for gram in problems(tasks):
            ours, theirs = both(GradVac(0.01, update), gram, order, {"target": target})
            assert relative_error(ours, theirs) < 1e-12
            assert torch.equal(ours.altered, theirs.altered)
            for mine, other in zip(ours.state.values(), theirs.state.values(), strict=True):
                torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


@running
@pytest.mark.parametrize("tasks", [2, 3, 5, 16])
def test_gradvac_at_its_cap(tasks: int) -> None:
    """Visits that end exactly at the cap, from where none goes further."""
    order = visiting_order(initial_rng(tasks), tasks)[0].to(DEVICE)
    target = torch.ones(2, tasks, tasks, dtype=torch.float64, device=DEVICE)
    for number, gram in enumerate(problems(tasks)):
        if number == 1:
            continue  # nor is there an answer to which way opposite gradients are to turn
        ours, theirs = both(GradVac(0.01, "on_alter"), gram, order, {"target": target})
        assert relative_error(ours, theirs) < 1e-9
        assert torch.equal(ours.altered, theirs.altered)


def relative_error(ours: Verdict, theirs: Verdict) -> float:
    scale = theirs.weights.abs().amax(-1, keepdim=True)
    return float(((ours.weights - theirs.weights).abs() / scale).max())


# ------------------------------------------------------------------ the optimizer on the device


def train(method: Method, steps: int = 4, **options: Any) -> tuple[nn.Module, GradientSurgery]:
    torch.manual_seed(0)
    model = TwoHeads().to(DEVICE)
    base = torch.optim.SGD(model.named_parameters(), lr=0.1)
    optimizer = GradientSurgery(base, method, tasks=("a", "b"), **options)
    for step in range(steps):
        losses = {
            name: loss for name, loss in _losses(model, step).items() if step != 2 or name == "a"
        }
        optimizer.join(losses).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def _losses(model: TwoHeads, seed: int) -> dict[str, Tensor]:
    if DEVICE == "cpu":
        return losses_of(model, seed)
    with torch.device("cpu"):
        batches = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(seed))
    signs = {"a": 1.0, "b": -1.0}
    return {
        task: (model(x, task) - signs[task]).square().mean()
        for task, x in zip(signs, batches.to(DEVICE), strict=True)
    }


@running
@pytest.mark.parametrize("grouping", ["model", "layer", "tensor"])
@every_method
def test_training_is_the_eager_one(
    name: str, grouping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads, an adapter in the middle, a step without task b: weights, state and statistics."""
    monkeypatch.setenv("GRADSURGERY_KERNELS", "fused")
    model, optimizer = train(METHODS[name].make(1), grouping=grouping)
    summary = optimizer.conflicts.summary()
    monkeypatch.setenv("GRADSURGERY_KERNELS", "eager")
    plain, wanted = train(METHODS[name].make(1), grouping=grouping)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    state, other = (state_of(o) for o in (optimizer, wanted))
    assert torch.equal(state["rng"], other["rng"])
    if "target" in other:
        torch.testing.assert_close(state["target"].cpu(), other["target"].cpu(), rtol=0, atol=1e-6)
    expected = wanted.conflicts.summary()
    assert summary["gradients"] == expected["gradients"]
    for pair, theirs in zip(summary["pairs"], expected["pairs"], strict=True):
        assert {k: pair[k] for k in ("possible", "conflicts", "altered")} == {
            k: theirs[k] for k in ("possible", "conflicts", "altered")
        }
        assert pair["cosine"]["mean"] == pytest.approx(theirs["cosine"]["mean"], abs=1e-6)


class NoReading(TorchDispatchMode):
    """Refuses what makes the host wait for a number."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket not in (
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.nonzero,
            torch.ops.aten.is_nonzero,
            torch.ops.aten.equal,
            torch.ops.aten._linalg_svd,
            torch.ops.aten._linalg_eigh,
        ), f"{func} reads a value"
        return func(*args, **(kwargs or {}))


@running
@obeying(ON_DEVICE)
def test_nothing_is_read_in_a_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without a GPU: the host asks for no value of a tensor between backward and step."""
    monkeypatch.setenv("GRADSURGERY_KERNELS", "fused")
    model, optimizer = train(METHODS[name].make(1))
    losses = _losses(model, 9)
    for task, loss in losses.items():
        with optimizer.task(task, loss=loss):
            loss.backward()
    for name in ("tolist", "item", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(Tensor, name, _refused(name, getattr(Tensor, name)))
    with NoReading():
        optimizer.combine()


def _refused(name: str, original: Any) -> Any:
    def method(self: Tensor, *arguments: Any) -> Any:
        code = sys._getframe(1).f_code.co_filename
        assert f"{os.sep}gradsurgery{os.sep}" not in code, f"{name} in {code} reads a value"
        return original(self, *arguments)

    return method


@running
def test_tables_are_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradsurgery.kernels import address_tables, fused

    columns = [[torch.randn(n, device=DEVICE) for _ in range(2)] for n in (100, 7)]
    fused.gram(columns, [0, 1], 2, 2)
    sent: list[Tensor] = []
    to_device = address_tables.to_device

    def counted(host: Tensor, device: torch.device) -> Tensor:
        sent.append(host)
        return to_device(host, device)

    monkeypatch.setattr(address_tables, "to_device", counted)
    fused.gram(columns, [0, 1], 2, 2)
    fused.combine_(columns, torch.ones(2, 2, dtype=torch.float64, device=DEVICE), [0, 1])
    assert not sent
    columns[0][0] = torch.randn(100, device=DEVICE)
    fused.gram(columns, [0, 1], 2, 2)
    assert len(sent) == 1  # the addresses; shapes and segments are as they were


@running
def test_what_lies_at_the_same_address_is_told_apart() -> None:
    """Other lengths, dtypes and layouts at addresses that are known."""
    from gradsurgery.kernels import fused

    a, b = (torch.randn(64, device=DEVICE) for _ in range(2))
    views = [
        lambda x: x,
        lambda x: x[:48],
        lambda x: x.copy_(torch.ones_like(x)).view(torch.bfloat16)[:64],
        lambda x: x.view(8, 8)[:, :4],
        lambda x: x,
    ]
    for view in views:
        pair = [view(a), view(b)]
        exact = float((pair[0].double() * pair[1].double()).sum())
        product = float(fused.gram([pair], [0], 1, 2)[0, 0, 1])
        assert product == pytest.approx(exact, rel=1e-5, abs=1e-5)


@running
def test_the_cache_of_tables_is_bounded() -> None:
    from gradsurgery.kernels import address_tables, fused

    for size in range(1, address_tables.KEPT + 10):
        fused.gram([[torch.ones(size, device=DEVICE) for _ in range(2)]], [0], 1, 2)
    assert len(address_tables._cache) <= address_tables.KEPT
    assert len(address_tables._known) <= address_tables.KEPT


@running
def test_several_devices_are_refused() -> None:
    from gradsurgery.kernels import fused

    columns = [[torch.ones(3, device=device)] * 2 for device in (DEVICE, "meta")]
    with pytest.raises(ValueError, match="several devices"):
        fused.gram(columns, [0, 0], 1, 2)


def test_an_unknown_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADSURGERY_KERNELS", "fast")
    with pytest.raises(ValueError, match="GRADSURGERY_KERNELS is one of auto, eager, fused"):
        kernels.fused_on(torch.device("cpu"), 2)


# ------------------------------------------------------------------ on a GPU only


@on_cuda
@obeying(ON_DEVICE)
def test_a_step_never_waits_for_the_host(name: str) -> None:
    model, optimizer = train(METHODS[name].make(1))
    batches = torch.randn(40, 2, 8, 3, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for pair in batches:  # more steps than the statistics put aside
            losses = [model(x, t).square().mean() for t, x in zip("ab", pair, strict=True)]
            optimizer.join(losses).backward()
            optimizer.step()
            optimizer.zero_grad()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert optimizer.conflicts.summary()["window"] >= 40


@on_cuda
def test_a_hundred_million_elements() -> None:
    from gradsurgery.kernels import eager, fused

    columns = [[torch.randn(100_000_000, device="cuda") for _ in range(2)]]
    ours, theirs = fused.gram(columns, [0], 1, 2), eager.gram(columns, [0], 1, 2)
    assert (ours - theirs).abs().max() < 1e-6 * theirs.diagonal(dim1=1, dim2=2).max()


# ------------------------------------------------------------------ compiled, without a GPU

POINTERS = {
    "addresses": "*i64",
    "chunks": "*i64",
    "partial": "*fp64",
    "weights": "*fp64",
    "first": "*i64",
    "cells": "*i32",
    "gram": "*fp64",
    "order": "*i64",
    "target": "*fp64",
    "altered": "*i1",
    "fresh": "*fp64",
    "P": "i32",
}


def compiled(program: Any, warps: int, constants: dict[str, Any], capability: int) -> str:
    """The program's PTX for a GPU of that capability."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: POINTERS.get(name, "constexpr") for name in program.arg_names}
    source = ASTSource(program, signature, constants)
    target = GPUTarget("cuda", capability, 32)
    found: str = triton.compile(source, target=target, options={"num_warps": warps}).asm["ptx"]
    return found


@pytest.mark.skipif(interpreted, reason="the interpreter does not compile")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_programs_compile_to_vector_loads(dtype: str, capability: int) -> None:
    """For A100 and H100: all compile, and the passes load 16 bytes at a time."""
    import triton.language as tl

    from gradsurgery.kernels import fused, triton_kernels, triton_methods

    common = {"DTYPE": getattr(tl, dtype), "ALIGNED": True}
    for tasks in (2, 3):
        sizes = fused._small(tasks)
        warps = sizes.pop("num_warps")
        ptx = compiled(triton_kernels.pairs, warps, {"K": tasks, **common, **sizes}, capability)
        assert ".v4.b32" in ptx
    block = fused._lane_block(getattr(torch, dtype))
    constants = {"K": 3, "BLOCK": block, **common}
    ptx = compiled(triton_kernels.combine, 4, constants, capability)
    assert "ld.global.v4.b32" in ptx
    assert "st.global.v4.b32" in ptx
    sizes = fused._large(32)
    warps = sizes.pop("num_warps")
    assert "mma" in compiled(triton_kernels.panel, warps, {"K": 32, **common, **sizes}, capability)
    sizes = {"WIDTH": 6, "PAIRS": 6, "K": 3, "BLOCK": 8, "ROWS": 1024}
    compiled(triton_kernels.reduce, 8, sizes, capability)
    constants = {"CANCELLED": 1e-6, "CAP": 100.0, "HIGHEST": 1.0, "BETA": 0.01, "ALWAYS": True}
    constants |= {"K": 3, "ROWS": 4, "GRADVAC": True}
    assert "sqrt.rn.f64" in compiled(triton_methods._visits_kernel, 1, constants, capability)
