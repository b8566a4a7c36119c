"""Families of gradients that surgery has to get right, by name, and hypothesis strategies of them.

A family is a function ``(rng, K, N, spread) -> [K, N] float64``; ``spread`` is the ratio of norms
that the dtype can hold. A :class:`Problem` is one draw, cut into parameters and cast to a dtype.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

Family = Callable[[np.random.Generator, int, int, float], np.ndarray]
FAMILIES: dict[str, Family] = {}

# What a dtype can hold: overall scales (powers of two, so that scaling is exact), ratio of norms.
SCALES = {
    torch.float64: ([1.0, 2.0**-66, 2.0**66, 2.0**-7, 2.0**10], 1e6),
    torch.float32: ([1.0, 2.0**-66, 2.0**66, 2.0**-7, 2.0**10], 1e6),
    torch.bfloat16: ([1.0, 2.0**-66, 2.0**66, 2.0**-7, 2.0**10], 1e6),
    torch.float16: ([1.0, 2.0**-4, 2.0**5], 10.0),
}
# What one rounding to a dtype costs, relative.
ROUNDING = {torch.float64: 0.0, torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}
MILD_TARGETS = [0.0, 0.05, 0.3, 0.9, -0.2]
EXTREME_TARGETS = [0.9999, 1.0, -1.0]
LAYOUTS: list[list[tuple[int, ...]]] = [
    [(1,)],
    [(3,)],
    [()],
    [(2,), (1,)],
    [(7, 5)],
    [(), (3, 1, 2), (5,)],
    [(4, 3), (0,), (11,), (2, 2)],
    [(17,), (1, 9), (3, 3, 3)],
]


def family(function: Family) -> Family:
    """Register one family under its name."""
    FAMILIES[function.__name__] = function
    return function


@family
def independent(rng: np.random.Generator, tasks: int, size: int, spread: float) -> np.ndarray:
    return rng.standard_normal((tasks, size))


@family
def conflicting(rng: np.random.Generator, tasks: int, size: int, spread: float) -> np.ndarray:
    """Every pair against each other as far as K directions allow: they almost sum to zero."""
    grads = rng.standard_normal((tasks, size))
    return grads - 0.95 * grads.mean(0)


@family
def aligned(rng: np.random.Generator, tasks: int, size: int, spread: float) -> np.ndarray:
    common = rng.standard_normal(size)
    common += np.where(common >= 0, 0.5, -0.5)
    noise = rng.uniform(-0.1, 0.1, (tasks, size))
    return common * (1 + noise)  # signs agree everywhere: every dot is positive


@family
def nearly_orthogonal(rng: np.random.Generator, tasks: int, size: int, spread: float) -> np.ndarray:
    grads = np.zeros((tasks, size))
    grads[np.arange(tasks), np.arange(tasks) % max(size, 1)] = 1.0
    return grads + 1e-3 * rng.standard_normal((tasks, size))


@family
def identical(rng: np.random.Generator, tasks: int, size: int, spread: float) -> np.ndarray:
    return np.tile(rng.standard_normal(size), (tasks, 1))


@family
def opposite(rng: np.random.Generator, tasks: int, size: int, spread: float) -> np.ndarray:
    signs = np.where(np.arange(tasks) % 2, -1.0, 1.0)
    return signs[:, None] * rng.standard_normal(size)


@family
def parallel(rng: np.random.Generator, tasks: int, size: int, spread: float) -> np.ndarray:
    """Multiples of one direction, with either sign: powers of two, so that a dtype keeps them."""
    factors = 2.0 ** rng.integers(-3, 4, tasks) * rng.choice([-1.0, 1.0], tasks)
    return factors[:, None] * rng.standard_normal(size)


@family
def one_zero(rng: np.random.Generator, tasks: int, size: int, spread: float) -> np.ndarray:
    grads = rng.standard_normal((tasks, size))
    grads[rng.integers(tasks)] = 0
    return grads


@family
def all_zero(rng: np.random.Generator, tasks: int, size: int, spread: float) -> np.ndarray:
    return np.zeros((tasks, size))


@family
def one_hot(rng: np.random.Generator, tasks: int, size: int, spread: float) -> np.ndarray:
    grads = np.zeros((tasks, size))
    grads[np.arange(tasks), rng.integers(size, size=tasks)] = rng.choice([-1.0, 2.0, -0.5], tasks)
    return grads


@family
def unequal_norms(rng: np.random.Generator, tasks: int, size: int, spread: float) -> np.ndarray:
    exponents = rng.uniform(-1, 1, tasks) * np.log10(spread)
    exponents[0] = -np.log10(spread)
    exponents[-1] = np.log10(spread)
    return 10.0 ** exponents[:, None] * rng.standard_normal((tasks, size))


@family
def low_rank(rng: np.random.Generator, tasks: int, size: int, spread: float) -> np.ndarray:
    rank = max(tasks // 2, 1)
    return rng.standard_normal((tasks, rank)) @ rng.standard_normal((rank, size))


@dataclass
class Problem:
    """K gradients over P parameters, a visiting order and targets."""

    label: str
    grads: list[list[Tensor]]  # [K][P]
    order: Tensor  # [K, K] int64, every row a permutation
    target: Tensor  # [K, K] float64 in [-1, 1]

    @property
    def tasks(self) -> int:
        return len(self.grads)

    @property
    def matrix(self) -> np.ndarray:
        """The gradients as [K, N] float64, exact."""
        return flat(self.grads)

    @property
    def norms(self) -> np.ndarray:
        """The norms, in [K]."""
        matrix = self.matrix
        largest = max(np.abs(matrix).max(initial=0.0), 1e-300)
        return largest * np.linalg.norm(matrix / largest, axis=1)

    def __repr__(self) -> str:
        return f"Problem({self.label}, norms={self.norms}, order={self.order.tolist()})"


def flat(grads: Sequence[Sequence[Tensor]]) -> np.ndarray:
    """The same numbers as [K, N] float64."""
    return np.stack([joined(row) for row in grads])


def joined(row: Sequence[Tensor]) -> np.ndarray:
    """The numbers of a list of tensors, float64, one after the other."""
    return np.concatenate([t.detach().to(torch.float64).reshape(-1).numpy() for t in row])


def draw(
    name: str,
    tasks: int,
    layout: Sequence[tuple[int, ...]],
    seed: int,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    """One problem of a family, always the same for the same arguments."""
    rng = np.random.default_rng([seed, tasks, len(layout)])
    sizes = [int(np.prod(shape)) for shape in layout]
    matrix = scale * FAMILIES[name](rng, tasks, sum(sizes), SCALES[dtype][1])
    grads = [
        [
            torch.from_numpy(piece.copy()).reshape(shape).to(dtype)
            for piece, shape in zip(np.split(row, np.cumsum(sizes)[:-1]), layout, strict=True)
        ]
        for row in matrix
    ]
    order = np.stack([rng.permutation(tasks) for _ in range(tasks)])
    values = MILD_TARGETS if rng.random() < 0.75 else MILD_TARGETS + EXTREME_TARGETS
    target = rng.choice(values, (tasks, tasks))
    return Problem(
        f"{name}, K={tasks}, shapes={list(layout)}, seed={seed}, scale={scale:.3g}, {dtype}",
        grads,
        torch.from_numpy(order),
        torch.from_numpy(target),
    )


@st.composite
def problems(
    draw_from: st.DrawFn,
    names: Sequence[str] = tuple(FAMILIES),
    dtype: torch.dtype = torch.float64,
    tasks: tuple[int, int] = (1, 8),
    layouts: Sequence[Sequence[tuple[int, ...]]] = LAYOUTS,
) -> Problem:
    """Problems of the named families: K tasks, all layouts, all scales that the dtype can hold."""
    return draw(
        draw_from(st.sampled_from(list(names))),
        draw_from(st.integers(*tasks)),
        draw_from(st.sampled_from(layouts)),
        draw_from(st.integers(0, 2**16)),
        draw_from(st.sampled_from(SCALES[dtype][0])),
        dtype,
    )
