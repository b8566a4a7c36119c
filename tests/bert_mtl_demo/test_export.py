"""A run's encoder for transformers, and the run as an object of Python."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertModel

from bert_mtl_demo import export, load_trained
from bert_mtl_demo.data.tokenization import encode, tokenise
from bert_mtl_demo.errors import DemoError
from bert_mtl_demo.training.run import start_run

TEXTS = ["the film is not good", "a dog"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pooling": "pooler"},
        {"trim_vocabulary": True},
        {"encoder_layers": "1"},
        {"adapter": "low_rank", "adapter_size": 4},
    ],
    ids=str,
)
def test_transformers_reads_what_was_trained(settings, tmp_path, capsys, changes):
    run = start_run(settings(max_steps=2, **changes)).path
    assert export.main([str(run), str(tmp_path / "bert")]) == 0
    out = capsys.readouterr().out
    assert "heads of sst, para, sts are left out" in " ".join(out.split())
    assert ("adapters (low_rank) are left out" in out) == ("adapter" in changes)
    pooler = changes.get("pooling") == "pooler"
    assert ("add_pooling_layer=False" in out) != pooler

    bert, info = BertModel.from_pretrained(
        tmp_path / "bert", add_pooling_layer=pooler, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    trained = load_trained(run, "cpu").model.encoder
    for name, tensor in bert.state_dict().items():
        assert torch.equal(tensor, trained.state_dict()[name]), name
    if "adapter" not in changes:
        batch = AutoTokenizer.from_pretrained(tmp_path / "bert")(
            TEXTS, padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            ours = trained(batch["input_ids"], attention_mask=batch["attention_mask"])
            theirs = bert.eval()(**batch)
        torch.testing.assert_close(theirs.last_hidden_state, ours.last_hidden_state)


def test_a_directory_with_files_is_left_alone(finished, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert export.main([str(finished.path), str(tmp_path)]) == 1
    assert "is not an empty directory" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_trained_run_is_asked(finished):
    run = load_trained(finished.path)
    answers = run.ask("sst", TEXTS)
    assert answers.values.shape == (2,)
    assert answers.probabilities.shape == (2, 5)
    assert run.ask("sts", TEXTS, TEXTS).values.shape == (2,)
    with pytest.raises(DemoError, match="unknown task 'stt'"):
        run.ask("stt", TEXTS)


def test_texts_that_were_cut_are_counted_and_told(settings, capsys):
    start_run(settings(max_length=8, max_steps=1))
    assert "train texts are cut at max_length = 8" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("length", [3, 8, 200])
def test_ids_are_those_of_transformers(finished, side, length):
    """Cut as its tokenizer cuts, on either side; the empty text, too."""
    run = load_trained(Path(finished.path))
    run.tokenizer.truncation_side = side
    texts = [*TEXTS, "", "the man is not the woman . " * 9]
    expected = run.tokenizer(texts, truncation=True, max_length=length)["input_ids"]
    assert tokenise(run.tokenizer, texts, length) == expected


def test_no_set_is_too_small_to_encode(finished):
    run = load_trained(finished.path)
    from bert_mtl_demo.data import Examples

    task = run.config.definitions["sts"]
    empty = encode(Examples(task, [], [], []), task, run.tokenizer, 8)
    assert (len(empty), empty.second, empty.cut) == (0, [], 0)
