"""Settings of a run: one frozen dataclass, checked as a whole before anything is loaded.

Every line below is at once a field, a key of the settings file, and a flag (`steps_per_epoch` is
`--steps-per-epoch`). Defaults < file < flags. A `Config` that exists is a valid one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bert_mtl_demo.errors import ConfigError, unknown
from bert_mtl_demo.setting_types import (
    any_names,
    choice,
    default_of,
    integer,
    joined,
    names,
    optional,
    real,
    setting,
    switch,
    text,
)
from bert_mtl_demo.tasks import TASKS

METHODS = ("sum", "pcgrad", "gradvac")
POOLINGS = ("mean", "cls", "pooler", "cnn", "bilstm")
STAGES = ("mlm", "nli", "simcse", "simcse_sst")
# Schemes that give a step one task only, so that no two gradients meet.
ALTERNATING = ("round_robin", "proportional", "sqrt", "annealed", "sequential")
BATCHINGS = ("zipped", "method_1", "method_2", "method_3", "uniform_partial", *ALTERNATING)
# Losses on the head's scores; all others need the two sentence vectors.
SCORE_LOSSES = ("mse", "huber")
# Losses on the two sentence vectors alone, which leave the head as it is.
VECTOR_LOSSES = ("cosine_embedding", "simcse", "triplet")
STS_LOSSES = (
    *SCORE_LOSSES,
    "cosine_embedding",
    "mnrl_one",
    "mnrl_label",
    "mnrl_cosine",
    "simcse",
    "triplet",
    "negative_sampling",
)


@dataclass(frozen=True)
class Config:
    """All settings of one run.

    >>> Config(method="gradvac", epochs=3).method
    'gradvac'
    >>> Config(epochs=0)
    Traceback (most recent call last):
    bert_mtl_demo.errors.ConfigError: epochs = 0: must be a whole number of at least 1
    """

    # What is learned, and from what.
    data: str = setting("sample", text, "'sample', 'hub', or a directory of tables")
    bad_rows: str = setting(
        "skip", choice("skip", "refuse"), "what to do with a row that cannot be read"
    )
    tasks: tuple[str, ...] = setting(
        ("sst", "para", "sts"), names, "which of " + ", ".join(TASKS) + ", in this order"
    )
    untrained: tuple[str, ...] = setting((), any_names, "tasks that are scored but not trained")
    max_length: int = setting(128, integer(8), "longest sentence in tokens; the rest is cut")
    train_limit: int | None = setting(
        None, optional(integer(1)), "train on at most so many examples of a task; none: all"
    )
    dev_limit: int | None = setting(
        None, optional(integer(1)), "score at most so many examples of a task; none: all"
    )

    # The encoder.
    encoder: str = setting("minilm", text, "'minilm' (packaged), a directory, or a name on the hub")
    freeze_encoder: bool = setting(False, switch, "leave the encoder's weights as they are")
    encoder_dropout: float | None = setting(
        None, optional(real(0, 0.99)), "in the encoder; none: what it was made with"
    )
    adapter: str = setting(
        "none", choice("none", "pals", "low_rank"), "task-specific parts inside each layer"
    )
    adapter_size: int | None = setting(
        None,
        optional(integer(1)),
        "their inner width; none: 204 (pals) or 100 at width 768, scaled",
    )
    layer_decay: float = setting(
        1.0, real(0, 1, open_low=True), "learning rate of a layer as a share of the one above it"
    )

    # Stages before the tasks.
    pretrain: tuple[str, ...] = setting(
        (), any_names, "stages before the tasks, in order, of " + ", ".join(STAGES)
    )
    pretrain_epochs: int = setting(1, integer(1), "passes of a stage over its data")
    pretrain_steps: int | None = setting(None, optional(integer(1)), "at most so many in a stage")
    pretrain_batch_size: int = setting(16, integer(2), "examples in a batch of a stage")
    pretrain_accumulation: int = setting(1, integer(1), "batches in one step of a stage")
    pretrain_lr: float = setting(1e-5, real(0, 1, open_low=True), "learning rate of the stages")
    temperature: float = setting(0.05, real(0, open_low=True), "of SimCSE's softmax")
    cache: str | None = setting(
        None, optional(text), "where pre-trained encoders are kept; none: ~/.cache/bert_mtl_demo"
    )

    # From tokens to answers.
    pooling: str = setting(
        "mean", joined(*POOLINGS), "how tokens become one vector: " + ", ".join(POOLINGS) + ", or +"
    )
    pairs: str = setting(
        "siamese", choice("siamese", "cross", "ensemble"), "how two sentences are read"
    )
    hidden_layers: int = setting(0, integer(0), "in every head, with ReLU and dropout")
    para_head: str = setting("concat", choice("concat", "difference"), "[u; v] or [u; v; |u - v|]")
    sts_head: str = setting(
        "cosine",
        choice("cosine", "concat", "linear", "difference"),
        "how two vectors become a similarity",
    )
    dropout: float = setting(0.3, real(0, 0.99), "in the heads, the CNN and the BiLSTM")

    # What is minimised.
    para_loss: str = setting(
        "cross_entropy", choice("cross_entropy", "bce", "mse"), "of paraphrase"
    )
    sts_loss: str = setting("mse", choice(*STS_LOSSES), "of similarity")
    weighting: str = setting(
        "none", choice("none", "uncertainty", "inverse_share"), "of the tasks' losses"
    )

    # Gradient surgery.
    method: str = setting("pcgrad", choice(*METHODS), "what is done about conflicting gradients")
    grouping: str = setting(
        "model", choice("model", "layer", "tensor"), "where conflicts are looked for"
    )
    gradvac_beta: float = setting(0.01, real(0, 1), "how fast GradVac's targets follow the cosines")
    gradvac_update: str = setting(
        "always", choice("always", "on_alter"), "when GradVac's targets move"
    )
    gradvac_target: float | None = setting(
        None, optional(real(-1, 1)), "where GradVac's targets start; none: at 0"
    )

    # Optimisation.
    batching: str = setting("zipped", choice(*BATCHINGS), "which tasks share a step")
    batch_size: int = setting(8, integer(1), "examples of one task in a step")
    partial_batch: int = setting(
        4, integer(1), "examples of one draw with batching uniform_partial"
    )
    epochs: int = setting(2, integer(1), "evaluations on dev; the best one is kept")
    steps_per_epoch: int | None = setting(
        None, optional(integer(1)), "none: one pass as the batching has it, on the sample a third"
    )
    max_steps: int | None = setting(
        None, optional(integer(1)), "stop here; the schedule is not squeezed"
    )
    # 1e-4 suits a hundred steps of MiniLM on the sample; BERT-base on all of the data wants 1e-5.
    lr: float = setting(1e-4, real(0, 1, open_low=True), "peak learning rate")
    warmup: float = setting(0.1, real(0, 1), "share of the steps in which the learning rate rises")
    schedule: str = setting("linear", choice("linear", "constant"), "after the warm-up")
    weight_decay: float = setting(0.01, real(0), "not applied to biases and LayerNorm")
    clip: float = setting(1.0, real(0), "largest gradient norm; 0 switches clipping off")
    amp: str = setting("off", choice("off", "bf16", "fp16"), "mixed precision")
    device: str = setting("auto", text, "'auto', 'cpu', 'cuda', 'cuda:1', ...")
    seed: int = setting(0, integer(0), "of initial heads, dropout, batches and surgery")

    # Bookkeeping.
    output: str | None = setting(None, optional(text), "none: runs/<time>-<method>-seed<seed>")
    log_every: int = setting(25, integer(1), "steps in one line of the logs")
    checkpoint_every: int = setting(100, integer(1), "steps lost at most if the process is killed")
    max_nonfinite: int = setting(20, integer(0), "non-finite steps in a row before giving up")

    def __post_init__(self) -> None:
        for entry in fields(self):
            object.__setattr__(self, entry.name, _checked(entry, getattr(self, entry.name)))
        self._check_tasks()
        self._check_combinations()

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, origin: str = "settings") -> Config:
        """A config from keys and values; an unknown key is refused by name.

        >>> Config.from_mapping({"lr": 1e-5, "tasks": ["sst", "sts"]}).tasks
        ('sst', 'sts')
        """
        known = [entry.name for entry in fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(f"{origin}: {unknown('setting', key, known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON.

        >>> Config.from_mapping(Config().to_dict()) == Config()
        True
        """
        return {
            **asdict(self),
            "tasks": list(self.tasks),
            "pretrain": list(self.pretrain),
            "untrained": list(self.untrained),
        }

    def changed(self) -> dict[str, Any]:
        """The settings that differ from their defaults, which is what a reader wants to see.

        >>> Config(seed=3).changed()
        {'seed': 3}
        """
        return {
            entry.name: value
            for entry in fields(self)
            if (value := getattr(self, entry.name)) != default_of(entry)
        }

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
        for name in self.untrained:
            if name not in self.tasks or not self.trained:
                raise ConfigError(
                    f"untrained = {', '.join(self.untrained)} with tasks = "
                    f"{', '.join(self.tasks)}: must name some of the tasks, and leave at least one "
                    "to train"
                )
        for kind, given, known in (
            ("tasks", self.tasks, TASKS),
            ("pretrain", self.pretrain, STAGES),
        ):
            for name in given:
                if name not in known:
                    what = "task" if kind == "tasks" else "stage"
                    raise ConfigError(f"{kind} = {', '.join(given)}: {unknown(what, name, known)}")

    def _check_combinations(self) -> None:
        if self._sts_has_nothing_to_train():
            raise ConfigError(
                "freeze_encoder = true with sts_head = cosine: the cosine has no parameters of its "
                "own, so sts would have nothing to train. Use --sts-head concat, or leave sts out "
                "of --tasks."
            )
        if self._vectors_are_fixed() and self._sts_head_never_trains():
            raise ConfigError(
                f"freeze_encoder = true with sts_loss = {self.sts_loss}: this loss trains sentence "
                "vectors, and those of a frozen encoder are fixed. Use --sts-loss mse, or leave "
                "sts out of --tasks."
            )
        if self.sts_loss not in SCORE_LOSSES and self.pairs != "siamese":
            raise ConfigError(
                f"sts_loss = {self.sts_loss} with pairs = {self.pairs}: this loss compares the "
                "vectors of single sentences. Use --pairs siamese, or --sts-loss mse."
            )
        if self.weighting == "inverse_share" and self.batching not in (
            "zipped",
            "method_1",
            "method_2",
            "method_3",
        ):
            raise ConfigError(
                f"weighting = inverse_share with batching = {self.batching}: the shares are those "
                "of a step in which every task has a batch. Use --batching method_1 or zipped."
            )

        if self.weighting == "inverse_share" and len(self.trained) == 1:
            raise ConfigError(
                f"weighting = inverse_share with one trained task ({self.trained[0]}): its weight "
                "is the share of the others. Use --weighting none, or train more tasks."
            )

    def _sts_has_nothing_to_train(self) -> bool:
        bare = self._vectors_are_fixed() and self.pairs == "siamese"
        return bare and self.sts_head == "cosine" and "sts" in self.trained

    def _vectors_are_fixed(self) -> bool:
        return self.freeze_encoder and self.adapter == "none" and not self._shares_a_pooling()

    def warnings(self) -> list[str]:
        """What is allowed but probably not what was meant, one sentence each.

        >>> Config(batching="round_robin").warnings()[0][:36]
        "method 'pcgrad' with batching 'round"
        """
        found = []
        if self.method != "sum" and self.batching in ALTERNATING:
            found.append(
                f"method {self.method!r} with batching {self.batching!r}: each step has one task, "
                "so no two gradients meet and surgery has nothing to do. Use --batching zipped to "
                "let them meet."
            )
        if self.method != "sum" and self.freeze_encoder and not self._shares_a_pooling():
            found.append(
                f"method {self.method!r} with a frozen encoder: every trained parameter belongs to "
                "one task, so there is nothing shared to operate on."
            )
        if self._sts_head_never_trains():
            found.append(
                f"sts_loss {self.sts_loss!r} with sts_head {self.sts_head!r}: this loss trains "
                "sentence vectors, so the head stays as it was drawn and the scores say nothing. "
                "Use --sts-head cosine."
            )
        if self._ranks_second_sentences_alone():
            found.append(
                f"sts_loss {self.sts_loss!r} with sts_head 'linear': what a linear layer gives for "
                "the first sentence is the same for every candidate and cancels, so second "
                "sentences are ranked by themselves. Use --sts-head cosine, or --hidden-layers 1."
            )
        if self.method != "sum" and len(self.trained) == 1:
            found.append(
                f"method {self.method!r} with one task: there is no second gradient to conflict "
                "with."
            )
        return found

    def _sts_head_never_trains(self) -> bool:
        on_vectors = self.sts_loss in VECTOR_LOSSES
        return on_vectors and self.sts_head != "cosine" and "sts" in self.trained

    def _ranks_second_sentences_alone(self) -> bool:
        ranked = self.sts_loss in ("mnrl_label", "mnrl_cosine") and "sts" in self.trained
        return ranked and self.sts_head == "linear" and not self.hidden_layers

    def _shares_a_pooling(self) -> bool:
        return bool({"cnn", "bilstm"} & set(self.poolings))


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
    except ValueError as error:
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
        return entry.metadata["kind"](value)
    except ValueError as error:
        shown = value if isinstance(value, str | int | float) else repr(value)
        raise ConfigError(f"{entry.name} = {shown}: {error}") from None
