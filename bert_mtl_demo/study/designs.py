"""Designs: how a row is trained under a study's budget, and which rows a budget makes one.

Two rows that a report tells apart may be trained in the very same way here: `--steps` gives
bert_mastery's methods 2 and 3 epochs of one length, which is all they differ in. A comparison of
such rows shows nothing, so a page refuses it by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from bert_mtl_demo.config import ALTERNATING, Config
from bert_mtl_demo.study.published import SURGERY, Row
from bert_mtl_demo.study.settings import StudySettings

# Train examples of each set (pals_gradvac, section 5.1), by which the lengths of epochs are told.
SIZES = {"sst": 8_544, "para": 141_506, "sts": 6_041, "cfimdb": 1_701}
# Settings that say what is kept or looked at and not how weights come about.
_KEPT = (
    *("output", "cache", "checkpoint_every", "log_every"),
    *("select", "dev_half", "dev_sample", "train_scores"),
)


def designs_coincide(row: Row, other: Row, settings: StudySettings) -> bool:
    """Whether two rows are trained in the same way under these settings, step by step.

    Lengths of epochs are those of the published sets, within `train_limit` unless `fraction` is
    set. Of two rows that train the same tasks and differ in what does nothing (surgery where no two
    gradients meet, say) the answer is yes as well.

    Args:
        row, other: the rows.
        settings: the budget.

    >>> method_2, method_3 = (
    ...     Row("some", name, "", {}, {"batching": name}) for name in ("method_2", "method_3")
    ... )
    >>> designs_coincide(method_2, method_3, StudySettings(steps=100))
    True
    >>> designs_coincide(method_2, method_3, StudySettings(fraction=0.1))
    False
    """
    designs = [
        [design_of(config) for config in settings.configs(one, settings.seeds[0])]
        for one in (row, other)
    ]
    return designs[0] == designs[1]


def coinciding(rows: Sequence[Row], settings: StudySettings) -> list[tuple[str, str]]:
    """The pairs of rows that the budget makes one, though their own settings differ.

    >>> rows = [Row("some", name, "", {}, {"batching": name}) for name in ("method_2", "method_3")]
    >>> coinciding(rows, StudySettings(steps=100)), coinciding(rows, StudySettings())
    ([('method_2', 'method_3')], [])
    """
    whole = StudySettings()
    return [
        (row.name, other.name)
        for row, other in combinations(rows, 2)
        if designs_coincide(row, other, settings) and not designs_coincide(row, other, whole)
    ]


def warnings(rows: Sequence[Row], settings: StudySettings) -> list[str]:
    """Sentences about what the budget takes from the comparison of these rows.

    >>> rows = [Row("some", name, "", {}, {"batching": name}) for name in ("method_2", "method_3")]
    >>> warnings(rows, StudySettings(steps=100))[0][:52]
    "'method_2' and 'method_3' are one design under this "
    """
    sentences = [
        f"{row!r} and {other!r} are one design under this budget, so they are not compared; "
        "--fraction keeps them apart."
        for row, other in coinciding(rows, settings)
    ]
    limited = settings.fraction is None and settings.set.get("train_limit") is not None
    if limited and any(row.config().batching in DRAWN for row in rows):
        sentences.append(
            "train_limit changes the shares in which tasks are drawn, which follow the sizes of "
            "the sets; with --fraction they stay."
        )
    if settings.steps is not None and any(_unequal_parts(row) for row in rows):
        sentences.append(
            "--steps gives tasks that are trained one after the other equal parts; with --fraction "
            "each keeps its own."
        )
    return sentences


DRAWN = ("proportional", "sqrt", "annealed")


def _unequal_parts(row: Row) -> bool:
    config = row.config()
    in_order = config.batching in ("sequential", "interleaved")
    return in_order and config.steps_per_epoch is None


def design_of(config: Config) -> Mapping[str, Any]:
    """The settings that decide how weights come about, what does nothing left out.

    >>> design_of(Config(batching="round_robin")) == design_of(
    ...     Config(batching="round_robin", method="sum")
    ... )
    True
    """
    design = {key: value for key, value in config.to_dict().items() if key not in _KEPT}
    alone = len(config.trained) == 1
    if alone or config.batching in ALTERNATING:
        design["method"] = "sum"
    if design["method"] != "gradvac":
        for name in SURGERY[1:]:
            del design[name]
    if not config.pretrain:
        design = {key: value for key, value in design.items() if not key.startswith("pretrain_")}
    if config.batching != "uniform_partial":
        del design["partial_batch"]
    for name in ("fraction", "steps_per_epoch", "train_limit"):
        del design[name]
    fraction = config.fraction if config.pretrain else None  # of a stage; a run's is in its steps
    return {
        **design,
        "batching": _batching(config),
        "schedule of stages": fraction,
        "examples": config.train_limit,
        "steps": _steps(config),
    }


def _batching(config: Config) -> str:
    """The scheme, under one name where two give the same batches."""
    scheme = config.batching
    fresh = scheme in ("method_1", "method_2", "method_3") and config.epochs > 1
    if len(config.trained) == 1 and scheme != "uniform_partial":
        return "alone, fresh epochs" if fresh else "alone"
    if scheme in ("zipped", "method_2", "method_3"):
        return "equal batches, fresh epochs" if fresh else "equal batches"
    if scheme == "annealed" and config.epochs == 1:
        return "proportional"
    if scheme == "interleaved" and config.epochs == 1:
        return "sequential"
    return scheme


def _steps(config: Config) -> tuple[int, bool] | None:
    """The steps of an epoch, and whether they were asked for where that changes the shares."""
    sizes = {name: SIZES.get(name) for name in config.trained}
    if config.fraction is None and config.train_limit is not None:
        sizes = {name: size and min(size, config.train_limit) for name, size in sizes.items()}
    if None in sizes.values():
        return None  # a user's task; the scheme's name must do
    from bert_mtl_demo.batching import SCHEMES
    from bert_mtl_demo.batching.scheme import Frame

    known = {name: size for name, size in sizes.items() if size is not None}
    frame = Frame(
        known,
        config.batch_size,
        config.partial_batch,
        config.epochs,
        config.steps_per_epoch,
        fraction=1.0 if config.fraction is None else config.fraction,
    )
    equal = config.steps_per_epoch is not None and config.batching in ("sequential", "interleaved")
    return SCHEMES[config.batching](frame).steps_per_epoch, equal and len(known) > 1
