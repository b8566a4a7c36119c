"""Stages before the tasks: their losses, their loop, and the cache of what they leave."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from bert_mtl_demo import config as configuration
from bert_mtl_demo.config import Config
from bert_mtl_demo.data import DataError, Examples, Skipped, load
from bert_mtl_demo.data.pretraining import INFERENCE, POSITIVES, TEXTS
from bert_mtl_demo.errors import ConfigError, DivergedError, EncoderError
from bert_mtl_demo.model.encoder import Source, load_encoder, load_tokenizer, locate
from bert_mtl_demo.model.pooling import mean_of_tokens
from bert_mtl_demo.pretraining import loop, mlm, pipeline, pretrained, simcse
from bert_mtl_demo.pretraining.cache import cache_directory, first_key, get_or_train
from bert_mtl_demo.pretraining.nli import Inference
from bert_mtl_demo.pretraining.objective import Objective, Start
from bert_mtl_demo.tasks import resolve
from bert_mtl_demo.training.run import start_run

CPU = torch.device("cpu")
STAGES = list(pipeline.STAGES)


NOUNS = [one + two for one in "abcdefgh" for two in "xyz"]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a few rows of everything that a stage reads."""
    place = tmp_path_factory.mktemp("tables")

    def write(name: str, header: str, rows: list[tuple[object, ...]]) -> None:
        lines = [header, *("\t".join(map(str, row)) for row in rows)]
        (place / name).write_text("\n".join(lines) + "\n", encoding="utf-8")

    def ask(way: str, noun: str) -> str:
        return f"{way} is the {noun} ?"

    para: list[tuple[object, ...]] = [(ask("how", n), ask("what", n), 1) for n in NOUNS]
    para += [(ask("how", n), ask("how", m), 0) for n, m in pairwise(NOUNS)]
    sts = [
        (f"the {n} is not good .", f"the {n} is bad .", 4.2 - 0.1 * (k % 5))
        for k, n in enumerate(NOUNS)
    ]
    for part in ("train", "dev"):
        write(f"quora-{part}.csv", "sentence1\tsentence2\tis_duplicate", para)
        write(f"sts-{part}.csv", "sentence1\tsentence2\tsimilarity", sts)
        write(f"ids-sst-{part}.csv", "sentence\tsentiment", [(f"a good {n}", 3) for n in NOUNS])
    inference = [
        (f"the {n} is good", f"the {n} is {w}", label) for n in NOUNS for w, label in LABELS
    ]
    write("nli.csv", "sentence1\tsentence2\tlabel", inference)
    write("imdb-reviews.txt", "the film is good .", [(f"the {n} is not bad .",) for n in NOUNS])
    return place


LABELS = [("good", "entailment"), ("not", "neutral"), ("bad", "contradiction")]


@pytest.fixture
def stages(tiny_encoder: str, tables: Path, tmp_path: Path) -> Callable[..., Config]:
    """Settings of three-step stages; keywords change them."""

    def make(*pretrain: str, **changes: object) -> Config:
        base: dict[str, object] = {
            "encoder": tiny_encoder,
            "data": str(tables),
            "cache": str(tmp_path / "cache"),
            "max_length": 32,
            "pretrain": pretrain,
            "pretrain_epochs": 50,
            "pretrain_steps": 2,
            "pretrain_lr": 1e-3,
            "device": "cpu",
        }
        return Config.from_mapping({**base, **changes})

    return make


class Listener(list[str]):
    """Keeps the lines that a chain says."""

    def trained(self) -> list[str]:
        """The stages that were trained, not found."""
        return [line.split(":")[0] for line in self if " steps, loss " in line]


def run(config: Config) -> tuple[Source, Listener]:
    said = Listener()
    return pretrained(config, locate(config.encoder), CPU, said.append), said


def weights(source: Source) -> dict[str, torch.Tensor]:
    # Copies: the file is mapped, and a test may write to it.
    found = load_file(Path(source.place) / "model.safetensors")
    return {name: tensor.clone() for name, tensor in found.items()}


def same(one: Source, other: Source) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def begin(config: Config) -> Start:
    torch.manual_seed(0)
    source = locate(config.encoder)
    encoder = load_encoder(source, pooler=None)
    return Start(config, source, encoder, load_tokenizer(source))


