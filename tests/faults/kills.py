"""`python -m tests.faults.kills --times 30`: training ended at random moments, and continued.

Each time a run is ended by one to three signals (SIGKILL, SIGTERM, SIGINT, or SIGINT twice), each
at a random moment of what is left of it, and then resumed to its end. It has to be the run that
was never ended to the last bit: weights, optimizer, generators, logs; with the same files in its
directory and nothing else. Whatever it prints on the way is no traceback.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.faults.processes import (
    SETTINGS,
    Ended,
    command,
    difference,
    leave_out_pictures,
    small_encoder,
)

SIGNALS = {
    "SIGKILL": (signal.SIGKILL, 1),
    "SIGTERM": (signal.SIGTERM, 1),
    "SIGINT": (signal.SIGINT, 1),
    "SIGINT twice": (signal.SIGINT, -1),
}


def main() -> int:
    """The command; 0 when every run went on bitwise."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.kills", description=__doc__)
    parser.add_argument("--times", type=int, default=30, help="runs (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    options = parser.parse_args()
    leave_out_pictures()
    rng, counts = random.Random(options.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        flags = ["--encoder", str(small_encoder(place / "encoder")), *SETTINGS]
        whole = command([*flags, "--output", str(place / "whole")], place / "log")
        assert whole.code == 0, whole.output
        for number in range(options.times):
            problem = ended_and_continued(place, flags, whole.seconds, rng, counts)
            counts["wrong" if problem else "the same to the bit"] += 1
            print(f"{number + 1}: {problem or 'the same to the bit'}", flush=True)
    print("\n".join(f"| {what} | {count} |" for what, count in sorted(counts.items())))
    return 1 if counts["wrong"] else 0


def ended_and_continued(
    place: Path, flags: list[str], seconds: float, rng: random.Random, counts: Counter[str]
) -> str:
    """What is wrong with a run that was ended and continued; empty if nothing is."""
    run, log = place / "run", place / "log"
    shutil.rmtree(run, ignore_errors=True)
    new, resumed = [*flags, "--output", str(run)], ["--resume", str(run)]
    for _ in range(rng.randint(1, 3)):
        kind = rng.choice(sorted(SIGNALS))
        number, sign = SIGNALS[kind]
        moment = rng.uniform(0.02, 1) * seconds
        ended = command(resumed if run.exists() else new, log, end=(number, sign * moment))
        if ended.code == 0:
            counts["ended too late: the run was done"] += 1
            continue
        counts[f"ended by {kind}"] += 1
        counts["unfinished writes left behind"] += len(list(run.rglob("*.tmp")))
        if problem := wrong_with(ended, kind, run):
            return problem
        if run.exists() and not (run / "last.pt").exists():
            counts["before the first checkpoint, so begun again"] += 1
            shutil.rmtree(run)
    finished = command(resumed if run.exists() else new, log)
    if finished.code:
        return f"exit code {finished.code}: {finished.output}"
    return difference(place / "whole", run)


def wrong_with(ended: Ended, kind: str, run: Path) -> str:
    """What is wrong with the end of a process; empty if nothing is."""
    expected = {"SIGKILL": (-9,), "SIGTERM": (143, -15)}.get(kind, (130,))
    if ended.code not in expected:
        return f"{kind}: exit code {ended.code}: {ended.output}"
    if "Traceback" in ended.output:
        return f"{kind}: {ended.output}"
    hinted = f"--resume {run}" in ended.output
    if ended.code in (130, 143) and (run / "last.pt").exists() and not hinted:
        return f"{kind}: does not say how to go on: {ended.output}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
