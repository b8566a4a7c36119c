"""Data of the tasks and of the pre-training stages: the embedded sample, a directory, or the hub.

`load` serves the tasks; the three others serve the stages before them.
"""

from bert_mtl_demo.data.examples import DataError, Examples, Skipped, Splits, dev_halves
from bert_mtl_demo.data.label_sets import with_labels
from bert_mtl_demo.data.loading import load, load_dev
from bert_mtl_demo.data.pretraining import load_inference, load_positives, load_texts

__all__ = [
    "DataError",
    "Examples",
    "Skipped",
    "Splits",
    "dev_halves",
    "load",
    "load_dev",
    "load_inference",
    "load_positives",
    "load_texts",
    "with_labels",
]
