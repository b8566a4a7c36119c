"""`python -m tests.faults.flips --times 300`: bytes of a finished run flipped, one run at a time.

In each trial one byte of one file gets another value. Resuming (to the same end) and evaluating
then either refuse, naming the file, or give what the intact run gives: never other weights or
scores with exit code 0, and never a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

from bert_mtl_demo import evaluate, train
from tests.faults.processes import SETTINGS, difference, leave_out_pictures, small_encoder

FILES = (
    *("last.pt", "best.safetensors", "config.json", "data.json", "metrics.jsonl"),
    *("conflicts.jsonl", "encoder/config.json", "encoder/tokenizer.json"),
)
TOLD = (
    "written again",
    "bytes are missing",
    "last checkpoint",
)  # repaired or gone without, in so many words


def main() -> int:
    """The command; 0 when nothing was silently different."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.flips", description=__doc__)
    parser.add_argument("--times", type=int, default=300, help="flips (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="of the places (default: 0)")
    options = parser.parse_args()
    leave_out_pictures()
    rng, counts = random.Random(options.seed), Counter[tuple[str, str]]()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        intact, run = place / "intact", place / "run"
        few = ["--epochs", "1", "--max-steps", "3"]
        flags = ["--encoder", str(small_encoder(place / "encoder")), *SETTINGS, *few]
        assert quietly(train.main, [*flags, "--output", str(intact)])[0] == 0
        assert quietly(evaluate.main, [str(intact), "--device", "cpu"])[0] == 0
        expected = scores(intact)
        for number in range(options.times):
            file = FILES[number % len(FILES)]
            shutil.copytree(intact, run)
            content = bytearray((run / file).read_bytes())
            at, bits = rng.randrange(len(content)), rng.randrange(1, 256)
            content[at] ^= bits
            (run / file).write_bytes(content)
            answer = outcome(intact, run, file, expected)
            counts[file, answer.partition(":")[0]] += 1
            if answer.startswith("WRONG"):
                print(f"{file}, byte {at}, ^{bits}: {answer}", flush=True)
            shutil.rmtree(run)
    for (file, answer), count in sorted(counts.items()):
        print(f"| `{file}` | {answer} | {count} |")
    return 1 if any(answer == "WRONG" for _, answer in counts) else 0


def quietly(command: object, arguments: list[str]) -> tuple[int, str]:
    """Exit code and output of a command."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            code = command(arguments)  # type: ignore[operator]
        except BaseException:
            traceback.print_exc(file=text)
            code = 70
    return int(code), text.getvalue()


def scores(run: Path) -> object:
    """What an evaluation found."""
    return json.loads((run / "evaluation.json").read_text("utf-8"))["tasks"]


def outcome(intact: Path, run: Path, file: str, expected: object) -> str:
    """What the flipped byte led to, in evaluation and on resuming."""
    answers = []
    (run / "evaluation.json").unlink()
    code, text = quietly(evaluate.main, [str(run), "--device", "cpu"])
    if code == 2 and "Traceback" not in text:
        answers.append("evaluation refused")
    elif code or scores(run) != expected:
        return f"WRONG: evaluation with exit code {code}: {text}"
    shutil.copy(intact / "evaluation.json", run)
    code, text = quietly(train.main, ["--resume", str(run)])
    if code == 2 and "Traceback" not in text:
        answers.append("resuming refused")
    elif code:
        return f"WRONG: resuming with exit code {code}: {text}"
    elif any(told in text for told in TOLD):
        answers.append("told when resuming")
    elif changed := [
        name
        for name in ("best.safetensors", "last.pt", "metrics.jsonl", "conflicts.jsonl")
        if name != file and (run / name).read_bytes() != (intact / name).read_bytes()
    ] or (difference(intact, run) if file not in ("config.json", "data.json") else ""):
        return f"WRONG: silently different: {changed}"
    return " and ".join(answers) or "the same results"


if __name__ == "__main__":
    sys.exit(main())
