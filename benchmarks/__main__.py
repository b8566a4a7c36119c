"""python -m benchmarks [THEME ...]: measure, print the tables, write ``benchmarks/results``."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.harness import run
from benchmarks.options import Options
from benchmarks.results import write
from benchmarks.themes import THEMES, load

RESULTS = Path(__file__).parent / "results"


def command_line() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    lines = [f"  {name:<14}{summary}" for name, summary in THEMES.items()]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure, print the tables, write benchmarks/results.",
        epilog="\n".join(["themes, all of them when none is named:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("themes", nargs="*", metavar="THEME", help="what to measure, see below")
    add("--quick", action="store_true", help="smoke run with tiny shapes; its figures mean nothing")
    add("--all", action="store_true", help="also run the cases that take long")
    add("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    add("--threads", type=int, help="number of threads of the CPU's operators; default: torch's")
    add("--minutes", type=float, help="time per theme after which no further case is started")
    add(
        "--results",
        type=Path,
        help="directory of the result files; default: benchmarks/results, with --quick a new one",
    )
    return parser


def options_of(arguments: argparse.Namespace) -> Options:
    """Return the options that the command line asks for."""
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no CUDA device here")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    results = arguments.results
    if results is None:
        results = Path(tempfile.mkdtemp(prefix="benchmarks-")) if arguments.quick else RESULTS
    return Options(
        device=torch.device(device),
        results=results,
        quick=arguments.quick,
        everything=arguments.all,
        threads=torch.get_num_threads(),
    )


def command(themes: Sequence[str], options: Options, minutes: float | None = None) -> str:
    """Return the command that measures this again; where the results go is not part of it."""
    words = ["python", "-m", "benchmarks", *themes, "--device", options.device.type]
    words += ["--threads", str(options.threads)]
    words += ["--quick"] * options.quick + ["--all"] * options.everything
    words += ["--minutes", f"{minutes:g}"] if minutes else []
    return shlex.join(words)


def measure(theme: str, options: Options, minutes: float | None) -> None:
    """Measure one theme, print it and write it."""
    start = time.monotonic()
    limit = 60 * minutes if minutes else math.inf
    result = run(load(theme)(replace(options, deadline=start + limit)))
    for table in result.tables:
        print(f"\n{table.markdown()}")
    for note in result.notes:
        print(f"- {note}")
    for path in write(result, options, command([theme], options, minutes)):
        print(f"wrote {path}")
    print(f"{theme}: {time.monotonic() - start:.0f} s", flush=True)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 when a theme failed, 0 otherwise."""
    arguments = command_line().parse_args(words)
    unknown = sorted(set(arguments.themes) - set(THEMES))
    if unknown:
        raise SystemExit(f"unknown theme {unknown[0]!r}: the themes are {', '.join(THEMES)}")
    options, failed = options_of(arguments), []
    for theme in arguments.themes or THEMES:
        try:
            measure(theme, options, arguments.minutes)
        except Exception:  # the other themes can still be measured
            traceback.print_exc()
            failed.append(theme)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
