"""The section of a method's own charts (figures.json)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sslops.training.methods.figures import Chart
from sslops.training.report.page import figure, legend, section, titled
from sslops.training.report.run_folder import Run
from sslops.training.report.svg import Line, line_chart, scatter

__all__ = ["method_charts"]


def method_charts(run: Run) -> str:
    """What the method drew of its trained state; nothing if it draws nothing."""
    figures = []
    for name, values in run.figures.items():
        chart = _read(values)
        if chart is not None:
            figures.append(figure(titled(name), _draw(chart, titled(name)), chart.caption))
    if not figures:
        return ""
    return section(
        f"Inside {run.method}",
        f'<div class="charts">{"".join(figures)}</div>',
        lead=f"What the method itself compares, measured on training {run.samples} when training "
        "was over.",
    )


def _read(values: Any) -> Chart | None:
    """A chart of figures.json; None for what a broken file may hold instead."""
    try:
        return Chart(**values)
    except (TypeError, ValueError, AttributeError):
        return None


def _draw(chart: Chart, title: str) -> str:
    names = list(chart.series)
    styles = {name: f"c{i % 20}" for i, name in enumerate(names)}
    key = legend(styles, dotted=chart.kind == "points") if len(names) > 1 else ""
    if chart.kind == "points":
        points = np.array([point for part in chart.series.values() for point in part])
        labels = np.repeat(np.arange(len(names)), [len(part) for part in chart.series.values()])
        return key + scatter(points, labels, names, title=title)
    bars = chart.kind == "bars"
    lines = [
        Line(_outline(part) if bars else part, styles[name], markers=not bars and len(part) < 40)
        for name, part in _sorted(chart.series, bars).items()
    ]
    low = 0.0 if bars else None
    return key + line_chart(
        lines, title=title, x_label=chart.x_label, y_label=chart.y_label, y_range=(low, None)
    )


def _sorted(
    series: Mapping[str, Sequence[Sequence[float]]], bars: bool
) -> dict[str, list[tuple[float, float]]]:
    """JSON has lists for pairs; bars go from left to right."""
    pairs = {name: [(float(x), float(y)) for x, y in part] for name, part in series.items()}
    return {name: sorted(part) if bars else part for name, part in pairs.items()}


def _outline(bars: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The steps over the bars, which touch each other; the last is as wide as the first."""
    width = bars[1][0] - bars[0][0] if len(bars) > 1 else 1.0
    ends = [*(x for x, _ in bars[1:]), bars[-1][0] + width]
    steps = [point for (x, y), end in zip(bars, ends, strict=True) for point in ((x, y), (end, y))]
    return [(bars[0][0], 0.0), *steps, (ends[-1], 0.0)]
