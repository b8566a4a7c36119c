"""Results: files in which a figure travels with everything it depends on.

``<theme>_<hardware>_<yyyymm>.json`` holds all figures; the ``.md`` of the same name holds the
tables. Both name command, hardware, versions, date, parameters, floor and bandwidths.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.machine import hardware, slug, versions
from benchmarks.options import Options
from benchmarks.tables import Row, Table


@dataclass
class Result:
    """Everything that a theme measured.

    Attributes:
        theme: name of the theme.
        floor: what its times are held against.
        parameters: sizes and settings, by name.
        bandwidths: GB/s by probe.
        figures: all numbers, one dict per measured row.
        tables: the figures worth reading.
        notes: what a reader of the tables has to know.
        draw: draws a picture into a PNG file.
    """

    theme: str
    floor: str
    parameters: dict[str, Any] = field(default_factory=dict)
    bandwidths: dict[str, float] = field(default_factory=dict)
    figures: list[Row] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    draw: Callable[[Path], object] | None = None


def write(result: Result, options: Options, command: str) -> list[Path]:
    """Write the files and return their paths."""
    machine, today = hardware(options.device), datetime.now(timezone.utc)
    theme = result.theme + "-quick" * options.quick  # never in the place of a result
    path = options.results / f"{theme}_{slug(machine)}_{today:%Y%m}"
    facts = {
        "theme": result.theme,
        "command": command,
        "date": f"{today:%Y-%m-%d}",
        "device": options.device.type,
        "hardware": machine,
        "threads": options.threads,
        "versions": versions(),
        "parameters": result.parameters,
        "floor": result.floor,
        "bandwidths_gb_s": result.bandwidths,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    paths = [path.parent / f"{path.name}.{kind}" for kind in ("json", "md")]
    contents = {**facts, "notes": result.notes, "figures": result.figures}
    paths[0].write_text(json.dumps(contents, indent=1) + "\n")
    if result.draw is not None:
        paths.append(path.parent / f"{path.name}.png")
        result.draw(paths[-1])
    paths[1].write_text(_page(result, facts, [picture.name for picture in paths[2:]]))
    return paths


def _page(result: Result, facts: dict[str, Any], pictures: Sequence[str]) -> str:
    """Return the Markdown page."""
    blocks = [f"# {result.theme}"]
    blocks.append("\n".join(f"- {name}: {_text(value)}" for name, value in facts.items()))
    blocks += [table.markdown() for table in result.tables]
    blocks += [f"![{result.theme}]({picture})" for picture in pictures]
    if result.notes:
        blocks.append("\n".join(["## Notes", "", *(f"- {note}" for note in result.notes)]))
    return "\n\n".join(blocks) + "\n"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return str(value)
