"""The settings of a new and of a resumed run: spelled out, and compared with those before."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from bert_mtl_demo.config import Config
from bert_mtl_demo.data import with_labels
from bert_mtl_demo.errors import CheckpointError, ConfigError
from bert_mtl_demo.tasks import Task
from bert_mtl_demo.user_tasks import file_of, user_tasks, written

# What a resumed run may change: how far to go, how to keep books, where the same data now lie (also
# the tables of a user's tasks). The data are compared.
EXTENDABLE = (
    *("epochs", "max_steps", "checkpoint_every", "max_nonfinite"),
    *("data", "map", "device", "cache"),
)
# Which task a step has depends on how many epochs there are, so they cannot become more.
PLANNED = ("sequential", "annealed")


def output_of(config: Config) -> Path:
    """The directory of a run: as set, or named after time, method and seed.

    >>> output_of(Config(output="runs/first")).as_posix()
    'runs/first'
    """
    if config.output is not None:
        return Path(config.output).expanduser()
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.method}-seed{config.seed}"
    return Path("runs") / stem


def kept(config: Config) -> dict[str, Any]:
    """The settings as a checkpoint keeps them, to compare config.json with; not where it lies.

    >>> "lr" in kept(Config()), "output" in kept(Config())
    (True, False)
    """
    return {name: value for name, value in config.to_dict().items() if name != "output"}


def decisive(config: Config) -> dict[str, Any]:
    """The settings that cannot change in a run's life, which its best weights are kept with.

    >>> "lr" in decisive(Config()), "epochs" in decisive(Config())
    (True, False)
    """
    fixed = ("epochs",) if config.batching in PLANNED else ()
    values = {
        name: value
        for name, value in kept(config).items()
        if name in fixed or name not in EXTENDABLE
    }
    tasks = written(_at(task, "{split}") for task in config.task)  # wherever it lies
    return {**values, "task": tasks} if tasks else values


def edited(config: Config, before: Mapping[str, Any], path: Path) -> list[str]:
    """What was edited in a run's config.json since its weights were written, one sentence each.

    Args:
        config: the settings in config.json.
        before: those that the weights were written with; `kept` or `decisive`.
        path: of config.json.

    Raises:
        CheckpointError: for an edit that a resumed run may not make.

    >>> edited(Config(epochs=3), kept(Config()), Path("runs/first/config.json"))
    ['runs/first/config.json: epochs is 3 and was 2 at the last checkpoint']
    """
    if not before:
        return []
    saved = Config.from_mapping(before, origin=str(path))
    for name, value in decisive(saved).items():
        if (changed := decisive(config).get(name)) != value:
            raise CheckpointError(
                f"{path}: has {name} = {changed}, but this run was trained with {name} = {value}. "
                "Put that back, or start a new run."
            )
    after = kept(config)
    return [
        f"{path}: {name} is {after[name]} and was {value} at the last checkpoint"
        for name, value in before.items()
        if name in EXTENDABLE and after[name] != value
    ]


def refuse_module_names(config: Config) -> None:
    """Refuse names of tasks that torch's modules have for themselves."""
    for task in config.task:
        if any(hasattr(module, task.name) for module in (nn.ModuleDict(), nn.ParameterDict())):
            raise ConfigError(
                f"task = {task.name}: torch's modules have an attribute of this name; choose "
                "another one"
            )


def labelled(config: Config) -> Config:
    """The settings with the labels of a user's tasks, and with absolute paths of their tables."""
    config = _placed(config)
    tables = [_at(task, _absolute(file_of(task))) for task in config.task]
    return replace(config, task=tuple(with_labels(task) for task in tables))


def portable(config: Config) -> Config:
    """The settings with a data directory spelled out, so that a run resumes from anywhere."""
    config = _placed(config)
    if config.data in ("sample", "hub"):
        return config
    return replace(config, data=_absolute(config.data))


def _placed(config: Config) -> Config:
    """The settings with absolute paths of the tables that `map` names, below the data if any."""
    directory = Path() if config.data in ("sample", "hub") else Path(config.data).expanduser()
    return replace(config, map=tuple(table.below(directory) for table in config.map))


def extended(saved: Config, settings: Mapping[str, Any], path: Path) -> Config:
    """The saved settings with those changes that a resumed run may make; any other is refused.

    >>> extended(Config(), {"max_steps": 40, "lr": Config().lr}, Path("runs/first")).max_steps
    40
    """
    if settings.get("amp") == "auto":  # which it was at the start
        settings = {name: value for name, value in settings.items() if name != "amp"}
    wanted = Config.from_mapping({**saved.to_dict(), **settings})
    wanted = replace(wanted, task=_moved(saved.task, wanted.task))
    for name in settings:
        before, after = getattr(saved, name), getattr(wanted, name)
        if name == "task":
            before, after = (written(_at(task, "") for task in tasks) for tasks in (before, after))
        if before == after or name in EXTENDABLE:
            continue
        if name == "output" and Path(after).resolve() == path.resolve():
            continue
        raise CheckpointError(
            f"--resume {path}: {name} = {after} was given, but this run was started with {name} = "
            f"{before}. Leave it out to go on with this run, or start a new one without --resume."
        )
    if wanted.epochs != saved.epochs and saved.batching in PLANNED:
        raise CheckpointError(
            f"--resume {path}: epochs = {wanted.epochs} was given, but batching = {saved.batching} "
            f"was laid out over {saved.epochs} epochs. Leave it out to go on with this run, or "
            "start a new one without --resume."
        )
    return replace(wanted, output=saved.output)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve())


def _at(task: Task, file: str) -> Task:
    """A user's task with its table in another place."""
    assert task.layout is not None
    return replace(task, layout=replace(task.layout, file=file))


def _moved(saved: Sequence[Task], wanted: Sequence[Task]) -> tuple[Task, ...]:
    """The wanted tasks; those that were saved with the labels they were saved with."""
    known = written(_at(task, "") for task in saved)
    tasks = []
    for task in wanted:
        values, before = written([_at(task, "")])[task.name], known.get(task.name, {})
        if values.items() <= before.items():
            (task,) = user_tasks({task.name: {**before, "file": file_of(task)}})
        tasks.append(_at(task, _absolute(file_of(task))))
    return tuple(tasks)
