"""Settings of a study: where its rows run, how much of their budget is spent, what is written.

One frozen dataclass for the papers' studies and the conflict study; every field is a flag of
`python -m bert_mtl_demo.study`. A row's own settings are the published ones. These change where it
runs (data, encoder, device) and how long (epochs, steps), and the page says so; everything that
tells two rows apart stays.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from bert_mtl_demo.combinations import why_not_cached
from bert_mtl_demo.config import ALTERNATING, Config
from bert_mtl_demo.errors import ConfigError
from bert_mtl_demo.model.encoder import PACKAGED, locate
from bert_mtl_demo.setting_types import integer, optional, real, switch, text
from bert_mtl_demo.study.published import Row

NAMED = ("sample", "hub")  # data that are no directory


def flag(default: Any, parse: Callable[[Any], Any], help: str, **keywords: Any) -> Any:
    """A field with its type, its help and further keywords of `add_argument`."""
    return field(default=default, metadata={"parse": parse, "help": help, **keywords})


def _data(value: Any) -> str:
    """The directory spelled out: the same data have one name, whatever the working directory."""
    return value if value in NAMED else str(Path(text(value)).expanduser().resolve())


def _names(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


def _seeds(values: Iterable[Any]) -> tuple[int, ...]:
    seeds = tuple(integer(0)(value) for value in values)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError("give at least one, and each once")
    return seeds


def _overrides(values: Mapping[str, Any] | Iterable[str]) -> Mapping[str, Any]:
    """Settings from NAME=VALUE, each refused by name here and not in every row."""
    if not isinstance(values, Mapping):
        pairs = [word.partition("=") for word in values]
        if any(not equals for _, equals, _ in pairs):
            raise ValueError("must be NAME=VALUE")
        values = {name: value for name, _, value in pairs}
    for name, value in values.items():
        Config.from_mapping({name: value}, origin="--set")
    return values


@dataclass(frozen=True)
class StudySettings:
    """Settings of a study; one that exists is valid.

    >>> StudySettings(epochs="2", seeds=["0", "1"]).seeds
    (0, 1)
    >>> StudySettings(steps=0)
    Traceback (most recent call last):
    bert_mtl_demo.errors.ConfigError: steps = 0: must be a whole number of at least 1
    """

    rows: tuple[str, ...] = flag(
        (), _names, "only these rows of the report (default: all)", metavar="ROW", nargs="+"
    )
    data: str = flag("sample", _data, "as in bert_mtl_demo.train (default: sample)")
    encoder: str = flag(PACKAGED, text, f"as in bert_mtl_demo.train (default: {PACKAGED})")
    epochs: int | None = flag(
        None,
        optional(integer(1)),
        "at most this many epochs (default: each row's own number; conflicts: 3)",
    )
    # Shares of the tasks, their order and the difference between two lengths stay as published.
    fraction: float | None = flag(
        None,
        optional(real(0, 1, open_low=True)),
        "fraction of each row's own schedule, pre-training included; data limits do not change "
        "what tasks are drawn (default: all of it, or --steps)",
    )
    # A scheme that gives a step one task takes as many times more steps, so that all rows see as
    # much data.
    steps: int | None = flag(
        None,
        optional(integer(1)),
        "at most this many batches of each task in an epoch (default: each row's own number; "
        "conflicts: 300)",
    )
    seeds: tuple[int, ...] = flag(
        (0,), _seeds, "seeds of every row (default: 0)", metavar="SEED", nargs="+"
    )
    jobs: int = flag(1, integer(1), "number of runs at a time (default: 1)")
    # A small encoder trained for a hundredth of the steps wants a larger one.
    lr_scale: float = flag(
        1.0, real(0, open_low=True), "factor on each row's learning rate (default: 1)"
    )
    set: Mapping[str, Any] = flag(
        (),
        _overrides,
        "other settings of bert_mtl_demo.train, which replace the rows' own",
        metavar="NAME=VALUE",
        nargs="+",
        action="extend",
    )
    probe_batches: int | None = flag(
        None,
        optional(integer(1)),
        "conflicts and surgery only: micro-batches of each task at each stage (default: 256; "
        "surgery: 512)",
    )
    as_published: bool = flag(
        False,
        switch,
        "conflicts only: heads, losses, dropout and optimizer of the report that it answers, "
        "pals_gradvac's Gradient Vaccine row, in place of the demo's",
        action="store_true",
    )
    output: str = flag("runs/study", text, "directory of pages and runs (default: runs/study)")
    keep_weights: bool = flag(
        False, switch, "keep the weights of each run's best epoch", action="store_true"
    )
    no_texts: bool = flag(
        False,
        switch,
        "leave the data's sentences out of the pages, for data that may not be passed on",
        action="store_true",
    )
    page_only: bool = flag(
        False, switch, "write the pages from finished runs, run nothing", action="store_true"
    )
    command: str = ""  # that gave these settings

    def __post_init__(self) -> None:
        for entry in fields(self):
            if parse := entry.metadata.get("parse"):
                object.__setattr__(self, entry.name, _checked(entry.name, parse, self))
        if self.fraction is not None and self.steps is not None:
            raise ConfigError(
                f"fraction = {self.fraction:g} with steps = {self.steps}: both say how long an "
                "epoch is; leave one out"
            )

    @property
    def directory(self) -> Path:
        """The output directory."""
        return Path(self.output).expanduser()

    @property
    def portable_command(self) -> str:
        """The command as a page shows it."""
        return shlex.join(portable(shlex.split(self.command)))

    def refuse_missing(self) -> None:
        """Refuse an encoder or data that do not exist once, and not in every single run."""
        locate(self.encoder)
        if self.data not in NAMED and not Path(self.data).is_dir():
            raise ConfigError(
                f"data = {self.data}: is not a directory; give one that holds the tables, "
                "'sample' or 'hub'"
            )

    def configs(self, row: Row, seed: int) -> list[Config]:
        """The runs of a row: one, or one per task if it trains them separately.

        >>> naive = Row("some", "naive", "Table 1", {}, {"batching": "round_robin", "epochs": 10})
        >>> (config,) = StudySettings(epochs=2, steps=100).configs(naive, seed=0)
        >>> config.epochs, config.steps_per_epoch
        (2, 300)
        """
        joint = self._config(row, seed)
        if not row.separate:
            return [joint]
        return [self._config(row, seed, tasks=(name,)) for name in joint.tasks]

    def _config(self, row: Row, seed: int, **tasks: Any) -> Config:
        published = row.config(**tasks)
        changes: dict[str, Any] = {
            "data": self.data,
            "encoder": self.encoder,
            "seed": seed,
            "lr": min(1.0, published.lr * self.lr_scale),
            "checkpoint_every": max(1000, published.checkpoint_every),
        }
        if self.epochs is not None:
            changes["epochs"] = min(published.epochs, self.epochs)
        if self.fraction is not None:
            changes["fraction"] = self.fraction
        if self.steps is not None:
            steps = self.steps * turns(published)
            changes["steps_per_epoch"] = min(published.steps_per_epoch or steps, steps)
        if self.encoder == PACKAGED and published.pooling == "pooler":
            changes["pooling"] = "mean"
        config = row.config(**{**tasks, **changes, **self.set})
        # Both are exact, and shorten a run.
        cached = why_not_cached(config) is None
        return replace(config, cache_features=cached, trim_vocabulary=True)

    def described(self) -> dict[str, str]:
        """The budget in words, for the page."""
        row = "each row's own"
        batches = f"{self.steps} batches of each task in an epoch"
        rate = f"{self.lr_scale:g} times each row's own"
        part = {} if self.fraction is None else {"schedule": f"{self.fraction:g} of each row's own"}
        return {
            "command": self.portable_command,
            "data": self.data if self.data in NAMED else "a directory of tables",
            "encoder": self.encoder,
            "epochs": row if self.epochs is None else f"at most {self.epochs}",
            "steps": row if self.steps is None else batches,
            **part,
            "learning rate": row if self.lr_scale == 1 else rate,
            "other settings": ", ".join(f"{k} = {v}" for k, v in self.set.items()) or row,
            "seeds": " ".join(map(str, self.seeds)),
        }

    def budget(self) -> dict[str, str]:
        """The part of `described` that all results in a directory have in common."""
        one = ("command", "seeds")
        return {name: words for name, words in self.described().items() if name not in one}

    def substitutions(self) -> list[str]:
        """Sentences for a page about rows that could not be run as published."""
        if self.encoder != PACKAGED:
            return []
        return [
            "all-MiniLM-L6-v2 was trained under mean pooling and its pooler never was, so rows "
            "that take the pooler's output take the mean here.",
            "all-MiniLM-L6-v2 has seen Quora's duplicate questions in its own training, so its "
            "paraphrase scores are not clean.",
        ]


def _checked(name: str, parse: Callable[[Any], Any], settings: StudySettings) -> Any:
    value = getattr(settings, name)
    try:
        return parse(value)
    except ConfigError:
        raise
    except ValueError as error:
        words = value if isinstance(value, list | tuple) else [value]
        raise ConfigError(f"{name} = {' '.join(map(str, words))}: {error}") from None


def turns(config: Config) -> int:
    """Steps in which every trained task has had a batch of its own, about.

    >>> turns(Config(batching="zipped")), turns(Config(batching="round_robin"))
    (1, 3)
    """
    alone = config.batching in ALTERNATING or config.batching == "uniform_partial"
    return len(config.trained) if alone else 1


def portable(words: Sequence[str]) -> list[str]:
    """A command line as a page shows it, without directories of this machine.

    >>> portable(["all", "--data", "/home/me/data", "--output=/tmp/here", "--seeds", "0"])
    ['all', '--data', 'DIR', '--output=OUT', '--seeds', '0']
    >>> portable(["all", "--data=hub", "--page-only"])  # what computed it had no such flag
    ['all', '--data=hub']
    """
    neutral = list(words)
    for flag, name, kept in (("--data", "DIR", NAMED), ("--output", "OUT", ())):
        for n, word in enumerate(words):
            if word.startswith(flag + "=") and word.partition("=")[2] not in kept:
                neutral[n] = f"{flag}={name}"
            elif n and words[n - 1] == flag and word not in kept:
                neutral[n] = name
    return [word for word in neutral if word != "--page-only"]
