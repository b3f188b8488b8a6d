"""What takes more than two seconds says how far it is: on a terminal, in a log, or not at all."""

import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from sslops.training import train
from sslops.training.config import make_config
from sslops.training.data import Dataset, Split
from sslops.training.evaluate import evaluate, tsne
from sslops.training.loggers import progress
from sslops.training.loggers.console import Console
from sslops.training.loggers.progress import shown_on, track, working
from sslops.training.methods import METHODS, DataShape


class AtOnce:
    """A timer that has run out when it starts."""

    def __init__(self, seconds, function):
        self.start = function

    def cancel(self):
        pass

    join = cancel


@pytest.fixture
def now(monkeypatch):
    """Everything is worth a line."""
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    monkeypatch.setattr(progress.threading, "Timer", AtOnce)


def console(live=False, quiet=False):
    made = Console(io.StringIO(), quiet=quiet)
    made.live = live
    return made


def test_a_terminal_has_one_line_that_goes_away(now):
    shown = console(live=True)
    with shown_on(shown):
        assert list(track("abc", "decoding images", 6, lambda item: 2)) == list("abc")
    said = shown.stream.getvalue()
    assert "\rdecoding images 2/6  eta 0:00\rdecoding images 4/6" in said
    assert "6/6" not in said  # done is done
    assert said.endswith(" \r")
    assert "\n" not in said


def test_a_log_has_lines_and_not_too_many(now):
    shown = console()
    with shown_on(shown):
        list(track(range(1000), "encoding", 1000))
    assert shown.stream.getvalue() == "encoding 1/1,000  eta 0:00\n"


def test_what_cannot_be_counted_is_said(now):
    shown = console()
    with shown_on(shown), working("t-SNE of 10 images"):
        pass
    assert shown.stream.getvalue() == "t-SNE of 10 images ...\n"


def test_what_is_quick_is_not_said_and_takes_no_other_line_away():
    shown = console(live=True)
    shown.task("training")
    with shown_on(shown), working("nothing much"):
        list(track(range(10), "counting", 10))
    assert shown.stream.getvalue() == "\rtraining ..."


def test_a_real_timer_speaks_while_the_work_goes_on(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.001)
    said, shown = threading.Event(), console()
    shown.task = lambda what: said.set()
    with shown_on(shown), working("this"):
        assert said.wait(60)


@pytest.mark.parametrize("where", ["quiet", "nowhere"])
def test_nothing_is_said_where_nobody_asked(now, where, capsys):
    shown = console(quiet=True)
    if where == "quiet":  # as in all processes of a run but the first
        with shown_on(shown), working("this"):
            list(track(range(10), "that", 10))
    else:  # a program that calls a part of this package
        with working("this"):
            list(track(range(10), "that", 10))
    assert shown.stream.getvalue() == "".join(capsys.readouterr()) == ""


def test_the_line_goes_away_where_something_breaks(now):
    shown = console(live=True)
    with shown_on(shown), pytest.raises(ZeroDivisionError):
        list(track((1 / n for n in (1, 2, 0)), "dividing", 3))
    assert shown.stream.getvalue().endswith("\r")
    assert shown.width == 0


def test_evaluation_and_pictures_are_followed(now, monkeypatch):
    monkeypatch.setattr("sslops.training.loggers.console.PLAIN_SECONDS", 0.0)
    images = torch.randint(256, (130, 1, 8, 8), dtype=torch.uint8)
    split = Split(images, torch.arange(130) % 2)
    data = Dataset("noise", split, split, ("a", "b"), "", "")
    config = make_config(METHODS["simclr"].config, "simclr", {"data": "digits", "width": 4})
    encoder = METHODS["simclr"].build(config, DataShape(1, 8, 2)).encoder.eval()
    shown = console()
    with shown_on(shown):
        evaluate({"simclr": encoder}, data, labels_per_class=[2], draws=1, seed=0)
        tsne(torch.randn(20, 4), 0)
    said = shown.stream.getvalue()
    for what in ("encoding 64/130", "looking for neighbours ...", "fitting linear probes ...",
                 "fitting probes of few labels ...", "clustering ...", "probing every stage ...",
                 "t-SNE of 20 images ..."):  # fmt: skip
        assert what in said


def test_a_run_reports_on_its_console(now, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sslops.training.data.folder.TASK", 4)
    (tmp_path / "images").mkdir()
    for n in range(20):
        picture = np.random.default_rng(n).integers(256, size=(8, 8), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / "images" / f"{n}.png")
    flags = {"steps": 1, "batch": 4, "width": 4, "threads": 1, "evaluate": False}
    for quiet in (True, False):
        shown = console(quiet=quiet)
        out, data = tmp_path / f"run{quiet}", tmp_path / "images"
        train("simclr", data=data, image_size=8 + quiet, out=out, console=shown, **flags)
        assert ("decoding images 4/20" in shown.stream.getvalue()) is not quiet
    assert capsys.readouterr().out == ""
