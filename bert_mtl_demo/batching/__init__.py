"""The examples of each step.

Vocabulary: a *pass* is one way through all examples of a task, each seen exactly once; a *stream*
is an endless series of passes, each in a new order; a *scheme* names the tasks that share a step.
Small sets are cycled because their stream simply goes on.

`streams.py` has the streams, `joint.py` and `alternating.py` the schemes, `batches.py` the table
of them and what a trainer asks.
"""

from bert_mtl_demo.batching.batches import SCHEMES, Batches, build_batches
from bert_mtl_demo.batching.streams import CHUNK, OnePositive, Stream, bucketed

__all__ = ["CHUNK", "SCHEMES", "Batches", "OnePositive", "Stream", "bucketed", "build_batches"]
