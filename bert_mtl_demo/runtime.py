"""The machine under a run: seeds, generators, the device, mixed precision, and signals."""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import numpy as np
import torch

from bert_mtl_demo.errors import ConfigError

PRECISIONS = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices).

    >>> seed_all(1); first = torch.rand(1); seed_all(1); bool(first == torch.rand(1))
    True
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # NumPy takes 32 bits only
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The state of every global generator, in types that `torch.load` takes as weights only."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore every global generator."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([generator.cpu() for generator in state["cuda"]])


#: The kinds of device that the demo trains on.
DEVICES = ("cpu", "cuda", "mps", "xpu")


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is the accelerator if there is one.

    Raises:
        ConfigError: for a device of another kind, or that this machine does not have.

    >>> choose_device("cpu")
    device(type='cpu')
    """
    accelerator = "none"
    if torch.accelerator.is_available():
        accelerator = str(torch.accelerator.current_accelerator())
    if name == "auto":
        return torch.device(accelerator if accelerator in DEVICES else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"device = {name}: is not a device; use 'auto', 'cpu', 'cuda', 'cuda:1', 'mps' or 'xpu'"
        ) from None
    if device.type not in DEVICES:
        raise ConfigError(f"device = {name}: only {', '.join(DEVICES)} are supported")
    if device.type == "cpu":
        return device
    count = torch.accelerator.device_count() if device.type == accelerator else 0
    if (device.index or 0) >= count:
        raise ConfigError(
            f"device = {name}: this machine has {count} {device.type.upper()} devices; use 'auto' "
            "or 'cpu'"
        )
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """The precision of that name; "auto" is bf16 where the device has instructions for it.

    Emulated, it would be slower than float32.

    >>> choose_precision("off", torch.device("cpu"))
    'off'
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return "bf16" if native else "off"


class Precision:
    """Autocast and the gradient scaler of one precision; with "off" both do nothing.

    "auto" is what `choose_precision` takes it for.

    bf16 has the exponents of float32 and needs no scaler; fp16 does not and does.

    >>> Precision("bf16", torch.device("cpu")).scaler.is_enabled()
    False
    """

    def __init__(self, name: str, device: torch.device) -> None:
        name = choose_precision(name, device)
        self.dtype = PRECISIONS[name]
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def __str__(self) -> str:
        number = {None: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
        if self.device.type == "cuda":
            name = str(torch.cuda.get_device_name(self.device))
        else:
            threads = torch.get_num_threads()
            name = f"cpu, {threads} thread{'s' if threads > 1 else ''}"
        return f"{name}, {number[self.dtype]}"

    def autocast(self) -> AbstractContextManager[Any]:
        """The context for forward passes."""
        return torch.autocast(
            self.device.type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None
        )


class Interrupts:
    """Records the first SIGINT or SIGTERM as a request to stop; a second one acts as usual.

    >>> with Interrupts() as stop:
    ...     stop.signal is None
    True
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in self.SIGNALS:
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread, which decides about signals
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """The exit code of a process that this signal stopped: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signal if self.signal else 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        for signal_number, handler in self._previous.items():
            signal.signal(signal_number, handler)


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: torch's allocations on a GPU, the whole process on a CPU.

    0 where the system does not tell (Windows without a GPU).

    >>> peak_memory(torch.device("cpu")) > 2**20
    True
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
