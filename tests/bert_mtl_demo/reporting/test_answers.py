"""`evaluate` and `predict`: what a finished run says, and how an unfinished one is refused."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from bert_mtl_demo import evaluate, predict
from bert_mtl_demo.data import Examples
from bert_mtl_demo.data.tokenization import EncodedSet
from bert_mtl_demo.errors import DemoError
from bert_mtl_demo.evaluate import worst
from bert_mtl_demo.reporting import plots
from bert_mtl_demo.runtime import Precision
from bert_mtl_demo.tasks import TASKS
from bert_mtl_demo.training.inference import Answers, answer
from bert_mtl_demo.training.run import start_run

COMMANDS = [lambda run: evaluate.main([run]), lambda run: predict.main([run, "--task", "sst", "a"])]


def test_evaluation_repeats_the_scores_of_the_best_epoch(finished, rows_of, capsys):
    assert evaluate.main([str(finished.path), "--device", "cpu"]) == 0
    found = json.loads((finished.path / "evaluation.json").read_text("utf-8"))
    dev = [row for row in rows_of(finished.path, "metrics.jsonl") if row["kind"] == "dev"]
    best = [row for row in dev if row["best"]][-1]
    for name, score in best["scores"].items():
        assert found["tasks"][name]["score"] == pytest.approx(score, abs=1e-6)
    assert found["mean"] == pytest.approx(best["mean"], abs=1e-6)
    assert found["leaderboard"] == pytest.approx(best["leaderboard"], abs=1e-6)
    assert "mean" in capsys.readouterr().out


def test_evaluation_writes_confusions_scatter_and_mistakes(finished):
    evaluate.evaluate(finished.path, device="cpu", top=3)
    found = json.loads((finished.path / "evaluation.json").read_text("utf-8"))["tasks"]
    document = (finished.path / "evaluation.md").read_text("utf-8")
    for name, part in found.items():
        assert (finished.path / part["picture"]).read_bytes()[:4] == b"\x89PNG"
        assert part["picture"] in document
        assert 0 < len(part["mistakes"]) <= 3
        errors = [mistake["error"] for mistake in part["mistakes"]]
        assert errors == sorted(errors, reverse=True)
        if "confusion" in part:
            table = np.array(part["confusion"])
            assert table.sum() == part["examples"]
            assert table.trace() / table.sum() == pytest.approx(part["score"])
            assert table.shape == (TASKS[name].classes,) * 2
    assert "confusion" not in found["sts"]


def test_a_scatter_shows_answers_beyond_the_scale():
    axes = Figure().subplots()
    plots.similarity(axes, [0.0, 5.0], [1.0, 4.0])
    assert axes.get_ylim() == (-0.1, 5.1)
    plots.similarity(axes, [0.0, 5.0], [-1.5, 7.0])
    assert axes.get_ylim() == (-1.6, 7.1)
    plots.similarity(axes, [-1.0, 1.0], [-1.0, 0.5], (-1, 1))
    assert (axes.get_xlim(), axes.get_ylim()) == ((-1.04, 1.04), (-1.04, 1.04))


def test_evaluation_can_be_written_elsewhere(finished, tmp_path):
    evaluate.evaluate(finished.path, output=tmp_path / "new" / "place", device="cpu")
    assert (tmp_path / "new" / "place" / "evaluation.md").exists()
    assert not (finished.path / "evaluation.md").exists()


def test_the_worst_mistakes_are_the_surest_wrong_answers():
    examples = Examples(TASKS["para"], ["a", "b", "c"], ["x", "y", "z"], [0, 1, 1])
    sure_wrong, unsure_wrong, right = [0.1, 0.9], [0.6, 0.4], [0.3, 0.7]
    answers = Answers(
        TASKS["para"], np.array([1.0, 0.0, 1.0]), np.array([sure_wrong, unsure_wrong, right])
    )
    found = worst(answers, examples, top=5)
    assert [mistake.texts for mistake in found] == [("a", "x"), ("b", "y")]  # the right one is none
    assert (found[0].true, found[0].found) == ("different", "paraphrase")
    assert found[0].error == pytest.approx(-np.log(0.1))


@pytest.fixture
def answers_to():
    """What `answer` makes of given outputs of a model; a token says which one is meant."""

    class Fixed(torch.nn.Module):
        def __init__(self, raw):
            super().__init__()
            self.raw = raw

        def forward(self, task, batch):
            return self.raw[batch.ids[:, 0]]

    def make(task, raw):
        rows = [[i] * (len(raw) - i) for i in range(len(raw))]  # the longest first
        lone = dataclasses.replace(TASKS[task], pair=False)
        examples = EncodedSet(lone, rows, None, [0] * len(raw), pad=0)
        return answer(Fixed(raw), examples, Precision("off", torch.device("cpu")))

    return make


def test_one_logit_is_two_probabilities(answers_to):
    logits = torch.tensor([-50.0, -0.1, 0.0, 0.1, 40.0])
    found = answers_to("para", logits)
    assert found.values.tolist() == [0, 0, 0, 1, 1]
    assert found.probabilities.sum(1) == pytest.approx(np.ones(5))
    p = 1 / (1 + np.exp(-logits.double().numpy()))
    assert found.probabilities[:, 1] == pytest.approx(p, rel=1e-9)
    assert 0 < found.probabilities[4, 0] < 1e-17  # and not 1 - 1
    assert found.score([0, 0, 0, 1, 0]) == pytest.approx(0.8)


def test_one_logit_and_two_agree(answers_to):
    torch.manual_seed(0)
    logits = torch.randn(7, 2)
    two, one = answers_to("para", logits), answers_to("para", logits[:, 1] - logits[:, 0])
    assert one.probabilities == pytest.approx(two.probabilities, abs=1e-6)
    assert (one.values == two.values).all()


@pytest.mark.parametrize("texts", [["the film is good"], ["the film is good", "the dog is bad ."]])
def test_predict_single_sentences(finished, capsys, texts):
    capsys.readouterr()
    assert predict.main([str(finished.path), "--task", "sst", *texts]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[1] for line in lines] == texts
    assert all(line.split(" (")[0] in TASKS["sst"].label_names for line in lines)


def test_predict_pairs_as_json(finished, capsys):
    capsys.readouterr()
    for task in ("para", "sts"):
        flags = [str(finished.path), "--task", task, "--json", "the man", "the woman"]
        assert predict.main(flags) == 0
    para, sts = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert para["texts"] == ["the man", "the woman"]
    assert para["label"] in (0, 1)
    assert 0.5 <= para["probability"] <= 1
    assert 0 <= sts["score"] <= 5


def test_predict_from_stdin_and_from_a_file(finished, capsys, monkeypatch, tmp_path):
    content = "the man\tthe woman\n\nthe dog\twhat is the dog ?\r\n"
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO(content))
    assert predict.main([str(finished.path), "--task", "sts"]) == 0
    from_stdin = capsys.readouterr().out
    (tmp_path / "pairs.tsv").write_text(content, encoding="utf-8")
    flags = [str(finished.path), "--task", "sts", "--file", str(tmp_path / "pairs.tsv")]
    assert predict.main(flags) == 0
    assert capsys.readouterr().out == from_stdin
    assert len(from_stdin.splitlines()) == 2


TABLES = {
    "tabs": "\tid\tsentence\tsentiment\n0\tx\tthe film\t3\n1\ty\tthe dog\t\n",
    "commas": 'id,sentence,sentiment\n0,the film,3\n1,"the dog",\n',
    "quotes": '"sentence"\t"id"\n"the film"\t"0"\n"the dog"\t"1"\n',
    "one column": "\ufeffsentence\r\nthe film\r\nthe dog\r\n",
    "lines": "the film\n\nthe dog\n",
}


@pytest.mark.parametrize("content", TABLES.values(), ids=list(TABLES))
def test_a_table_is_predicted_by_its_column_of_sentences(content):
    rows = predict.read_examples(content.encode(), pair=False)
    assert [texts for _, texts in rows] == [("the film",), ("the dog",)]


def test_a_table_of_pairs_is_predicted_by_its_two_columns(finished, capsys, tmp_path):
    path = tmp_path / "sts-dev.csv"
    path.write_text("\tid\tsentence1\tsentence2\tsimilarity\n0\tx\tthe man\tthe dog\t3.0\n")
    capsys.readouterr()
    flags = [str(finished.path), "--task", "sts", "--file", str(path)]
    assert predict.main(flags) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split("\t")[1:] == ["the man", "the dog"]


@pytest.mark.parametrize(
    ("content", "pair", "parts"),
    [
        (b"text\tlabel\na\t3\nb\t4\n", False, ["every line has 2 fields", "'sentence'"]),
        (b"id\tsentence\n1\ta\n2\n", False, ["line 3: 1 fields where the header has 2"]),
        (b"id\tsentence\n1\ta\n2\t \n", False, ["line 3: a sentence is empty"]),
        (b"id\tsentence\n", False, ["nothing to predict", "no row"]),
        (b"a\ncaf\xe9\n", False, ["line 2: byte 0xe9 at column 4 is not UTF-8"]),
        ("a\nb".encode("utf-16"), False, ["line 1: a NUL byte"]),
        (b"sentence1\tsentence2\na\tb\nc\t\n", True, ["line 3: a sentence is empty"]),
    ],
)
def test_a_table_that_cannot_be_read_row_by_row_is_refused(content, pair, parts):
    with pytest.raises(DemoError) as caught:
        predict.read_examples(content, pair=pair)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("text", ["", "  ", "\udce9"])
def test_a_text_that_is_none_is_refused(text):
    with pytest.raises(DemoError, match="empty or no UTF-8"):
        predict.examples_of(["the film", text], None, pair=False)


def test_standard_input_that_is_no_text_is_refused(finished, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), "utf-8"))
    assert predict.main([str(finished.path), "--task", "sst"]) == 2
    assert "byte 0xe9" in capsys.readouterr().err


def test_evaluation_needs_no_table_of_train(settings, tmp_path, monkeypatch):
    data = tmp_path / "tables"
    data.mkdir()
    rows = [f"the film {'is good' * (n % 3)} {n}\t{n % 5}" for n in range(40)]
    for split in ("train", "dev"):
        lines = ["sentence\tsentiment", *rows, *(["a\t7"] if split == "dev" else [])]
        (data / f"ids-sst-{split}.csv").write_text("\n".join(lines))
    run = start_run(settings(data=str(data), tasks="sst", method="sum", max_steps=1)).path
    (data / "ids-sst-train.csv").unlink()
    summary = evaluate.evaluate(run, device="cpu")
    assert "skipped 1 rows, the first of them ids-sst-dev.csv:42: the label 7" in summary
    assert json.loads((run / "evaluation.json").read_text())["tasks"]["sst"]["examples"] == 24


def test_an_answer_does_not_depend_on_its_company(finished, capsys):
    def scores(*pairs: str) -> list[float]:
        capsys.readouterr()
        predict.main([str(finished.path), "--task", "sts", "--json", *pairs])
        return [json.loads(line)["score"] for line in capsys.readouterr().out.splitlines()]

    alone = scores("the dog", "the man")
    among = scores("how is the film not good ?", "what", "the dog", "the man")
    assert among[1] == pytest.approx(alone[0], abs=1e-4)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--task", "sts", "one sentence"], ["two sentences", "1 were given"]),
        (["--task", "stt", "a"], ["unknown task 'stt'", "did you mean"]),
        (["--task", "sst", "--file", "/no/such/file"], ["/no/such/file", "cannot be read"]),
        (["--task", "sst", "a", "--file", "x"], ["both texts and --file"]),
        (["--task", "sst", "--device", "quantum", "a"], ["device = quantum"]),
    ],
)
def test_wrong_questions_are_refused(finished, capsys, flags, parts):
    assert predict.main([str(finished.path), *flags]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("content", "part"), [("", "no text"), ("the dog\n", "line 1"), ("a\tb\nc\td\te\n", "line 2")]
)
def test_wrong_lines_are_refused(finished, capsys, monkeypatch, content, part):
    monkeypatch.setattr("sys.stdin", io.StringIO(content))
    assert predict.main([str(finished.path), "--task", "sts"]) == 2
    assert part in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS, ids=["evaluate", "predict"])
@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda run: (run / "best.safetensors").unlink(), ["no epoch was finished", "--resume"]),
        (lambda run: (run / "best.safetensors").write_bytes(b"\0" * 64), ["damaged"]),
        (lambda run: (run / "config.json").unlink(), ["not a run directory"]),
        (
            lambda run: (run / "config.json").write_text(
                (run / "config.json").read_text().replace('"cosine"', '"concat"')
            ),
            ["has sts_head = concat", "trained with sts_head = cosine"],
        ),
    ],
)
def test_an_unfinished_or_damaged_run_is_refused(finished, capsys, command, damage, parts):
    damage(finished.path)
    assert command(str(finished.path)) == 2
    message = capsys.readouterr().err
    for part in parts:
        assert part in message


def test_evaluating_with_a_wrong_count_is_refused(finished, capsys):
    assert evaluate.main([str(finished.path), "--top", "many"]) == 2
    assert "top = many" in capsys.readouterr().err
