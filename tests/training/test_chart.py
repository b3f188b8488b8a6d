"""Charts of a trained state: as data, drawn into run folders, shown in reports."""

import json
import re
from dataclasses import asdict

import pytest
import torch

from sslops.training.data import load
from sslops.training.distributed.process import World
from sslops.training.methods import find_method
from sslops.training.methods.base import DataShape
from sslops.training.methods.figures import Chart, histogram
from sslops.training.methods.simclr import SimCLR, SimCLRConfig
from sslops.training.report.report import write_report
from sslops.training.run.drawing import draw_figures

from .test_report import EVIL, make_run

BARS = [(0.0, 0.25), (0.5, 0.75)]
CHARTS = {
    "queue-age": Chart("bars", {"keys": BARS}, x_label="steps", caption=EVIL),
    "by-step": Chart("lines", {"true": [(1, 0.5), (2, 0.4)], EVIL: [(1, 0.1), (2, 0.2)]}),
    "speakers": Chart("points", {"anna": [(0.0, 1.0), (1.0, 1.5)], "ben": [(2.0, 2.0)]}),
}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "pie", "series": {"a": BARS}}, "one of lines, bars, points, got 'pie'"),
        ({"kind": "bars", "series": {}}, "every series must have a point, got none"),
        ({"kind": "bars", "series": {"a": []}}, "every series must have a point, got none"),
        ({"kind": "bars", "series": {"a": [(0.0, float("nan"))]}}, "must be finite"),
    ],
)
def test_refused(values, message):
    with pytest.raises(ValueError, match=f"Chart: .*{message}"):
        Chart(**values)


def test_histogram_holds_every_value():
    bars = histogram(torch.tensor([-2.0, -0.9, 0.1, 0.2, 5.0]), -1.0, 1.0, bins=4)
    assert [x for x, _ in bars] == [-1.0, -0.5, 0.0, 0.5]
    assert [share for _, share in bars] == pytest.approx([0.4, 0.0, 0.4, 0.2])


def test_report_draws_them(tmp_path):
    folder = make_run(tmp_path / "run")
    plain = write_report(folder).read_text()
    assert "Inside simclr" not in plain
    charts = {name: asdict(chart) for name, chart in CHARTS.items()}
    charts["broken"] = {"kind": "bars", "series": 3}
    charts["older"] = {"sort": "bars"}
    (folder / "figures.json").write_text(json.dumps(charts))
    page = write_report(folder).read_text()
    assert page.count("<svg") == plain.count("<svg") + 3
    for text in ("Inside simclr", "Queue age", "By step", "Speakers", ">anna<", ">steps<"):
        assert text in page
    assert EVIL not in page
    assert 'class="line c0"' in page
    assert not re.search(r"Broken|Older|nan", re.sub(r"base64,[^\"]*", "", page))


class Drawing(SimCLR):
    def figures(self, batch, generator):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.seen = len(batch.images), len(batch.labels)
        return {**CHARTS, "grid": torch.rand(2, 3, 1, 8, 8, generator=generator)}


def test_a_run_keeps_what_its_method_draws(tmp_path):
    split = load("digits").train
    shape = DataShape(1, 8, 10)
    world = World(0, 1, torch.device("cpu"))
    method = Drawing(SimCLRConfig(width=8), shape)
    draw_figures(method, split, tmp_path, world)
    assert method.seen == (512, 512)
    assert (tmp_path / "pictures" / "grid.png").is_file()
    kept = json.loads((tmp_path / "figures.json").read_text())
    assert {name: Chart(**values) for name, values in kept.items()}.keys() == CHARTS.keys()
    (tmp_path / "none").mkdir()
    plain = find_method("simclr").build(SimCLRConfig(width=8), shape)
    draw_figures(plain, split, tmp_path / "none", world)
    assert not (tmp_path / "none" / "figures.json").exists()
