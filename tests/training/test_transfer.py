"""Probing a run on another data set, and the table of several runs."""

import io
import json

import pytest
import torch

from sslops.training import train
from sslops.training.augment.colour import to_grey
from sslops.training.cli import main
from sslops.training.data import Dataset, Split, load, notes
from sslops.training.evaluate.transfer import match_channels
from sslops.training.loggers.console import Console

pytestmark = pytest.mark.slow

SHORT = {"steps": 2, "batch": 64, "width": 4, "knn_every": 0, "threads": 1, "tsne_images": 20}


@pytest.fixture(autouse=True)
def _keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def coloured(tmp_path):
    """A folder of red and of blue images."""
    from PIL import Image

    for part, count in (("train", 12), ("test", 6)):
        for name, channel in (("red", 0), ("blue", 2)):
            folder = tmp_path / "colours" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                colour = [10 + i, 10, 10]
                colour[channel] = 200 - i
                Image.new("RGB", (12, 12), tuple(colour)).save(folder / f"{i}.png")
    return tmp_path / "colours"


def run(out, **fields):
    return train("simclr", out=out, console=Console(io.StringIO()), **{**SHORT, **fields})


def test_channels_are_matched_to_the_encoder(capsys):
    notes._said.clear()
    x = torch.randint(256, (5, 3, 4, 4), dtype=torch.uint8)
    data = Dataset("c", Split(x, None), Split(x[:2], None), (), "", "")
    grey = match_channels(data, 1)
    assert (grey.channels, grey.test.images.shape) == (1, (2, 1, 4, 4))
    exact = to_grey(x.double() / 255)[:, :1] * 255
    assert (grey.train.images - exact).abs().max() <= 0.51
    again = match_channels(grey, 3)
    assert torch.equal(again.train.images[:, 2], grey.train.images[:, 0])
    assert match_channels(data, 3) is data
    assert capsys.readouterr().err.splitlines() == [
        "data: c: images of 3 channels are brought to the encoder's 1: grey",
        "data: c: images of 1 channels are brought to the encoder's 3: grey, three times",
    ]


def test_a_run_is_probed_on_other_data(tmp_path, coloured, capsys):
    result = run(tmp_path / "a", evaluate=True, supervised_epochs=1)
    before = (result.dir / "results.json").read_bytes()
    arguments = ["eval", str(result.dir), "--eval-data", str(coloured), "--device", "cpu"]
    assert main(arguments) == 0
    assert "probing simclr, random-init, pixels, supervised on colours" in capsys.readouterr().out
    found = json.loads((result.dir / "transfer" / "colours.json").read_text())
    assert found["trained_on"] == "digits"
    assert found["protocol"]["data"] == "colours"
    assert found["protocol"]["probe_images"] == 24
    assert {"simclr", "random-init", "pixels", "supervised"} <= set(found)
    assert len(found["simclr"]["stages"]) == 3
    assert (result.dir / "results.json").read_bytes() == before
    assert main(["compare", str(result.dir)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("colours" in line and "digits" in line for line in lines) == 1
    assert main(["compare", str(result.dir), "--out", str(tmp_path / "c.html")]) == 0
    text = (tmp_path / "c.html").read_text()
    assert f"{result.dir} on colours" in text
    assert "Linear probe of each stage" in text


def test_training_may_probe_other_data_at_once(tmp_path):
    out = tmp_path / "a"
    run(out, evaluate=True, supervised_epochs=1, eval_data="digits")
    assert json.loads((out / "transfer" / "digits.json").read_text())["trained_on"] == "digits"


def test_refuses_data_that_cannot_be_probed(tmp_path, capsys):
    result = run(tmp_path / "a", evaluate=False)
    assert main(["eval", str(result.dir), "--eval-data", "tones"]) == 2
    assert "needs images for an encoder of images, got tones for simclr" in capsys.readouterr().err
    assert main(["eval", str(result.dir), "--eval-data", "photos"]) == 2
    assert "--eval-data needs labels, got none in photos" in capsys.readouterr().err
    assert not (result.dir / "transfer").exists()
    assert load("photos", size=8).train.labels is None
