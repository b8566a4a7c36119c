"""Tasks that a user defines: from a flag or a file to training, resuming, scores and answers."""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bert_mtl_demo import evaluate, predict, train
from bert_mtl_demo.cli import settings_of, train_parser
from bert_mtl_demo.config import Config
from bert_mtl_demo.data import DataError, load, with_labels
from bert_mtl_demo.data.tokenization import encode
from bert_mtl_demo.errors import CheckpointError, ConfigError
from bert_mtl_demo.model.heads import HEADS, build_head
from bert_mtl_demo.model.losses import CLASS_LOSSES, SIMILARITY_LOSSES, loss_of
from bert_mtl_demo.model.multitask import MultitaskModel
from bert_mtl_demo.reporting.run_report import write_report
from bert_mtl_demo.study.plan import key_of
from bert_mtl_demo.tasks import KINDS, TASKS, Task
from bert_mtl_demo.training.data_parallel import refuse_comparing
from bert_mtl_demo.training.processes import Processes
from bert_mtl_demo.training.run import continue_run, start_run
from bert_mtl_demo.user_tasks import user_tasks
from tests.bert_mtl_demo.training.test_resume import assert_same_run, stop_after

SENTENCES = ["the film is good", "a bad dog, not good", "what is the man", "the woman is not bad"]

# kind -> the label of row n: every kind of label, none on the scale that is used inside
LABELS: dict[str, Callable[[int], object]] = {
    "classification": lambda n: ("calm", "angry", "neither")[n % 3],
    "pair-classification": lambda n: (3, 10)[n % 2],
    "similarity": lambda n: n % 11 / 10,
    "regression": lambda n: 10 * (n % 7) - 20,
}


def table(folder: Path, kind: str, ending: str = "csv") -> str:
    """Train and dev tables of a kind of task; the FILE that names them."""
    comma = {"csv": ",", "tsv": "\t"}[ending]
    columns = ("id", *KINDS[kind].columns, "label")
    for split, size in (("train", 40), ("dev", 24)):
        lines = [comma.join(columns)]
        for n in range(size):
            texts = [f'"{SENTENCES[(n + k) % 4]} {n}"' for k, _ in enumerate(KINDS[kind].columns)]
            lines.append(comma.join([str(n), *texts, str(LABELS[kind](n))]))
        (folder / f"{kind}-{split}.{ending}").write_text("\n".join(lines) + "\n", "utf-8")
    return str(folder / f"{kind}-{{split}}.{ending}")


@pytest.fixture
def four(tmp_path: Path) -> list[str]:
    """One task of each kind, as flags have them."""
    names = ("mood", "same", "near", "stars")
    endings = ("tsv", "csv", "csv", "tsv")
    return [
        f"{name}={kind}:{table(tmp_path, kind, ending)}"
        for name, kind, ending in zip(names, KINDS, endings, strict=True)
    ]


def of_kind(kind: str, tmp_path: Path) -> Task:
    (task,) = user_tasks(f"mine={kind}:{table(tmp_path, kind)}")
    return with_labels(task)


# From a setting to a task


