"""The stages of a run in order, each trained or found in the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bert_mtl_demo.config import Config
from bert_mtl_demo.data import DataError, Examples, Skipped
from bert_mtl_demo.model.encoder import Source, load_encoder, load_tokenizer
from bert_mtl_demo.model.pooling import needs_pooler
from bert_mtl_demo.pretraining import mlm, nli, simcse
from bert_mtl_demo.pretraining.cache import (
    Trained,
    cache_directory,
    find,
    first_key,
    get_or_train,
    key_of,
)
from bert_mtl_demo.pretraining.loop import fit
from bert_mtl_demo.pretraining.objective import Objective, Start
from bert_mtl_demo.runtime import Precision, random_state, seed_all, set_random_state

# The settings that decide every stage; data and limits count by the rows that come out.
SETTINGS = (
    "pretrain_epochs",
    "pretrain_steps",
    "pretrain_batch_size",
    "pretrain_accumulation",
    "pretrain_lr",
    "max_length",
    "amp",
    "seed",
)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Stage:
    """One way to train an encoder before the tasks.

    Args:
        load: its rows, and those that were skipped.
        objective: its loss.
        settings: those that decide it besides `SETTINGS`.
    """

    load: Callable[[Config], tuple[Examples, list[Skipped]]]
    objective: Callable[[Start, Examples], Objective]
    settings: tuple[str, ...] = ()


STAGES: dict[str, Stage] = {
    "mlm": Stage(mlm.load, mlm.MaskedWords),
    "nli": Stage(nli.load, nli.Inference),
    "simcse": Stage(simcse.load, simcse.Contrast, ("temperature",)),
    "simcse_sst": Stage(simcse.load_with_sst, simcse.Contrast, ("temperature",)),
}


@dataclass(frozen=True)
class Link:
    """A stage of a chain: the stages up to it, its rows, and the key of the encoder it leaves."""

    chain: tuple[str, ...]
    examples: Examples
    key: str

    @property
    def name(self) -> str:
        """The stage."""
        return self.chain[-1]


def pretrained(
    config: Config,
    source: Source,
    device: torch.device,
    say: Say = print,
    skipped: list[Skipped] | None = None,
) -> Source:
    """The encoder behind all of `config.pretrain`, from the cache as far as it goes.

    Without stages that is `source` itself. Torch's, NumPy's and Python's random states are left as
    they were.

    Args:
        config: the settings.
        source: the encoder that the first stage starts from.
        device: where to train.
        say: receives a line for each stage.
        skipped: the stages' bad rows are added to it.

    Raises:
        DataError: when a stage's data are missing or cannot be used.
        ConfigError: when the cache cannot be written to.
        DivergedError: when a stage's loss is not finite.

    >>> source = Source("some-encoder", local=True)
    >>> pretrained(Config(), source, torch.device("cpu")) is source
    True
    """
    if not config.pretrain:
        return source
    cache = cache_directory(config.cache)
    links = links_of(config, source, say, skipped if skipped is not None else [])

    def behind(count: int) -> Source:
        """The encoder behind the first `count` stages."""
        if not count:
            return source
        link = links[count - 1]
        entry = cache / link.key
        if kept := find(entry, say):
            say(f"pre-trained with {', '.join(link.chain)}: found in {entry}")
            return kept
        before = behind(count - 1)
        return get_or_train(entry, lambda: _train(link, config, before, device, entry, say))

    state = random_state()
    try:
        return behind(len(links))
    finally:
        set_random_state(state)


def links_of(config: Config, source: Source, say: Say, skipped: list[Skipped]) -> list[Link]:
    """The chain: every stage's rows, and its key, which holds the key of the stage before."""
    links: list[Link] = []
    key = first_key(source)
    for position, name in enumerate(config.pretrain, start=1):
        stage = STAGES[name]
        try:
            examples, bad = stage.load(config)
        except DataError as error:
            raise DataError(f"stage {name} of --pretrain: {error}") from None
        if bad:
            say(f"{name}: skipped {len(bad)} rows, the first of them {bad[0]}")
        skipped += bad
        values = {setting: getattr(config, setting) for setting in (*SETTINGS, *stage.settings)}
        if config.fraction is not None:  # keys of finished stages know nothing of it
            values["fraction"] = config.fraction
        rows = examples.fingerprint()
        key = key_of({"before": key, "stage": name, "settings": values, "rows": rows})
        links.append(Link(config.pretrain[:position], examples, key))
    return links


def _train(
    link: Link, config: Config, source: Source, device: torch.device, entry: Path, say: Say
) -> Trained:
    """Train one stage from the encoder of the one before, to be kept as that entry."""
    # Before anything is drawn: a stage does the same whether the one before it ran or was found.
    seed_all(config.seed)
    # With a pooler, if there is one: no stage trains it, and a run with --pooling pooler wants it.
    encoder = load_encoder(source, pooler=needs_pooler(config) or None)
    start = Start(config, source, encoder, load_tokenizer(source))
    objective = STAGES[link.name].objective(start, link.examples).to(device)
    if objective.remark:
        say(f"{link.name}: {objective.remark}")
    course = fit(objective, config, Precision(config.amp, device), link.name)
    say(
        f"{link.name}: {len(link.examples)} rows, {course.steps} steps, "
        f"loss {course.first:.3f} -> {course.last:.3f}, to be kept in {entry}"
    )
    note = {"stages": list(link.chain), "rows": len(link.examples), **asdict(course)}
    return start.encoder, start.tokenizer, note
