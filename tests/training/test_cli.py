"""The command: what a user types, sees, and gets as exit code."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.distributed.run import get_args_parser

import sslops
from sslops.training.cli import command_line as cli
from sslops.training.cli import commands
from sslops.training.config import RunOptions
from sslops.training.engine.collapse import Diagnosis
from sslops.training.loggers.console import Console, duration, format_metrics
from sslops.training.methods import METHODS
from sslops.training.methods.simclr import SimCLRConfig
from sslops.training.recipes import RECIPES

TINY = (
    "--steps 3 --batch 64 --width 8 --proj-hidden 16 --proj-dim 8 --log-every 1 --knn-every 0"
    " --no-evaluate --threads 1"
).split()


@pytest.fixture(autouse=True)
def _keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def start(*arguments, module="sslops.training", **options):
    command = [sys.executable, "-m", module, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


@pytest.mark.slow
def test_smoke_through_a_process(tmp_path):
    process = start("simclr", *TINY, "--out", tmp_path / "run")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "digits, 1,297 images 1x8x8 (CC BY 4.0)" in out
    assert "loss at chance 4.84" in out
    assert "step 3/3" in out
    assert "\r" not in out  # plain lines: this is no terminal
    for name in ("config.json", "env.json", "metrics.jsonl", "results.json", "encoder.json"):
        assert (tmp_path / "run" / name).is_file(), name
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["method"], config["steps"], config["width"]) == ("simclr", 3, 8)


@pytest.mark.parametrize("module", ["sslops", "sslops.training.cli"])
def test_runs_as_a_module(module):
    out, err = start("--version", module=module).communicate(timeout=60)
    assert (out, err) == (f"sslops {sslops.__version__}\n", "")


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    folder = tmp_path / "run"
    long = [*TINY, "--steps", "100000"]
    process = start("simclr", *long, "--out", folder)
    deadline = time.monotonic() + 60
    while not (folder / "metrics.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"go on with: sslops train simclr --out {folder} --resume" in out
    assert "stopped by SIGINT after step" in err
    assert (folder / "checkpoint" / "last.pt").is_file()
    assert not (folder / "encoder.safetensors").exists()


def test_resume_takes_the_configuration_from_the_folder(tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    assert cli.main(["train", "simclr", *TINY, *out]) == 0
    assert cli.main(["train", "simclr", *out, "--resume"]) == 0
    assert "3 in 0.15 epochs, resumed after step 3" in capsys.readouterr().out
    assert cli.main(["train", "simclr", *out]) == 2
    assert "--out must be a new or empty folder" in capsys.readouterr().err


def test_dry_run_prints_the_recipe_and_stops(tmp_path, capsys):
    out = tmp_path / "run"
    flags = ["--data", "cifar10", "--batch=512", "--dry-run", "--out", str(out)]
    assert cli.main(["train", "simclr", *flags]) == 0
    config = json.loads(capsys.readouterr().out)
    recipe = RECIPES["cifar10"].fields
    assert recipe["batch"] != 512
    # the flag wins over the recipe, the recipe over the default
    assert {name: config[name] for name in recipe} == {**recipe, "batch": 512}
    assert not out.exists()


@pytest.mark.parametrize(
    ("method", "flag", "rule"),
    [
        ("simclr", "--temperature=0", "temperature must be positive, got 0.0"),
        ("moco", "--temperature=-1", "temperature must be positive, got -1.0"),
        ("cpc-image", "--temperature=nan", "temperature must be positive, got nan"),
        ("simclr", "--num-views=1", "num_views must be at least 2, got 1"),
        ("simclr", "--proj-layers=0", "proj_layers must be at least 1, got 0"),
        ("mocov3", "--proj-layers=0", "proj_layers must be at least 1, got 0"),
        ("moco", "--proj-dim=0", "proj_dim must be at least 1, got 0"),
        ("moco", "--queue=-5", "queue must be at least 1, got -5"),
        ("mocov3", "--key-momentum=1.5", "key_momentum must be in [0, 1], got 1.5"),
        ("rotation", "--threads=0", "threads must be at least 1, got 0"),
    ],
)
def test_dry_run_refuses_what_the_run_would(method, flag, rule, tmp_path, capsys):
    for also in (["--dry-run"], ["--out", str(tmp_path / "run")]):
        with pytest.raises(SystemExit) as leave:
            cli.main(["train", method, flag, *also])
        assert leave.value.code == 2
        assert f"config: {rule}" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_another_recipe_for_the_same_data(capsys):
    flags = ["--data", "cifar10", "--recipe", "cifar10-resnet18", "--dry-run"]
    assert cli.main(["train", "simclr", *flags]) == 0
    config = json.loads(capsys.readouterr().out)
    assert (config["data"], config["arch"], config["optimizer"]) == ("cifar10", "resnet18", "lars")


def test_non_finite_loss_ends_with_1(tmp_path, capsys):
    flags = [*TINY, "--out", str(tmp_path / "run"), "--lr", "1e30", "--optimizer", "sgd"]
    assert cli.main(["train", "simclr", *flags, "--steps", "30", "--warmup-epochs", "0"]) == 1
    assert "loss and gradient must be finite, got a loss of nan" in capsys.readouterr().err
    assert (tmp_path / "run" / "nonfinite.pt").is_file()


def test_several_seeds(tmp_path, capsys):
    flags = [*TINY, "--out", str(tmp_path / "runs"), "--seeds", "2"]
    assert cli.main(["train", "simclr", *flags]) == 0
    assert [p.name for p in sorted((tmp_path / "runs").iterdir())] == [
        "seed0",
        "seed1",
        "summary.json",
    ]
    summary = json.loads((tmp_path / "runs" / "summary.json").read_text())
    assert summary["cost"]["steps"] == {"mean": 3.0, "sd": 0.0, "values": [3.0, 3.0]}


def test_export_of_a_checkpoint(tmp_path, capsys):
    run, copy = tmp_path / "run", tmp_path / "copy.safetensors"
    assert cli.main(["train", "simclr", *TINY, "--out", str(run)]) == 0
    assert cli.main(["export", str(run), "--to", str(copy)]) == 0
    assert copy.read_bytes() == (run / "encoder.safetensors").read_bytes()
    assert json.loads(copy.with_suffix(".json").read_text())["steps"] == 3
    assert cli.main(["export", str(run), "--checkpoint", "best"]) == 2  # no kNN was measured
    assert "best.pt" in capsys.readouterr().err


def test_list(capsys):
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    for word in ("simclr", "digits", "fashion-mnist", "cifar10", "imagenet", "arXiv:2002.05709"):
        assert word in out


@pytest.mark.parametrize("command", ["list", "train"])
def test_columns_do_not_run_together(command, capsys):
    cli.main([command])
    lines = capsys.readouterr().out.splitlines()
    names = [*METHODS, *(RECIPES if command == "list" else ())]
    for name in names:
        assert any(line.startswith(f"  {name}  ") for line in lines), name


def test_help_and_version(capsys):
    assert cli.main([]) == cli.main(["--help"]) == cli.main(["--version"]) == 0
    assert cli.main(["train", "--help"]) == 0
    assert cli.main(["train"]) == 2
    with pytest.raises(SystemExit) as leave:
        cli.main(["train", "simclr", "--help"])
    assert leave.value.code == 0
    assert "--temperature" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "no such command, got 'trian'; did you mean 'train'?"),
        (["train", "simclrr"], "no such method, got 'simclrr'; did you mean 'simclr'?"),
        (["train", "simclr", "--data", "digitz", "--no-evaluate"], "digitz"),
        (["train", "simclr", "--recipe", "mnist"], "recipe must be one of"),
        (["compare", "nowhere"], "nowhere must be a run folder with a config.json"),
        (["eval", "nowhere"], "nowhere is no complete run"),
        (["export", "nowhere"], "is no complete run, got no config.json"),
        (
            ["export", "nowhere", "--out", "f.onnx"],
            "the file must end in .safetensors, the one format",
        ),
        (["export", "nowhere", "--to", "weights"], "the one format, got weights"),
    ],
)
def test_mistakes_end_with_2_and_a_message(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temprature", "0.5"], "--temperature"),
        (["--batch", "0"], "batch must be at least 1, got 0"),
        (["--optimizer", "adam"], "adamw"),
    ],
)
def test_wrong_flags_end_with_2_and_a_message(flags, message, capsys):
    with pytest.raises(SystemExit) as leave:
        cli.main(["train", "simclr", *flags])
    assert leave.value.code == 2
    assert message in capsys.readouterr().err


def test_bench_is_not_in_the_wheel(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(commands, "__file__", str(tmp_path / "sslops/training/cli/x.py"))
    assert cli.main(["bench"]) == 1
    assert "make bench" in capsys.readouterr().err


def test_no_flag_is_taken_for_one_of_torchrun():
    """torchrun abbreviates: a flag that begins one of its own is ambiguous to it."""
    torchruns = [
        option
        for action in get_args_parser()._actions
        for option in action.option_strings
        if option.startswith("--")
    ]
    for cls in (SimCLRConfig, RunOptions):
        for name in cls.__dataclass_fields__:
            flag = "--" + name.replace("_", "-")
            clashes = [option for option in torchruns if option.startswith(flag)]
            assert not clashes, (flag, clashes)


def test_progress_line_updates_on_a_terminal(capsys):
    console = Console(sys.stdout)
    console.live = True
    metrics = {
        "epoch": 1.5, "epochs": 10.0, "step": 6, "steps": 40, "loss": 5.0, "chance": 6.24,
        "lr": 1e-3, "images_per_second": 1234.0, "memory_gb": 0.5, "data_wait": 0.01, "eta": 65.0,
    }  # fmt: skip
    console.progress(metrics)
    console.warn("look here")
    console.progress(metrics, last=True)
    out = capsys.readouterr().out
    assert out.startswith("\repoch 1.5/10  step 6/40  loss 5.000 (chance 6.24)")
    assert "warning: look here\n" in out
    assert out.endswith("\n")
    assert "kNN 91.0%" in format_metrics({**metrics, "knn": 0.91})


def test_durations():
    assert [duration(s) for s in (5, 65, 3723)] == ["0:05", "1:05", "1:02:03"]


def test_diagnosis_says_each_thing_once_and_only_when_true():
    good = {"step": 500, "loss": 3.0, "chance": 6.24, "accuracy": 0.9, "feature_spread": 0.96}
    assert Diagnosis(1000, 50)(good) == []
    for change, word in (
        ({"loss": 6.2}, "chance value 6.24"),
        ({"feature_spread": 0.24}, "collapse to a point"),
        ({"step": 10, "accuracy": 0.999}, "shortcut"),
    ):
        diagnosis = Diagnosis(1000, 50)
        (warning,) = diagnosis({**good, **change})
        assert word in warning
        assert diagnosis({**good, **change}) == []
    assert Diagnosis(1000, 50)({**good, "step": 100, "loss": 6.2}) == []  # too early to judge
    (warning,) = Diagnosis(1000, 50, {"chance": "the queue"})({**good, "loss": 6.2})
    assert "nothing is learnt. Check the queue" in warning


def test_repository_root_has_the_benchmarks():
    assert (Path(commands.__file__).resolve().parents[2] / "bench" / "__init__.py").is_file()


def test_another_encoder_has_its_own_options(capsys):
    """cifar10's recipe pools a cnn4, which a ResNet cannot."""
    flags = ["train", "simclr", "--data", "cifar10", "--dry-run"]
    assert cli.main(flags) == 0
    recipe = json.loads(capsys.readouterr().out)
    assert cli.main([*flags, "--arch", "resnet18"]) == 0
    other = json.loads(capsys.readouterr().out)
    assert (recipe["width"], recipe["pool"]) == (32, 1)
    assert (other["arch"], other["width"], other["pool"]) == ("resnet18", None, None)
    assert other["views"] == recipe["views"]
    assert cli.main([*flags, "--arch", "cnn4", "--width", "8"]) == 0
    same = json.loads(capsys.readouterr().out)
    assert (same["width"], same["pool"]) == (8, 1)
