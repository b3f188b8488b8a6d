"""Messages that promise something to fall back on say it only where it is there."""

import io
import json
import re

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException, _wrap_exception

from sslops.training import train
from sslops.training.cli import main
from sslops.training.config import RunOptions
from sslops.training.distributed.process import World
from sslops.training.engine.loop import Loop
from sslops.training.engine.nonfinite import NonFiniteLoss
from sslops.training.engine.signals import ProcessLost
from sslops.training.loggers.console import Console
from sslops.training.methods.simclr import SimCLR, SimCLRConfig
from sslops.training.report.report import write_report
from sslops.training.storage import checkpoint, sharded
from sslops.training.storage.folder import check_folder

from .test_training import TINY

pytestmark = pytest.mark.slow


def run(out, **changes):
    return train("simclr", out=out, console=Console(io.StringIO()), **{**TINY, **changes})


def save_one(folder, step):
    checkpoint.save(folder / "last.pt", {"step": step})


def save_divided(folder, step):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    alone = World(0, 1, torch.device("cpu"))
    sharded.save_sharded(folder / "last", model, optimizer, {"step": step}, alone)


def no_space(*args, **options):
    raise OSError(28, "No space left on device")


def no_space_divided(*args, **options):
    try:
        no_space()
    except OSError as error:
        raise CheckpointException("write", {0: _wrap_exception(error)}) from error


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    ("save", "broken"),
    [
        (save_one, (torch, "save", no_space)),
        (save_divided, (sharded, "save", no_space_divided)),
        (save_divided, (torch, "save", no_space)),
    ],
)
def test_a_full_disk_speaks_of_a_checkpoint_before_only_if_there_is_one(
    tmp_path, monkeypatch, save, broken, before
):
    if before:
        save(tmp_path, 1)
    kept = sorted(path.name for path in tmp_path.rglob("*"))
    monkeypatch.setattr(*broken)
    with pytest.raises(checkpoint.StorageError, match="No space left on device") as error:
        save(tmp_path, 2)
    assert ("the checkpoint before it is as it was" in str(error.value)) == before
    assert ("no file was written" in str(error.value)) != before
    assert sorted(path.name for path in tmp_path.rglob("*")) == kept


def test_a_lost_process_speaks_of_resuming_only_with_a_checkpoint(tmp_path, monkeypatch):
    def lost(self):
        raise ProcessLost("another one is gone")

    monkeypatch.setattr(Loop, "run", lost)
    for name, kept in (("none", False), ("some", True)):
        said = io.StringIO()
        if kept:
            monkeypatch.undo()
            run(tmp_path / name, steps=1)
            monkeypatch.setattr(Loop, "run", lost)
        with pytest.raises(ProcessLost):
            train(
                "simclr", out=tmp_path / name, console=Console(said), resume=kept,
                **{**TINY, "steps": 1},
            )  # fmt: skip
        assert ("--resume" in said.getvalue()) == kept


@pytest.mark.parametrize(
    ("holds", "ways"),
    [
        ((), ["--out"]),
        (("config.json",), ["--overwrite", "--out"]),
        (("config.json", "checkpoint/last.pt"), ["--resume", "--overwrite", "--out"]),
    ],
)
def test_a_folder_in_use_offers_what_is_possible(tmp_path, holds, ways):
    for name in ("notes.txt", *holds):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(FileExistsError) as error:
        check_folder(tmp_path, RunOptions(), "simclr", SimCLRConfig())
    offered = re.findall(r"--\w+", str(error.value).partition("; ")[2])
    assert offered == ways


def test_to_resume_without_a_checkpoint_says_how_to_start_anew(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for folder, how in ((tmp_path, "--overwrite"), (tmp_path / "new", "without --resume")):
        with pytest.raises(FileNotFoundError, match=f"start anew (with )?{how}"):
            check_folder(folder, RunOptions(resume=True), "simclr", SimCLRConfig())


def test_a_step_that_cannot_be_kept_is_not_offered_for_replay(tmp_path, monkeypatch):
    step = SimCLR.step

    def poisoned(self, views):
        out = step(self, views)
        return {**out, "loss": out["loss"] * float("nan")}

    monkeypatch.setattr(SimCLR, "step", poisoned)
    monkeypatch.setattr(torch, "save", no_space)
    with pytest.raises(NonFiniteLoss, match=r"got a loss of nan .* could not be kept") as error:
        run(tmp_path / "a")
    assert "Look into it" not in str(error.value)


def test_a_report_speaks_of_going_on_only_with_a_checkpoint(tmp_path):
    record = {"step": 10, "loss": 4.0, "chance": 4.8}
    (tmp_path / "config.json").write_text('{"method": "simclr", "data": "digits"}')
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    assert "--resume" not in write_report(tmp_path).read_text()
    save_one(tmp_path / "checkpoint", 10)
    assert "Go on with: sslops train simclr" in write_report(tmp_path).read_text()


def test_evaluating_a_run_that_is_not_over_promises_no_weights(tmp_path, capsys):
    run(tmp_path / "a", steps=1)
    (tmp_path / "a" / "encoder.safetensors").unlink()
    assert main(["eval", str(tmp_path / "a")]) == 2
    said = capsys.readouterr().err
    assert "encoder.safetensors" in said
    assert "weights are in" not in said
    assert "sslops eval" not in said  # what was just done
