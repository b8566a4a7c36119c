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
from bert_mtl_demo.settings import (
    choice,
    default_of,
    integer,
    names,
    optional,
    real,
    setting,
    switch,
    text,
)
from bert_mtl_demo.tasks import TASKS

METHODS = ("sum", "pcgrad", "gradvac")


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
    tasks: tuple[str, ...] = setting(tuple(TASKS), names, "which of " + ", ".join(TASKS))
    max_length: int = setting(128, integer(8), "longest sentence in tokens; the rest is cut")

    # The model.
    encoder: str = setting("minilm", text, "'minilm' (packaged), a directory, or a name on the hub")
    freeze_encoder: bool = setting(False, switch, "train the heads only")
    pooling: str = setting("mean", choice("mean", "cls", "pooler"), "how tokens become one vector")
    sts_head: str = setting(
        "cosine", choice("cosine", "concat"), "how two vectors become a similarity"
    )
    dropout: float = setting(0.3, real(0, 0.99), "in the heads")

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
    batching: str = setting("zipped", choice("zipped", "round_robin"), "which tasks share a step")
    batch_size: int = setting(8, integer(1), "examples of one task in a step")
    epochs: int = setting(2, integer(1), "evaluations on dev; the best one is kept")
    steps_per_epoch: int | None = setting(
        None, optional(integer(1)), "none: one pass over the largest set, on the sample a third"
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
        return {**asdict(self), "tasks": list(self.tasks)}

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

    def _check_tasks(self) -> None:
        for name in self.tasks:
            if name not in TASKS:
                raise ConfigError(
                    f"tasks = {', '.join(self.tasks)}: {unknown('task', name, TASKS)}"
                )

    def _check_combinations(self) -> None:
        if self.freeze_encoder and self.sts_head == "cosine" and "sts" in self.tasks:
            raise ConfigError(
                "freeze_encoder = true with sts_head = cosine: the cosine has no parameters of its "
                "own, so sts "
                "would have nothing to train. Use --sts-head concat, or leave sts out of --tasks."
            )

    def warnings(self) -> list[str]:
        """What is allowed but probably not what was meant, one sentence each.

        >>> Config(batching="round_robin").warnings()[0][:36]
        "method 'pcgrad' with batching 'round"
        """
        found = []
        if self.method != "sum" and self.batching == "round_robin":
            found.append(
                f"method {self.method!r} with batching 'round_robin': each step has one task, so "
                "no two gradients "
                "meet and surgery has nothing to do. Use --batching zipped to let them meet."
            )
        if self.method != "sum" and self.freeze_encoder:
            found.append(
                f"method {self.method!r} with a frozen encoder: every trained parameter belongs to "
                "one head, so "
                "there is nothing shared to operate on."
            )
        if self.method != "sum" and len(self.tasks) == 1:
            found.append(
                f"method {self.method!r} with one task: there is no second gradient to conflict "
                "with."
            )
        return found


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
