"""The walk of a step: every call goes down the order of imports, as the imports themselves do."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import gradsurgery
from gradsurgery import GradientSurgery
from tests.methods import METHODS, every_method

ROOT = Path(gradsurgery.__file__).parent
TASKS = ("a", "b", "c")
MODULES = {
    ".".join(("gradsurgery", *path.relative_to(ROOT).with_suffix("").parts)): path
    for path in ROOT.rglob("*.py")
}
MODULES = {name.removesuffix(".__init__"): path for name, path in MODULES.items()}


def imports(path: Path) -> set[Path]:
    """The files that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inner & MODULES.keys() or {str(node.module)}
    return {MODULES[name] for name in names & MODULES.keys()} - {path}


def reachable(graph: dict[Path, set[Path]], start: Path) -> set[Path]:
    """What a file imports, directly or through others."""
    seen: set[Path] = set()
    stack = [start]
    while stack:
        fresh = graph[stack.pop()] - seen
        seen |= fresh
        stack += fresh
    return seen


def calls_of_a_step(name: str, way: str) -> Counter[tuple[Path, Path]]:
    """How often a file of the library calls into another, in the third step of training."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(8, 16, bias=False), nn.Linear(16, 16, bias=False))
    model = nn.ModuleDict({"trunk": trunk, **{task: nn.Linear(16, 1) for task in TASKS}})
    base = torch.optim.AdamW(model.named_parameters(), lr=1e-2)
    optimizer = GradientSurgery(base, METHODS[name].make(0), tasks=TASKS)
    calls: Counter[tuple[Path, Path]] = Counter()

    def count(frame: FrameType, event: str, _: Any) -> None:
        callee, caller = Path(frame.f_code.co_filename), frame.f_back
        if event != "call" or ROOT not in callee.parents:
            return
        while caller is not None and ROOT not in Path(caller.f_code.co_filename).parents:
            caller = caller.f_back
        calls[Path(caller.f_code.co_filename) if caller else callee, callee] += 1

    for step in range(3):
        features = trunk(torch.randn(32, 8))
        losses = {task: model[task](features).square().mean() for task in TASKS}
        joined = optimizer.join(losses, features=features if way == "features" else None)
        sys.setprofile(count if step == 2 else None)
        try:
            joined.backward()
        finally:
            sys.setprofile(None)
        optimizer.step()
        optimizer.zero_grad()
    return calls


@pytest.mark.parametrize("way", ["exact", "features"])
@every_method
def test_no_call_climbs_back_into_a_file_that_imports_the_caller(name: str, way: str) -> None:
    graph = {path: imports(path) for path in MODULES.values()}
    calls = calls_of_a_step(name, way)
    assert len({callee for _, callee in calls}) > 10  # the walk was seen
    climbing = {
        f"{caller.name} -> {callee.name}": number
        for (caller, callee), number in calls.items()
        if caller in reachable(graph, callee)
    }
    assert not climbing
