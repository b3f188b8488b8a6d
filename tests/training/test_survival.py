"""Runs that are killed, that fill the disk, that meet NaN: no work is lost, nothing is hidden."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sslops.training import train
from sslops.training.cli import main
from sslops.training.engine.nonfinite import NonFiniteLoss
from sslops.training.loggers.console import Console
from sslops.training.methods.simclr import SimCLR
from sslops.training.storage import checkpoint

from .test_training import TINY, assert_same, records

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
KILLS = 25


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_killed_twenty_five_times_in_a_row(tmp_path):
    """SIGKILL at random moments, then on from the last checkpoint: the weights never notice."""
    command = [sys.executable, "-m", "tests.training._survival", str(tmp_path), str(KILLS)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["whole"] == 0, done.stderr
    assert set(said["ends"]) <= {0, signal.SIGKILL}, done.stderr
    assert said["ends"].count(signal.SIGKILL) >= 20  # a fast machine may come to the end
    assert said["ends"][-1] == 0
    assert said["steps"] == sorted(said["steps"])  # never back behind a checkpoint
    assert len(set(said["steps"])) > 3
    assert said["left"] == []
    whole, killed = (
        checkpoint.load(tmp_path / name / "checkpoint" / "last.pt") for name in ("whole", "killed")
    )
    assert_same(whole, killed)
    weights = [
        (tmp_path / name / "encoder.safetensors").read_bytes() for name in ("whole", "killed")
    ]
    assert weights[0] == weights[1]
    steps = [record["step"] for record in records(tmp_path / "killed")]
    assert steps == list(range(1, 301))  # no record twice, none missing


def test_a_full_disk_stops_with_its_own_code(tmp_path, capsys):
    """The second checkpoint does not fit: exit code 3, and the first is still there to go on."""
    out = tmp_path / "run"
    tiny = {**TINY, "steps": 3, "batch": 400, "checkpoint_every": 1}
    train("simclr", out=out, console=Console(io.StringIO()), **tiny)
    before = (out / "checkpoint" / "last.pt").read_bytes()
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in tiny.items()
             if name not in ("evaluate", "steps")]  # fmt: skip
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "import sslops.training.storage.checkpoint as c, sslops.training.cli as cli;"
        "import sslops.training.run.run, sslops.training.report;"
        "save = c.save\n"
        "def full(path, state):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, resource.RLIM_INFINITY))\n"
        "    return save(path, state)\n"
        "c.save = full; sys.exit(cli.main(sys.argv[1:]))"
    )
    copy = tmp_path / "copy"
    command = [sys.executable, "-c", script, "train", "simclr", "--out", str(copy), *flags]
    done = subprocess.run(
        [*command, "--steps=4", "--no-evaluate"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 3, done.stderr
    assert "checkpoint: needs room to write" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(copy.glob("checkpoint/*"))
    assert (out / "checkpoint" / "last.pt").read_bytes() == before


def test_a_folder_that_cannot_be_written_stops_the_run(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    flags = ["--out", str(tmp_path / "file" / "run"), "--steps", "1", "--no-evaluate"]
    assert main(["train", "simclr", *flags]) == 3
    assert "could not read or write a file" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path, capsys):
    out = tmp_path / "run"
    train("simclr", out=out, console=Console(io.StringIO()), **{**TINY, "steps": 2})
    path = out / "checkpoint" / "last.pt"
    path.write_bytes(path.read_bytes()[:-100])
    assert main(["train", "simclr", "--out", str(out), "--resume"]) == 2
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_can_be_made_again(tmp_path, monkeypatch, capsys, where):
    """The batch, its views and every generator are kept: --replay finds the same numbers."""
    embed = SimCLR.embed

    class Bad(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * float("nan") if where == "loss" else x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * float("inf")

    def poisoned(self, views):
        (z,) = embed(self, views)
        # by chance, from the generator that is saved
        return (Bad.apply(z) if torch.rand(()) < 0.3 else z,)

    monkeypatch.setattr(SimCLR, "embed", poisoned)
    with pytest.raises(NonFiniteLoss, match=r"--replay .*nonfinite\.pt"):
        train("simclr", out=tmp_path / "a", console=Console(io.StringIO()), **{**TINY, "steps": 50})
    saved = checkpoint.load(tmp_path / "a" / "nonfinite.pt")
    # weights from before the update, and a checkpoint of them is not the bad one
    assert all(value.isfinite().all() for value in saved["method"].values())
    assert main(["train", "--replay", str(tmp_path / "a" / "nonfinite.pt")]) == 0
    said = capsys.readouterr().out
    assert "views     the same bits" in said
    assert f"loss      {saved['loss']} (in the run {saved['loss']})" in said
    assert "gradients not finite, first: encoder" in said
    monkeypatch.setattr(SimCLR, "embed", embed)  # mended: it says so
    assert main(["train", "--replay", str(tmp_path / "a" / "nonfinite.pt")]) == 1
    assert "gradients all finite" in capsys.readouterr().out


def test_replay_refuses_other_files(tmp_path, capsys):
    assert main(["train", "--replay", str(tmp_path / "none.pt")]) == 2
    checkpoint.save(tmp_path / "last.pt", {"step": 1})
    assert main(["train", "--replay", str(tmp_path / "last.pt")]) == 2
    assert "--replay needs a nonfinite.pt, got another file" in capsys.readouterr().err
