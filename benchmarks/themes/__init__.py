"""The themes of the benchmarks: a file each, and a line here."""

from __future__ import annotations

import importlib

from benchmarks.harness import Theme

#: What each theme measures, in the order in which they run. The theme ``trunk`` is the class
#: ``Trunk`` of the module ``trunk``.
THEMES = {
    "surgery": "both passes and combine() over the bandwidth's floor",
    "step": "a training step beside plain ones",
    "memory": "the peak of a step over the plain one's",
    "scaling": "growth with K and N",
    "peers": "other implementations",
    "methods": "the K x K maths of every method, beside torchjd's",
    "trunk": "one forward for all tasks: surgery the exact way, and at the features",
    "distributed": "several ranks: time, bytes sent, gradients held",
    "integrations": "each framework's step over its own plain one",
}


def load(name: str) -> type[Theme]:
    """Return the theme of a name."""
    module = importlib.import_module(f"benchmarks.themes.{name}")
    theme: type[Theme] = getattr(module, name.title())
    return theme
