"""Every warning that the sources give stands on the page of warnings, with what to do.

A message is looked for by its first words that are not filled in; one that is put together in
another place than it is given, by the name of the module that gives it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "warnings.md"

#: As many words of a message as tell it from all others.
WORDS = 5


def literal_parts(message: ast.expr) -> list[str]:
    """The pieces of a message between what is filled in; none where it is no literal."""
    if isinstance(message, ast.Constant) and isinstance(message.value, str):
        return [message.value]
    if isinstance(message, ast.JoinedStr):
        return [part.value for part in message.values if isinstance(part, ast.Constant)]
    if isinstance(message, ast.BinOp):
        return literal_parts(message.left) + literal_parts(message.right)
    return []


def first_words(message: ast.expr) -> str:
    """The first piece of WORDS words, or else the longest piece."""
    split = [re.split(r"[:;.,(] |`", part) for part in literal_parts(message)]
    pieces = [" ".join(piece.strip(" '\"(),:;.").split()) for part in split for piece in part]
    ranked = sorted(pieces, key=lambda piece: -min(len(piece.split()), WORDS))
    return " ".join(ranked[0].split()[:WORDS]) if ranked and ranked[0] else ""


def called(node: ast.AST) -> str:
    """The name of what a call calls."""
    function = node.func if isinstance(node, ast.Call) else None
    return getattr(function, "id", getattr(function, "attr", ""))


def library_messages(tree: ast.AST) -> Iterator[ast.expr]:
    """What ``gradsurgery._warnings.warn`` is called with."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and called(node) == "warn":
            yield node.args[0]


def demo_messages(tree: ast.AST) -> Iterator[ast.expr]:
    """The sentences of functions called ``warnings``, and what is printed after "warning:"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "warnings":
            for inner in ast.walk(node):
                if isinstance(inner, ast.Call) and called(inner) == "append":
                    yield inner.args[0]
                elif isinstance(inner, ast.List | ast.ListComp):
                    yield from inner.elts if isinstance(inner, ast.List) else [inner.elt]
        elif isinstance(node, ast.Call) and called(node) == "print" and node.args:
            parts = literal_parts(node.args[0])
            if parts and parts[0].startswith("warning: ") and len(first_words(node.args[0])) > 9:
                yield node.args[0]


def messages() -> Iterator[tuple[str, str]]:
    """Where each message is given, and the words that the page must have."""
    for package, collect in (("gradsurgery", library_messages), ("bert_mtl_demo", demo_messages)):
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.name == "_warnings.py":
                continue
            name = str(path.relative_to(ROOT))
            for message in collect(ast.parse(path.read_text())):
                words = first_words(message) or name.removesuffix(".py").replace("/", ".")
                yield f"{name}:{message.lineno}", words


def test_messages_are_found() -> None:
    """The collection itself sees what there is to see."""
    source = ast.parse(
        """
warn("no task was captured in this step: call join()")
warn(f"{name} adds a loss of its own in the backward, and {count} tasks")
warn(note)
"""
    )
    assert [first_words(message) for message in library_messages(source)] == [
        "no task was captured in",
        "adds a loss of its",
        "",
    ]
    assert len([words for place, words in messages() if place.startswith("bert_mtl_demo")]) >= 7


def test_every_warning_is_on_the_page() -> None:
    page = " ".join(PAGE.read_text().split())
    missing = [f"{place}: {words!r}" for place, words in messages() if words not in page]
    if missing:
        pytest.fail(
            f"{PAGE.relative_to(ROOT)} does not say what these mean, and what to do:\n"
            + "\n".join(missing)
        )
