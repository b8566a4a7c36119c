"""python -m benchmarks [THEME ...]: measure, print the tables, write ``benchmarks/results``.

Themes: ``surgery`` (both passes and combine() over the bandwidth's floor), ``step`` (a training
step beside plain ones), ``memory`` (its peak over the plain one's), ``scaling`` (growth with K and
N), ``peers`` (other implementations), ``trunk`` (one forward for all tasks: the exact way, and at
the features), ``distributed`` (several ranks: time, bytes sent, gradients held), ``integrations``
(each framework's step over its own plain one). All of them when none is named.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.options import Setting
from benchmarks.results import Result, write
from benchmarks.themes import (
    distributed,
    integrations,
    memory,
    peers,
    scaling,
    step,
    surgery,
    trunk,
)

THEMES: dict[str, Callable[[Setting], Result]] = {
    "surgery": surgery.run,
    "step": step.run,
    "memory": memory.run,
    "scaling": scaling.run,
    "peers": peers.run,
    "trunk": trunk.run,
    "distributed": distributed.run,
    "integrations": integrations.run,
}

RESULTS = Path(__file__).parent / "results"


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("themes", nargs="*", metavar="THEME", help=", ".join(THEMES))
    made.add_argument("--quick", action="store_true", help="smoke run: the figures mean nothing")
    made.add_argument("--all", action="store_true", help="also the cases that take long")
    made.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    made.add_argument("--threads", type=int, help="of the CPU's operators; default: torch's own")
    made.add_argument("--minutes", type=float, help="per theme: begin no case after these")
    made.add_argument("--results", type=Path, help="default: benchmarks/results; quick: a new one")
    return made


def setting_of(options: argparse.Namespace) -> Setting:
    """Return the setting that the command line asks for."""
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no CUDA device here")
    if options.threads:
        torch.set_num_threads(options.threads)
    results = options.results
    if results is None:
        results = Path(tempfile.mkdtemp(prefix="benchmarks-")) if options.quick else RESULTS
    return Setting(
        device=torch.device(device),
        results=results,
        quick=options.quick,
        everything=options.all,
        threads=torch.get_num_threads(),
    )


def command(themes: Sequence[str], setting: Setting, minutes: float | None = None) -> str:
    """Return the command that measures this again; where the results go is not part of it."""
    words = ["python", "-m", "benchmarks", *themes, "--device", setting.device.type]
    words += ["--threads", str(setting.threads)]
    words += ["--quick"] * setting.quick + ["--all"] * setting.everything
    words += ["--minutes", f"{minutes:g}"] if minutes else []
    return shlex.join(words)


def report(theme: str, setting: Setting, minutes: float | None) -> None:
    """Measure one theme, print it and write it."""
    start = time.monotonic()
    limit = 60 * minutes if minutes else math.inf
    result = THEMES[theme](replace(setting, deadline=start + limit))
    for table in result.tables:
        print(f"\n{table.markdown()}")
    for note in result.notes:
        print(f"- {note}")
    for path in write(result, setting, command([theme], setting, minutes)):
        print(f"wrote {path}")
    print(f"{theme}: {time.monotonic() - start:.0f} s", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 when a theme failed, 0 otherwise."""
    options = parser().parse_args(arguments)
    unknown = sorted(set(options.themes) - set(THEMES))
    if unknown:
        raise SystemExit(f"unknown theme {unknown[0]!r}: the themes are {', '.join(THEMES)}")
    setting, failed = setting_of(options), []
    for theme in options.themes or THEMES:
        try:
            report(theme, setting, options.minutes)
        except Exception:  # the other themes are worth having
            traceback.print_exc()
            failed.append(theme)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
