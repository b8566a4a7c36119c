"""Runs the stages of a run in order, or finds what they left in the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from bert_mtl_demo.config import Config
from bert_mtl_demo.data import DataError, Examples, Skipped
from bert_mtl_demo.model.encoder import Source, load_encoder, load_tokenizer
from bert_mtl_demo.pretraining import mlm, nli, simcse
from bert_mtl_demo.pretraining.cache import Cache, first_key, key_of
from bert_mtl_demo.pretraining.loop import fit
from bert_mtl_demo.pretraining.objective import Objective, Start
from bert_mtl_demo.runtime import Precision, random_state, seed_all, set_random_state

# What decides about every stage; data and limits count by the rows that come out.
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
        settings: what decides about it besides `SETTINGS`.
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
    """A stage of a chain, with its rows and the key of what it leaves."""

    chain: tuple[str, ...]  # the stages up to this one
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

    >>> here = Source("some-encoder", local=True)
    >>> pretrained(Config(), here, torch.device("cpu")) is here
    True
    """
    if not config.pretrain:
        return source
    cache = Cache.of(config.cache)
    links = forge(config, source, say, skipped if skipped is not None else [])
    for done in range(len(links), 0, -1):
        found = cache.find(links[done - 1].key, say)
        if found is not None:
            say(f"pre-trained with {', '.join(links[done - 1].chain)}: found in {found.place}")
            source = found
            break
    else:
        done = 0
    state = random_state()
    try:
        for link in links[done:]:
            source = _run(link, config, source, device, cache, say)
    finally:
        set_random_state(state)
    return source


def forge(config: Config, source: Source, say: Say, skipped: list[Skipped]) -> list[Link]:
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
        values = {each: getattr(config, each) for each in (*SETTINGS, *stage.settings)}
        rows = examples.fingerprint()
        key = key_of({"before": key, "stage": name, "settings": values, "rows": rows})
        links.append(Link(config.pretrain[:position], examples, key))
    return links


def _run(
    link: Link, config: Config, source: Source, device: torch.device, cache: Cache, say: Say
) -> Source:
    """Train one stage, and keep what it leaves."""
    # Before anything is drawn: a stage does the same whether the one before it ran or was found.
    seed_all(config.seed)
    # With the pooler: no stage trains it, and a run with --pooling pooler wants it back.
    start = Start(config, source, load_encoder(source, pooler=True), load_tokenizer(source))
    objective = STAGES[link.name].objective(start, link.examples).to(device)
    if objective.remark:
        say(f"{link.name}: {objective.remark}")
    course = fit(objective, config, Precision(config.amp, device), link.name)
    note = {"stages": list(link.chain), "rows": len(link.examples), **asdict(course)}
    kept = cache.keep(link.key, start.encoder, start.tokenizer, note)
    say(
        f"{link.name}: {len(link.examples)} rows, {course.steps} steps, loss {course.first:.3f} -> "
        f"{course.last:.3f}, kept in {kept.place}"
    )
    return kept
