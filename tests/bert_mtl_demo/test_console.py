"""What a person sees: commands and flags, lines where there is no terminal, one line of error."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from bert_mtl_demo import __main__, evaluate, predict, train
from bert_mtl_demo.cli import reported
from bert_mtl_demo.training.run import continue_run, start_run


def test_a_run_without_a_terminal_prints_a_line_a_window(settings, capsys):
    path = start_run(settings()).path
    lines = capsys.readouterr().out.splitlines()
    steps = [line for line in lines if line.startswith("step ")]
    assert [line.split()[1] for line in steps] == ["4/12", "6/12", "8/12", "12/12"]
    pattern = r"step 4/12  sst \d\.\d+  para \d\.\d+  sts \d+\.\d+  lr \S+  \S+ steps/s  \S+ left"
    assert re.fullmatch(pattern, steps[0])
    assert all(len(line) <= 90 for line in steps)
    assert "tokenizing 204 examples" in lines
    assert lines.count("scoring 72 dev examples") == 2
    (start,) = (line for line in lines if "parameters" in line)
    assert re.fullmatch(r"[\d,]+ parameters; 12 steps, 6 an epoch; cpu, .+, float32", start)
    assert lines.index(f"writing to {path}") < lines.index(start) < lines.index(steps[0])

    continue_run(path, {"epochs": 3})
    assert "18 steps, 12 done, 6 an epoch" in capsys.readouterr().out


def test_nothing_is_written_to_before_the_data_are_there(settings, tmp_path, capsys):
    config = settings(data=str(tmp_path))
    flags = {"data": config.data, "encoder": config.encoder, "output": config.output}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    assert train.main([*words, "--max-length", "64"]) == 2
    out, error = capsys.readouterr()
    assert "writing to" not in out
    assert "ids-sst-train.csv" in error


def test_the_package_names_its_commands(capsys):
    assert __main__.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    for name in __main__.COMMANDS:
        assert any(f"python -m bert_mtl_demo.{name} " in line for line in lines)
    assert __main__.main(["trian"]) == 2
    assert "did you mean 'train'" in capsys.readouterr().err
    assert __main__.main(["train"]) == 2
    assert "bert_mtl_demo.train, with a dot" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "words", "meant"),
    [
        (train, ["--epoch", "3"], "--epochs"),
        (train, ["--lr=3", "--steps_per_epoch=2"], "--steps-per-epoch"),
        (evaluate, ["run", "--tpo", "3"], "--top"),
        (predict, ["run", "--task", "sst", "--jsno"], "--json"),
    ],
)
def test_an_unknown_flag_is_answered_in_one_line(command, words, meant, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(words)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"did you mean '{meant}'?" in error


def test_a_missing_package_is_one_line_with_its_remedy(capsys):
    def command() -> int:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn.metrics")

    assert reported(command) == 2
    assert capsys.readouterr().err == (
        'error: sklearn is not installed: pip install "gradsurgery[demo]"\n'
    )

    def broken() -> int:
        raise ModuleNotFoundError("No module named 'bert_mtl_demo.x'", name="bert_mtl_demo.x")

    with pytest.raises(ModuleNotFoundError):  # a fault of ours, with its traceback
        reported(broken)


def test_every_command_says_what_to_install():
    """A process in which no package of the demo can be imported."""
    code = (
        "import sys\n"
        "from bert_mtl_demo.cli import EXTRA\n"
        "sys.modules.update(dict.fromkeys(EXTRA))\n"  # None: cannot be imported
        "from bert_mtl_demo import evaluate, predict, train\n"
        "print(train.main([]), evaluate.main(['r']), predict.main(['r', '--task', 'sst', 'x']))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.stdout == "2 2 2\n", run.stderr
    lines = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 3
    assert "Traceback" not in run.stderr
    assert all(line.endswith('pip install "gradsurgery[demo]"') for line in lines)


def test_an_answer_imports_no_metrics():
    """They take longer to import than an answer takes."""
    code = (
        "import sys\n"
        "import bert_mtl_demo.predict, bert_mtl_demo.reporting.loaded_run\n"
        "print(sorted({'sklearn', 'scipy.stats', 'matplotlib', 'datasets'} & set(sys.modules)))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout == "[]\n"
