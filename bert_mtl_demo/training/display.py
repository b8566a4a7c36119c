"""What a person sees of a run: a bar where there is a terminal, and a line a window where not.

A file, nohup and CI get lines: a run of an hour that prints nothing looks like one that hangs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from bert_mtl_demo.printing import printable
from bert_mtl_demo.training.progress import losses_line, window_line


class Display:
    """A display that shows nothing, as that of the processes beside the first.

    >>> Display().say("sst .500")
    """

    def say(self, line: str) -> None:
        """Print a line."""

    def tick(self) -> None:
        """Count a step."""

    def window(self, row: Mapping[str, Any], goal: int) -> None:
        """Show a window of the log, of a run of `goal` steps."""

    @contextmanager
    def steps(self, total: int, done: int) -> Iterator[None]:
        """A block that takes the steps from `done` to `total`."""
        yield

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[int], object]]:
        """A block that does `total` of something, and calls what it is handed with each part."""
        yield lambda part: None


class Console(Display):
    """Lines on stdout, and bars on stderr if that is a terminal.

    >>> with Console().counting("scoring 900 dev examples", 900) as done:
    ...     done(900)
    scoring 900 dev examples
    """

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def say(self, line: str) -> None:
        """Print a line, above a bar if there is one."""
        tqdm.write(printable(line))
        sys.stdout.flush()  # a file's buffer would keep it for an hour

    def tick(self) -> None:
        """Move the bar on by a step."""
        if self._bar is not None:
            self._bar.update()

    def window(self, row: Mapping[str, Any], goal: int) -> None:
        """The losses: beside the bar, or with step and time left as a line of their own."""
        if self._bar is not None:
            self._bar.set_postfix_str(losses_line(row["loss"]), refresh=False)
        if self._bar is None or not sys.stdout.isatty():
            self.say(window_line(row, goal))

    @contextmanager
    def steps(self, total: int, done: int) -> Iterator[None]:
        """A bar of the steps; it gives way to a report."""
        with tqdm(total=total, initial=done, unit="step", disable=None, leave=False) as bar:
            self._bar = None if bar.disable else bar
            try:
                yield
            finally:
                self._bar = None

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[int], object]]:
        """A bar below that of the steps; a line if there is none."""
        with tqdm(total=total, desc=what, unit="", disable=None, leave=False) as bar:
            if bar.disable:
                self.say(what)
            yield bar.update
