"""Settings of a run: one frozen dataclass, checked as a whole before anything is loaded.

Every line below is at once a field, a key of the settings file, and a flag (`steps_per_epoch` is
`--steps-per-epoch`). Defaults < file < flags. A `Config` that exists is a valid one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from bert_mtl_demo import combinations
from bert_mtl_demo.combinations import ALTERNATING as ALTERNATING
from bert_mtl_demo.combinations import JOINT, SCORE_LOSSES
from bert_mtl_demo.errors import ConfigError, unknown
from bert_mtl_demo.layouts import TableOf, tables
from bert_mtl_demo.setting_types import (
    Choice,
    choice,
    default_of,
    integer,
    layers,
    names,
    optional,
    quoted,
    real,
    setting,
    switch,
    text,
)
from bert_mtl_demo.tasks import KINDS, TASKS, Task
from bert_mtl_demo.user_tasks import file_of, user_tasks, written

METHODS = ("sum", "pcgrad", "gradvac", "sham")
POOLINGS = ("mean", "cls", "pooler", "cnn", "bilstm")
STAGES = ("mlm", "nli", "simcse", "simcse_sst")
BATCHINGS = (*JOINT, "uniform_partial", *ALTERNATING)
STS_LOSSES = (
    *(*SCORE_LOSSES, "cosine_embedding", "mnrl_one", "mnrl_label", "mnrl_cosine"),
    *("simcse", "triplet", "negative_sampling"),
)


COUNT = optional(integer(1))
RATE = real(0, 1, open_low=True)
rare = partial(setting, rare=True)

# The first setting of each group of flags -> the group's title.
GROUPS = {
    "data": "tasks and data",
    "encoder": "encoder",
    "pretrain": "stages before the tasks",
    "pooling": "sentence vectors, heads and losses",
    "method": "gradient surgery",
    "batching": "batches and optimisation",
    "device": "the run",
}


@dataclass(frozen=True)
class Config:
    """All settings of one run.

    >>> Config(method="gradvac", epochs=3).method
    'gradvac'
    >>> Config(epochs=0)
    Traceback (most recent call last):
    bert_mtl_demo.errors.ConfigError: epochs = 0: must be a whole number of at least 1
    """

    data: str = setting("sample", text, "'sample', 'hub', or a directory of tables")
    bad_rows: str = setting("skip", choice("skip", "refuse"), "what to do with an invalid row")
    tasks: tuple[str, ...] = setting(
        ("sst", "para", "sts"), names, f"any of {', '.join(TASKS)} and of --task, or none"
    )
    task: tuple[Task, ...] = setting(
        (),
        user_tasks,
        f"add your own task; KIND is one of {', '.join(KINDS)}; FILE contains {{split}}, which "
        "stands for train and dev; repeatable",
    )
    map: tuple[TableOf, ...] = setting(
        (),
        tables,
        "the table of a built-in task, as NAME=FILE:COLUMNS: the columns of its sentences, then "
        "of its label, by name or number; repeatable",
        before=(),
    )
    untrained: tuple[str, ...] = rare((), names, "tasks to score but not train")
    max_length: int = setting(128, integer(8), "tokens kept of a sentence")
    train_limit: int | None = setting(None, COUNT, "maximum number of training examples per task")
    dev_limit: int | None = setting(None, COUNT, "maximum number of dev examples per task")

    encoder: str = setting("minilm", text, "'minilm' (packaged), a directory, or a name on the hub")
    freeze_encoder: bool = setting(False, switch, "keep the encoder's weights fixed")
    encoder_dropout: float | None = rare(
        None, optional(real(0, 0.99)), "dropout probability in the encoder; none: its own"
    )
    encoder_layers: tuple[int, ...] = rare(
        (), layers, "layers of the encoder to keep, as 0,2,5; none: all", before=()
    )
    cache_features: bool = rare(
        False,
        switch,
        "compute the vectors of a frozen encoder once, before the first step",
        before=False,
    )
    trim_vocabulary: bool = rare(
        False, switch, "keep word embeddings of the data's tokens alone in memory", before=False
    )
    adapter: str = rare("none", choice("none", "pals", "low_rank"), "task-specific layer adapters")
    adapter_size: int | None = rare(
        None, COUNT, "adapter width; none: 204 (pals) or 100 (low_rank) at width 768, scaled"
    )
    layer_decay: float = rare(1.0, RATE, "learning rate of a layer relative to the one above it")

    pretrain: tuple[str, ...] = rare(
        (), names, f"pre-training stages, in order: any of {', '.join(STAGES)}"
    )
    pretrain_epochs: int = rare(1, integer(1), "passes over a stage's data")
    pretrain_steps: int | None = rare(None, COUNT, "maximum number of steps in a stage")
    pretrain_batch_size: int = rare(16, integer(2), "batch size of a stage")
    pretrain_accumulation: int = rare(1, integer(1), "batches accumulated in a step of a stage")
    pretrain_lr: float = rare(1e-5, RATE, "peak learning rate of a stage")
    temperature: float = rare(0.05, real(0, open_low=True), "softmax temperature of SimCSE")
    cache: str | None = rare(
        None, optional(text), "directory for pre-trained encoders; none: ~/.cache/bert_mtl_demo"
    )

    pooling: str = setting(
        "mean", Choice(POOLINGS, several=True), "sentence vector; join several with +"
    )
    pairs: str = setting(
        "siamese", choice("siamese", "cross", "ensemble"), "encode a pair's sentences apart or not"
    )
    hidden_layers: int = rare(0, integer(0), "hidden layers in each head")
    para_head: str = setting(
        "concat", choice("concat", "difference"), "input of pair-classification heads"
    )
    sts_head: str = setting(
        "cosine", choice("cosine", "concat", "linear", "difference"), "head of similarity tasks"
    )
    dropout: float = setting(0.3, real(0, 0.99), "dropout probability in the heads")
    para_loss: str = setting(
        "cross_entropy", choice("cross_entropy", "bce", "mse"), "loss of two-class pair tasks"
    )
    sts_loss: str = setting("mse", choice(*STS_LOSSES), "loss of similarity tasks")
    weighting: str = rare(
        "none", choice("none", "uncertainty", "inverse_share"), "weights of the tasks' losses"
    )

    method: str = setting(
        "pcgrad",
        choice(*METHODS),
        "how conflicting gradients are combined; sham: PCGrad's weights of another step",
    )
    grouping: str = setting(
        "model", choice("model", "layer", "tensor"), "unit in which gradients are compared"
    )
    gradvac_beta: float = setting(0.01, real(0, 1), "GradVac: step size of the moving targets")
    gradvac_update: str = rare(
        "always", choice("always", "on_alter"), "GradVac: when the targets move"
    )
    gradvac_target: float | None = rare(
        None, optional(real(-1, 1)), "GradVac: initial target cosine; none: 0"
    )

    batching: str = setting("zipped", choice(*BATCHINGS), "which tasks share a step")
    batch_size: int = setting(8, integer(1), "examples of each task in a step")
    partial_batch: int = rare(4, integer(1), "examples per draw with batching uniform_partial")
    epochs: int = setting(
        2, integer(1), "number of epochs; dev is scored after each and the best weights are kept"
    )
    steps_per_epoch: int | None = setting(
        None, COUNT, "steps per epoch; none: one pass over the data (a third of one on the sample)"
    )
    fraction: float | None = rare(
        None,
        optional(RATE),
        "fraction of every epoch's and stage's own steps; lengths and shares are then those of "
        "the whole sets, whatever train_limit",
        before=None,
    )
    max_steps: int | None = setting(
        None,
        optional(integer(0)),
        "stop after this many steps; the schedule does not change. 0 scores the untrained model",
    )
    # 1e-4 suits a hundred steps of MiniLM on the sample; BERT-base on all of the data wants 1e-5.
    lr: float = setting(1e-4, RATE, "peak learning rate")
    warmup: float = setting(0.1, real(0, 1), "fraction of the steps used for linear warm-up")
    schedule: str = setting(
        "linear", choice("linear", "constant"), "learning rate after the warm-up"
    )
    weight_decay: float = setting(0.01, real(0), "weight decay of matrices")
    clip: float = setting(1.0, real(0), "maximum gradient norm; 0: no clipping")
    amp: str = setting(
        "auto",
        choice("auto", "off", "bf16", "fp16"),
        "mixed precision; auto: bf16 where the device computes in it, else off",
    )

    select: str = rare(
        "mean",
        choice("mean", "leaderboard", "last"),
        "overall dev score whose best epoch is kept, or the last epoch",
        before="mean",
    )
    dev_half: bool = rare(
        False,
        switch,
        "choose the epoch on one half of dev and report the scores of the other",
        before=False,
    )
    dev_sample: int | None = rare(
        None,
        COUNT,
        "number of dev examples of each task to score after an epoch, always the same; none: all",
        before=None,
    )
    train_scores: int | None = rare(
        None,
        COUNT,
        "number of training examples of each task to score with dev",
        before=None,
    )

    device: str = setting("auto", text, "'auto', 'cpu', 'cuda', 'cuda:1', 'mps', 'xpu'")
    seed: int = setting(0, integer(0), "seed of heads, dropout, batches and surgery")
    output: str | None = setting(
        None, optional(text), "run directory; none: runs/TIME-METHOD-seedSEED"
    )
    log_every: int = setting(25, integer(1), "steps per line of the logs")
    checkpoint_every: int = setting(100, integer(1), "steps between checkpoints")
    max_nonfinite: int = rare(20, integer(0), "consecutive non-finite steps before giving up")

    def __post_init__(self) -> None:
        for entry in fields(self):
            object.__setattr__(self, entry.name, _checked(entry, getattr(self, entry.name)))
        added = tuple(task.name for task in self.task if task.name not in self.tasks)
        object.__setattr__(self, "tasks", self.tasks + added)
        self._check_tasks()
        combinations.check(self)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, origin: str = "settings") -> Config:
        """A config from keys and values; an unknown key is refused by name.

        >>> Config.from_mapping({"lr": 1e-5, "tasks": ["sst", "sts"]}).tasks
        ('sst', 'sts')
        """
        known = [entry.name for entry in fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(f"{origin}: {unknown('setting', str(key), known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON.

        >>> Config.from_mapping(Config().to_dict()) == Config()
        True
        """
        values = {
            **asdict(self),
            "tasks": list(self.tasks),
            "pretrain": list(self.pretrain),
            "untrained": list(self.untrained),
            "task": written(self.task),
            "map": {table.name: table.written() for table in self.map},
            "encoder_layers": list(self.encoder_layers),
        }
        return {k: v for k, v in values.items() if v or k not in ("task", "map")}

    def key_values(self) -> dict[str, Any]:
        """The plain values that keys of finished work are hashes of.

        A setting that came after the first results is left out where it says what runs did before.

        >>> "select" in Config().key_values(), "select" in Config(select="last").key_values()
        (False, True)
        """
        before = {
            entry.name: entry.metadata["before"]
            for entry in fields(self)
            if "before" in entry.metadata
        }
        values = self.to_dict()
        return {k: v for k, v in values.items() if k not in before or getattr(self, k) != before[k]}

    def changed(self) -> dict[str, Any]:
        """The settings that differ from their defaults.

        >>> Config(seed=3).changed()
        {'seed': 3}
        """
        changed = {
            entry.name: value
            for entry in fields(self)
            if (value := getattr(self, entry.name)) != default_of(entry)
        }
        plain = self.to_dict()
        return {k: plain[k] if k in ("task", "map") else value for k, value in changed.items()}

    @property
    def definitions(self) -> dict[str, Task]:
        """The tasks of the run by name, in order.

        >>> [task.title for task in Config(tasks=("sts", "sst")).definitions.values()]
        ['similarity', 'sentiment']
        """
        mapped = {table.name: table.of(TASKS[table.name]) for table in self.map}
        known = {**TASKS, **mapped, **{task.name: task for task in self.task}}
        return {name: known[name] for name in self.tasks}

    @property
    def sources(self) -> str:
        """The sources of the examples, for people: `data`, if a task reads it, and tables.

        >>> Config(tasks=("sst", "sts")).sources
        'sample'
        """
        files = {table.name: table.file for table in self.map if table.name in self.tasks}
        files |= {task.name: file_of(task) for task in self.task}
        data = [self.data] if len(files) < len(self.tasks) else []
        return ", ".join([*data, *files.values()])

    def trained_of(self, kind: str) -> tuple[str, ...]:
        """The tasks of a kind that are trained.

        >>> Config().trained_of("similarity")
        ('sts',)
        """
        return tuple(name for name in self.trained if self.definitions[name].kind == kind)

    @property
    def poolings(self) -> tuple[str, ...]:
        """The parts of the sentence vector, in order.

        >>> Config(pooling="mean+cnn").poolings
        ('mean', 'cnn')
        """
        return tuple(self.pooling.split("+"))

    @property
    def trained(self) -> tuple[str, ...]:
        """The tasks that are trained, in order.

        >>> Config(untrained=["sst"]).trained
        ('para', 'sts')
        """
        return tuple(name for name in self.tasks if name not in self.untrained)

    def _check_tasks(self) -> None:
        if not self.tasks:
            raise ConfigError("tasks = none: must be one or more names, or come with --task")
        defined = [*TASKS, *(task.name for task in self.task)]
        for key, noun, known in (("tasks", "task", defined), ("pretrain", "stage", STAGES)):
            chosen = getattr(self, key)
            for name in chosen:
                if name not in known:
                    raise ConfigError(f"{key} = {', '.join(chosen)}: {unknown(noun, name, known)}")
        if not set(self.untrained) <= set(self.tasks) or not self.trained:
            raise ConfigError(
                f"untrained = {', '.join(self.untrained)} with tasks = {', '.join(self.tasks)}: "
                "must name some of the tasks, and leave at least one to train"
            )

    def warnings(self) -> list[str]:
        """What is allowed but probably not meant, one sentence each.

        >>> Config(batching="round_robin").warnings()[0][:36]
        "method 'pcgrad' with batching 'round"
        """
        return combinations.warnings(self)


def read_settings(path: str | Path) -> dict[str, Any]:
    """Keys and values of a JSON or TOML settings file (told apart by the ending).

    >>> read_settings("no-such-file.json")
    Traceback (most recent call last):
    bert_mtl_demo.errors.ConfigError: no-such-file.json: cannot be read (No such file or directory)
    """
    path = Path(path)
    try:
        content = path.read_text(encoding="utf-8")
        values = _parse_toml(content) if path.suffix == ".toml" else json.loads(content)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        kind = "TOML" if path.suffix == ".toml" else "JSON"
        raise ConfigError(f"{path}: is not valid {kind} ({error})") from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: must hold one table of settings, but holds a {type(values).__name__}"
        )
    return values


def _parse_toml(content: str) -> dict[str, Any]:
    if sys.version_info < (3, 11):
        raise ConfigError("a TOML settings file needs Python 3.11 or later; write it as JSON")
    import tomllib

    return tomllib.loads(content)


def _checked(entry: Any, value: Any) -> Any:
    try:
        return entry.metadata["parse"](value)
    except ValueError as error:
        raise ConfigError(f"{entry.name} = {quoted(value)}: {error}") from None
