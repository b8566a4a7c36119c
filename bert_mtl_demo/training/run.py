"""One run from its settings to its end: check, load data and model, train.

The order matters. Everything that is cheap to check is checked before anything is loaded, and the
output directory is made only when all that could be refused has been accepted.

In several processes each does all of this, but for what is done once and left to the first: the
output directory, its lock, the stages before the tasks, the logs. What one refuses, all refuse.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bert_mtl_demo.batching import build_batches
from bert_mtl_demo.config import Config
from bert_mtl_demo.data import Skipped, Splits, load
from bert_mtl_demo.data.distribution import announce
from bert_mtl_demo.data.tokenization import EncodedSet, cut_texts, encode, unknown_words
from bert_mtl_demo.errors import CheckpointError, StorageError
from bert_mtl_demo.model.encoder import Source, blank_encoder, load_encoder, load_tokenizer, locate
from bert_mtl_demo.model.multitask import MultitaskModel, new_model
from bert_mtl_demo.model.pooling import needs_pooler
from bert_mtl_demo.model.vocabulary import trim
from bert_mtl_demo.pretraining import pretrained
from bert_mtl_demo.pretraining.cache import cache_directory
from bert_mtl_demo.printing import printable, wrapped
from bert_mtl_demo.runtime import Interrupts, Precision, choose_precision, seed_all
from bert_mtl_demo.training.checkpoint import RunDirectory, load_state, load_weights
from bert_mtl_demo.training.claim import existing_directory, new_directory
from bert_mtl_demo.training.data_parallel import draw_apart, refuse_comparing, warnings
from bert_mtl_demo.training.display import Console, Display
from bert_mtl_demo.training.features import with_features
from bert_mtl_demo.training.logs import Log, RunLog, check, cut
from bert_mtl_demo.training.processes import ALONE, Processes
from bert_mtl_demo.training.run_settings import (
    edited,
    extended,
    labelled,
    output_of,
    portable,
    refuse_module_names,
)
from bert_mtl_demo.training.trainer import Trainer
from gradsurgery import Method

Encoded = tuple[dict[str, EncodedSet], dict[str, EncodedSet]]  # train, dev: task -> its set


@dataclass(frozen=True)
class Outcome:
    """The end of a run.

    >>> Outcome(Path("runs/first"), done=True, exit_code=0).done
    True
    """

    path: Path
    done: bool
    exit_code: int


@dataclass(frozen=True)
class _Parts:
    """The parts of a trainer."""

    config: Config
    run: RunDirectory
    model: MultitaskModel
    sets: Encoded
    precision: Precision
    state: dict[str, Any] | None = None  # to go on from


def start_run(
    config: Config, processes: Processes = ALONE, method: Method | None = None
) -> Outcome:
    """Train from the beginning; with a `method` of surgery that the settings cannot name.

    >>> start_run(Config(encoder="no-such-encoder"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    bert_mtl_demo.errors.EncoderError: unknown encoder 'no-such-encoder': ...
    """
    source = processes.agree(lambda: _accepted(config, processes))
    with ExitStack() as life:
        path = processes.agree(lambda: _claimed(life, _directory_of(config), processes))
        run = RunDirectory(Path(processes.from_main(path)))
        life.enter_context(resumable(run.path))
        parts = processes.agree(lambda: _begun(config, source, run, processes))
        draw_apart(config, processes)
        return _train(parts, processes, method)


def _accepted(config: Config, processes: Processes) -> Source:
    """The encoder's source, when nothing can be refused without loading anything."""
    processes.device(config.device)
    refuse_comparing(config, processes)
    refuse_module_names(config)
    source = locate(config.encoder)
    source.refuse_longer(config.max_length)
    return source


def _directory_of(config: Config) -> AbstractContextManager[Path]:
    return new_directory(output_of(config), chosen=config.output is not None)


def _claimed(life: ExitStack, directory: AbstractContextManager[Path], processes: Processes) -> str:
    """The directory that main holds for the run's life; "" in the others."""
    return str(life.enter_context(directory)) if processes.is_main else ""


def _begun(config: Config, source: Source, run: RunDirectory, processes: Processes) -> _Parts:
    """The parts of a new run."""
    device = processes.device(config.device)
    _announce(config, processes)
    config = labelled(replace(config, amp=choose_precision(config.amp, device)))
    splits, skipped = load_splits(config)
    if processes.is_main:  # the others get the weights that come of it
        announce(splits)
        source = pretrained(config, source, device, skipped=skipped)
    tokenizer = load_tokenizer(source)
    encoder = load_encoder(source, pooler=needs_pooler(config), layers=config.encoder_layers)
    config = portable(config)
    sets = _encode(config, splits, tokenizer, processes)
    if processes.is_main:
        for sentence in unknown_words(sets[0], tokenizer.unk_token_id):
            print(f"warning: {sentence}")
        for part, split in zip(sets, ("train", "dev"), strict=True):
            for sentence in cut_texts(part, split):
                print(wrapped(f"note: {sentence}"))
    model = _build(config, encoder, sets, device)
    precision = Precision(config.amp, device)
    sets = _with_features(config, model, sets, precision)
    build_batches(config, sets[0])  # the trainer's are others; these may refuse, while they can
    if processes.is_main:
        run.create(config, encoder, tokenizer)
        print(printable(f"writing to {run.path}"))
        _tell_skipped(skipped)
        run.save_data(splits, skipped)
    return _Parts(config, run, model, sets, precision)


def continue_run(
    directory: str | Path,
    settings: Mapping[str, Any],
    processes: Processes = ALONE,
    method: Method | None = None,
) -> Outcome:
    """Train on from a run's last checkpoint; `method` as the run was started with.

    >>> continue_run("no-such-run", {})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    bert_mtl_demo.errors.CheckpointError: no-such-run: is not a run directory ...
    """
    run = RunDirectory(Path(directory))
    processes.agree(run.load_config)  # refused before anything is written there
    processes.agree(run.refuse_links)
    with ExitStack() as life:
        processes.agree(lambda: _claimed(life, existing_directory(run.path), processes))
        life.enter_context(resumable(run.path))
        if processes.is_main:
            run.clear()
        parts = processes.agree(lambda: _continued(run, settings, processes))
        return _train(parts, processes, method)


def _continued(run: RunDirectory, settings: Mapping[str, Any], processes: Processes) -> _Parts:
    """The parts of an existing run."""
    saved = run.load_config()
    config = portable(extended(saved, settings, run.path))
    device = processes.device(config.device)
    refuse_comparing(config, processes)
    state = load_state(run.last)
    told = edited(saved, state.get("settings", {}), run.config)  # 0.1.0 kept none
    run.refuse_changed(state.get("files", {}))
    told += check(run, state["logs"], config.tasks) + _check_best(run, state)
    _announce(config, processes, told)
    splits, skipped = load_splits(config)
    whole = run.data_digest() == state["data_file"] if "data_file" in state else run.load_data()
    if processes.is_main and not whole:
        less = ", without the rows that stages skipped" if config.pretrain else ""
        print(f"warning: {run.data} is missing or damaged, and is written again{less}")
        run.save_data(splits, skipped)
    tokenizer = load_tokenizer(Source(str(run.encoder), local=True))
    encoder = blank_encoder(run.encoder, pooler=needs_pooler(config))
    sets = _encode(config, splits, tokenizer, processes)
    model = _build(config, encoder, sets, device)
    precision = Precision(config.amp, device)
    if config.cache_features:  # of the encoder as it was trained, or not at all
        model.load_state_dict(state["model"])
    sets = _with_features(config, model, sets, precision)
    return _Parts(config, run, model, sets, precision, state)


def _check_best(run: RunDirectory, state: Mapping[str, Any]) -> list[str]:
    """A sentence if the best weights so far are missing; damaged ones are refused."""
    epoch = state["progress"]["best_epoch"]
    if epoch and not run.best.exists():
        return [f"{run.best} is missing: of epoch {epoch}, the best so far, there are no weights"]
    if epoch:
        load_weights(run.best)
    return []


@contextmanager
def resumable(path: Path) -> Iterator[None]:
    """A block after which the run goes on from its last checkpoint; what ends it says so.

    >>> with resumable(Path("runs/first")):
    ...     pass
    """
    hint = f"continue with: python -m bert_mtl_demo.train --resume {path}"
    try:
        yield
    except (StorageError, KeyboardInterrupt) as error:
        if not RunDirectory(path).last.exists():
            raise
        if isinstance(error, StorageError):
            raise StorageError(f"{error} Then {hint}") from error
        raise KeyboardInterrupt(f"interrupted; {hint}") from None


def load_splits(config: Config) -> tuple[dict[str, Splits], list[Skipped]]:
    """The examples of a run, within its limits, and the rows that were skipped."""
    tasks = tuple(config.definitions.values())
    splits, skipped = load(config.data, tasks, bad_rows=config.bad_rows)
    limits = config.train_limit, config.dev_limit
    return {name: parts.limited(*limits) for name, parts in splits.items()}, skipped


def _announce(config: Config, processes: Processes, told: Sequence[str] = ()) -> None:
    if not processes.is_main:
        return
    if config.amp == "auto" and choose_precision("auto", processes.device(config.device)) != "off":
        print("in bfloat16, which this device computes in; --amp off for float32")
    together = f", in {processes.size} processes" if processes.size > 1 else ""
    print(
        printable(
            f"{config.method} on {', '.join(config.tasks)} ({config.sources}), encoder "
            f"{config.encoder}{together}"
        )
    )
    for sentence in [*told, *config.warnings(), *warnings(config, processes)]:
        print(f"warning: {printable(sentence)}")


def _tell_skipped(skipped: Sequence[Skipped]) -> None:
    skipped = list(dict.fromkeys(skipped))  # a stage may have read the tasks' own files again
    for row in skipped[:3]:
        print(f"skipped {printable(row)}")
    if skipped:
        print(f"skipped {len(skipped)} rows in all; data.json lists them")


def _encode(
    config: Config, splits: Mapping[str, Splits], tokenizer: Any, processes: Processes
) -> Encoded:
    texts = sum(len(splits[name].train) for name in config.trained)
    texts += sum(len(splits[name].dev) for name in config.tasks)
    display = Console() if processes.is_main else Display()

    def encoded(part: str, names: Sequence[str]) -> dict[str, EncodedSet]:
        return {
            name: encode(
                getattr(splits[name], part),
                config.definitions[name],
                tokenizer,
                config.max_length,
                config.pairs,
                done=done,
            )
            for name in names
        }

    with display.counting(f"tokenizing {texts:,} examples", texts) as done:
        train = {
            name: replace(examples, whole=splits[name].whole)
            for name, examples in encoded("train", config.trained).items()
        }
        return train, encoded("dev", config.tasks)


def _with_features(
    config: Config, model: MultitaskModel, sets: Encoded, precision: Precision
) -> Encoded:
    """The sets with the encoder's vectors, if they are to be computed once."""
    if not config.cache_features:
        return sets
    cache = cache_directory(config.cache)
    train, dev = (with_features(model, part, precision, cache) for part in sets)
    return train, dev


def _build(config: Config, encoder: Any, sets: Encoded, device: torch.device) -> MultitaskModel:
    """The model on its device; from here on nothing else may draw, dropout comes next."""
    importlib.import_module("bert_mtl_demo.training.metrics")  # which draws when it is imported
    seed_all(config.seed)
    model = new_model(config, encoder)
    if config.trim_vocabulary:
        parts = [examples for part in sets for examples in part.values()]
        trim(encoder, set().union(*(examples.tokens() for examples in parts)))
    return model.to(device)


def _train(parts: _Parts, processes: Processes, method: Method | None) -> Outcome:
    """Build the trainer, restore its state, and run it."""
    run, state = parts.run, parts.state
    display = Console() if processes.is_main else Display()
    # Before the state is restored: what TensorBoard imports draws from Python's generator.
    log = processes.agree(lambda: _open_log(run, state) if processes.is_main else Log())
    try:
        parted = (parts.config, parts.model, *parts.sets, run, log, parts.precision)
        trainer = Trainer(*parted, display, processes, method)
        if state is not None:
            processes.agree(lambda: _restore(trainer, state, run))
        outcome = _fit(trainer, run)
    except BaseException:
        with suppress(StorageError):  # it would hide what ended the run
            log.close()
        raise
    processes.agree(log.close)
    return outcome


def _open_log(run: RunDirectory, state: Mapping[str, Any] | None) -> Log:
    return RunLog(run, step=state["progress"]["step"] if state else 0)


def _restore(trainer: Trainer, state: Mapping[str, Any], run: RunDirectory) -> None:
    step = state["progress"]["step"]
    for name, fingerprint in trainer.data.items():
        if state["data"].get(name) != fingerprint:
            raise CheckpointError(
                f"--resume {run.path}: the {name} data are not the ones this run was started with. "
                "Put them back, or start a new run."
            )
    if trainer.goal < step:
        raise CheckpointError(
            f"--resume {run.path}: {step} steps are done, but epochs and max_steps ask for only "
            f"{trainer.goal}. Raise them, or leave them out."
        )
    trainer.load_state_dict(state)
    if trainer.processes.is_main:
        cut(run, state["logs"])
        run.save_config(trainer.config)


def _fit(trainer: Trainer, run: RunDirectory) -> Outcome:
    trainer.say(trainer.described())
    with Interrupts() as stop, trainer.display.steps(trainer.goal, trainer.progress.step):
        done = trainer.fit(stop)
        # All stay in this block until the state is written: a signal reaches one after the other.
        trainer.processes.barrier()
    # A signal during the very last evaluation came too late to stop anything.
    return Outcome(run.path, done, 0 if done else stop.exit_code)
