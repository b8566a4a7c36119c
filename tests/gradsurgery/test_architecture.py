"""Imports run one way, and the core needs nothing but torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gradsurgery

ROOT = Path(gradsurgery.__file__).parent

#: Each part may import from the parts before it, and its own.
LAYERS = [
    {"_warnings", "_markdown"},
    {"transfer", "autograd_graph", "grouping", "sparse", "evidence", "kept"},
    {"summary", "hooks", "multiplied"},
    {"kernels", "_log_schema", "_thinning"},
    {"methods", "distributed"},
    {"memory", "magnitude"},
    {"capture", "combine", "lifecycle", "losses", "scale", "state", "statistics", "split"},
    {"features", "weighted", "reuse", "_chained"},
    {"pipeline", "_wrapper"},
    {"join", "log", "functional"},
    {"_log_reader", "_plots"},
    {"optimizer", "report"},
    {"__init__"},
]


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The parts of gradsurgery that a file imports."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gradsurgery"):
            _, *rest = (node.module or "").split(".")
            parts |= {rest[0]} if rest else {alias.name for alias in node.names}
    return parts


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    levels = {name: level for level, names in enumerate(LAYERS) for name in names}
    importer = part(path)
    for name in imported(path) - {importer}:
        assert levels[name] < levels[importer], f"{importer} imports {name}"


def test_the_core_imports_nothing_but_torch() -> None:
    """And neither numpy, matplotlib nor triton on the way."""
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        "import gradsurgery\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names) - {'gradsurgery', 'torch'}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
