"""The page of differences names every method of the libraries that it compares."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "differences.md").read_text()

#: What their lists hold beside methods.
BASES = {
    "Aggregator",
    "GramianWeightedAggregator",
    "Scalarizer",
    "WeightedAggregator",
    "Weighting",
    "AbsWeighting",
}


def listed(package: str, part: str) -> set[str]:
    """What ``__all__`` lists, without an import: LibMTL's needs torchvision."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} comes with the extra bench")
    path = Path(spec.origin).parent / part / "__init__.py"
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    raise AssertionError(f"{path} has no __all__")


@pytest.mark.parametrize(
    ("package", "part"),
    [("torchjd", "aggregation"), ("torchjd", "scalarization"), ("LibMTL", "weighting")],
)
def test_every_method_of_theirs_is_named(package: str, part: str) -> None:
    methods = {name.removesuffix("Weighting") for name in listed(package, part) - BASES}
    assert {name for name in methods if not re.search(rf"\b{name}\b", PAGE)} == set()
