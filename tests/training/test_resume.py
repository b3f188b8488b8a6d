"""What a resumed run owes the one that was never stopped, moment by moment."""

import importlib
import signal
from pathlib import Path

import pytest

from sslops.training.engine.signals import Interrupted
from sslops.training.loggers.metrics import MetricsFile, truncate_metrics
from sslops.training.methods.simclr import SimCLR
from sslops.training.storage import checkpoint

from .test_training import assert_same, records, run, without_times

LOOP = importlib.import_module("sslops.training.engine.loop")
# 4 steps an epoch: measured after 4, 8 and 10, saved then too
OPTIONS = {"batch": 250, "knn_every": 1, "checkpoint_every": 1}


class Killed(BaseException):
    """Nothing in the package may catch this."""


def last(folder):
    return checkpoint.load(folder / "checkpoint" / "last.pt")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    run(out, **OPTIONS)
    return out


def dying(function, moment, fatal):
    """`function`, before or after which the process ends where `fatal` says so of its arguments."""

    def call(*args, **options):
        if moment == "before" and fatal(*args):
            raise Killed
        function(*args, **options)
        if moment == "after" and fatal(*args):
            raise Killed

    return call


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("what", ["last", "best", "record", "next record"])
def test_killed_around_what_is_written(tmp_path, monkeypatch, whole, what, moment):
    """No record is lost between a checkpoint and its step's record, and none is there twice."""
    if what in ("last", "best"):
        name, step = what, 4 if what == "best" else 8  # the first measurement is the best so far

        def of_that_step(path, method, optimizer, progress, world):
            return (path.name, progress["step"]) == (name, step)

        fatal = dying(LOOP.save_run, moment, of_that_step)
        monkeypatch.setattr(LOOP, "save_run", fatal)
    else:
        step = 8 if what == "record" else 9
        fatal = dying(MetricsFile.write, moment, lambda file, record: record["step"] == step)
        monkeypatch.setattr(MetricsFile, "write", fatal)
    with pytest.raises(Killed):
        run(tmp_path / "run", **OPTIONS)
    monkeypatch.undo()
    again = (tmp_path / "run" / "checkpoint" / "last.pt").is_file()
    assert again == (what != "best")
    run(tmp_path / "run", **OPTIONS, resume=again, overwrite=not again)
    assert_same(last(tmp_path / "run"), last(whole))
    assert without_times(tmp_path / "run") == without_times(whole)


def test_killed_while_records_are_cut_back(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    write = Path.write_text

    def half(path, text, *args):
        write(path, text[: len(text) // 2])
        raise Killed

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(Killed):
        truncate_metrics(tmp_path, 2)
    monkeypatch.undo()
    truncate_metrics(tmp_path, 2)
    assert [record["step"] for record in records(tmp_path)] == [1, 2]


def signals_at(monkeypatch, step, *numbers):
    def after_step(self, now):
        if now == step:
            for number in numbers:
                signal.raise_signal(number)  # in this thread, one by one

    monkeypatch.setattr(SimCLR, "after_step", after_step)


def test_best_and_time_go_on(tmp_path, monkeypatch):
    """The best of the steps before counts: later ones that are worse do not take its place."""
    accuracies = iter([0.9, 0.5, 0.6])
    module = importlib.import_module("sslops.training.run.run")
    monkeypatch.setattr(module, "make_monitor", lambda *_: lambda encoder: next(accuracies))
    with monkeypatch.context() as inside:
        signals_at(inside, 5, signal.SIGTERM)
        with pytest.raises(Interrupted):
            run(tmp_path / "run", **OPTIONS)
    state = last(tmp_path / "run")
    checkpoint.save(tmp_path / "run" / "checkpoint" / "last.pt", {**state, "seconds": 1000.0})
    result = run(tmp_path / "run", **OPTIONS, resume=True)
    assert [record["knn"] for record in records(result.dir) if "knn" in record] == [0.9, 0.5, 0.6]
    assert last(result.dir)["best"] == 0.9
    assert checkpoint.load(result.dir / "checkpoint" / "best.pt")["step"] == 4
    assert 1000 < result.results["cost"]["training_seconds"] < 1500


def test_measuring_changes_no_training(tmp_path, whole):
    """Above all no mode: batch norm goes on with the statistics of its batches."""
    run(tmp_path / "run", **{**OPTIONS, "knn_every": 1000})  # after the last step alone
    ours, theirs = last(tmp_path / "run"), last(whole)
    assert_same(ours["method"], theirs["method"])
    assert_same(ours["rng"], theirs["rng"])
    assert_same(ours["views"], theirs["views"])


@pytest.fixture
def interruptible():
    """SIGINT as in a terminal: what a shell runs in the background starts with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_signal_acts_at_once(tmp_path, monkeypatch):
    """And no handler stays behind, however a run ends."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as inside:
        signals_at(inside, 1, signal.SIGINT, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", steps=3)
    run(tmp_path / "other", steps=1)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
