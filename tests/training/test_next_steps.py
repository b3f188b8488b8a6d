"""What is proposed when a command has ended: it runs, and it is not what was just done."""

import ast
import io
import json
import shlex

import pytest
import torch

from sslops.training.cli import main
from sslops.training.cli.afterwards import evaluate_again
from sslops.training.config import make_config
from sslops.training.experiments import ablate as ablation
from sslops.training.loggers.console import Console
from sslops.training.loggers.words import amount, count, listed
from sslops.training.methods import METHODS
from sslops.training.methods.simclr import SimCLRConfig
from sslops.training.report.next_steps import next_steps

pytestmark = pytest.mark.slow

TINY = ["--steps=1", "--batch=16", "--threads=1", "--width=8", "--no-evaluate", "--knn-every=0"]
LABELLED = {"simclr": {"dim": 4, "linear": 0.9}}
PLAIN = {"simclr": {"dim": 4, "feature_spread": 0.9}}


@pytest.fixture(autouse=True)
def _keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def proposed(said):
    """The commands below "next", a list of words each."""
    block = said[said.rindex("next      ") :].removeprefix("next      ")
    return [shlex.split(line) for line in block.splitlines() if line.split()[0] == "sslops"]


def kept(folder, method="simclr", **fields):
    config = make_config(METHODS[method].config, method, fields)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return config


@pytest.mark.parametrize(
    ("done", "results", "fields", "commands"),
    [
        ("train", {}, {}, ["eval", "train", "train"]),
        ("train", LABELLED, {}, ["train", "train"]),
        ("train", LABELLED, {"data": "PATH"}, ["train"]),  # on their own images already
        ("train", PLAIN, {"data": "photos"}, ["eval --eval-data", "train", "train"]),
        ("train", PLAIN, {"data": "photos", "eval_data": "digits"}, ["train", "train"]),
        ("eval", LABELLED, {}, ["train", "train"]),
        ("eval", {}, {}, ["train", "train"]),
        ("seeds", LABELLED, {}, ["train"]),
    ],
)
def test_what_was_done_is_not_proposed(tmp_path, done, results, fields, commands):
    config = kept(tmp_path / "run", **fields)
    steps = next_steps(done, "simclr", config, tmp_path / "run", results)
    assert "load_encoder" in steps[0]
    asked = [
        "eval --eval-data" if "/WITH/CLASSES" in step else step.split()[1] for step in steps[1:]
    ]
    assert asked == commands
    seeds = [step for step in steps if "--seeds" in step]
    assert len(seeds) == (done != "seeds")
    own = [step for step in steps if "PATH/TO/FOLDER" in step and "--data PATH" in step]
    assert len(own) == (fields.get("data") != "PATH" and done in ("train", "eval", "seeds"))


def test_a_comparison_is_proposed_where_there_is_one(tmp_path):
    config = kept(tmp_path / "a")
    assert "compare" not in str(next_steps("train", "simclr", config, tmp_path / "a", LABELLED))
    kept(tmp_path / "b")
    steps = next_steps("train", "simclr", config, tmp_path / "a", LABELLED)
    assert steps[-1] == f"sslops compare {tmp_path}/*"
    one = kept(tmp_path / "c d" / "seed0")
    kept(tmp_path / "c d" / "seed1")
    steps = next_steps("seeds", "simclr", one, tmp_path / "c d", LABELLED)
    assert steps[-1] == f"sslops compare '{tmp_path}/c d'/*"
    part = next_steps("eval", "simclr", one, tmp_path / "c d" / "seed0", LABELLED)
    assert not any("--seeds" in step for step in part)