# --- the stages ---------------------------------------------------------------------------------


def test_the_stages_are_those_of_the_settings() -> None:
    assert tuple(pipeline.STAGES) == configuration.STAGES


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_lowers_its_loss_and_moves_the_encoder(
    stages: Callable[..., Config], tiny_encoder: str, name: str
) -> None:
    config = stages(name, pretrain_steps=40, pretrain_lr=3e-3)
    source, said = run(config)
    note = json.loads((Path(source.place) / "stage.json").read_text())
    assert note["steps"] == 40
    assert note["last"] < 0.8 * note["first"]
    assert f"{note['first']:.3f} -> {note['last']:.3f}" in said[-1]
    before, after = weights(locate(tiny_encoder)), weights(source)
    assert before.keys() == after.keys()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert any("layer.0" in key for key in moved)
    assert not any(key.startswith("pooler") for key in moved)  # handed on as it was


def test_chosen_tokens_are_fifteen_in_a_hundred_and_of_these_80_10_10(tiny_encoder: str) -> None:
    tokenizer = load_tokenizer(locate(tiny_encoder))
    masker = mlm.masker(tokenizer, seed=0)
    rows = [[2, *[10 + (n + m) % 50 for n in range(60)], 3] for m in range(400)]
    rows[0] = [2, 20, 3]  # makes padding
    ids, mask, labels = mlm.mask_rows(masker, rows)
    original = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        original[number, : len(row)] = torch.tensor(row)
    chosen = labels != mlm.IGNORED
    words = (original > 3).sum().item()
    assert chosen.sum().item() / words == pytest.approx(0.15, abs=0.01)
    assert not chosen[original <= 3].any()  # [PAD], [CLS] and [SEP] are never chosen
    assert torch.equal(labels[chosen], original[chosen])
    assert torch.equal(ids[~chosen], original[~chosen])
    masked = ids[chosen] == tokenizer.mask_token_id
    kept = ids[chosen] == original[chosen]
    assert masked.float().mean().item() == pytest.approx(0.8, abs=0.03)
    assert kept.float().mean().item() == pytest.approx(0.1, abs=0.03)
    again = mlm.mask_rows(masker, rows)[2] != mlm.IGNORED
    assert not torch.equal(again, chosen)  # dynamic: another choice at each reading
    assert torch.equal(mask, (original > 0).long())


