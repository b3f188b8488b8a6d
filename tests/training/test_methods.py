"""What every method owes the loop, the report and the export, by the cases of method_cases.py."""

import io
import json
import math
import os
import signal

import pytest
import torch

from sslops.training import load_encoder, train
from sslops.training.augment import SharedGenerator
from sslops.training.config import make_config
from sslops.training.data.loader import Feed
from sslops.training.distributed.process import World
from sslops.training.engine.setup import build_method, load_data, shape_of
from sslops.training.engine.signals import Interrupted
from sslops.training.loggers.console import Console
from sslops.training.methods import METHODS, DataShape
from sslops.training.methods.figures import Chart
from sslops.training.report.report import write_report
from sslops.training.report.views import caption
from sslops.training.storage.checkpoint import load

from .method_cases import METHOD_CASES
from .test_training import assert_same, without_times

SHORT = {"batch": 64, "steps": 8, "log_every": 1, "knn_every": 0, "evaluate": False, "threads": 1}

methods = pytest.mark.parametrize(("name", "fields"), METHOD_CASES)


@pytest.fixture(autouse=True)
def _keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(name, out, fields, **changes):
    return train(name, out=out, console=Console(io.StringIO()), **{**SHORT, **fields, **changes})


def test_every_method_has_a_case():
    assert {name for name, _ in METHOD_CASES} == set(METHODS)


@pytest.mark.slow
@methods
def test_resumes_to_the_bit(tmp_path, name, fields, monkeypatch):
    """Stopped in step 5 of 8: weights, target networks, queues, generators, metrics."""
    run(name, tmp_path / "whole", fields)
    entry = METHODS[name]

    def build_stopping(config, shape):
        method = entry.build(config, shape)
        after_step = method.after_step

        def stop(step):
            after_step(step)
            if step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

        method.after_step = stop
        return method

    monkeypatch.setitem(METHODS, name, entry._replace(build=build_stopping))
    with pytest.raises(Interrupted):
        run(name, tmp_path / "parts", fields)
    monkeypatch.undo()
    assert load(tmp_path / "parts" / "checkpoint" / "last.pt")["step"] == 5
    torch.rand(7)  # whatever else happened in the process
    run(name, tmp_path / "parts", fields, resume=True)
    whole, parts = (load(tmp_path / each / "checkpoint" / "last.pt") for each in ("whole", "parts"))
    assert whole["step"] == 8
    assert_same(whole, parts)
    drawn = {path.stem for path in (tmp_path / "whole" / "pictures").iterdir()}
    assert drawn == {path.stem for path in (tmp_path / "parts" / "pictures").iterdir()}
    assert all(caption(each) for each in drawn), "every picture says what it shows"
    assert without_times(tmp_path / "whole") == without_times(tmp_path / "parts")


@methods
def test_views_do_not_depend_on_the_number_of_processes(name, fields):
    """Each process draws for all and takes its share, whatever the method draws."""
    config = make_config(METHODS[name].config, name, {**fields, "batch": 8})
    data, split, _ = load_data(config)
    method = build_method(name, config, shape_of(data), World(0, 1, torch.device("cpu")))
    method.fit(split.images)
    feed = Feed(split, torch.device("cpu"))
    some = torch.arange(8) * (len(split) // 8)

    def views(rank, size):
        generator = SharedGenerator()
        generator.manual_seed(3)
        generator.rank, generator.size = rank, size
        made = method.views(feed(some[rank * 8 // size : (rank + 1) * 8 // size]), generator)
        return made, generator.get_state()

    (whole, state), *shares = views(0, 1), views(0, 2), views(1, 2)
    for part, (share, after) in zip(method.parts(whole, 4), shares, strict=True):
        torch.testing.assert_close(share, part, rtol=0, atol=1e-6)
        assert torch.equal(after, state)


@methods
def test_logs_exports_and_reports(tmp_path, name, fields):
    result = run(name, tmp_path / "a", fields, steps=2)
    records = [json.loads(line) for line in (result.dir / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(value) for record in records for value in record.values())
    assert records[0]["chance"] > 0
    if (result.dir / "figures.json").is_file():
        for chart in json.loads((result.dir / "figures.json").read_text()).values():
            Chart(**chart)
    assert f"<h1>{name} " in write_report(result.dir).read_text()
    scores = json.loads((result.dir / "results.json").read_text())["pretext"]
    assert scores
    assert all(math.isfinite(value) for value in scores.values())
    weights = load_encoder(result.dir).state_dict()
    assert_same(dict(weights), dict(result.encoder.state_dict()))


WITHOUT_VIEWS = {"cpc-audio", "jigsaw", "relative-patch", "video-colorization"}


@methods
def test_unknown_views_are_named(name, fields):
    config = make_config(METHODS[name].config, name, {**fields, "views": "colours"})
    entry, shape = METHODS[name], DataShape(3, 16, 10, 8000, 12)
    if name in WITHOUT_VIEWS:
        entry.build(config, shape)
        return
    with pytest.raises(ValueError, match=f"{name}: no such views, got 'colours'; did you mean"):
        entry.build(config, shape)