def test_flags_json_and_toml_define_the_same_tasks(tmp_path: Path) -> None:
    flags = ["mood=classification:a/mood-{split}.tsv", "near=similarity:near {split}.csv"]
    arguments = train_parser().parse_args(
        ["--task", flags[0], "--task", flags[1], "--tasks", "sst"]
    )
    config = Config.from_mapping(settings_of(arguments))
    assert config.tasks == ("sst", "mood", "near")

    tables = {
        "mood": {"kind": "classification", "file": "a/mood-{split}.tsv"},
        "near": {"kind": "similarity", "file": "near {split}.csv"},
    }
    for values in ({"task": flags}, {"task": tables}):
        (tmp_path / "run.json").write_text(json.dumps({**values, "tasks": ["sst"]}))
        arguments = train_parser().parse_args(["--config", str(tmp_path / "run.json")])
        assert Config.from_mapping(settings_of(arguments)) == config
    if sys.version_info >= (3, 11):
        toml = 'tasks = ["sst"]\n' + "".join(
            f'[task.{name}]\nkind = "{row["kind"]}"\nfile = "{row["file"]}"\n'
            for name, row in tables.items()
        )
        (tmp_path / "run.toml").write_text(toml)
        arguments = train_parser().parse_args(["--config", str(tmp_path / "run.toml")])
        assert Config.from_mapping(settings_of(arguments)) == config
    assert Config.from_mapping(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        (None, ("sst", "para", "sts", "mood")),
        ("sts", ("sts", "mood")),
        ("none", ("mood",)),
        ("mood", ("mood",)),
        ("mood,sst", ("mood", "sst")),
    ],
)
def test_any_of_the_built_in_tasks_stand_beside_a_users(tasks, expected) -> None:
    chosen = {} if tasks is None else {"tasks": tasks}
    config = Config.from_mapping({"task": "mood=classification:mood-{split}.csv", **chosen})
    assert config.tasks == expected
    assert list(config.definitions) == list(expected)


def test_keys_of_finished_runs_stay_as_they_were() -> None:
    """They are hashes of all settings: finished results of a study go by them."""
    assert key_of(Config(amp="off")) == "6937b66f4c"  # the default then
    changed = Config(
        method="gradvac", tasks=("sst", "sts"), epochs=3, seed=7, untrained=("sts",), amp="off"
    )
    assert key_of(changed) == "0366b29e49"
    assert key_of(Config(task="mood=classification:mood-{split}.csv")) != key_of(Config())


FILE = "mood-{split}.csv"
REFUSED = [
    (["mood"], ["'mood' must be NAME=KIND:FILE", "as in mood=classification:mood-{split}.csv"]),
    (["mood=mood-{split}.csv"], ["must be NAME=KIND:FILE"]),
    (["mood=clasification:" + FILE], ["unknown kind 'clasification'", "did you mean 'classif"]),
    (["mood=classification:mood.csv"], ["file mood.csv", "needs {split}", "mood-{split}.csv"]),
    (["sst=classification:" + FILE], ["sst is a built-in task", "another name"]),
    (["m=similarity:" + FILE, "m=regression:" + FILE], ["defines m twice", "its own name"]),
    (["mean=similarity:" + FILE], ["mean cannot name a task", "choose another"]),
    (["my.mood=classification:" + FILE], ["name 'my.mood'", "letters, digits"]),
    (["my/mood=classification:" + FILE], ["name 'my/mood'"]),
    (["my mood=classification:" + FILE], ["name 'my mood'"]),
    (["2nd=classification:" + FILE], ["name '2nd'", "a letter first"]),
    (["keys=classification:" + FILE], ["task = keys", "choose another"]),
    (["training=classification:" + FILE], ["task = training", "choose another"]),
]


