"""`python -m bert_mtl_demo`: the commands of the demo, each a module of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bert_mtl_demo.cli import EXIT_REFUSED
from bert_mtl_demo.errors import nearest
from bert_mtl_demo.printing import printable

COMMANDS = {
    "train": "train; without flags on an embedded sample",
    "evaluate": "score a run on dev, or answer its test split",
    "predict": "answer sentences, of a file or a pipe, too",
    "export": "write an encoder that transformers loads",
    "study": "train the rows of published reports",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; it names the others.

    >>> main([])  # doctest: +ELLIPSIS
    python -m bert_mtl_demo.train     train; without flags on ...
    0
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for name, purpose in COMMANDS.items():
        print(f"{f'python -m bert_mtl_demo.{name}':34}{purpose}")
    print("\nEach has --help.")
    if not words or words[0] in ("-h", "--help"):
        return 0
    hint = (
        f"that is python -m bert_mtl_demo.{words[0]}, with a dot"
        if words[0] in COMMANDS
        else f"there is no command {words[0]!r}{nearest(words[0], COMMANDS)}"
    )
    print(f"error: {printable(hint)}", file=sys.stderr)
    return EXIT_REFUSED


if __name__ == "__main__":
    sys.exit(main())
