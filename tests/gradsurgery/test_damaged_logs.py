"""Damaged logs: one clear error or a note, no traceback, and no number that was not written."""

from __future__ import annotations

import contextlib
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from gradsurgery import ConflictLog, GradVac, report
from tests.gradsurgery.problems import linear_losses, vectors, wrap

ARTEFACT = Path(__file__).parents[1] / "artefacts/0.1.0/conflicts.jsonl"

#: What JSON may hold where a line holds something else.
VALUES = st.sampled_from(
    [None, True, -1, 0, 1, 7, 2**63, 10**400, 0.5, -2.0, 1e308, float("nan"), float("inf")]
    + ["", "a", "1", [], [1], ["a", "a"], {}, {"a": 1}, [[["a"]]]]
)
SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of this version: four windows in two segments."""
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = wrap([first, second], GradVac(), tasks=("a", "b", "c"), grouping="tensor")
    log = ConflictLog(tmp_path_factory.mktemp("log") / "conflicts.jsonl")
    generator = random.Random(0)
    for step in range(1, 9):
        rows = [(generator.gauss(0, 1), generator.gauss(0, 1)) for _ in range(3)]
        losses = linear_losses([first, second], [2 * row for row in vectors(*rows)])
        optimizer.join(losses).backward()
        optimizer.zero_grad()
        if step % 2 == 0:
            log.write(optimizer.conflicts, step=step, epoch=1)
    return log.path


def outcome(path: Path) -> tuple[int, str, str]:
    """What the command answers; an exception of its own fails the test."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = report.main([str(path)])
    return status, out.getvalue(), err.getvalue()


def assert_told(path: Path, source: Path) -> None:
    """The damaged log is refused in one line, or its table is that of some of the lines written."""
    status, out, err = outcome(path)
    if status:
        assert status == 2
        assert not out
        assert err.startswith("error: ")
        assert len(err.splitlines()) == 1
        assert path.name in err
        return
    numbers = {json.dumps(_numbers(line)) for line in report._read([source])[0]}
    lines = report._read([path])[0]
    assert {json.dumps(_numbers(line)) for line in lines} <= numbers
    assert "note: " in err or len(lines) == len(source.read_text().splitlines())


def _numbers(line: Any) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in ("log", "run", "crc32")}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are slow, and drawn from the same lines."""
    monkeypatch.setattr(report, "_pictures", lambda lines, directory: "")


@SLOW
@given(st.data())
def test_cut_and_patched_bytes(written: Path, data: st.DataObject) -> None:
    """Up to three cuts, flips, insertions or repetitions anywhere."""
    content = written.read_bytes()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 400)))
        piece = data.draw(st.sampled_from([b"", b"\0" * 20, b"\n", b"\xff\xfe", b"1", b'"', b"}"]))
        content = content[:start] + piece + content[end:]
    path = written.with_name("damaged.jsonl")
    path.write_bytes(content)
    if not content.strip():
        return
    assert_told(path, written)


@SLOW
@given(st.data())
def test_flipped_bits(written: Path, data: st.DataObject) -> None:
    content = bytearray(written.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = written.with_name("flipped.jsonl")
    path.write_bytes(content)
    assert_told(path, written)


@settings(SLOW, max_examples=300)
@given(st.data())
def test_wrong_and_missing_values(written: Path, data: st.DataObject) -> None:
    """Of any key at any depth, in lines that have no checksum: no traceback, and no rubbish."""
    source = data.draw(st.sampled_from([ARTEFACT, written]))
    lines = [json.loads(line) for line in source.read_text().splitlines()]
    for line in lines:
        line.pop("crc32", None)
    holder: Any = data.draw(st.sampled_from(lines))
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        if not isinstance(holder[key], dict | list) or data.draw(st.booleans()):
            break
        holder = holder[key]
    if data.draw(st.booleans()):
        holder[key] = data.draw(VALUES)
    else:
        del holder[key]
    path = written.with_name("wrong.jsonl")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    status, out, err = outcome(path)
    assert status in (0, 2)
    if status:
        assert err.startswith("error: ")
        assert "wrong.jsonl:" in err
    else:
        assert "nan" not in out.lower()
        assert "inf" not in out.lower()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": "100"}, "step is '100', not a whole number"),
        ({"step": True}, "step is True, not a whole number"),
        ({"window": -1}, "window is -1, less than no step"),
        ({"tasks": ["a", "a"]}, "tasks names a task twice"),
        ({"pairs": None}, "pairs is None, not a list"),
        ({"pairs": [3]}, "pairs.0 is 3, not an object"),
        ({"change": {"mean": float("nan"), "max": 1}}, "change.mean is nan, not a finite number"),
        ({"change": {"mean": 1}}, "change.max is missing"),
        ({"nonfinite": 10}, "nonfinite is 10, not between 0 and 2"),
        ({"norms": {"a": "1"}}, "norms.a is '1', not a finite number or null"),
        ({"gradients": {"possible": 7, "altered": 0}}, "gradients.possible is 7, not between 0"),
    ],
)
def test_the_error_names_key_value_and_cause(
    change: dict[str, Any], message: str, written: Path
) -> None:
    line = json.loads(written.read_text().splitlines()[0])
    del line["crc32"]
    path = written.with_name("one.jsonl")
    path.write_text(json.dumps({**line, **change}) + "\n")
    with pytest.raises(ValueError, match=r"one\.jsonl:1: not a conflict log line: ") as caught:
        report.read([path])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("i", "x", "pairs.0 is of 'x' and 'b', not a new pair of ['a', 'b', 'c']"),
        ("j", "a", "pairs.0 is of 'a' and 'a', not a new pair"),
        ("j", "c", "pairs.1 is of 'a' and 'c', not a new pair"),
        ("possible", 5, "pairs.0.possible is 5, not between 0 and 4"),
        ("conflicts", 4.0, "pairs.0.conflicts is 4.0, not a whole number"),
        ("conflicts", 5, "pairs.0.conflicts is 5, not between 0 and 4"),
        ("altered", -1, "pairs.0.altered is -1, not between 0 and 4"),
        ("cosine", {"mean": 0.5, "min": 0.6, "max": 0.7}, "not -1 <= min <= mean <= max <= 1"),
        ("cosine", {"mean": None, "min": None, "max": None}, "not -1 <= min <= mean <= max <= 1"),
    ],
)
def test_counts_that_cannot_be_are_refused(
    key: str, value: Any, message: str, written: Path
) -> None:
    line = json.loads(written.read_text().splitlines()[0])
    del line["crc32"]
    line["pairs"][0][key] = value
    path = written.with_name("one.jsonl")
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=r"one\.jsonl:1") as caught:
        report.read([path])
    assert message in str(caught.value)