@pytest.mark.parametrize(("tasks", "parts"), REFUSED, ids=[" ".join(row[0]) for row in REFUSED])
def test_a_wrong_definition_is_refused_in_one_line(tasks, parts, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert train.main(["--task", *tasks]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: task = ")
    assert message.count("\n") == 1
    for part in parts:
        assert part in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("task", "part"),
    [
        ({"kind": "similarity"}, "needs {split}"),
        ({"kind": "similarity", "file": FILE, "lable": 1}, "unknown key 'lable'"),
        ({"kind": "similarity", "file": FILE, "low": 1}, "two numbers"),
        ({"kind": "similarity", "file": FILE, "low": 1, "high": 1}, "the lower one first"),
        ({"kind": "classification", "file": FILE, "labels": ["a"]}, "two or more different"),
        ({"kind": "classification", "file": FILE, "labels": ["a", "a"]}, "two or more different"),
        ("similarity", "a table with kind, file"),
    ],
)
def test_a_wrong_table_of_a_settings_file_is_refused(task, part) -> None:
    with pytest.raises(ConfigError, match="task = ") as caught:
        Config.from_mapping({"task": {"mood": task}})
    assert part in str(caught.value)


# From a table to examples


def test_classes_are_those_of_train_in_the_order_of_their_numbers_or_the_alphabet(tmp_path) -> None:
    assert of_kind("classification", tmp_path).label_names == ("angry", "calm", "neither")
    task = of_kind("pair-classification", tmp_path)
    assert task.label_names == ("3", "10")
    splits, skipped = load("nowhere", [task])
    assert splits["mine"].train.labels[:4] == [0, 1, 0, 1]
    assert skipped == []


def test_named_labels_keep_the_order_they_are_given_in(tmp_path: Path) -> None:
    values = {"kind": "classification", "file": table(tmp_path, "classification")}
    (task,) = user_tasks({"mood": {**values, "labels": ["neither", "calm", "angry"]}})
    assert load("sample", [with_labels(task)])[0]["mood"].train.labels[:3] == [1, 2, 0]


def test_numbers_are_learned_on_one_scale_and_answered_on_their_own(tmp_path: Path) -> None:
    class Tokenizer:
        pad_token_id = 0

        def __call__(self, texts, **_: object):
            return {"input_ids": [[1, 2] for _ in texts]}

    task = of_kind("regression", tmp_path)
    assert (task.low, task.high) == (-20, 40)
    train_split = load("sample", [task])[0]["mine"].train
    encoded = encode(train_split, task, Tokenizer(), 8)
    assert (min(encoded.labels), max(encoded.labels)) == (0, 5)
    restored = [label * task.unit + task.low for label in encoded.labels]
    assert restored == pytest.approx(train_split.labels)
    sts = TASKS["sts"]  # bitwise as it was
    assert [sts.scaled(n / 7) for n in range(36)] == [n / 7 for n in range(36)]


def test_an_unknown_label_in_dev_is_a_bad_row(tmp_path: Path) -> None:
    task = of_kind("classification", tmp_path)
    with (tmp_path / "classification-dev.csv").open("a") as file:
        file.write("99,the dog,furious\n")
    splits, skipped = load("sample", [TASKS["sst"], task])
    assert (len(splits["mine"].dev), len(skipped)) == (24, 1)
    assert "'furious' is none of angry, calm, neither" in str(skipped[0])
    with pytest.raises(DataError, match=r"classification-dev\.csv:26: the label 'furious'"):
        load("sample", [task], bad_rows="refuse")


def test_a_quoted_sentence_of_a_csv_may_hold_commas_and_lines(tmp_path: Path) -> None:
    content = 'sentence,label\n"one, two\nthree,\tfour",1\nplain,2\n"never closed,1\nplain,2\n'
    for split in ("train", "dev"):
        (tmp_path / f"{split}.csv").write_text(content + 30 * "plain,1\n")
    (task,) = user_tasks(f"mine=classification:{tmp_path}/{{split}}.csv")
    splits, skipped = load("sample", [with_labels(task)])
    assert splits["mine"].train.first[:3] == ["one, two\nthree,\tfour", "plain", "plain"]
    assert [row.line for row in skipped] == [5, 5]


BAD_TABLES = [
    ("classification", None, ["train.csv is missing in", "Put it there"]),
    ("classification", "", ["train.csv is empty"]),
    ("classification", "sentence,label\n", ["no usable row for task 'mine'", "nothing after"]),
    ("classification", "text,label\na,1\n", ["no column 'sentence'", "a tab or a comma"]),
    ("similarity", "sentence,label\na,1\n", ["no column 'sentence1'"]),
    ("classification", "sentence,label\na,1\nb,1\n", ["every label is '1'", "two classes"]),
    ("similarity", "sentence1,sentence2,label\na,b,high\n", ["'high' is not a number"]),
    ("regression", "sentence,label\na,2\nb,2\n", ["every label is 2", "two different"]),
    ("regression", "sentence,label\na,2\nb,x\n", ["every label is 2", "two different"]),
    ("regression", "sentence,label\na,2\nb,3\nc,x\n", ["1 of 3 rows are bad", "'x' is not a"]),
]


@pytest.mark.parametrize(("kind", "content", "parts"), BAD_TABLES)
def test_a_bad_table_is_refused_in_one_line_and_leaves_nothing(
    settings, capsys, tmp_path, kind, content, parts
):
    if content is not None:
        for split in ("train", "dev"):
            (tmp_path / f"{split}.csv").write_text(content)
    config = settings(task=f"mine={kind}:{tmp_path}/{{split}}.csv", tasks="none")
    with pytest.raises(DataError) as caught:
        start_run(config)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path(config.output).exists()


# Settings apply to a kind of task


def test_settings_of_pairs_hold_for_every_task_of_their_kind(tmp_path: Path) -> None:
    tasks = {kind: of_kind(kind, tmp_path) for kind in KINDS}
    config = Config(sts_loss="huber", para_loss="bce", sts_head="difference")
    losses = [loss_of(tasks[kind], config) for kind in KINDS]
    mse, huber = SIMILARITY_LOSSES["mse"], SIMILARITY_LOSSES["huber"]
    assert losses == [CLASS_LOSSES["cross_entropy"], CLASS_LOSSES["bce"], huber, mse]
    near = build_head(tasks["similarity"], config, width=8)
    assert near.linear.weight.shape == HEADS["difference"](8, 0.0, 0).linear.weight.shape
    stars = build_head(tasks["regression"], config, width=8)(torch.randn(3, 8))
    assert stars.shape == (3,)
    assert 0 < stars.min() < stars.max() < 5


NEAR = "near=similarity:near-{split}.csv"


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"freeze_encoder": True}, "near would have nothing to train"),
        (
            {"freeze_encoder": True, "sts_head": "concat", "sts_loss": "triplet"},
            "leave near out of --tasks",
        ),
    ],
)
def test_a_second_similarity_task_is_checked_as_sts_is(changes, part) -> None:
    with pytest.raises(ConfigError, match=part):
        Config(tasks=("sst",), task=NEAR, **changes)
    Config(tasks=("sst",), task=NEAR, untrained=("near",), **changes)


