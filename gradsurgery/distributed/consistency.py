"""Consistency of the ranks: a difference in what they do is refused before it reaches a weight.

Ranks that went different ways do not fail: they train different models, in silence. What is looked
at, and when:

* with a ``process_group``: tasks, method and visiting order at every step, in the message that is
  exchanged anyhow;
* with sharded parameters: the tasks run, their order, and the visiting order at every step;
* without a ``process_group``, in a job of several processes: the Gram matrix of the first step,
  through the job's key-value store, which waits for nobody (sharded: with ranks outside the mesh);
* with a ``process_group``: weights and the method's state at the first step and after a load;
* in every case, with ``TORCH_DISTRIBUTED_DEBUG=INFO`` or ``DETAIL``: Gram matrix, order and weights
  of every step.
"""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d as c10d

from gradsurgery.transfer import to_device

#: A fingerprint's size: its square times any number of ranks fits into 63 bits.
BITS = 20

#: Gradients that were averaged have equal Gram matrices up to this part of the larger norms.
ROUNDING = 1e-4

DIFFERENT_SETTINGS = (
    "the ranks disagree on tasks, method, parameters or the visiting order: build the optimizer "
    "with the same tasks, method, seed and parameters on every rank, and load the same checkpoint "
    "everywhere"
)
NOT_AVERAGED = (
    "{what} on this rank and another differ, so the tasks' gradients were not averaged over the "
    "processes, and each would train a model of its own. Either pass "
    "process_group=dist.group.WORLD to GradientSurgery and run forward and backward inside "
    "ddp.no_sync() (or on the bare module), or run each task's forward and backward through "
    "DistributedDataParallel. (Models that are meant to differ: pass a process_group of one rank.)"
)
NOT_SHARDED = (
    "the gradients of parameters beside the sharded ones differ from rank to rank: nobody averages "
    "them, and each rank would train its own. Shard the whole model (fully_shard(model) after its "
    "parts, no ignored_params), or freeze them"
)
DIFFERENT_TASKS = (
    "the ranks ran different tasks: this one {tasks}, and others not the same at the same time. "
    "With sharded parameters every rank has to run the same tasks in the same order (a forward "
    "pass reads the other ranks' shards): draw the tasks with one seed on all ranks"
)


def fingerprint(*parts: object) -> int:
    """Return a number of ``BITS`` bits that stands for ``parts``: tensors, or what repr tells.

    Example:
        >>> fingerprint("a", torch.ones(2)) == fingerprint("a", torch.ones(2))
        True
    """
    code = 0
    for part in parts:
        data = _bytes(part) if isinstance(part, Tensor) else repr(part).encode()
        code = zlib.crc32(data, code)
    return code % (1 << BITS)


def checksum(tensors: Sequence[Tensor]) -> int:
    """Return a number of ``BITS`` bits that stands for the values of ``tensors``, to the bit.

    Example:
        >>> checksum([torch.ones(3)]) == checksum([torch.ones(3)]) != checksum([torch.zeros(3)])
        True
    """
    sums = [_integers(tensor).sum(dtype=torch.int64) for tensor in tensors]
    return fingerprint(torch.stack(sums)) if sums else 0


def _integers(tensor: Tensor) -> Tensor:
    """Return the bits of a tensor as integers."""
    held = tensor.detach().contiguous().flatten()
    width = min(held.element_size(), 8)
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return held.view(kinds[width])


def settings_of(thing: object) -> list[object]:
    """Return what tells two configured objects apart, and is the same in every process.

    Example:
        >>> from gradsurgery import GradVac
        >>> settings_of(GradVac())[0], "beta=0.01" in settings_of(GradVac())
        ('GradVac', True)
    """
    plain = (int, float, str, bool, type(None), tuple)
    settings: list[object] = [type(thing).__qualname__]
    for name, value in sorted(vars(thing).items()):
        if isinstance(value, Tensor):
            settings.append(f"{name}={fingerprint(value)}")
        elif isinstance(value, plain):
            settings.append(f"{name}={value!r}")
    return settings


def _bytes(tensor: Tensor) -> bytes:
    held = tensor.detach().cpu().contiguous()
    return ctypes.string_at(held.data_ptr(), held.numel() * held.element_size())


def votes(code: int) -> list[int]:
    """Return what each rank contributes to a sum that tells whether all codes were the same."""
    return [code, code * code]


def unanimous(total: Sequence[int], ranks: int) -> bool:
    """Whether the ranks' :func:`votes`, summed, were for one code (Cauchy and Schwarz).

    Example:
        >>> unanimous([6, 12], 3), unanimous([6, 14], 3)
        (True, False)
    """
    return total[0] * total[0] == ranks * total[1]


class _Call(NamedTuple):
    name: str
    answers: Tensor  # [groups, 4] int64
    works: list[Any]


