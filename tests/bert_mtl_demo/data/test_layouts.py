"""Tables as their publishers lay them out, with made-up rows: each loads without renaming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bert_mtl_demo import evaluate, predict, train
from bert_mtl_demo.config import Config
from bert_mtl_demo.data import DataError, load, with_labels
from bert_mtl_demo.errors import ConfigError
from bert_mtl_demo.tasks import TASKS
from bert_mtl_demo.training.run import continue_run, start_run
from bert_mtl_demo.training.run_settings import labelled
from bert_mtl_demo.user_tasks import user_tasks

# --- name: files, flags, and the texts and label of the first train row


def both(name: str, *lines: str) -> dict[str, str]:
    """The same lines as train and dev."""
    text = "\n".join(lines) + "\n"
    return {name.replace("{split}", split): text for split in ("train", "dev")}


LAYOUTS = {
    "GLUE, QQP": (
        both(
            "QQP/{split}.tsv",
            "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
            '133273\t213221\t213222\tHow is "tea" made?\tHow does one make tea?\t1',
            "402555\t536040\t536041\tWhat is rain?\tWhat is snow?\t0",
        ),
        ["--map", "para=QQP/{split}.tsv:question1,question2,is_duplicate"],
        (('How is "tea" made?', "How does one make tea?"), 1),
    ),
    "GLUE, STS-B": (
        both(
            "STS-B/{split}.tsv",
            "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
            '0\tmain\tMSRvid\t2012\t1\tnone\tnone\t"A cat, he said.\tA cat sits.\t3.800',
            "1\tmain\tMSRvid\t2012\t2\tnone\tnone\tA dog runs.\tIt's 5 o'clock.\t0.200",
        ),
        ["--map", "sts=STS-B/{split}.tsv:sentence1,sentence2,score"],
        (('"A cat, he said.', "A cat sits."), 3.8),
    ),
    "STS benchmark": (  # no header, no quoting, rows with further columns
        both(
            "sts-{split}.csv",
            'main-captions\tMSRvid\t2012test\t0001\t5.000\t"A plane.\tAn air plane.',
            "main-news\theadlines\t2013\t12\t1.250\tRain.\tSnow.\thttp://x\tlicence",
        ),
        ["--map", "sts=sts-{split}.csv:6,7,5"],
        (('"A plane.', "An air plane."), 5.0),
    ),
    "GLUE, SST-2": (
        both("SST-2/{split}.tsv", "sentence\tlabel", "a quiet joy \t1", "dire \t0"),
        ["--task", "tone=classification:SST-2/{split}.tsv:sentence,label", "--tasks", "none"],
        (("a quiet joy ",), 1),
    ),
    "Kaggle, toxicity": (  # one table for train and dev, quoted, sentences of several lines
        {
            "train.csv": "id,comment_text,toxic,severe_toxic,obscene\n"
            + "".join(
                f'"{n:04x}","A comment,\nof ""two"" lines {n}",{n % 2},0,0\n' for n in range(20)
            )
        },
        ["--task", "toxic=classification:train.csv:comment_text,toxic", "--tasks", "none"],
        (('A comment,\nof "two" lines 0',), 0),
    ),
    "Stanford": (
        both("ids-sst-{split}.csv", "\tid\tsentence\tsentiment", "0\tab12\tA quiet joy .\t3"),
        ["--tasks", "sst"],
        (("A quiet joy .",), 3),
    ),
    "Goettingen": (
        both("sst-sentiment-{split}.csv", "\tid\tsentence\tsentiment", "0\tab12\tA quiet joy .\t3"),
        ["--map", "sst=sst-sentiment-{split}.csv:sentence,sentiment"],
        (("A quiet joy .",), 3),
    ),
    "CMU": (
        both("sst-{split}.txt", '3 ||| A quiet joy , "so" to say .', "0 ||| Dire ."),
        ["--map", "sst=sst-{split}.txt:2,1"],
        (('A quiet joy , "so" to say .',), 3),
    ),
    "JSON lines": (
        both(
            "data/{split}.jsonl",
            '{"text": "A quiet\\njoy.", "stars": 4.5, "more": null}',
            '{"text": "Dire.", "stars": 1, "more": [1]}',
        ),
        ["--task", "stars=regression:data/{split}.jsonl:text,stars", "--tasks", "none"],
        (("A quiet\njoy.",), 4.5),
    ),
    "numbered, between commas": (
        both("{split}.csv", '"pos","A joy, quiet."', "neg,Dire."),
        ["--task", "tone=classification:{split}.csv:2,1", "--tasks", "none"],
        (("A joy, quiet.",), 1),
    ),
}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def config_of(flags: list[str], folder: Path) -> Config:
    from bert_mtl_demo.cli import settings_of, train_parser

    arguments = train_parser().parse_args([*flags, "--data", str(folder)])
    return Config.from_mapping(settings_of(arguments))


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_published_layout_loads_as_it_is(name, tmp_path, monkeypatch):
    files, flags, (texts, label) = LAYOUTS[name]
    write(tmp_path, files)
    monkeypatch.chdir(tmp_path)
    config = config_of(flags, tmp_path)
    task = config.map[0].name if config.map else config.tasks[0]
    (known,) = (t for t in labelled(config).definitions.values() if t.name == task)
    splits, skipped = load(config.data, [known], bad_rows="refuse")
    assert not skipped
    assert splits[task].train.texts()[0] == texts
    assert splits[task].train.labels[0] == label
    assert len(splits[task].dev) > 0


def test_one_table_holds_out_every_tenth_row(tmp_path, monkeypatch):
    files, flags, _ = LAYOUTS["Kaggle, toxicity"]
    write(tmp_path, files)
    monkeypatch.chdir(tmp_path)
    (task,) = labelled(config_of(flags, tmp_path)).definitions.values()
    splits = load(tmp_path, [task])[0]["toxic"]
    assert [text.split()[-1] for text in splits.dev.first] == ["9", "19"]
    assert len(splits.train) == 18
    assert not set(splits.train.first) & set(splits.dev.first)
    write(tmp_path, {"train.csv": "\n".join(files["train.csv"].split("\n")[:9]) + "\n"})
    with pytest.raises(DataError, match="4 usable rows are too few"):
        load(tmp_path, [task])


def test_words_and_any_range_of_scores(tmp_path):
    write(tmp_path, both("p-{split}.tsv", "a\tb\ty", "x\tz\tsame", "v\tw\tother"))
    write(tmp_path, both("s-{split}.tsv", "a\tb\ty", "x\tz\t-1", "v\tw\t1", "v\tz\t0.5"))
    columns = ["a", "b", "y"]
    settings = {
        "data": str(tmp_path),
        "tasks": ["para", "sts"],
        "map": {
            "para": {"file": "p-{split}.tsv", "columns": columns, "labels": ["other", "same"]},
            "sts": {"file": "s-{split}.tsv", "columns": columns, "low": -1, "high": 1},
        },
    }
    config = Config.from_mapping(settings)
    assert Config.from_mapping(json.loads(json.dumps(config.to_dict()))) == config
    assert config.changed()["map"] == settings["map"]
    tasks = tuple(labelled(config).definitions.values())
    splits = load(tmp_path, tasks)[0]
    assert splits["para"].train.labels == [1, 0]
    assert [tasks[1].scaled(label) for label in splits["sts"].train.labels] == [0, 5, 3.75]


def test_a_regression_of_one_sentence_finds_its_range(tmp_path):
    files, _, _ = LAYOUTS["JSON lines"]
    write(tmp_path, files)
    (task,) = user_tasks([f"stars=regression:{tmp_path}/data/{{split}}.jsonl:text,stars"])
    assert (with_labels(task).low, with_labels(task).high) == (1.0, 4.5)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("sst=a-{split}.csv", "columns must name those of the sentence and of the label"),
        ("para=a-{split}.csv:q,y", "the two sentences and of the label"),
        ("mood=a-{split}.csv:a,b", "unknown task 'mood'"),
        ("sts", "unknown task 'sts'|columns must name|file must be"),
        ({"sst": {"file": "a", "columns": ["a", "b"], "labels": ["x"]}}, "5 different words"),
        ({"sst": {"file": "a", "columns": ["a", "b"], "low": 0, "high": 1}}, "has classes"),
        ({"sst": {"file": "a", "columns": ["a", "b"], "colour": 1}}, "unknown key 'colour'"),
        (["sst=a:x,y", "sst=b:x,y"], "twice"),
    ],
)
def test_what_names_no_table_is_refused(value, message):
    with pytest.raises(ConfigError, match=message):
        Config(map=value)


def test_a_missing_file_says_what_is_there(tmp_path):
    for n in range(12):
        (tmp_path / f"other{n:02}.txt").touch()
    (tmp_path / "sst-sentiment-train.csv").touch()
    with pytest.raises(DataError) as error:
        load(tmp_path, [TASKS["sst"]])
    text = str(error.value)
    assert "ids-sst-train.csv is missing" in text
    assert "which holds sst-sentiment-train.csv, " in text  # the likest first
    assert "and 5 more" in text
    assert "--map" in text


def test_json_lines_name_their_faults(tmp_path):
    lines = ['{"text": "A.", "label": "x"}'] * 20 + ["{", "3", '{"text": "B."}']
    write(tmp_path, {"t-train.jsonl": "\n".join(lines), "t-dev.jsonl": "\n".join(lines)})
    kind, file = "classification", str(tmp_path / "t-{split}.jsonl")
    labels = {"columns": ["text", "label"], "labels": ["x", "y"]}
    (task,) = user_tasks({"t": {"kind": kind, "file": file, **labels}})
    faults = r"3 of 23 rows.*line 21: no JSON.*22: no JSON object.*'label'"
    with pytest.raises(DataError, match=faults):
        load(tmp_path, [task])


# --- a split without labels


@pytest.fixture
def trained(settings, tmp_path):
    """A run on the made-up tables of a course, and the directory of its data."""
    data = tmp_path / "course"
    sst = ["\tid\tsentence\tsentiment"] + [
        f"{n}\tid{n}\tthe film is {n}\t{n % 5}" for n in range(30)
    ]
    sts = ["\tid\tsentence1\tsentence2\tsimilarity"]
    sts += [f"{n}\tid{n}\tthe dog\tthe man\t{n % 6}" for n in range(30)]
    write(data, both("ids-sst-{split}.csv", *sst))
    write(data, both("sts-{split}.csv", *sts))
    write(
        data, {"ids-sst-test-student.csv": "\n".join(line.rpartition("\t")[0] for line in sst[:6])}
    )
    write(data, {"sts-test-student.csv": "\n".join(line.rpartition("\t")[0] for line in sts[:6])})
    config = settings(data=str(data), tasks=["sst", "sts"], max_steps=2)
    return start_run(config).path, data


def test_a_split_without_labels_is_answered_as_the_leaderboard_wants(trained, capsys):
    run, _ = trained
    assert evaluate.main([str(run), "--split", "test-student"]) == 0
    assert "answers-sst-test-student.csv" in capsys.readouterr().out
    lines = (run / "answers-sst-test-student.csv").read_text("utf-8").split("\n")
    assert lines[0] == "id \t Predicted_Sentiment "
    rows = [line.split(" , ") for line in lines[1:-1]]
    assert [name for name, _ in rows] == [f"id{n}" for n in range(5)]
    assert all(text.strip() in set("01234") for _, text in rows)
    lines = (run / "answers-sts-test-student.csv").read_text("utf-8").split("\n")
    assert lines[0] == "id \t Predicted_Similiary "
    assert all(0 <= float(line.split(" , ")[1]) <= 5 for line in lines[1:-1])
    assert not (run / "evaluation.md").exists()

    assert evaluate.main([str(run), "--split", "test-student", "--tsv"]) == 0
    rows = (run / "answers-sst-test-student.tsv").read_text("utf-8").splitlines()
    assert rows[0] == "id\tlabel\tprobability"
    assert rows[1].startswith("id0\t")


def test_another_split_with_labels_is_scored(trained, capsys):
    run, data = trained
    for name in ("ids-sst", "sts"):
        (data / f"{name}-test.csv").write_bytes((data / f"{name}-dev.csv").read_bytes())
    assert evaluate.main([str(run), "--split", "test"]) == 0
    assert "mean" in capsys.readouterr().out
    assert (run / "evaluation-test.md").exists()
    (data / "sts-test.csv").unlink()
    assert evaluate.main([str(run), "--split", "test"]) == 2
    assert "sts-test.csv is missing" in capsys.readouterr().err


def test_a_row_without_text_is_refused_as_it_needs_an_answer(trained, capsys):
    run, data = trained
    with (data / "ids-sst-test-student.csv").open("a") as file:
        file.write("\n9\tid9\t \n")
    assert evaluate.main([str(run), "--split", "test-student"]) == 2
    assert "ids-sst-test-student.csv:7: a sentence is empty" in capsys.readouterr().err


def test_predict_answers_a_table_by_its_ids(trained, capsys):
    run, data = trained
    words = [str(run), "--task", "sst", "--tsv", "--file", str(data / "ids-sst-test-student.csv")]
    assert predict.main(words) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["id", "label", "probability"]
    assert [row[0] for row in rows[1:]] == [f"id{n}" for n in range(5)]
    assert predict.main([str(run), "--task", "sts", "--tsv", "a dog", "a man"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "id\tlabel"


def test_a_mapped_run_resumes_from_anywhere(settings, tmp_path, monkeypatch, capsys):
    files, _, _ = LAYOUTS["CMU"]
    rows = "".join(f"{n % 5} ||| the film is {n}\n" for n in range(30))
    write(tmp_path / "cmu", dict.fromkeys(files, rows))
    config = settings(
        data=str(tmp_path / "cmu"), tasks=["sst"], map="sst=sst-{split}.txt:2,1", max_steps=2
    )
    run = start_run(config).path
    monkeypatch.chdir("/")
    assert continue_run(run, {"max_steps": 4}).done
    assert evaluate.main([str(run)]) == 0
    assert "leaderboard" in capsys.readouterr().out
    assert train.main(["--resume", str(run), "--max-steps", "5"]) == 0
    assert str(tmp_path) not in (run / "report.md").read_text("utf-8")
