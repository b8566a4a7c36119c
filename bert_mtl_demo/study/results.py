"""The result of one row of a study with one seed: the typed view of a result.json.

A result is plain values only, so that a page can be written again years later, without weights or
data. Scores that do not exist (the r of constant predictions) are NaN here and null in the file.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bert_mtl_demo.errors import CheckpointError
from bert_mtl_demo.store import write_json
from bert_mtl_demo.tasks import leaderboard_score, mean_score

QUANTITIES = ("seconds", "best epoch", "train", "gap")  # of a run, beside its scores on dev
THREE = ("sst", "para", "sts")  # the tasks of the papers' overall scores


@dataclass(frozen=True)
class Epoch:
    """Dev scores after one epoch."""

    epoch: int
    step: int
    scores: Mapping[str, float]
    mean: float
    leaderboard: float
    train: Mapping[str, float] = field(default_factory=dict)  # scores on examples of train


@dataclass(frozen=True)
class Losses:
    """Mean training losses of a window that ended at `step`."""

    step: int
    epoch: int
    loss: Mapping[str, float]


@dataclass(frozen=True)
class Pair:
    """Gradient `i`, looked at and altered because of gradient `j`, in one epoch."""

    epoch: int
    i: str
    j: str
    possible: int  # steps in which both tasks had a gradient
    conflicts: int  # of those, negative cosines
    altered: int | None  # None of a method that has no such count
    mean: float | None  # cosine


@dataclass(frozen=True)
class Conflicts:
    """Conflicts and alterations of a run.

    >>> Conflicts(9, (Pair(1, "a", "b", 8, 4, 3, 0.0), Pair(1, "b", "a", 8, 4, 2, 0.0))).count()
    (16, 8, 5)
    """

    steps: int
    pairs: tuple[Pair, ...]
    change: float | None = None  # mean relative change of the update

    def count(self) -> tuple[int, int, int | None]:
        """Possible, conflicting and altered, over all ordered pairs and epochs.

        Altered is None where the method has no such count.
        """
        altered = [pair.altered for pair in self.pairs if pair.altered is not None]
        return (
            sum(pair.possible for pair in self.pairs),
            sum(pair.conflicts for pair in self.pairs),
            sum(altered) if len(altered) == len(self.pairs) else None,
        )


@dataclass(frozen=True)
class Mistake:
    """One dev example, by its row number, and how far off the answer was."""

    row: int
    texts: tuple[str, ...]
    true: str
    found: str
    error: float


@dataclass(frozen=True)
class Evaluation:
    """The answers of the best weights to one task's dev set."""

    score: float
    confusion: tuple[tuple[int, ...], ...] = ()  # [true][predicted], of a classification
    truth: tuple[float, ...] = ()  # labels, one an example; older results have no classes
    found: tuple[float, ...] = ()  # and the answers to them
    mistakes: tuple[Mistake, ...] = ()


