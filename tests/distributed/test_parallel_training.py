"""Training under torchrun: the same run as in one process, sharded or not; deaths, resumption."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from sslops.training.augment import RECIPES, SharedGenerator, make_views
from sslops.training.storage import checkpoint
from tests.processes import free_port
from tests.training.test_training import records

ROOT = Path(__file__).parents[2]
# SGD: the first steps of AdamW are signs of gradients, which rounding turns where one is near 0.
TINY = {
    "data": "digits", "width": 8, "proj-hidden": 32, "proj-dim": 16, "batch": 400, "steps": 12,
    "log-every": 1, "knn-every": 2, "checkpoint-every": 1, "threads": 1,
    "optimizer": "sgd", "lr": 0.003,
}  # fmt: skip
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed"),
]


RECURRENT = {
    "cpc-audio": {"data": "tones", "width": 8, "context": 8, "window": 0.2, "batch": 16},
    "cpc-image": {"width": 4, "patch": 2, "pred-steps": 2, "context": "gru", "batch": 64},
}


def command(processes, out, *flags, restarts=0, method="simclr", fields=TINY):
    """The command of the README: torchrun, or plain python for one process."""
    flags = [*(f"--{name}={value}" for name, value in fields.items()), "--no-evaluate", *flags]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    launcher += [f"--max-restarts={restarts}", "--master-port", str(free_port())]
    start = [sys.executable, *(launcher if processes > 1 else [])]
    return [*start, "-m", "sslops.training", method, "--out", str(out), *flags]


def run(*args, **kwargs):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command(*args, **kwargs), cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
    )


def start(*args, **kwargs):
    return subprocess.Popen(
        command(*args, **kwargs), cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def workers(launcher):
    """Process ids of a launcher's children, in the order of their ranks."""
    out = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True)
    return [int(pid) for pid in out.stdout.split()]


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def losses(folder):
    return [record["loss"] for record in records(folder)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run that all others must equal."""
    out = tmp_path_factory.mktemp("alone") / "run"
    done = run(1, out)
    assert done.returncode == 0, done.stderr
    return out


def assert_same_run(folder, alone):
    """Losses, features seen by the kNN, and weights, within the rounding of another order."""
    ours, theirs = records(folder), records(alone)
    assert [r["step"] for r in ours] == [r["step"] for r in theirs]
    torch.testing.assert_close(losses(folder), losses(alone), rtol=5e-5, atol=0)
    knn = [[r["knn"] for r in each if "knn" in r] for each in (ours, theirs)]
    torch.testing.assert_close(*knn, rtol=0, atol=0.03)
    assert len(knn[0]) == 3
    for name, value in load_file(alone / "encoder.safetensors").items():
        found = load_file(folder / "encoder.safetensors")[name]
        torch.testing.assert_close(found, value, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_train_what_one_trains(tmp_path, alone, parallel):
    """The same command, the same global batch: the same curve; then one process goes on."""
    done = run(2, tmp_path / "run", f"--parallel={parallel}")
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "run", alone)
    assert done.stdout.count("\ncost ") == 1  # one process prints
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoint").iterdir())
    assert kept == (["best", "last"] if parallel == "fsdp" else ["best.pt", "last.pt"])


@pytest.mark.parametrize("method", RECURRENT)
def test_recurrent_layers_are_divided_too(tmp_path, method):
    """By the gradient's norm as well: the loss of so few steps says little about the gradient."""
    fields = {
        **RECURRENT[method], "steps": 6, "log-every": 1, "optimizer": "sgd", "lr": 0.3,
        "threads": 1, "parallel": "fsdp",
    }  # fmt: skip
    for processes in (1, 2):
        done = run(processes, tmp_path / str(processes), method=method, fields=fields)
        assert done.returncode == 0, done.stderr
    one, two = (records(tmp_path / name) for name in "12")
    for name in ("loss", "grad_norm"):
        found, expected = ([record[name] for record in each] for each in (two, one))
        torch.testing.assert_close(found, expected, rtol=5e-5, atol=0)
    encoder = tmp_path / "2" / "encoder.safetensors"
    theirs = load_file(tmp_path / "1" / "encoder.safetensors")
    torch.testing.assert_close(load_file(encoder), theirs, rtol=1e-3, atol=1e-5)
    before = encoder.read_bytes()
    done = run(1, tmp_path / "2", "--resume", method=method, fields=fields)
    assert done.returncode == 0, done.stderr
    assert encoder.read_bytes() == before  # what two processes saved one has loaded


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_stop_and_one_goes_on(tmp_path, alone, parallel):
    """A checkpoint of two processes serves one, and the other way round."""
    out, flags = tmp_path / "run", [f"--parallel={parallel}"]
    process = start(2, out, *flags)
    log = out / "metrics.jsonl"
    assert wait_for(lambda: log.is_file() and log.read_text().count("\n") >= 2, process)
    process.terminate()  # torchrun hands SIGTERM on: all stop at the same step, and save
    said = process.communicate(timeout=120)[0]
    steps = len(records(out))
    assert 2 <= steps < 12, said
    assert "go on with: sslops train simclr" in said
    done = run(1, out, *flags, "--resume")
    assert done.returncode == 0, done.stderr
    assert_same_run(out, alone)


def test_a_killed_process_is_replaced(tmp_path, alone):
    """torchrun starts all again, and they go on from the last checkpoint by themselves."""
    out = tmp_path / "run"
    process = start(2, out, restarts=1)
    saved = out / "checkpoint" / "last.pt"
    assert wait_for(saved.is_file, process)
    os.kill(workers(process)[1], 9)
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    assert "resumed after step" in said
    assert_same_run(out, alone)


def test_a_dead_process_is_reported_not_waited_for(tmp_path):
    process = start(2, tmp_path / "run", "--steps=100000")
    log = tmp_path / "run" / "metrics.jsonl"
    assert wait_for(lambda: log.is_file() and log.stat().st_size > 0, process)
    os.kill(workers(process)[1], 9)
    said = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert "process 0 of 2 lost another one" in said or "SIGKILL" in said
    for record in records(tmp_path / "run"):
        json.dumps(record)


def test_views_do_not_depend_on_the_number_of_processes():
    """Image by image: each process draws for all and takes its share."""
    images = torch.rand(8, 3, 16, 16)
    views = {}
    for size in (1, 2, 4):
        parts = []
        for rank in range(size):
            generator = SharedGenerator()
            generator.manual_seed(3)
            generator.rank, generator.size = rank, size
            own = images[rank * 8 // size : (rank + 1) * 8 // size]
            parts.append(make_views(own, RECIPES["imagenet"], 2, generator))
        views[size] = torch.cat(parts, dim=1)
    for size in (2, 4):
        torch.testing.assert_close(views[size], views[1], rtol=0, atol=1e-6)


def test_checkpoints_say_how_many_wrote_them(alone):
    state = checkpoint.load(alone / "checkpoint" / "last.pt")
    assert len(state["rng"]) == 1