def test_a_second_similarity_task_cannot_be_compared_over_processes() -> None:
    config = Config(tasks=("sst",), task=NEAR, sts_loss="simcse")
    with pytest.raises(ConfigError, match="sts_loss = simcse in 2 processes"):
        refuse_comparing(config, Processes(size=2))


def test_a_name_like_that_of_a_module_freezes_nothing_else(tiny_encoder) -> None:
    from transformers import BertModel

    values = {"kind": "classification", "file": "query-{split}.csv", "labels": ["a", "b"]}
    config = Config(tasks=("sst",), task={"query": values}, untrained=("query",))
    model = MultitaskModel(config, BertModel.from_pretrained(tiny_encoder))
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["heads.query.linear.weight", "heads.query.linear.bias"]


# From a run to its answers


@pytest.mark.parametrize("tasks", ["sst,mood,near", "none"])
@pytest.mark.parametrize("data", ["sample", "directory"])
def test_a_run_trains_reports_evaluates_and_predicts(
    settings, four, tmp_path, capsys, rows_of, tasks, data
):
    if data == "directory":
        data = str(tmp_path)
        for split in ("train", "dev"):
            rows = "".join(f"{SENTENCES[n % 4]} {n}\t{n % 5}\n" for n in range(30))
            (tmp_path / f"ids-sst-{split}.csv").write_text("sentence\tsentiment\n" + rows)
    path = start_run(settings(task=four, tasks=tasks, data=data, epochs=1)).path
    config = Config.from_mapping(json.loads((path / "config.json").read_text()))
    names = [*(["sst"] if "sst" in tasks else []), "mood", "near", "same", "stars"]
    assert sorted(config.tasks) == sorted(names)

    assert "  best\n" in write_report(path)
    assert "mood" in (path / "report.md").read_text("utf-8")
    evaluate.evaluate(path, device="cpu", top=2)
    evaluation = json.loads((path / "evaluation.json").read_text())
    best = rows_of(path, "metrics.jsonl")[-1]
    for name, score in best["scores"].items():
        assert evaluation["tasks"][name]["score"] == pytest.approx(score, abs=1e-6)
        assert (path / evaluation["tasks"][name]["picture"]).exists()
    assert evaluation["tasks"]["near"]["truth"][:3] == [0, 0.1, 0.2]

    def ask(task: str, *texts: str) -> dict[str, object]:
        capsys.readouterr()
        assert predict.main([str(path), "--task", task, "--json", *texts]) == 0
        return json.loads(capsys.readouterr().out)

    assert ask("mood", "the dog")["name"] in ("angry", "calm", "neither")
    assert ask("same", "the dog", "a dog")["name"] in ("3", "10")
    assert 0 <= ask("near", "the dog", "a dog")["score"] <= 1
    assert -20 <= ask("stars", "the dog")["score"] <= 40


