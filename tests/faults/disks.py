"""`python -m tests.faults.disks`: training on a disk that gets full, and on with room.

Two kinds of full disk: a limit on the size of files, anywhere (RLIMIT_FSIZE), and a file system of
a few megabytes in memory, which root alone can mount. For every size, training has to end with one
line that names the file and the remedy, exit code 1, and no unfinished write; and, once there is
room, to go on to the last bit as if nothing had been.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.processes import SETTINGS, Ended, command, difference, small_encoder


def main() -> int:
    """The command; 0 when every run ended well and went on bitwise."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.disks", description=__doc__)
    parser.add_argument("--sizes", type=int, default=12, help="sizes of each kind (default: 12)")
    options = parser.parse_args()
    counts = Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        flags = ["--encoder", str(small_encoder(place / "encoder")), *SETTINGS]
        whole = place / "whole"
        done = command([*flags, "--output", str(whole)], place / "log")
        assert done.code == 0, done.output
        largest = max(path.stat().st_size for path in whole.rglob("*") if path.is_file())
        total = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
        for n in range(options.sizes):
            limit = int(largest * 1.1 * (n + 1) / options.sizes) if n else 2_000
            report(f"files of at most {limit:,} bytes", with_limit(place, flags, limit), counts)
        for n in range(options.sizes if os.geteuid() == 0 else 0):
            size = int(2 * total * (n + 1) / options.sizes)
            report(f"a disk of {size:,} bytes", on_small_disk(place, flags, size), counts)
    print("\n".join(f"| {what} | {count} |" for what, count in sorted(counts.items())))
    return 1 if counts["wrong"] else 0


def report(what: str, answer: str, counts: Counter[str]) -> None:
    """Count and print the end of a trial."""
    counts[answer if answer in (STOPPED, ENOUGH) else "wrong"] += 1
    print(f"{what}: {answer}", flush=True)


STOPPED = "stopped with one line, went on to the same bits"
ENOUGH = "had room enough"


def with_limit(place: Path, flags: list[str], limit: int) -> str:
    """A run whose files may not grow beyond a limit, and then may."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    run = place / "limited"
    shutil.rmtree(run, ignore_errors=True)
    return stopped_and_continued(place, flags, run, limited, lambda: run)


def on_small_disk(place: Path, flags: list[str], size: int) -> str:
    """A run on a disk of that size, which then is copied to a larger one."""
    with mounted(place / "disk", size) as disk:

        def moved() -> Path:
            shutil.rmtree(place / "moved", ignore_errors=True)
            if (disk / "run").exists():
                shutil.copytree(disk / "run", place / "moved")
            return place / "moved"

        return stopped_and_continued(place, flags, disk / "run", lambda: None, moved)


@contextmanager
def mounted(path: Path, size: int) -> Iterator[Path]:
    """A file system of that size in memory."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)
        path.rmdir()


def stopped_and_continued(
    place: Path,
    flags: list[str],
    run: Path,
    before: Callable[[], None],
    with_room: Callable[[], Path],
) -> str:
    """What became of a run without room, and with it."""
    log = place / "log"  # beside the full disk; the limit on files leaves room for a few lines
    ended = command([*flags, "--output", str(run)], log, before=before)
    if problem := wrong_with(ended, run):
        return problem
    larger = with_room()
    resumable = (larger / "last.pt").exists()
    words = ["--resume", str(larger)] if resumable else [*flags, "--output", str(larger)]
    finished = command(words, log)
    if finished.code:
        return f"exit code {finished.code} with room: {finished.output}"
    return difference(place / "whole", larger) or (STOPPED if ended.code else ENOUGH)


def wrong_with(ended: Ended, run: Path) -> str:
    """What is wrong with the end of a run; empty if nothing is."""
    lines = [line for line in ended.output.splitlines() if line.startswith("error: ")]
    if ended.code not in (0, 1) or "Traceback" in ended.output:
        return f"exit code {ended.code}: {ended.output}"
    if ended.code == 1 and (len(lines) != 1 or "cannot be written" not in lines[0]):
        return f"no line that says why: {ended.output}"
    if left := list(run.rglob("*.tmp")):
        return f"left {left}"
    if ended.code == 1 and (run / "last.pt").exists() and f"--resume {run}" not in lines[0]:
        return f"does not say how to go on: {lines[0]}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
