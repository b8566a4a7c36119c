"""Do the tasks' gradients conflict? Counts, cosines against their noise, and what surgery changes.

`run(Options(...))` trains, probes, simulates, and writes conflicts.md with its pictures. Each piece
of the work is one JSON file, from which `page.write(directory)` writes the page again.
"""

from research.conflicts.options import Options
from research.conflicts.study import run

__all__ = ["Options", "run"]
