"""A step of several processes is made again by as many, from the files that each has kept."""

import io
import os
import re

import pytest
import torch
import torch.distributed as dist

from sslops.training import train
from sslops.training.cli import main
from sslops.training.engine.nonfinite import FiniteCheck, NonFiniteLoss
from sslops.training.loggers.console import Console
from sslops.training.storage import checkpoint
from tests.processes import spawn

from .method_cases import METHOD_CASES

FIELDS = {
    "batch": 64, "steps": 9, "log_every": 1, "knn_every": 0, "evaluate": False, "threads": 1,
    "optimizer": "sgd", "lr": 0.1,
}  # fmt: skip
CASES = {
    "simclr": "ddp",  # batch norm over all rows, negatives of all
    "moco": "ddp",  # images that change places, by a seed that the views draw
    "cpc-audio": "fsdp",  # no images to draw views from; weights in parts
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed"),
]


def worker(rank, folder):
    """Steps that are taken for NaN, so that there are numbers to compare."""
    fields, port = dict(METHOD_CASES), int(os.environ["MASTER_PORT"])
    for n, (name, parallel) in enumerate(CASES.items()):
        os.environ["MASTER_PORT"] = str(port + n)
        left = [True, True, False]
        FiniteCheck.holds = lambda self, left=left: left.pop(0)
        options = {**FIELDS, **fields[name], "parallel": parallel, "device": "cpu"}
        with pytest.raises(NonFiniteLoss, match=r"in step 3;.*--replay .*nonfinite1?\.pt"):
            train(name, out=f"{folder}/{name}", console=Console(io.StringIO()), **options)


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("failed")
    spawn(worker, str(folder))
    return folder


@pytest.mark.parametrize("name", CASES)
def test_all_processes_make_the_step_again(failed, capsys, name):
    """Loss and gradient to the bit: both hang on the rows of the other process."""
    files = [failed / name / each for each in ("nonfinite.pt", "nonfinite1.pt")]
    kept = [checkpoint.load(each) for each in files]
    assert [each["step"] for each in kept] == [2, 2]
    assert not torch.equal(kept[0]["views"], kept[1]["views"])
    assert main(["train", "--replay", str(files[1])]) == 1  # it was finite
    said = capsys.readouterr().out
    assert re.findall(r"process   (\d) of 2", said) == ["0", "1"]
    assert said.count("views     the same bits") == (0 if name == "cpc-audio" else 2)
    numbers = re.findall(r"(?:loss     |gradient  norm) (\S+) \(in the run (\S+)\)", said)
    assert len(numbers) == 4
    assert all(again == before for again, before in numbers), said
    assert [float(numbers[n][0]) for n in (0, 2)] == [each["loss"] for each in kept]


@pytest.mark.parametrize("other", ["of another step", "damaged"])
def test_one_process_makes_what_it_can(failed, tmp_path, capsys, other):
    state = checkpoint.load(failed / "simclr" / "nonfinite1.pt")
    checkpoint.save(tmp_path / "nonfinite1.pt", state)
    checkpoint.save(tmp_path / "nonfinite.pt", {**state, "rank": 0, "step": 7})
    if other == "damaged":
        os.truncate(tmp_path / "nonfinite.pt", 1000)
    assert main(["train", "--replay", str(tmp_path / "nonfinite1.pt")]) == 1
    said = capsys.readouterr().out
    assert "alone     one of 2 processes; no nonfinite.pt of this step" in said
    assert "views     the same bits" in said
    assert "process   1" not in said


def test_sharded_weights_need_all_files(failed, tmp_path, capsys):
    state = checkpoint.load(failed / "cpc-audio" / "nonfinite.pt")
    checkpoint.save(tmp_path / "nonfinite.pt", state)
    assert main(["train", "--replay", str(tmp_path / "nonfinite.pt")]) == 2
    said = capsys.readouterr().err
    assert "needs the files of all 2 processes of the step beside each other" in said
    assert "got no nonfinite1.pt" in said
