"""Results: tables to read, and files in which a figure travels with everything it depends on.

``<theme>_<hardware>_<yyyymm>.json`` holds all figures; the ``.md`` of the same name holds the
tables. Both say command, hardware, versions, date, parameters, floor and bandwidths.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import gradsurgery
from benchmarks.options import Setting

#: Packages whose version matters to the figures.
PACKAGES = ("torch", "triton", "transformers", "torchjd", "pytorch_optimizer", "LibMTL")


@dataclass(frozen=True)
class Table:
    """A table with a title; cells are text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return title and table."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join([f"## {self.title}", "", *(f"| {' | '.join(line)} |" for line in lines)])


@dataclass
class Result:
    """What a theme found.

    Attributes:
        theme: its name.
        floor: what its floor is.
        parameters: what was chosen, by name.
        bandwidths: GB/s by probe.
        figures: all numbers, one dict per measured row.
        tables: what is worth reading of them.
        notes: what the tables' reader has to know.
        draw: draws a picture into a PNG file.
    """

    theme: str
    floor: str
    parameters: dict[str, Any] = field(default_factory=dict)
    bandwidths: dict[str, float] = field(default_factory=dict)
    figures: list[dict[str, Any]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    draw: Callable[[Path], object] | None = None


def hardware(device: torch.device) -> dict[str, Any]:
    """Describe the machine as far as the figures depend on it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["gpu"] = properties.name
        found["gpu_memory_gib"] = round(properties.total_memory / 2**30)
    return found


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


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
    found = {"python": platform.python_version(), "gradsurgery": gradsurgery.__version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {"torch": torch.__version__}  # with its build: +cpu, +cu130


def write(result: Result, setting: Setting, command: str) -> list[Path]:
    """Write both files and return their paths."""
    machine, today = hardware(setting.device), datetime.now(timezone.utc)
    theme = result.theme + "-quick" * setting.quick  # never in the place of a result
    stem = f"{theme}_{slug(machine)}_{today:%Y%m}"
    facts = {
        "theme": result.theme,
        "command": command,
        "date": f"{today:%Y-%m-%d}",
        "device": setting.device.type,
        "hardware": machine,
        "threads": setting.threads,
        "versions": versions(),
        "parameters": result.parameters,
        "floor": result.floor,
        "bandwidths_gb_s": result.bandwidths,
    }
    setting.results.mkdir(parents=True, exist_ok=True)
    paths = [setting.results / f"{stem}.{kind}" for kind in ("json", "md")]
    everything = {**facts, "notes": result.notes, "figures": result.figures}
    paths[0].write_text(json.dumps(everything, indent=1) + "\n")
    if result.draw is not None:
        paths.append(setting.results / f"{stem}.png")
        result.draw(paths[-1])
    paths[1].write_text(_page(result, facts, [path.name for path in paths[2:]]))
    return paths


def _page(result: Result, facts: dict[str, Any], pictures: Sequence[str] = ()) -> str:
    """Return the markdown page."""
    blocks = [f"# {result.theme}"]
    blocks.append("\n".join(f"- {name}: {_said(value)}" for name, value in facts.items()))
    blocks += [table.markdown() for table in result.tables]
    blocks += [f"![{result.theme}]({picture})" for picture in pictures]
    if result.notes:
        blocks.append("\n".join(["## Notes", "", *(f"- {note}" for note in result.notes)]))
    return "\n\n".join(blocks) + "\n"


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_said(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return str(value)


def milliseconds(values: Iterable[float]) -> list[str]:
    """Return seconds as text in milliseconds, three digits or more."""
    return [digits(1000 * value) for value in values]


def digits(value: float) -> str:
    """Return a positive number with three significant digits, or all before the point.

    Example:
        >>> [digits(x) for x in (0.01234, 1.234, 12.34, 1234.0)]
        ['0.0123', '1.23', '12.3', '1234']
    """
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")