@pytest.mark.parametrize("tasks", ["sts", "none"])
def test_an_interrupted_run_resumes_bitwise_also_with_its_tables_elsewhere(
    settings, rows_of, monkeypatch, four, tmp_path, tasks
):
    changes = {"task": four, "tasks": tasks, "sts_loss": "mnrl_one", "adapter": "low_rank"}
    whole = start_run(settings("whole", **changes))
    with monkeypatch.context() as patch:
        stop_after(patch, 5, lambda: signal.raise_signal(signal.SIGINT))
        halves = start_run(settings("halves", **changes))
    assert not halves.done

    moved = tmp_path / "moved"
    moved.mkdir()
    for file in tmp_path.glob("*-*.?sv"):
        file.rename(moved / file.name)
    elsewhere = [task.replace(str(tmp_path), str(moved)) for task in four]
    with pytest.raises(DataError, match="is missing in"):
        continue_run(halves.path, {})
    torch.manual_seed(99)
    assert continue_run(halves.path, {"task": elsewhere}).done
    assert_same_run(whole.path, halves.path, rows_of)


def test_a_resumed_run_keeps_its_tasks_and_their_labels(settings, four, tmp_path) -> None:
    run = start_run(settings(task=four[0], tasks="sst", max_steps=2)).path
    others = [
        {"task": four[:2]},
        {"task": four[0].replace("=classification", "=regression")},
        {"task": {"mood": {"kind": "classification", "file": FILE, "labels": ["calm", "angry"]}}},
    ]
    for changes in others:
        with pytest.raises(CheckpointError, match=r"task = .*Leave it out"):
            continue_run(run, {**changes, "max_steps": 3})
    table(tmp_path, "classification", "tsv")
    train_table = tmp_path / "classification-train.tsv"
    train_table.write_text(train_table.read_text().replace("calm", "angry"))
    with pytest.raises(CheckpointError, match="train/mood data are not"):
        continue_run(run, {"max_steps": 3})


def test_a_users_epoch_is_a_pass_also_beside_the_sample(settings, four) -> None:
    run = start_run(settings(task=four[0], tasks="none", steps_per_epoch=None, max_steps=1))
    state = torch.load(run.path / "last.pt", weights_only=True)
    assert len(state["batches"]["streams"]) == 1
    assert math.ceil(40 / 4) == 10  # and not a third of it, as on the sample alone
    outcome = continue_run(run.path, {"epochs": 1, "max_steps": "none"})
    assert torch.load(outcome.path / "last.pt", weights_only=True)["progress"]["step"] == 10


def test_data_that_no_task_reads_are_warned_about() -> None:
    task = "mood=classification:mood-{split}.csv"
    assert "not read" in Config(task=task, tasks="none", data="tables").warnings()[0]
    for read in ({"tasks": "sst"}, {"data": "sample"}, {"pretrain": "mlm"}):
        settings = {"task": task, "tasks": "none", "data": "tables", **read}
        assert not any("not read" in text for text in Config(**settings).warnings())
