"""The SimCLR control: the same encoder and images, SimCLR's own recipe, trained once."""

import io
import json
from dataclasses import replace

import pytest
import torch

from sslops.training import load_encoder, train
from sslops.training.cli import main
from sslops.training.data import Split
from sslops.training.distributed.process import World
from sslops.training.evaluate.baselines import simclr_arm
from sslops.training.loggers.console import Console
from sslops.training.methods.base import DataShape
from sslops.training.methods.mocov3 import MoCoV3Config

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_control_is_an_arm_and_is_trained_once(tmp_path, capsys):
    fields = {"steps": 2, "batch": 64, "width": 4, "knn_every": 0, "threads": 1, "tsne_images": 9}
    fields |= {"train_images": 128, "eval_train": 60, "eval_test": 30}
    train("mocov3", out=tmp_path, simclr_control=True, supervised_epochs=1, proj_hidden=16,
          console=Console(io.StringIO()), **fields)  # fmt: skip
    first = json.loads((tmp_path / "results.json").read_text())
    assert list(first)[:2] == ["mocov3", "random-init"]
    assert "linear" in first["simclr"]
    weights = (tmp_path / "checkpoint" / "simclr.safetensors").read_bytes()
    about = json.loads((tmp_path / "checkpoint" / "simclr.json").read_text())
    assert about["method"] == "simclr"
    assert about["options"] == {"width": 4}
    assert ">SimCLR<" in (tmp_path / "report.html").read_text()
    assert main(["eval", str(tmp_path), "--device", "cpu"]) == 0
    assert "training the" not in capsys.readouterr().out
    assert (tmp_path / "checkpoint" / "simclr.safetensors").read_bytes() == weights


def test_it_has_the_recipe_of_simclr_and_the_budget_of_the_run(tmp_path, monkeypatch):
    seen = []

    class Spy:
        def __init__(self, method, train, config, world, *, console):
            seen.append(config)

        def run(self):
            pass

    monkeypatch.setattr("sslops.training.engine.loop.Loop", Spy)
    split = Split(torch.zeros(8, 1, 8, 8, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64))
    config = MoCoV3Config(data="digits", epochs=7, batch=32, lr=0.123, temperature=0.9, width=4)
    shape, world = DataShape(1, 8, 10), World(0, 1, torch.device("cpu"))
    simclr_arm(tmp_path, config, split, shape, world, Console(quiet=True))
    (control,) = seen
    assert (control.epochs, control.batch, control.width) == (7, 32, 4)
    assert (control.lr, control.temperature, control.views) == (5e-3, 0.5, "digits")
    assert load_encoder(tmp_path / "checkpoint" / "simclr.safetensors").dim == 16
    assert replace(control, epochs=1).encoder_options() == {"width": 4}