@dataclass(frozen=True)
class Result:
    """One row, one seed.

    A row that was trained once per task has the scores of all of them, `epochs` and `losses` one
    task after the other, no `conflicts` and no `best_epoch`; see `merged`.

    >>> result = Result({"sst": 0.5, "para": 0.75, "sts": 0.25}, 0.5, 0.625)
    >>> Result.from_dict(result.to_dict()) == result
    True
    >>> result.value("para"), result.value("leaderboard")
    (0.75, 0.625)
    """

    scores: Mapping[str, float]  # of the best epoch, on dev
    mean: float
    leaderboard: float
    best_epoch: int | None = None
    epochs: tuple[Epoch, ...] = ()
    losses: tuple[Losses, ...] = ()
    conflicts: Conflicts | None = None
    seconds_per_epoch: float | None = None
    data_share: float | None = None  # of the training time, spent on making batches
    peak_memory: int | None = None  # bytes
    trained_parameters: int | None = None
    evaluation: Mapping[str, Evaluation] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)  # those that are not the defaults
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str = ""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Result:
        """The content of a result.json; whatever is missing but the scores is left out."""
        plain = ("best_epoch", "seconds_per_epoch", "data_share", "peak_memory")
        return cls(
            _numbers(values["scores"]),
            _number(values["mean"]),
            _number(values["leaderboard"]),
            epochs=tuple(_epoch(row) for row in values.get("epochs") or ()),
            losses=tuple(
                Losses(row["step"], row["epoch"], _numbers(row["loss"]))
                for row in values.get("losses") or ()
            ),
            conflicts=_conflicts(values.get("conflicts")),
            **{name: values.get(name) for name in (*plain, "trained_parameters")},
            evaluation={
                task: _evaluation(part) for task, part in (values.get("evaluation") or {}).items()
            },
            settings=dict(values.get("settings") or {}),
            versions=dict(values.get("versions") or {}),
            device=values.get("device") or "",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with null for what is not a number."""
        plain: dict[str, Any] = _plain(asdict(self))
        for evaluation in plain["evaluation"].values():
            if evaluation["confusion"]:
                evaluation |= {name: packed(evaluation[name]) for name in ("truth", "found")}
        return plain

    def value(self, score: str) -> float:
        """A task's score, an overall one, or another quantity of the run; NaN where it has none.

        An overall score of other tasks than the three is none: no other row has its like.

        Args:
            score: a task, `mean`, `leaderboard`, or one of `QUANTITIES`; `train` and `gap` (train
                minus dev) stand before a task.

        >>> Result({"sst": 0.5}, 0.5, 0.5, seconds_per_epoch=40.0).value("seconds")
        40.0
        """
        if score in ("mean", "leaderboard"):
            return float(getattr(self, score)) if set(self.scores) == set(THREE) else math.nan
        if score in ("seconds", "best epoch"):
            return _number(self.seconds_per_epoch if score == "seconds" else self.best_epoch)
        quantity, _, task = score.rpartition(" ")
        if quantity in QUANTITIES:
            train = self._best().get(task, math.nan)
            return train - self.scores.get(task, math.nan) if quantity == "gap" else train
        return self.scores.get(score, math.nan)

    def _best(self) -> Mapping[str, float]:
        """The scores on train of the best epoch."""
        best = [row for row in self.epochs if row.epoch == self.best_epoch]
        return best[-1].train if best else {}


def read_result(path: Path) -> Result:
    """The result of one run.

    >>> read_result(Path("no-such-file.json"))
    Traceback (most recent call last):
    bert_mtl_demo.errors.CheckpointError: no-such-file.json: is no result of a finished run \
(FileNotFoundError); delete it and run the row again
    """
    try:
        return Result.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise CheckpointError(
            f"{path}: is no result of a finished run ({type(error).__name__}); delete it and run "
            "the row again"
        ) from None


def write_result(path: Path, result: Result) -> Path:
    """Write a result.json at once: a process that is killed leaves the old one or none.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "result.json"
    >>> read_result(write_result(path, Result({"sst": 0.5}, 0.5, 0.5))).mean
    0.5
    """
    return write_json(path, result.to_dict(), indent=1)


def merged(parts: Sequence[Result]) -> Result:
    """One result of a row that was trained once per task: times add up, the peak is the highest.

    Args:
        parts: results of disjoint tasks.

    >>> parts = [Result({"sst": 0.5}, 0.5, 0.5), Result({"sts": 0.3}, 0.3, 0.65)]
    >>> merged(parts).scores, round(merged(parts).mean, 3)
    ({'sst': 0.5, 'sts': 0.3}, 0.4)
    """
    scores = {task: score for part in parts for task, score in part.scores.items()}
    time = _added([part.seconds_per_epoch for part in parts])
    waits = [
        part.data_share * (part.seconds_per_epoch or 0.0)
        for part in parts
        if part.data_share is not None
    ]
    memory = [part.peak_memory for part in parts if part.peak_memory is not None]
    return Result(
        scores,
        mean_score(scores),
        leaderboard_score(scores),
        epochs=tuple(row for part in parts for row in part.epochs),
        losses=tuple(row for part in parts for row in part.losses),
        seconds_per_epoch=time,
        data_share=sum(waits) / time if time and len(waits) == len(parts) else None,
        peak_memory=max(memory, default=None),
        trained_parameters=_added([part.trained_parameters for part in parts]),
        evaluation={task: dev for part in parts for task, dev in part.evaluation.items()},
        settings={k: v for k, v in parts[0].settings.items() if k not in ("tasks", "output")},
        versions=parts[0].versions,
        device=parts[0].device,
    )


def packed(classes: Sequence[float]) -> str:
    """Classes as text: a byte each, deflated, in base64; 20,000 binary answers are about 3 KB.

    >>> unpacked(packed([0, 4, 2]))
    (0.0, 4.0, 2.0)
    """
    return base64.b64encode(zlib.compress(bytes(map(int, classes)), 9)).decode()


def unpacked(values: str | Sequence[float]) -> tuple[float, ...]:
    """The numbers of a packed text, or of a list."""
    if isinstance(values, str):
        values = list(zlib.decompress(base64.b64decode(values)))
    return tuple(map(float, values))


def _added(values: Sequence[Any]) -> Any:
    """The sum, and None where one is missing."""
    return None if any(value is None for value in values) else sum(values)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: _number(value) for name, value in values.items()}


def _epoch(row: Mapping[str, Any]) -> Epoch:
    overall = _number(row.get("mean")), _number(row.get("leaderboard"))
    train = _numbers(row.get("train_scores") or row.get("train") or {})
    return Epoch(row["epoch"], row["step"], _numbers(row["scores"]), *overall, train)


def _conflicts(part: Mapping[str, Any] | None) -> Conflicts | None:
    if part is None:
        return None
    names = Pair.__dataclass_fields__
    pairs = tuple(Pair(**{name: row.get(name) for name in names}) for row in part["pairs"])
    return Conflicts(part["steps"], pairs, part.get("change"))


def _evaluation(part: Mapping[str, Any]) -> Evaluation:
    return Evaluation(
        _number(part["score"]),
        tuple(tuple(row) for row in part.get("confusion") or ()),
        unpacked(part.get("truth") or ()),
        unpacked(part.get("found") or ()),
        tuple(
            Mistake(row["row"], tuple(row["texts"]), row["true"], row["found"], row["error"])
            for row in part.get("mistakes") or ()
        ),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
