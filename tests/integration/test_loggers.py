"""Loggers: scalars() is flat, finite and named the same at each window, whoever writes it down."""

from __future__ import annotations

import csv
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradsurgery import GradientSurgery, GradVac, Method, PCGrad, Sum
from tests.gradsurgery.problems import same
from tests.integration.by_hand import SEED, TASKS, adamw, fresh_model, separate

Window = tuple[int, dict[str, float]]

PAIRS = ["a-b", "a-c", "b-c"]
DIRECTED = ["a-b", "a-c", "b-a", "b-c", "c-a", "c-b"]
ALWAYS = {
    "surgery/altered",
    "surgery/change",
    "surgery/nonfinite",
    *(f"surgery/{figure}/{pair}" for figure in ("cosine", "conflicts") for pair in PAIRS),
    *(f"surgery/altered/{pair}" for pair in DIRECTED),
    *(f"surgery/{figure}/{task}" for figure in ("norm", "weight") for task in TASKS),
}
TARGETS = {f"surgery/target/{pair}" for pair in DIRECTED}


def windows(method: Method, grouping: str = "model", every: int = 2) -> Iterator[Window]:
    """Train, and give each window's scalars."""
    model = fresh_model()
    optimizer = GradientSurgery(
        adamw(model.parameters()),
        method,
        tasks=TASKS,
        grouping=grouping,
        named_parameters=model.named_parameters(),
    )
    for step in range(1, 9):
        optimizer.join([separate(model, step, task) for task in TASKS]).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % every == 0:
            yield step, optimizer.conflicts.scalars()
            optimizer.conflicts.reset()


@pytest.mark.parametrize("grouping", ["model", "layer"])
@pytest.mark.parametrize("method", [PCGrad(SEED), GradVac(seed=SEED), Sum()], ids=repr)
def test_names_are_the_same_in_each_window(method: Method, grouping: str) -> None:
    expected = ALWAYS | (TARGETS if isinstance(method, GradVac) else set())
    for _, scalars in windows(method, grouping):
        assert set(scalars) == expected
        assert all(type(value) is float and math.isfinite(value) for value in scalars.values())


def test_a_task_that_did_not_run_leaves_its_names_out_and_comes_back() -> None:
    """No value is no line, not a NaN that a logger would have to know about."""
    model = fresh_model()
    optimizer = GradientSurgery(adamw(model.parameters()), PCGrad(), tasks=TASKS)
    names = []
    for tasks in (TASKS, TASKS[:2], TASKS):
        optimizer.join({task: separate(model, 0, task) for task in tasks}).backward()
        optimizer.zero_grad()
        names.append(set(optimizer.conflicts.scalars()))
        optimizer.conflicts.reset()
    assert names[0] == names[2] == ALWAYS
    assert names[1] == {name for name in ALWAYS if not name.endswith(("/c", "-c", "c-a", "c-b"))}


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    written = list(windows(GradVac(seed=SEED)))
    with SummaryWriter(str(tmp_path)) as board:
        for step, scalars in written:
            for name, value in scalars.items():
                board.add_scalar(name, value, step)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == ALWAYS | TARGETS
    for name in ALWAYS | TARGETS:
        read = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [(step, pytest.approx(scalars[name], rel=1e-6)) for step, scalars in written]
        assert read == expected


def test_a_table_with_one_figure_a_row(tmp_path: Path) -> None:
    written = list(windows(PCGrad(SEED)))
    with (tmp_path / "conflicts.csv").open("w", newline="") as file:
        table = csv.writer(file)
        for step, scalars in written:
            table.writerows([step, name, value] for name, value in scalars.items())
    with (tmp_path / "conflicts.csv").open(newline="") as file:
        read = [(int(step), name, float(value)) for step, name, value in csv.reader(file)]
    assert read == [(s, name, value) for s, scalars in written for name, value in scalars.items()]


def test_anything_that_takes_a_dict(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("training")
    with caplog.at_level(logging.INFO, logger="training"):
        for step, scalars in windows(PCGrad(SEED)):
            logger.info(json.dumps({"step": step, **scalars}, allow_nan=False))
    lines = [json.loads(record.message) for record in caplog.records]
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert all(set(line) == {"step", *ALWAYS} for line in lines)


def test_reading_changes_nothing() -> None:
    """A run that is logged at each step ends where one that is never logged does."""
    ends = []
    for read in (True, False):
        model = fresh_model()
        optimizer = GradientSurgery(adamw(model.parameters()), GradVac(), tasks=TASKS)
        for step in range(4):
            optimizer.join([separate(model, step, task) for task in TASKS]).backward()
            optimizer.step()
            optimizer.zero_grad()
            if read:
                optimizer.conflicts.scalars()
        ends.append((list(model.parameters()), optimizer.conflicts.scalars()))
    assert same(*ends)