def test_masks_come_from_a_generator_of_their_own(tiny_encoder: str) -> None:
    tokenizer = load_tokenizer(locate(tiny_encoder))
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(drawn))
        drawn.append(mlm.mask_rows(mlm.masker(tokenizer, seed), [[2, *range(5, 40), 3]])[2])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_the_loss_of_masked_words_is_transformers_own(stages: Callable[..., Config]) -> None:
    from transformers import BertForMaskedLM

    start = begin(stages("mlm"))
    texts = ["the film is good .", "how is the dog ?"]
    objective = mlm.MaskedWords(start, Examples(TEXTS, texts, None, [0, 0])).eval()
    whole: Any = BertForMaskedLM(start.encoder.config).eval()
    whole.bert.load_state_dict(start.encoder.state_dict(), strict=False)
    whole.cls.load_state_dict(objective.head.state_dict())
    ids, mask, labels = mlm.mask_rows(mlm.masker(start.tokenizer, 0), objective.rows)
    expected = whole(input_ids=ids, attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(objective.loss([0, 1]), expected)


def test_the_head_of_masked_words_shares_the_embeddings(stages: Callable[..., Config]) -> None:
    start = begin(stages("mlm"))
    objective = mlm.MaskedWords(start, Examples(TEXTS, ["the dog"], None, [0]))
    words = start.encoder.embeddings.word_embeddings.weight
    assert objective.head.predictions.decoder.weight is words
    assert "fresh" in objective.remark


def test_a_published_head_is_used(stages: Callable[..., Config], tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    source = locate(stages().encoder)
    place = Path(shutil.copytree(source.place, tmp_path / "whole"))
    torch.manual_seed(5)
    whole: Any = BertForMaskedLM(BertConfig.from_pretrained(place))
    whole.save_pretrained(place)
    start = begin(stages("mlm", encoder=str(place)))
    objective = mlm.MaskedWords(start, Examples(TEXTS, ["the dog"], None, [0]))
    assert objective.remark == ""
    name = "predictions.transform.dense.weight"
    assert torch.equal(objective.head.state_dict()[name], whole.cls.state_dict()[name])
    assert start.encoder.pooler is None  # that file has none, and none is drawn


def test_a_head_in_half_precision_is_used_in_that_of_the_encoder(
    stages: Callable[..., Config], tmp_path: Path
) -> None:
    from transformers import BertConfig, BertForMaskedLM

    place = Path(shutil.copytree(locate(stages().encoder).place, tmp_path / "half"))
    BertForMaskedLM(BertConfig.from_pretrained(place)).half().save_pretrained(place)
    start = begin(stages("mlm", encoder=str(place)))
    objective = mlm.MaskedWords(start, Examples(TEXTS, ["the dog"], None, [0]))
    assert {weight.dtype for weight in objective.parameters()} == {torch.float32}


def test_a_batch_without_a_mask_has_no_loss_and_no_nan(stages: Callable[..., Config]) -> None:
    objective = mlm.MaskedWords(begin(stages("mlm")), Examples(TEXTS, ["a"], None, [0]))
    objective.masker.mlm_probability = 0.0
    loss = objective.loss([0])
    loss.backward()
    assert loss.item() == 0.0


def test_a_tokenizer_without_masks_is_refused(tiny_encoder: str) -> None:
    tokenizer = load_tokenizer(locate(tiny_encoder))
    tokenizer.mask_token = None
    with pytest.raises(EncoderError, match=r"no mask token.*take mlm out of --pretrain"):
        mlm.masker(tokenizer, 0)


def test_inference_reads_both_vectors_and_their_distance(stages: Callable[..., Config]) -> None:
    start = begin(stages("nli"))
    pairs = Examples(INFERENCE, ["the dog", "a man"], ["the film is good", "how"], [1, 0])
    objective = Inference(start, pairs).eval()
    u, v = objective.pairs.vectors(start.encoder, [1, 0])
    features = torch.cat([u, v, (u - v).abs()], dim=-1).double()
    weight, bias = objective.head.weight.double(), objective.head.bias.double()
    logits = features @ weight.T + bias
    expected = F.cross_entropy(logits, torch.tensor([0, 1])).item()
    assert objective.loss([1, 0]).item() == pytest.approx(expected, rel=1e-5)


def test_vectors_do_not_depend_on_their_neighbours(stages: Callable[..., Config]) -> None:
    start = begin(stages("nli"))
    pairs = Examples(
        POSITIVES, ["dog", "the man is not good"], ["a", "how bad the film is"], [1, 1]
    )
    objective = simcse.Contrast(start, pairs).eval()
    both = torch.cat(objective.pairs.vectors(start.encoder, [0, 1]))
    alone = torch.cat([torch.cat(objective.pairs.vectors(start.encoder, [n])) for n in (0, 1)])
    torch.testing.assert_close(both, alone[[0, 2, 1, 3]])
    hidden = torch.ones(1, 3, 2)
    hidden[:, 2] = 99
    assert mean_of_tokens(hidden, torch.tensor([[1, 1, 0]])).tolist() == [[1.0, 1.0]]


def test_the_contrast_is_that_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in "uv")
    tau, total = 0.07, 0.0
    for i in range(5):
        cosines = [float(u[i] @ v[j] / (u[i].norm() * v[j].norm())) for j in range(5)]
        exps = [math.exp(cosine / tau) for cosine in cosines]
        total -= math.log(exps[i] / sum(exps))
    assert simcse.contrast(u, v, tau).item() == pytest.approx(total / 5, rel=1e-12)
    assert simcse.contrast(3 * u, v / 7, tau).item() == pytest.approx(total / 5, rel=1e-9)
    order = torch.tensor([2, 0, 1, 4, 3])
    assert simcse.contrast(u[order], v[order], tau).item() == pytest.approx(total / 5, rel=1e-9)
    same = torch.ones(4, 3, dtype=torch.float64)
    assert simcse.contrast(same, same, tau).item() == pytest.approx(math.log(4))
    assert simcse.contrast(u, u, 1e-3).item() == pytest.approx(0.0, abs=1e-9)


def test_a_contrast_is_not_rounded_under_bf16() -> None:
    """The temperature would blow a step of 1/128 up to a sixth of a unit."""
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(6, 8, generator=generator) for _ in "uv")
    exact = simcse.contrast(u, v, 0.05).item()
    with torch.autocast("cpu", torch.bfloat16):
        assert simcse.contrast(u, v, 0.05).item() == pytest.approx(exact, rel=1e-5)


