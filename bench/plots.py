"""Figures from result files: `python -m bench.plots FILE.jsonl ... --out FOLDER`.

For every op and dtype, time and memory against the number of rows; and one figure of how many
times faster than the code that users write. SVG without a background: the greys and colours are
legible on white and on black.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bench.cases import OPS

GREY = "#7a828c"
OURS = "#f2711c"
COLOURS = {
    "sslops": OURS, "sslops-triton": "#d6336c", "sslops-cuda": "#e03131",
    "sslops-reference": "#c99700", "eager": "#7a828c", "compile": "#2f8de4",
    "chunked": "#9a6ee0", "linear_cross_entropy": "#12a594", "foreach_lerp": "#12a594",
    "lightly": "#4c9f38", "pytorch-metric-learning": "#b5651d", "info-nce-pytorch": "#3aa6b9",
    "open_clip": "#4c9f38", "memeff": "#5c6bdf", "inf-cl": "#b5651d", "cce-exact": "#b8860b",
    "liger": "#3aa6b9", "liger-scaled": "#008c95", "siglip-kernel": "#5c6bdf",
}  # fmt: skip
STYLE: Any = {
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "text.color": GREY, "axes.labelcolor": GREY, "axes.edgecolor": GREY, "xtick.color": GREY,
    "ytick.color": GREY, "grid.color": GREY, "grid.alpha": 0.25, "axes.grid": True,
    "axes.spines.top": False, "axes.spines.right": False, "font.size": 11, "legend.frameon": False,
    "svg.hashsalt": "sslops", "font.family": "DejaVu Sans", "axes.axisbelow": True,
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One measurement, from either kind of result file."""

    op: str
    size: tuple[int, ...]
    dtype: str
    provider: str
    device: str
    p20: float
    p50: float
    p80: float
    peak: float | None
    headline: bool


def read(files: Iterable[Path]) -> list[Point]:
    """The steps (forward and backward) of the grid's rows and of the rows of `make bench`."""
    points = []
    for file in files:
        for text in file.read_text().splitlines():
            row = json.loads(text)
            if row.get("status") == "ok" and row["mode"] == "both":
                times = {row["provider"]: (row["p20_ms"], row["p50_ms"], row["p80_ms"])}
            elif "times" in row and row.get("op") in OPS:
                times = {
                    name: (t["median_ms"],) * 3
                    for name, t in row["times"].items()
                    if name in COLOURS
                }
            else:
                continue
            size = row.get("size") or "x".join(str(row[dim]) for dim in OPS[row["op"]].dims)
            shape = tuple(map(int, size.split("x")))
            rest = (row.get("peak_mib"), row.get("case") == "headline")
            points += [
                Point(row["op"], shape, row["dtype"], name, row["device"], *t, *rest)
                for name, t in times.items()
            ]
    return points


def series(points: Iterable[Point]) -> dict[str, list[Point]]:
    """Provider -> its points by the number of rows, at the width that was measured most.

    Of a size that was measured twice the last counts.
    """
    points = list(points)
    widths = [point.size[1:] for point in points]
    common = max(
        sorted(set(widths), key=lambda width: abs(width[-1] - 128) if width else 0),
        key=lambda width: len({point.size for point in points if point.size[1:] == width}),
    )
    series: dict[str, dict[int, Point]] = {}
    for point in points:
        if point.size[1:] == common:
            series.setdefault(point.provider, {})[point.size[0]] = point
    return {name: [its[n] for n in sorted(its)] for name, its in series.items()}


