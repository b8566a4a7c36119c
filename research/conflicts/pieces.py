"""Finished work of the study: one JSON file a piece, named by the hash of what decides it.

A study that was stopped goes on where it was, and one whose settings changed computes only what
they touch.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_mtl_demo.store import key_of, read_json, write_json

SCHEMA = 1


@dataclass(frozen=True)
class Piece:
    """One piece.

    Args:
        directory: of the study's pieces.
        name: what it is.
        settings: plain values that decide it.

    >>> import tempfile
    >>> piece = Piece(Path(tempfile.mkdtemp()), "sum of it", {"to": 3})
    >>> piece.get(lambda: 6), piece.get(print)
    (6, 6)
    """

    directory: Path
    name: str
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The hash of the settings."""
        return key_of({"schema": SCHEMA, **self.settings})

    @property
    def path(self) -> Path:
        """The file."""
        slug = re.sub(r"\W+", "-", self.name)
        return self.directory / f"{slug}-{self.key}.json"

    def get(self, compute: Callable[[], Any]) -> Any:
        """The result of `compute`, which is called only if the piece does not exist."""
        if not self.path.exists():
            begun = time.perf_counter()
            result = compute()
            content = {
                "schema": SCHEMA,
                "name": self.name,
                "settings": portable(self.settings),
                "seconds": round(time.perf_counter() - begun, 1),
                "result": result,
            }
            write_json(self.path, content)
        return read(self.path)["result"]  # as a reader sees it: tuples are lists, keys strings


def keep(directory: Path, index: str, file: str) -> Path:
    """Write a study's index and pieces as one file beside its page, from which it can go on.

    Labels, which all runs of a dev set have in common, stand in it once. Pieces that the file held
    before stay in it, also those that the index does not name.
    """
    path, content = directory / file, read(directory / index)
    before = read(path) if path.exists() else {"labels": [], "pieces": {}}
    labels, pieces = before["labels"], before["pieces"]
    for name in sorted(_names(content["pieces"])):
        piece = read(directory / "pieces" / name)
        for evaluation in _evaluations(piece):
            if evaluation["truth"] not in labels:
                labels.append(evaluation["truth"])
            evaluation["truth"] = labels.index(evaluation["truth"])
        pieces[name] = piece
    return write_json(path, {"index": content, "labels": labels, "pieces": pieces})


def restore(directory: Path, index: str, file: str) -> None:
    """Write the index and the pieces that `keep` put into a file, where they are missing."""
    path = directory / file
    if not path.exists():
        return
    content = read(path)
    if not (directory / index).exists():
        write_json(directory / index, content["index"])
    for name, piece in content["pieces"].items():
        if not (directory / "pieces" / name).exists():
            for evaluation in _evaluations(piece):
                evaluation["truth"] = content["labels"][evaluation["truth"]]
            write_json(directory / "pieces" / name, piece)


def _names(entry: Any) -> list[str]:
    """The files that an index, or a part of it, names."""
    if isinstance(entry, str):
        return [entry]
    return [name for part in entry.values() for name in _names(part)]


def _evaluations(piece: Mapping[str, Any]) -> list[Any]:
    """The answers that a piece holds, by task."""
    result = piece["result"]
    return list(result.get("evaluation", {}).values()) if isinstance(result, Mapping) else []


def portable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without directories of this machine, which mean nothing elsewhere.

    >>> portable({"data": "/home/me/data", "seed": 1})
    {'data': 'DIR', 'seed': 1}
    """
    return {
        name: "DIR" if isinstance(value, str) and Path(value).is_absolute() else value
        for name, value in settings.items()
    }


def read(path: Path) -> Any:
    """The content of a file of the study."""
    return read_json(
        path, remedy="delete it if it is there, and run the study again without --page-only"
    )