def test_positives_are_paraphrases_and_the_most_similar(
    stages: Callable[..., Config], tables: Path, tmp_path: Path
) -> None:
    examples, _ = pipeline.STAGES["simcse"].load(stages("simcse"))
    paraphrases = [(f"how is the {n} ?", f"what is the {n} ?") for n in NOUNS]
    similar = [(f"the {n} is not good .", f"the {n} is bad .") for n in NOUNS]
    # Labels 4.2, 4.1, 4.0, 3.9, 3.8, and so on: 4 itself is not above 4.
    similar = [pair for k, pair in enumerate(similar) if k % 5 < 2]
    assert examples.texts() == paraphrases + similar

    with_sst, _ = pipeline.STAGES["simcse_sst"].load(stages("simcse_sst"))
    alone = [(f"a good {n}", f"a good {n}") for n in NOUNS]
    assert with_sst.texts() == paraphrases + similar + alone

    more = Path(shutil.copytree(tables, tmp_path / "more"))
    header = "sentence1\tsentence2\tis_duplicate\n"
    (more / "quora-extra-positives.csv").write_text(header + "how ?\twhat ?\t1\n")
    extra, _ = pipeline.STAGES["simcse"].load(stages("simcse", data=str(more)))
    assert extra.texts() == [*paraphrases, ("how ?", "what ?"), *similar]


def test_stages_see_no_more_of_a_task_than_the_run(stages: Callable[..., Config]) -> None:
    config = stages("simcse_sst", train_limit=5)
    examples, _ = pipeline.STAGES["simcse_sst"].load(config)
    train = load(config.data, resolve(["para", "sts", "sst"]))[0]
    used = {text for s in train.values() for row in s.train.limited(5).texts() for text in row}
    assert 5 <= len(examples) <= 15
    assert {text for row in examples.texts() for text in row} <= used


def test_a_sentence_alone_is_read_under_two_dropout_masks(stages: Callable[..., Config]) -> None:
    start = begin(stages("simcse_sst"))
    objective = simcse.Contrast(start, Examples(POSITIVES, ["the dog"], ["the dog"], [1])).train()
    u, v = objective.pairs.vectors(start.encoder, [0])
    assert not torch.equal(u, v)
    u, v = objective.eval().pairs.vectors(start.encoder, [0])
    torch.testing.assert_close(u, v)


# --- the loop -----------------------------------------------------------------------------------


def test_a_pass_reads_every_row_once_in_batches_of_like_length() -> None:
    lengths = [(7 * row) % 40 + 1 for row in range(1003)]
    batches = loop.draw(lengths, 10, torch.Generator().manual_seed(0))
    rows = [row for batch in batches for row in batch]
    assert len(batches) == 100
    assert all(len(batch) == 10 for batch in batches)
    assert len(set(rows)) == 1000
    spread = [max(lengths[r] for r in b) - min(lengths[r] for r in b) for b in batches]
    assert sum(spread) / len(spread) < 5  # random batches: 33
    means = [sum(lengths[r] for r in b) / 10 for b in batches[: loop.POOL]]
    assert means != sorted(means)  # a pool is not read from short to long
    assert loop.draw([3, 4], 10, torch.Generator().manual_seed(0)) in ([[0, 1]], [[1, 0]])


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 6),
        ({"pretrain_epochs": 2}, 12),
        ({"pretrain_accumulation": 4}, 2),
        ({"pretrain_accumulation": 4, "pretrain_epochs": 2}, 4),
        ({"pretrain_steps": 5}, 5),
        ({"pretrain_steps": 500}, 6),
        ({"pretrain_batch_size": 64}, 1),
        ({"pretrain_epochs": 4, "fraction": 0.25}, 6),
        ({"fraction": 0.4}, 3),
        ({"pretrain_epochs": 4, "fraction": 0.25, "pretrain_steps": 5}, 5),
    ],
    ids=str,
)
def test_the_plan_has_as_many_steps_as_are_counted(changes: dict[str, Any], steps: int) -> None:
    config = Config(**changes)
    plan = list(loop.plan([5] * 100, config))
    assert len(plan) == loop.count_steps(100, config) == steps
    if not {"pretrain_steps", "fraction"} & set(changes):
        assert sum(map(len, plan)) == config.pretrain_epochs * (
            100 // config.pretrain_batch_size or 1
        )


def test_the_rate_rises_to_one_and_falls_in_a_line() -> None:
    for total in (1, 2, 9, 100):
        rates = [loop.rate(step, total) for step in range(total)]
        assert max(rates) == 1.0
        assert min(rates) > 0.0
    down = rates[10:]
    assert all(a - b == pytest.approx(1 / 90) for a, b in pairwise(down))


class Squares(Objective):
    """Mean of (w - row)^2, where the rows are numbers."""

    def __init__(self, rows: int = 32) -> None:
        super().__init__(None, [1] * rows)
        self.weight = torch.nn.Parameter(torch.tensor(100.0))
        self.read: list[int] = []

    def loss(self, indices: Any) -> torch.Tensor:
        self.read += indices
        return (self.weight - torch.tensor(indices, dtype=torch.float32)).square().mean()


def test_accumulated_batches_are_one_large_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    from bert_mtl_demo.runtime import Precision

    ends = []
    for size, accumulation in ((8, 4), (32, 1)):
        objective = Squares()
        config = Config(
            pretrain_batch_size=size, pretrain_accumulation=accumulation, pretrain_lr=0.1
        )
        course = loop.fit(objective, config, Precision("off", CPU), "squares")
        assert course.steps == 1
        assert sorted(objective.read) == list(range(32))
        ends.append((objective.weight.item(), course.first))
    assert ends[0] == pytest.approx(ends[1])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_stage(bad: float) -> None:
    from bert_mtl_demo.runtime import Precision

    objective = Squares()
    with torch.no_grad():
        objective.weight.fill_(bad)
    with pytest.raises(
        DivergedError, match=r"stage squares: the loss is .* at step 1.*pretrain-lr"
    ):
        loop.fit(objective, Config(), Precision("off", CPU), "squares")


def test_biases_and_norms_do_not_decay(stages: Callable[..., Config]) -> None:
    objective = simcse.Contrast(begin(stages()), Examples(POSITIVES, ["a"], ["b"], [1]))
    groups = loop.build_optimizer(objective, 1e-3).param_groups
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    assert sum(len(group["params"]) for group in groups) == len(list(objective.parameters()))
    assert {p.ndim for p in groups[1]["params"]} == {1}


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_stages_train_in_mixed_precision(stages: Callable[..., Config], amp: str) -> None:
    source, said = run(stages("mlm", "nli", "simcse", amp=amp, pretrain_steps=1))
    assert said.trained() == ["mlm", "nli", "simcse"]
    assert all(bool(tensor.isfinite().all()) for tensor in weights(source).values())


# --- the chain and its cache --------------------------------------------------------------------


def test_without_stages_nothing_happens(stages: Callable[..., Config]) -> None:
    config = stages()
    source, said = run(config)
    assert (source, said) == (locate(config.encoder), [])
    assert not Path(str(config.cache)).exists()


def test_what_was_trained_is_found_and_is_a_whole_encoder(stages: Callable[..., Config]) -> None:
    config = stages("nli")
    first, said = run(config)
    assert said.trained() == ["nli"]
    again, said = run(config)
    assert again == first
    assert said.trained() == []
    assert f"found in {first.place}" in said[0]
    assert first.positions == 64
    assert load_encoder(first, pooler=True).config.hidden_size == 32
    assert load_tokenizer(first)("the film")["input_ids"][0] == 2


def test_chains_share_their_beginnings_and_a_stage_does_the_same_after_a_find(
    stages: Callable[..., Config], tmp_path: Path
) -> None:
    run(stages("nli"))
    found, said = run(stages("nli", "simcse"))
    assert said.trained() == ["simcse"]
    whole, said = run(stages("nli", "simcse", cache=str(tmp_path / "other")))
    assert said.trained() == ["nli", "simcse"]
    assert Path(found.place).name == Path(whole.place).name
    assert same(found, whole)
    _, said = run(stages("simcse"))  # the same stage from another encoder
    assert said.trained() == ["simcse"]
    _, said = run(stages("simcse", "nli"))
    assert said.trained() == ["nli"]


def test_a_stage_is_deterministic_whatever_was_drawn_before(
    stages: Callable[..., Config], tmp_path: Path
) -> None:
    kept = []
    for number in range(2):
        torch.manual_seed(number)
        kept.append(run(stages("mlm", cache=str(tmp_path / str(number))))[0])
    assert same(*kept)


def test_the_random_state_of_the_caller_is_left_alone(stages: Callable[..., Config]) -> None:
    torch.manual_seed(4)
    before = torch.get_rng_state()
    run(stages("nli"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "change",
    [
        {"pretrain_lr": 2e-3},
        {"pretrain_steps": 3},
        {"pretrain_epochs": 2},
        {"pretrain_batch_size": 8},
        {"pretrain_accumulation": 2},
        {"max_length": 20},
        {"amp": "bf16"},
        {"seed": 1},
        {"train_limit": 30},
        {"temperature": 0.1},
    ],
    ids=str,
)
def test_a_change_that_matters_misses(
    stages: Callable[..., Config], change: dict[str, object]
) -> None:
    links = [
        pipeline.links_of(config, locate(config.encoder), print, [])
        for config in (stages("nli", "simcse"), stages("nli", "simcse", **change))
    ]
    keys = [[link.key for link in found] for found in links]
    assert keys[0][1] != keys[1][1]
    # Neither is there for inference pairs, so the first stage is shared.
    assert (keys[0][0] == keys[1][0]) == (next(iter(change)) in ("train_limit", "temperature"))


@pytest.mark.parametrize(
    "change",
    [{"lr": 1e-3}, {"tasks": ["sst"]}, {"method": "sum"}, {"pooling": "cls"}, {"weight_decay": 0}],
    ids=str,
)
def test_a_change_of_the_run_behind_it_hits(
    stages: Callable[..., Config], change: dict[str, object]
) -> None:
    keys = [
        pipeline.links_of(config, locate(config.encoder), print, [])[-1].key
        for config in (stages("simcse"), stages("simcse", **change))
    ]
    assert keys[0] == keys[1]


def test_the_key_is_of_the_encoders_files_not_of_their_place(
    tiny_encoder: str, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(tiny_encoder, tmp_path / "copied"))
    assert first_key(locate(str(copied))) == first_key(locate(tiny_encoder))
    content = bytearray((copied / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copied / "model.safetensors").write_bytes(content)
    assert first_key(locate(str(copied))) != first_key(locate(tiny_encoder))
    hub = [first_key(Source(name, local=False)) for name in ("me/one", "me/two")]
    assert hub[0] != hub[1]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda d: (d / "model.safetensors").write_bytes(b"half"), "not those that were written"),
        (lambda d: (d / "model.safetensors").unlink(), "No such file"),
        (lambda d: (d / "stage.json").unlink(), "No such file"),
        (lambda d: (d / "stage.json").write_text("{"), "Expecting"),
        (lambda d: (d / "stage.json").write_text("[]"), "list indices"),
        (lambda d: (d / "config.json").unlink(), "config.json"),
    ],
    ids=["weights cut", "weights gone", "note gone", "note cut", "note wrong", "config gone"],
)
def test_a_damaged_entry_is_named_and_built_again(
    stages: Callable[..., Config], damage: Callable[[Path], object], reason: str
) -> None:
    config = stages("nli", pretrain_steps=1)
    first, _ = run(config)
    before = weights(first)
    damage(Path(first.place))
    again, said = run(config)
    assert said.trained() == ["nli"]
    assert "is damaged" in said[0]
    assert reason in said[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(again).items())


def test_a_kill_while_writing_leaves_no_entry(
    stages: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = stages("nli", pretrain_steps=1)

    def killed(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    assert list(Path(str(config.cache)).iterdir()) == []
    # Killed for good, it leaves a directory of another name, which nothing reads.
    left = Path(str(config.cache)) / ".0123.half"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    assert run(config)[1].trained() == ["nli"]


def test_an_interrupted_stage_loses_itself_and_no_other(
    stages: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(simcse.Contrast, "loss", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(stages("nli", "simcse"))
    assert run(stages("nli", "simcse"))[1].trained() == ["simcse"]


def test_two_processes_may_write_the_same_entry(stages: Callable[..., Config]) -> None:
    config = stages("nli", pretrain_steps=1)
    first, _ = run(config)
    start, entry = begin(config), Path(first.place)
    copy = entry.rename(entry.with_name("copy"))

    def slower() -> Any:
        copy.rename(entry)  # meanwhile the other process is done
        return start.encoder, start.tokenizer, {}

    assert get_or_train(entry, slower) == first
    assert [path.name for path in entry.parent.iterdir()] == [entry.name]
    assert run(config)[1].trained() == []  # the first one's, whole


def test_a_cache_that_cannot_be_is_refused_before_any_work(
    stages: Callable[..., Config], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cache = .*file/in: cannot be made"):
        run(stages("nli", cache=str(tmp_path / "file" / "in")))


def test_without_a_name_the_cache_is_the_users(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_directory(None) == tmp_path / ".cache" / "bert_mtl_demo"


# --- data and the run ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "file"), [("mlm", "imdb-reviews.txt"), ("nli", "nli.csv"), ("simcse", "quora-train")]
)
def test_missing_data_name_stage_file_and_remedy(
    stages: Callable[..., Config], tmp_path: Path, stage: str, file: str
) -> None:
    with pytest.raises(DataError, match=f"stage {stage} of --pretrain: {file}.* is missing"):
        run(stages(stage, data=str(tmp_path)))


def test_too_few_positives_are_refused(stages: Callable[..., Config], tmp_path: Path) -> None:
    rows = {"quora": "is_duplicate\na\tb\t0\nc\td\t1\n", "sts": "similarity\na\tb\t4.0\n"}
    for name, text in rows.items():
        for part in ("train", "dev"):
            (tmp_path / f"{name}-{part}.csv").write_text("sentence1\tsentence2\t" + text)
    with pytest.raises(DataError, match=r"at least two positive pairs and found 1.*--pretrain"):
        run(stages("simcse", data=str(tmp_path)))


def test_bad_rows_are_counted_said_and_handed_on(
    stages: Callable[..., Config], tmp_path: Path
) -> None:
    lines = ["the film is good .", *["the dog is bad ."] * 20, "", "how is the man ?"]
    (tmp_path / "imdb-reviews.txt").write_text("\n".join(lines))
    said, skipped = Listener(), list[Skipped]()
    config = stages("mlm", data=str(tmp_path), pretrain_steps=1)
    pretrained(config, locate(config.encoder), CPU, said.append, skipped)
    assert [str(row) for row in skipped] == ["imdb-reviews.txt:22: the sentence is empty"]
    assert "mlm: skipped 1 rows" in said[0]
    with pytest.raises(DataError, match=r"imdb-reviews\.txt:22"):
        run(stages("mlm", data=str(tmp_path), bad_rows="refuse"))


def test_the_stand_in_is_told(stages: Callable[..., Config]) -> None:
    assert "its paraphrases stand in" in run(stages("nli", data="sample", pretrain_steps=1))[1][0]
    assert "stand in" not in run(stages("nli", pretrain_steps=1))[1][0]


def test_a_run_starts_from_what_its_stages_left(
    stages: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = {}
    for name, pretrain in (("without", ()), ("with", ("simcse",)), ("again", ("simcse",))):
        config = stages(
            *pretrain, tasks=["sts"], method="sum", max_steps=1, output=str(tmp_path / name)
        )
        path = start_run(config).path
        rows = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
        losses[name] = next(row["loss"] for row in rows if row["kind"] == "train")
        kept = json.loads((path / "config.json").read_text())
        assert (kept["pretrain"], kept["encoder"]) == (list(pretrain), config.encoder)
    assert losses["with"] == losses["again"] != losses["without"]
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("simcse: ") for line in lines) == 1
    assert sum(line.startswith("pre-trained with simcse: found in ") for line in lines) == 1