def curves(points: list[Point], value: str, label: str, path: Path) -> None:
    """One line a provider, against the rows; the band is p20 to p80."""
    lines = series(points)
    dims = OPS[points[0].op].dims
    # the legend in the order of the lines' right ends
    order = sorted(lines, key=lambda name: (-lines[name][-1].size[0], -_value(lines[name], value)))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.6, 4.2), layout="constrained")
        for name in order:
            its = [p for p in lines[name] if getattr(p, value)]
            if not its:
                continue
            x = [p.size[0] for p in its]
            ours = name.startswith("sslops")
            axes.plot(
                x, [getattr(p, value) for p in its], color=COLOURS[name], label=name, marker="o",
                markersize=5, linewidth=2.6 if ours else 1.7, zorder=3 if ours else 2,
            )  # fmt: skip
            if value == "p50":
                band = ([p.p20 for p in its], [p.p80 for p in its])
                axes.fill_between(x, *band, color=COLOURS[name], alpha=0.18, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = sorted({p.size[0] for its in lines.values() for p in its})
        axes.set_xticks(ticks, [str(n) if n % 1024 else f"{n // 1024}k" for n in ticks])
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.12g}")
        axes.minorticks_off()
        first = next(iter(lines.values()))[0]
        rest = ", ".join(f"{d} = {n}" for d, n in zip(dims[1:], first.size[1:], strict=True))
        axes.set_xlabel(f"{dims[0]}  ({rest})" if rest else dims[0])
        axes.set_ylabel(label)
        axes.set_title(
            f"{first.op}, {first.dtype}, {first.device}", loc="left", fontsize=11, pad=10
        )
        figure.legend(loc="outside right upper")
        _save(figure, path)


def _value(points: list[Point], value: str) -> float:
    return float(getattr(points[-1], value) or 0)


def bars(points: list[Point], path: Path, against: str = "eager") -> None:
    """How many times faster than `against`: the headlines, else the largest size of each op."""
    largest: dict[tuple[str, str], dict[str, Point]] = {}
    chosen = [point for point in points if point.headline] or points
    for point in sorted(chosen, key=lambda p: p.size):
        entry = largest.setdefault((point.op, point.dtype), {})
        entry[point.provider] = point
    rows = []
    for (op, dtype), entry in largest.items():
        ours, other = entry.get("sslops"), entry.get(against)
        if ours and other and ours.size == other.size:
            size = "x".join(map(str, ours.size))
            rows.append((other.p50 / ours.p50, f"{op}  {size}  {dtype}"))
    if not rows:
        return
    rows.sort()
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(figsize=(7.6, 0.7 + 0.34 * len(rows)), layout="constrained")
        axes.barh(range(len(rows)), [ratio for ratio, _ in rows], color=OURS, height=0.62)
        for n, (ratio, _) in enumerate(rows):
            axes.annotate(
                f"{ratio:.1f}\u00d7", (ratio, n), (5, 0), textcoords="offset points", va="center"
            )
        axes.axvline(1, color=GREY, linewidth=1, linestyle=(0, (3, 3)))
        axes.set_yticks(range(len(rows)), [name for _, name in rows])
        axes.set_xticks([])
        axes.margins(x=0.12)
        axes.spines[["bottom", "left"]].set_visible(False)
        axes.tick_params(length=0)
        title = f"times faster than {against} PyTorch, {points[-1].device}"
        axes.set_title(title, loc="left", fontsize=11, pad=10)
        _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def draw(points: list[Point], out: Path, kind: str = "svg") -> list[Path]:
    """Write every figure that the points allow, and return the files."""
    out.mkdir(parents=True, exist_ok=True)
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        groups.setdefault((point.op, point.dtype), []).append(point)
    for (op, dtype), its in groups.items():
        if max(len(line) for line in series(its).values()) < 2:
            continue  # a line needs two sizes
        name = f"{op.strip('_')}-{dtype.replace('/', '-')}"
        curves(its, "p50", "forward + backward, ms", out / f"time-{name}.{kind}")
        if sum(point.peak is not None for point in its) > 1:
            curves(its, "peak", "extra peak memory, MiB", out / f"memory-{name}.{kind}")
    bars(points, out / f"faster.{kind}")
    return sorted(out.glob(f"*.{kind}"))


def main(argv: Sequence[str] | None = None) -> int:
    """Draw what the files hold; 2 if that is nothing."""
    parser = argparse.ArgumentParser("plots", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kind", choices=["svg", "png"], default="svg")
    parser.add_argument("--device", help="only rows of devices whose name contains this")
    args = parser.parse_args(argv)
    points = [p for p in read(args.files) if (args.device or "") in p.device]
    if not points:
        print(f"plots: nothing was measured, got {[str(f) for f in args.files]}", file=sys.stderr)
        return 2
    devices = sorted({p.device for p in points})
    if len(devices) > 1:
        print(f"plots: --device must choose one of {', '.join(devices)}", file=sys.stderr)
        return 2
    for path in draw(points, args.out, args.kind):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
