"""The machine and the software that the figures depend on."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import gradsurgery

#: Packages whose version matters to the figures.
PACKAGES = ("torch", "triton", "transformers", "torchjd", "pytorch_optimizer", "LibMTL")


def hardware(device: torch.device) -> dict[str, Any]:
    """Return the parts of the machine that the figures depend on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    facts: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["gpu"] = properties.name
        facts["gpu_memory_gib"] = round(properties.total_memory / 2**30)
    return facts


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def slug(machine: dict[str, Any]) -> str:
    """Return a machine's short name for file names.

    Example:
        >>> slug({"cpu": "AMD EPYC 7763 64-Core Processor", "cores": 2})
        'amd-epyc-2c'
        >>> slug({"cpu": "...", "cores": 16, "gpu": "NVIDIA H200"})
        'nvidia-h200'
    """
    if "gpu" in machine:
        return "-".join(re.findall(r"[a-z0-9]+", machine["gpu"].lower()))
    plain = re.sub(r"\((r|tm)\)|@.*", " ", machine["cpu"].lower())
    words = [word for word in re.findall(r"[a-z0-9]+", plain) if word not in ("cpu", "processor")]
    return "-".join([*words[:2], f"{machine['cores']}c"])


def versions() -> dict[str, str]:
    """Return the versions of Python, this library and what is installed of :data:`PACKAGES`."""
    ours = {"python": platform.python_version(), "gradsurgery": gradsurgery.__version__}
    return ours | installed(PACKAGES) | {"torch": torch.__version__}  # with its build: +cpu, +cu130


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those that are installed."""
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