class RollCall:
    """Under sharded parameters: every rank says which task it begins, at the same time.

    The answers are asked for with a small collective each. On a CPU they are read at once, before
    the forward pass; on a GPU, where reading waits for the device, together at the end, unless
    debugging.

    Args:
        meshes: of the parameters.
    """

    def __init__(self, meshes: Sequence[Any]) -> None:
        self.groups = [group for mesh in meshes for group in mesh.get_all_groups()]
        self.device = torch.device(meshes[0].device_type)
        #: All that share a dimension of a mesh with this rank, itself among them.
        self.ranks = {r for mesh in meshes for r in mesh.mesh.flatten().tolist()}
        self._calls: list[_Call] = []

    def call(self, name: str, *parts: object) -> None:
        """Say ``name``, and what else must be the same everywhere."""
        ballot = votes(fingerprint(name)) + votes(fingerprint(*parts))
        ballots = torch.tensor([ballot] * len(self.groups), dtype=torch.int64, device="cpu")
        answers = to_device(ballots, self.device)
        works = [
            dist.all_reduce(answer, group=group, async_op=True)
            for answer, group in zip(answers, self.groups, strict=True)
        ]
        self._calls.append(_Call(name, answers, works))
        if debugging() or self.device.type == "cpu":
            self.check()

    def check(self) -> None:
        """Compare what was said since.

        Raises:
            RuntimeError: where ranks said different things.
        """
        calls, self._calls = self._calls, []
        for number, call in enumerate(calls):
            for work in call.works:
                work.wait()
            for total, group in zip(call.answers.tolist(), self.groups, strict=True):
                ranks = dist.get_world_size(group)
                if not unanimous(total[:2], ranks):
                    names = [call.name for call in calls[: number + 1]]
                    raise RuntimeError(DIFFERENT_TASKS.format(tasks=", then ".join(names)))
                if not unanimous(total[2:], ranks):
                    raise RuntimeError(DIFFERENT_SETTINGS)

    def clear(self) -> None:
        """Forget what was said."""
        self._calls = []


def debugging() -> bool:
    """Whether torch's own debug level asks for checks at every step."""
    return dist.is_available() and c10d.get_debug_level() != c10d.DebugLevel.OFF


def compare(
    parts: dict[str, Tensor], group: dist.ProcessGroup | None, device: torch.device
) -> None:
    """Compare ``parts`` over the group, to the bit; every rank has to call this.

    Raises:
        RuntimeError: where they differ; the message names what differs, and from which rank.
    """
    codes = torch.tensor([*map(fingerprint, parts.values())], dtype=torch.int64, device=device)
    everyone = [torch.empty_like(codes) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, codes, group=group)
    for rank, other in enumerate(everyone):
        different = [
            name for name, same in zip(parts, (other == codes).tolist(), strict=True) if not same
        ]
        if different:
            raise RuntimeError(
                NOT_AVERAGED.format(what=f"{' and '.join(different)} (of rank {rank})")
            )


#: How many optimizers of one code were compared.
_compared: dict[int, int] = {}


def compare_with_neighbours(
    code: int, active: Tensor, gram: Tensor, here: AbstractSet[int]
) -> int | None:
    """Compare the Gram matrix with those that the ranks next to these left behind.

    Nobody waits: whoever comes second sees the difference.

    Args:
        code: of the optimizer's tasks and parameters. Optimizers that other ranks do not have are
            compared with nobody.
        active: ``[K]`` bool, the tasks that ran.
        gram: ``[S, K, K]``.
        here: the ranks that have one Gram matrix: this one, or those of its mesh.

    Returns:
        A rank whose Gram matrix differs by more than rounding, if there is one.
    """
    store_of = getattr(c10d, "_get_default_store", None)
    store = store_of() if store_of is not None else None
    if store is None:  # MPI has none
        return None
    rank, ranks = dist.get_rank(), dist.get_world_size()
    _compared[code] = _compared.get(code, 0) + 1
    prefix = f"gradsurgery/{code}/{_compared[code]}"
    products = torch.where(active[:, None] & active, gram.detach().cpu().sum(0), -1).double()
    store.set(f"{prefix}/{rank}", repr(products.flatten().tolist()))
    for step in (-1, 1):
        around = ((rank + step * turn) % ranks for turn in range(1, ranks))
        other = next((neighbour for neighbour in around if neighbour not in here), None)
        if other is None:
            continue
        key = f"{prefix}/{other}"
        if store.check([key]) and not alike(products, _parsed(store.get(key), products.shape)):
            return other
    return None


def _parsed(text: bytes, shape: torch.Size) -> Tensor:
    numbers = [float(word) for word in text.decode().strip("[]").split(", ")]
    return torch.tensor(numbers, dtype=torch.float64, device="cpu").view(shape)


def alike(gram: Tensor, other: Tensor) -> bool:
    """Whether two Gram matrices ([..., K, K]) are equal but for rounding."""
    if not bool(gram.isfinite().all() & other.isfinite().all()):
        return True  # an overflow tells nothing
    norm = gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    allowed = ROUNDING * norm[..., :, None] * norm[..., None, :]
    return bool(((gram - other).abs() <= allowed).all())
