"""A device without float64, made of CPU memory: what surgery may ask of Apple's MPS, without a Mac.

Its tensors say that they lie on ``DEVICE``, and are CPU tensors inside. Whatever would make one of
float64, or turn one into float64 on its way to the host, raises what MPS raises. torch's type
``lazy`` lends the name: autograd runs it in the CPU's thread, and no backend is behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("lazy")
CPU = torch.device("cpu")


class NarrowTensor(Tensor):
    """A tensor on the device."""

    inside: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> NarrowTensor:
        tensor: NarrowTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )
        tensor.inside = values
        return tensor

    def __repr__(self, **_: Any) -> str:
        return f"NarrowTensor({self.inside})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Makes and copies tensors on the device, and counts the copies to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.read = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        target = kwargs.get("device")
        copied = target is not None and torch.device(target) == CPU
        number = func is torch.ops.aten._local_scalar_dense.default
        self.read += _narrow((args, kwargs)) and (copied or number)
        return _run(func, args, kwargs)


@contextmanager
def narrow_device() -> Iterator[_Factories]:
    """Have the device; ``read`` counts what the host waited for."""
    with _Factories() as factories:
        yield factories


def _narrow(values: Any) -> bool:
    return any(isinstance(value, NarrowTensor) for value in tree_flatten(values)[0])


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    takes, kwargs = _narrow((args, kwargs)), dict(kwargs)
    makes = takes
    if kwargs.get("device") is not None:
        makes = torch.device(kwargs["device"]) == DEVICE
        kwargs["device"] = CPU
    plain = tree_map_only(NarrowTensor, lambda tensor: tensor.inside, (tuple(args), kwargs))
    result = func(*plain[0], **plain[1])
    if func._schema.name.endswith("_"):  # in place: the tensor that it was done to
        return args[0] if func._schema.returns else None
    found = [value for value in tree_flatten(result)[0] if isinstance(value, Tensor)]
    if (takes or makes) and any(value.dtype == torch.float64 for value in found):
        raise TypeError(f"{func}: this device has no float64")
    return tree_map_only(Tensor, NarrowTensor, result) if makes else result
