"""The two functions that touch gradients: ``gram`` reads them once, ``combine_`` writes them once.

Everything device-specific lives behind these two. :mod:`gradsurgery.kernels.eager` is the
definition of correct; another implementation has to agree with it on the same tests.
"""

from gradsurgery.kernels.eager import Gradients, combine_, gram

__all__ = ["Gradients", "combine_", "gram"]
