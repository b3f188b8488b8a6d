"""Small charts as SVG text; colours come from the page's style sheet, so that themes work."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
from numpy.typing import NDArray

__all__ = ["Line", "Rule", "line_chart", "nice_ticks", "scatter"]

WIDTH, HEIGHT = 460, 286
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 36
_ROW = 14.0  # least distance of labels at the end of lines

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        points: (x, y).
        style: CSS class that sets the colour.
        label: written at its end, if there is room on the right.
        deviations: of each y, drawn as whiskers.
        markers: draw a dot at each point.
    """

    points: Sequence[Point]
    style: str
    label: str = ""
    deviations: Sequence[float] = field(default_factory=tuple)
    markers: bool = False


@dataclass(frozen=True)
class Rule:
    """A dashed horizontal line with its name above it or below, at the right end or the left."""

    y: float
    label: str
    style: str = "chance"
    below: bool = False
    left: bool = False


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str = "",
    rules: Sequence[Rule] = (),
    log_x: bool = False,
    y_range: tuple[float | None, float | None] = (None, None),
    x_ticks: Sequence[float] | None = None,
    y_format: str = "{:g}",
) -> str:
    """Curves over one pair of axes; `title` is what a screen reader says."""
    longest = max((len(line.label) for line in lines), default=0)
    right = 10 + 7.5 * longest if longest else RIGHT  # as wide as bold letters on a phone
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + [rule.y for rule in rules]
    for line in lines:
        for (_, y), sd in zip(line.points, line.deviations, strict=False):
            ys += [y - sd, y + sd]
    low, high = min(ys), max(ys)
    margin = 0.06 * (high - low or abs(high) or 1.0)
    low = low - margin if y_range[0] is None else y_range[0]
    high = high + margin if y_range[1] is None else y_range[1]
    warp: Callable[[float], float] = math.log10 if log_x else float
    x_low, x_high = warp(min(xs)), warp(max(xs))
    x_low, x_high = (x_low, x_high) if x_high > x_low else (x_low - 0.5, x_high + 0.5)

    def px(x: float) -> float:
        return LEFT + (warp(x) - x_low) / (x_high - x_low) * (WIDTH - LEFT - right)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    end = round(WIDTH - right)
    parts = []
    for y in nice_ticks(low, high):
        parts.append(f'<path class="grid" d="M{LEFT} {py(y):.1f}H{end}"/>')
        parts.append(_text(LEFT - 7, py(y) + 4, _signed(y_format, y), "tick", "end"))
    ticks = nice_ticks(min(xs), max(xs), 5) if x_ticks is None else x_ticks
    for x in ticks:
        parts.append(_text(px(x), HEIGHT - BOTTOM + 17, f"{x:,g}", "tick", "middle"))
    parts.append(f'<path class="axis" d="M{LEFT} {py(low):.1f}H{end}"/>')
    parts.append(_text((LEFT + end) / 2, HEIGHT - 3, x_label, "axis-name", "middle"))
    if y_label:
        parts.append(_text(LEFT + 6, TOP + 9, y_label, "axis-name", "start"))
    for rule in rules:
        y = py(rule.y)
        parts.append(f'<path class="rule {rule.style}" d="M{LEFT} {y:.1f}H{end}"/>')
        at, anchor = (LEFT + 8, "start") if rule.left else (end - 2, "end")
        parts.append(
            _text(at, y + (15 if rule.below else -6), rule.label, f"note {rule.style}", anchor)
        )
    for line in lines:
        parts.append(_curve(line, px, py))
    parts += _end_labels(lines, px, py)
    return _frame(parts, WIDTH, HEIGHT, title)


def scatter(
    points: NDArray[np.floating],
    labels: NDArray[np.integer] | None,
    names: Sequence[str],
    *,
    title: str,
) -> str:
    """Points [N, 2] coloured by class, each class named at its median."""
    side, margin = 460, 14
    low, high = points.min(0), points.max(0)
    span = float((high - low).max()) or 1.0
    centre = (low + high) / 2
    at = (points - centre) / span * (side - 2 * margin) + side / 2
    at[:, 1] = side - at[:, 1]
    radius = 2.6 if len(points) > 600 else 3.2
    if labels is None:
        labels = np.zeros(len(points), dtype=np.int64)
    parts = []
    for label in np.unique(labels):
        members = at[labels == label]
        # One path of zero-length round strokes a class: a third of the bytes of circles.
        dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in members)
        parts.append(
            f'<path class="dots c{int(label) % 20}" stroke-width="{2 * radius}" d="{dots}"/>'
        )
    parts += _class_names(at, labels, names, side)
    return _frame(parts, side, side, title)


def _class_names(
    at: NDArray[np.floating], labels: NDArray[np.integer], names: Sequence[str], side: int
) -> list[str]:
    """Each name at its class's median, moved down where it would cover another."""
    centres = [
        (*np.median(at[labels == label], axis=0).tolist(), names[int(label)])
        for label in np.unique(labels)
        if int(label) < len(names)
    ]
    placed: list[tuple[float, float, float]] = []  # x, y, half the width
    parts = []
    for x, y, name in sorted(centres, key=lambda centre: centre[1]):
        half = 4.6 * len(name) + 2
        x = min(max(x, half), side - half)
        for other_x, other_y, other_half in placed:  # from top to bottom
            if abs(x - other_x) < half + other_half and abs(y - other_y) < _ROW + 2:
                y = other_y + _ROW + 2
        placed.append((x, y, half))
        parts.append(_text(x, y + 5, name, "centre", "middle"))
    return parts


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within [low, high], roughly `about` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    ticks = []
    while (value := first * step) <= high + 1e-9 * step:
        ticks.append(round(value, 12) + 0.0)  # + 0.0: no minus zero
        first += 1
    return ticks


def _signed(form: str, value: float) -> str:
    return "0" if value == 0 and "+" in form else form.format(value)


def _curve(line: Line, px: Callable[[float], float], py: Callable[[float], float]) -> str:
    places = [(px(x), py(y)) for x, y in line.points]
    parts = []
    for (x, y), sd in zip(line.points, line.deviations, strict=False):
        if sd > 0:
            parts.append(
                f'<path class="whisker {line.style}" '
                f'd="M{px(x):.1f} {py(y - sd):.1f}V{py(y + sd):.1f}"/>'
            )
    path = "".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(places))
    if len(places) > 1:
        parts.append(f'<path class="line {line.style}" d="{path}"/>')
    if line.markers or len(places) == 1:
        dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in places)
        parts.append(f'<path class="marks {line.style}" d="{dots}"/>')
    return "".join(parts)


def _end_labels(
    lines: Sequence[Line], px: Callable[[float], float], py: Callable[[float], float]
) -> list[str]:
    """Names at the right end, pushed apart where they would overlap."""
    named = [line for line in lines if line.label and line.points]
    named.sort(key=lambda line: py(line.points[-1][1]))
    heights: list[float] = []
    for line in named:
        lowest = heights[-1] + _ROW if heights else float(TOP)
        heights.append(max(py(line.points[-1][1]), lowest))
    above = max(0.0, heights[-1] - (HEIGHT - BOTTOM)) if heights else 0.0
    return [
        _text(px(line.points[-1][0]) + 9, y - above + 4, line.label, f"name {line.style}", "start")
        for line, y in zip(named, heights, strict=True)
    ]


def _text(x: float, y: float, text: str, style: str, anchor: str) -> str:
    return (
        f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )


def _frame(parts: Sequence[str], width: int, height: int, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )
