"""Settings: what is refused, with which words, and how defaults, file and flags stack."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from bert_mtl_demo import train
from bert_mtl_demo.batching import SCHEMES
from bert_mtl_demo.cli import settings_of, train_parser, with_settings
from bert_mtl_demo.config import GROUPS, METHODS, Config
from bert_mtl_demo.errors import ConfigError
from bert_mtl_demo.model.heads import HEADS
from bert_mtl_demo.model.pooling import POOLINGS
from bert_mtl_demo.runtime import PRECISIONS
from bert_mtl_demo.setting_types import Choice
from bert_mtl_demo.training.optimizer import METHODS as BUILDERS

REFUSED = [
    (["--method", "pcgard"], ["method = pcgard", "did you mean 'pcgrad'", "gradvac"]),
    (["--tasks", "sst", "stss"], ["unknown task 'stss'", "did you mean 'sts'"]),
    (["--tasks", "sst,sst"], ["must not name anything twice"]),
    (["--epochs", "two"], ["epochs = two", "whole number of at least 1"]),
    (["--epochs", "1.5"], ["epochs = 1.5", "whole number"]),
    (["--epochs", "-1"], ["epochs = -1", "at least 1"]),
    (["--batch-size", "0"], ["batch_size = 0"]),
    (["--max-steps", "-1"], ["max_steps = -1"]),
    (["--lr", "0"], ["lr = 0", "above 0"]),
    (["--lr", "nan"], ["lr = nan", "a number above 0"]),
    (["--lr", "inf"], ["lr = inf"]),
    (["--dropout", "1"], ["dropout = 1", "at most 0.99"]),
    (["--warmup", "2"], ["warmup = 2"]),
    (["--amp", "fp8"], ["amp = fp8", "bf16"]),
    (["--batching", "roundrobin"], ["did you mean 'round_robin'"]),
    (["--pooling", "max"], ["pooling = max"]),
    (["--sts-head", "dot"], ["sts_head = dot"]),
    (["--grouping", "row"], ["grouping = row"]),
    (["--gradvac-update", "never"], ["gradvac_update = never", "on_alter"]),
    (["--gradvac-target", "2"], ["gradvac_target = 2"]),
    (["--bad-rows", "guess"], ["bad_rows = guess", "refuse"]),
    (["--freeze-encoder"], ["cosine has no parameters", "--sts-head concat"]),
    (
        ["--freeze-encoder", "--sts-head", "concat", "--sts-loss", "triplet"],
        ["sts_loss = triplet", "are fixed"],
    ),
    (["--data", ""], ["data = ", "not empty"]),
    (["--seed", "-1"], ["seed = -1"]),
    (["--device", "quantum"], ["device = quantum"]),
    (["--device", "meta"], ["only cpu, cuda, mps, xpu"]),
    (["--device", "cuda:99"], ["device = cuda:99", "CUDA devices"]),
    (["--encoder", "minlm"], ["unknown encoder 'minlm'", "not a directory", "config.json"]),
    (["--encoder", "/no/such/place"], ["unknown encoder '/no/such/place'"]),
    (["--resume", "/no/such/run"], ["/no/such/run", "not a run directory"]),
    (["--config", "/no/such/file.json"], ["/no/such/file.json", "cannot be read"]),
]


@pytest.mark.parametrize(("flags", "parts"), REFUSED, ids=[" ".join(row[0]) for row in REFUSED])
def test_a_wrong_flag_is_refused_before_anything_is_loaded(
    flags, parts, capsys, monkeypatch, tmp_path
):
    def touched(*args: object, **kwargs: object) -> None:
        raise AssertionError("loaded something")

    monkeypatch.setattr("bert_mtl_demo.training.run.load", touched)
    monkeypatch.setattr("bert_mtl_demo.training.run.load_encoder", touched)
    monkeypatch.chdir(tmp_path)
    assert train.main(flags) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    for part in parts:
        assert part in message
    assert not list(tmp_path.iterdir())


def test_an_unknown_flag_is_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        train.main(["--epoch-count", "3"])
    assert caught.value.code == 2
    assert "--epoch-count" in capsys.readouterr().err


def test_a_flag_may_not_be_shortened(capsys):
    """What `--epoch` is short for today could be something else tomorrow."""
    with pytest.raises(SystemExit):
        train.main(["--epoch", "3"])
    assert "--epoch" in capsys.readouterr().err


def test_a_used_output_is_refused(tmp_path, capsys):
    (tmp_path / "work.txt").write_text("weeks of it")
    assert train.main(["--output", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "is not empty" in message
    assert f"--resume {tmp_path}" in message


@pytest.mark.parametrize("kind", ["json", "toml"])
def test_defaults_then_file_then_flags(tmp_path, kind):
    if kind == "toml" and sys.version_info < (3, 11):
        pytest.skip("no TOML reader in the standard library")
    values = {"lr": 0.25, "epochs": 7, "tasks": ["sts", "sst"]}
    file = tmp_path / f"settings.{kind}"
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    file.write_text(json.dumps(values) if kind == "json" else "\n".join(lines))
    arguments = train_parser().parse_args(["--config", str(file), "--epochs", "9"])
    config = Config.from_mapping(settings_of(arguments))
    assert (config.lr, config.epochs, config.tasks) == (0.25, 9, ("sts", "sst"))
    assert config.batch_size == Config().batch_size


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ('{"epoch": 3}', ["settings.json", "unknown setting 'epoch'", "did you mean 'epochs'"]),
        ('{"epochs": true}', ["epochs = True", "whole number"]),
        ('{"epochs": [1]}', ["epochs = [1]"]),
        ('{"freeze_encoder": 1}', ["freeze_encoder = 1", "true or false"]),
        ('{"tasks": []}', ["tasks", "one or more names"]),
        ('{"tasks": 3}', ["tasks = 3"]),
        ('["lr"]', ["one table of settings", "list"]),
        ('{"lr": 1e-5,}', ["not valid JSON"]),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, capsys, content, parts):
    file = tmp_path / "settings.json"
    file.write_text(content)
    assert train.main(["--config", str(file)]) == 2
    message = capsys.readouterr().err
    for part in parts:
        assert part in message


def test_every_choice_has_its_builder_and_every_builder_its_choice():
    """`config` stays free of torch by naming the entries of the tables; here they are compared."""
    types = {entry.name: entry.metadata["parse"] for entry in fields(Config)}
    tables = {
        "method": BUILDERS,
        "batching": SCHEMES,
        "pooling": POOLINGS,
        "amp": ["auto", *PRECISIONS],
        "sts_head": [name for name in HEADS if not name.startswith("classify")],
    }
    for name, table in tables.items():
        for key in table:
            assert types[name](key) == key
        with pytest.raises(ValueError, match="Known: ") as caught:
            types[name]("?")
        assert str(caught.value).split("Known: ")[1].split(", ") == list(table)
    assert tuple(BUILDERS) == METHODS


def test_the_default_config_has_a_flag_with_help_for_every_field(capsys):
    with pytest.raises(SystemExit) as caught:
        train.main(["--help-all"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for entry in fields(Config):
        assert "--" + entry.name.replace("_", "-") in text


def test_a_config_survives_json():
    config = Config(tasks=("sst",), max_steps=5, gradvac_target=-0.5, freeze_encoder=True)
    assert Config.from_mapping(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"batching": "round_robin"}, "no two gradients meet"),
        ({"tasks": ("sst",)}, "one task"),
        ({"freeze_encoder": True, "sts_head": "concat"}, "nothing shared"),
    ],
)
def test_idle_surgery_is_warned_about(changes, part):
    assert part in " ".join(Config(**changes).warnings())
    assert not Config(**changes, method="sum").warnings()


@pytest.mark.parametrize("loss", ["mnrl_label", "mnrl_cosine"])
def test_a_ranking_that_a_linear_head_cannot_learn_is_warned_about(loss):
    linear = {"sts_loss": loss, "sts_head": "linear"}
    assert "cancels" in " ".join(Config(**linear).warnings())
    for other in ({"hidden_layers": 1}, {"sts_head": "concat"}, {"untrained": ("sts",)}):
        assert not Config(**{**linear, **other}).warnings()


def test_a_config_cannot_be_invalid():
    with pytest.raises(ConfigError, match="epochs = 0"):
        Config(epochs=0)


def test_the_usual_flags_fit_on_two_screens_and_show_choices_and_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        train.main(["--help"])
    text = capsys.readouterr().out
    assert text.count("\n") <= 2 * 50
    assert max(map(len, text.splitlines())) <= 100
    words = " ".join(text.split())
    for entry in fields(Config):
        flag = "--" + entry.name.replace("_", "-")
        visible = f" {flag} " in words or f" {flag}, " in words
        assert visible == (not entry.metadata["rare"])
        if not entry.metadata["rare"] and isinstance(entry.metadata["parse"], Choice):
            default = str(entry.default).lower()
            assert f"{', '.join(entry.metadata['parse'].names)} (default: {default})" in words
    for title in GROUPS.values():
        assert (f"\n{title}:\n" in text) == (title != "stages before the tasks")


def test_a_rare_flag_works_like_any_other():
    arguments = train_parser().parse_args(["--layer-decay", "0.9", "--pretrain", "nli", "simcse"])
    assert settings_of(arguments) == {"layer_decay": "0.9", "pretrain": "nli simcse"}


def test_the_table_of_settings_in_the_docs_is_up_to_date():
    """`python -m bert_mtl_demo.cli docs/demo.md` writes it."""
    page = (Path(__file__).parents[2] / "docs" / "demo.md").read_text("utf-8")
    assert page == with_settings(page)
    for entry in fields(Config):
        assert f"| `--{entry.name.replace('_', '-')}` |" in page


BEYOND = [10**309, "9" * 309, "1e309", "1e999999999", "1e9999999999999999999", 10**5000]


@pytest.mark.parametrize("value", BEYOND, ids=lambda value: str(type(value).__name__))
@pytest.mark.parametrize("name", ["seed", "epochs", "lr", "weight_decay", "train_limit", "adapter"])
def test_numbers_beyond_all_types_are_refused_in_one_line(name, value):
    with pytest.raises(ConfigError) as caught:
        Config(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"{name} = ")
    assert "\n" not in message
    assert len(message) < 600


def test_a_seed_is_taken_exactly_or_not_at_all():
    assert Config(seed="9007199254740993").seed == 2**53 + 1
    assert Config(seed="1e3").seed == 1000
    assert Config(seed=2**63 - 1).seed == 2**63 - 1
    for value in ("1e23", 1e23, 2**63, "9223372036854775808"):
        with pytest.raises(ConfigError, match=r"^seed = .*: must be at most 9223372036854775807$"):
            Config(seed=value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("encoder_layers", 5),
        ("encoder_layers", b"\0\1"),
        ("encoder_layers", {"0": 1}),
        ("data", "a\0b"),
        ("output", "\udc80"),
        ("tasks", len),
        ("method", None),
        ("task", {"mood": {"kind": "regression", "file": "{split}", "low": 0, "high": 10**400}}),
        ("task", {"mood": {"kind": "regression", "file": "{split}", "low": -1e308, "high": 1e308}}),
        ("task", {"mood": {"kind": "regression", "file": "{split}", "low": 0, "high": 5e-324}}),
        ("task", "mood=regression:\0{split}"),
        ("schedule", "linear\nconstant"),
    ],
    ids=repr,
)
def test_values_of_any_type_are_refused_by_the_name_of_their_setting(name, value):
    with pytest.raises(ConfigError) as caught:
        Config(**{name: value})
    assert str(caught.value).startswith(f"{name} = ")
    assert "\n" not in str(caught.value)


def test_a_key_of_any_type_is_an_unknown_setting():
    with pytest.raises(ConfigError, match="unknown setting '7'"):
        Config.from_mapping({7: 1})
