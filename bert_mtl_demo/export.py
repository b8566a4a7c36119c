"""`python -m bert_mtl_demo.export RUN DIR`: a run's encoder as a directory that transformers reads.

`BertModel.from_pretrained(DIR)` and its tokenizer are then those of the run's best weights. Heads,
poolings with weights of their own, and adapters have no place in a `BertModel`; they stay behind,
and the command says which.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bert_mtl_demo.cli import Parser, guard
from bert_mtl_demo.errors import StorageError
from bert_mtl_demo.printing import printable, wrapped


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code.

    >>> main(["no-such-run", "bert"])
    2
    """
    parser = Parser(
        prog="python -m bert_mtl_demo.export",
        description="Write a run's encoder and tokenizer for BertModel.from_pretrained.",
    )
    parser.add_argument("run", help="directory of the run")
    parser.add_argument("directory", help="directory to write; it must not exist, or be empty")
    arguments = parser.parse_args(argv)
    return guard(lambda: _main(arguments))


def _main(arguments: argparse.Namespace) -> int:
    for sentence in export(arguments.run, arguments.directory):
        print(printable(wrapped(sentence)))
    print(printable(f"written: {arguments.directory}"))
    return 0


def export(run: str | Path, directory: str | Path) -> list[str]:
    """Write the encoder of a run's best weights, and its tokenizer; what is lost, in sentences.

    Raises:
        CheckpointError: when the run is missing, unfinished or damaged.
        StorageError: when the directory has files in it, or cannot be written.

    >>> export("no-such-run", "bert")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    bert_mtl_demo.errors.CheckpointError: no-such-run: is not a run directory ...
    """
    from bert_mtl_demo import store
    from bert_mtl_demo.reporting.loaded_run import load_run

    path = Path(directory).expanduser()
    loaded = load_run(run, "cpu")
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise StorageError(f"{path}: is not an empty directory. Name one that does not exist.")
    with store.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with store.atomic(path) as unfinished:
        _bert(loaded.model.encoder).save_pretrained(unfinished)
        loaded.tokenizer.save_pretrained(unfinished)
    return losses_of(loaded.config, pooler=loaded.model.encoder.pooler is not None)


def _bert(encoder: Any) -> Any:
    """The encoder as a plain `BertModel`, without adapters."""
    from transformers import BertModel

    plain = BertModel(encoder.config, add_pooling_layer=encoder.pooler is not None)
    names = plain.state_dict().keys()
    weights = {name: value for name, value in encoder.state_dict().items() if name in names}
    plain.load_state_dict(weights)
    return plain


def losses_of(config: Any, *, pooler: bool) -> list[str]:
    """What a run has beside its encoder, which `BertModel` has no place for, in sentences.

    >>> from bert_mtl_demo.config import Config
    >>> losses_of(Config(tasks=("sst", "sts")), pooler=True)
    ['The heads of sst, sts are left out: DIR holds the encoder alone.']
    """
    sentences = [
        f"The heads of {', '.join(config.tasks)} are left out: DIR holds the encoder alone."
    ]
    if config.adapter != "none":
        sentences.append(
            f"The adapters ({config.adapter}) are left out, one for each task in every layer: "
            "without them the encoder's vectors are not those that the heads were trained on, and "
            "scores of this run do not hold for it."
        )
    weighted = [name for name in config.poolings if name in ("cnn", "bilstm")]
    if weighted:
        sentences.append(f"The pooling {', '.join(weighted)} has weights, which are left out.")
    if not pooler:
        sentences.append(
            "The run has no pooler: BertModel.from_pretrained(DIR, add_pooling_layer=False), or "
            "it begins one at random."
        )
    return sentences


if __name__ == "__main__":
    sys.exit(main())