def test_more_seeds_are_of_the_same_run(tmp_path, capsys):
    """All that was set is set again: the flags proposed give the configuration of the run."""
    for method, given in (("rotation", ["--data", "photos"]), ("colorization", [])):
        out = tmp_path / method
        assert main(["train", method, *given, *TINY, "--out", str(out)]) == 0
        said = capsys.readouterr().out
        (again,) = [words for words in proposed(said) if "--seeds" in words]
        assert main([*again[1:], "--dry-run"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found == json.loads((out / "config.json").read_text())
        assert found["data"] == "photos"  # of colorization by itself, as digits have no colour


@pytest.mark.parametrize("arch", ["resnet18", "cnn-tiny", "cnn4"])
@pytest.mark.parametrize("data", ["digits", "cifar10"])
def test_flags_are_those_that_were_set(tmp_path, capsys, arch, data):
    """The options of the recipe's encoder are not those of another, and need no flag."""
    out = tmp_path / "run"
    config = kept(out, data=data, arch=arch)
    usual = make_config(SimCLRConfig, "simclr", {"data": data}).arch
    (again,) = [
        step for step in next_steps("train", "simclr", config, out, {}) if "--seeds" in step
    ]
    words = shlex.split(again)
    flags = [word for word in words if word.startswith("--")]
    asked = [*(["--data"] if data != "digits" else []), *(["--arch"] if arch != usual else [])]
    assert sorted(flags) == sorted([*asked, "--seeds", "--out"])
    assert main([*words[1:], "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["arch"] == arch


@pytest.mark.parametrize("name", ["run", "it's a run", 'a "b" $c', "back\\slash", "both ' and \""])
def test_any_folder_can_be_loaded(tmp_path, name):
    """The line is one of a shell, and what it quotes is Python."""
    (line,) = next_steps("seeds", "simclr", kept(tmp_path / name), tmp_path / name, LABELLED)[:1]
    python, dash, code = shlex.split(line)
    assert (python, dash) == ("python", "-c")
    (call,) = [each for each in ast.walk(ast.parse(code)) if isinstance(each, ast.Constant)]
    assert call.value == str(tmp_path / name / "seed0")


def test_seeds_that_are_there_are_not_proposed(tmp_path):
    """The command would be refused, as the folder is in use."""
    config = kept(tmp_path / "a")
    kept(tmp_path / "a-seeds" / "seed0")
    steps = next_steps("train", "simclr", config, tmp_path / "a", LABELLED)
    assert not any("--seeds" in step for step in steps)


def test_one_run_of_several_proposes_nothing(tmp_path, capsys):
    assert main(["train", "simclr", *TINY, "--seeds", "2", "--out", str(tmp_path / "a")]) == 0
    said = capsys.readouterr().out
    assert said.count("next      ") == 1
    assert proposed(said)[-1] == ["sslops", "compare", f"{tmp_path / 'a'}/*"]
    assert not any("--seeds" in words for words in proposed(said))


def test_what_follows_an_ablation_is_not_said_by_its_runs(tmp_path, monkeypatch):
    said = io.StringIO()
    monkeypatch.setattr(ablation, "_evaluate", lambda method, config, encoders, *_: {
        name: {"dim": 1, "linear": 0.5} for name in encoders
    })  # fmt: skip
    config = SimCLRConfig(steps=1, batch=16, width=8, threads=1, knn_every=0)
    ablation.ablate("simclr", "temperature", [0.1], config, tmp_path, 1, Console(said))
    assert "next" not in said.getvalue()
    assert "simclr, 1 seed\n" in said.getvalue()


def test_an_evaluation_does_not_propose_itself(tmp_path, capsys, monkeypatch):
    assert main(["train", "simclr", *TINY, "--out", str(tmp_path / "a")]) == 0
    assert ["sslops", "eval", str(tmp_path / "a")] in proposed(capsys.readouterr().out)
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    monkeypatch.setattr(
        "sslops.training.cli.afterwards.evaluate_and_report", lambda *_, **__: results
    )
    said = io.StringIO()
    evaluate_again(tmp_path / "a", "cpu", Console(said))
    assert not any(words[1] == "eval" for words in proposed(said.getvalue()))


def test_words_for_numbers():
    assert [count(n, "images") for n in (0, 1, 1200)] == ["0 images", "1 image", "1,200 images"]
    assert [count(1, many) for many in ("processes", "classes", "threads")] == [
        "1 process", "1 class", "1 thread"
    ]  # fmt: skip
    assert [amount(x) for x in (0.0469, 1.0, 3.28, 120.0)] == ["0.047", "1", "3.3", "120"]
    said = [listed(list(text)) for text in ("", "a", "ab", "abc")]
    assert said == ["", "a", "a and b", "a, b and c"]
