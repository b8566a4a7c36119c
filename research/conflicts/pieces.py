"""Finished work as files: one JSON file a piece, named by the hash of the settings that decide it.

A piece that lies there is not computed again, so a study that was stopped goes on where it was, and
one whose settings changed computes only what they touch.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_mtl_demo.errors import CheckpointError

SCHEMA = 1


@dataclass(frozen=True)
class Pieces:
    """A folder of pieces.

    >>> import tempfile
    >>> pieces = Pieces(Path(tempfile.mkdtemp()))
    >>> pieces.get("sum of it", {"to": 3}, lambda: 6), pieces.get("sum of it", {"to": 3}, print)
    (6, 6)
    """

    directory: Path

    def path(self, name: str, settings: Mapping[str, Any]) -> Path:
        """Where the piece of that name and those settings lies, or will."""
        plain = re.sub(r"\W+", "-", name)
        return self.directory / f"{plain}-{key(settings)}.json"

    def get(self, name: str, settings: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """The result of `compute`, which is called only if the piece is not there."""
        path = self.path(name, settings)
        if not path.exists():
            begun = time.perf_counter()
            result = compute()
            seconds = round(time.perf_counter() - begun, 1)
            head = {
                "schema": SCHEMA,
                "name": name,
                "settings": shared(settings),
                "seconds": seconds,
            }
            write_json(path, {**head, "result": result})
        return read_json(path)["result"]  # as a reader sees it: tuples are lists, keys strings


def shared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a file has them that is passed on: a folder of this machine says nothing there.

    >>> shared({"data": "/home/me/data", "seed": 1})
    {'data': 'DIR', 'seed': 1}
    """
    return {
        name: "DIR" if isinstance(value, str) and Path(value).is_absolute() else value
        for name, value in settings.items()
    }


def key(settings: Mapping[str, Any]) -> str:
    """Ten digits that stand for some settings.

    >>> key({"a": 1, "b": 2}) == key({"b": 2, "a": 1})
    True
    """
    text = json.dumps({"schema": SCHEMA, **settings}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def write_json(path: Path, content: Any) -> None:
    """Write whole or not at all."""
    from bert_mtl_demo.store import atomic

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as place:
        place.write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """What a file holds.

    >>> read_json(Path("no-such-study.json"))
    Traceback (most recent call last):
    bert_mtl_demo.errors.CheckpointError: no-such-study.json: cannot be read (FileNotFoundError); \
delete it if it is there, and run the study again without --page-only
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({type(error).__name__}); delete it if it is there, and run "
            "the study again without --page-only"
        ) from None


def about(device: str, threads: int | None) -> dict[str, Any]:
    """What the numbers were made with."""
    import torch
    import transformers

    import gradsurgery
    from bert_mtl_demo.runtime import choose_device

    place = choose_device(device)
    cuda = place.type == "cuda"
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name(place) if cuda else f"CPU ({platform.machine()})",
        "threads": threads or torch.get_num_threads(),
        "versions": {
            "Python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "gradsurgery": gradsurgery.__version__,
        },
    }
