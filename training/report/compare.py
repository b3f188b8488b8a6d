"""Several runs side by side: one table as text, and one page with the table and its figure."""

import os
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from sslops.training.evaluate.table import align, has_labels
from sslops.training.evaluate.tracking import score_names
from sslops.training.loggers.words import BATCHED, count
from sslops.training.report.page import cell_table, figure, legend, page, section
from sslops.training.report.run_folder import Run, read_run
from sslops.training.report.svg import Line, line_chart
from sslops.training.report.views import pictures_beside

__all__ = ["compare", "write_comparison"]

FEW_TEXT = "Mean over draws of the labels, a logistic regression on frozen features."
STAGE_TEXT = "Features of every stage, averaged to a comparable number of cells."
UNITS_TEXT = "Shares in percent, of the test part; losses of the training."
BASIS_TEXT = (
    "* measured on other data or other numbers of them than the first: not comparable with it"
)


class Row(NamedTuple):
    """A run as it was evaluated once: on its own data set, or on another."""

    run: Run
    probed: str  # name of the data set whose labels the probes had
    results: Mapping[str, Any]
    differs: bool

    @property
    def own(self) -> Mapping[str, Any]:
        """The numbers of the method itself."""
        return _mapping(self.results.get(self.run.method))


def compare(run_dirs: Sequence[str | Path]) -> str:
    """One row a run, and one for each data set it was probed on besides its own.

    Columns: pretext accuracy on test images, few labels, kNN, linear probe of the features and of
    the best stage, what that adds to the same stage untrained, NMI, J, F and PCK of videos, spread
    and effective rank where labels are missing, loss, time and speed; those that any run has. Rows
    that were measured on other data or with other sample sizes than the first are marked, as their
    numbers cannot be set side by side.

    Raises:
        ValueError: no folders.
        FileNotFoundError: a folder is no run folder.
    """
    rows = _rows(run_dirs)
    columns = _columns(rows)
    lines = [["run", *columns]]
    lines += [[_label(row), *(cell(row) for cell in columns.values())] for row in rows]
    text = align(lines)
    return f"{text}\n{BASIS_TEXT}" if any(row.differs for row in rows) else text


def write_comparison(run_dirs: Sequence[str | Path], path: Path) -> Path:
    """The table of `compare`, its figure and pictures of all runs, as one HTML file.

    The figure is accuracy against labels and stages; pictures of the same name stand below one
    another, each with the settings in which its run differs from others of its method.

    Returns:
        `path`.
    """
    rows = _rows(run_dirs)
    columns = _columns(rows)
    cells = [
        [escape(_label(row)), *(escape(cell(row)) for cell in columns.values())] for row in rows
    ]
    charts = [
        _chart(rows, _few_points, "Accuracy against labels a class", FEW_TEXT, log_x=True),
        _chart(rows, _stage_points, "Linear probe of each stage", STAGE_TEXT),
    ]
    shown, title = "".join(charts), "Figures" if all(charts) else "Figure"
    note = UNITS_TEXT + (f" {BASIS_TEXT}." if any(row.differs for row in rows) else "")
    drawn = [i for i, row in enumerate(rows) if _few_points(row) or _stage_points(row)]
    styles = {_name(rows[i]): _style(i) for i in drawn}
    body = [
        "<header><h1>Comparison of runs</h1></header>",
        section("All runs", cell_table(["run", *columns], cells), lead=note),
        section(title, legend(styles), f'<div class="charts">{shown}</div>') if shown else "",
        pictures_beside(list({row.run.folder: row.run for row in rows}.values())),
    ]
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page("Comparison of runs", body), encoding="utf-8")
    os.replace(partial, path)
    return path


def _rows(run_dirs: Sequence[str | Path]) -> list[Row]:
    if not run_dirs:
        raise ValueError("compare: needs at least one run folder, got none")
    runs = [read_run(Path(folder)) for folder in run_dirs]
    first = next((_basis(run.results) for run in runs if run.method in run.results), ())
    rows = []
    for run in runs:
        for results in (run.results, *run.transfer.values()):
            probed = str(_mapping(results.get("protocol")).get("data", run.data))
            differs = run.method in results and _basis(results) != first
            rows.append(Row(run, Path(probed).name, results, differs))
    return rows


def _label(row: Row) -> str:
    return f"{row.run.folder}{' *' if row.differs else ''}"


def _name(row: Row) -> str:
    """What a legend calls the row; no two rows of a comparison share it."""
    return str(row.run.folder) + ("" if row.probed == row.run.data else f" on {row.probed}")


def _columns(rows: Sequence[Row]) -> dict[str, Callable[[Row], str]]:
    """Title -> cell, without the optional columns that no run has."""
    counts = sorted({int(n) for row in rows for n in row.own.get("few", {})})
    columns: dict[str, Callable[[Row], str]] = {
        "method": lambda row: row.run.method,
        "data": lambda row: row.run.data,
    }
    if any(row.probed != row.run.data for row in rows):
        columns["probed on"] = lambda row: row.probed
    scores = dict.fromkeys(name for row in rows for name in score_names(row.results))
    optional = {
        "pretext": _pretext,
        **{count(n, "labels"): _few(n) for n in counts},
        "kNN": _percent("knn"),
        "linear": _percent("linear"),
        "best stage": _best_stage,
        "over untrained": _gain,
        "NMI": _plain("nmi"),
        **{name: _percent(name) for name in scores},
    }
    if not all(has_labels(row.results) for row in rows):
        optional |= {"spread": _plain("feature_spread"), "eff. rank": _plain("rank", "{:.1f}")}
    kept = {
        title: cell for title, cell in optional.items() if any(cell(row) != "-" for row in rows)
    }
    things = {BATCHED[row.run.kind] for row in rows}
    return {
        **columns,
        **kept,
        "loss (chance)": _loss,
        "minutes": _minutes,
        f"{things.pop()}/s" if len(things) == 1 else "images, windows, clips/s": _rate,
    }


def _pretext(row: Row) -> str:
    value = _mapping(row.run.results.get("pretext")).get("accuracy")
    return "-" if value is None else f"{100 * value:.1f}"


def _few(n: int) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        found = row.own.get("few", {}).get(str(n))
        return f"{100 * found['mean']:.1f} ± {100 * found['sd']:.1f}" if found else "-"

    return cell


def _percent(key: str) -> Callable[[Row], str]:
    return lambda row: f"{100 * row.own[key]:.1f}" if key in row.own else "-"


def _plain(key: str, form: str = "{:.3f}") -> Callable[[Row], str]:
    return lambda row: form.format(row.own[key]) if key in row.own else "-"


def _best_stage(row: Row) -> str:
    if "best_stage_linear" not in row.own:
        return "-"
    return f"{100 * row.own['best_stage_linear']:.1f} ({row.own['best_stage']})"


def _gain(row: Row) -> str:
    """Points that the best stage adds to the same stage of the untrained network."""
    untrained = _mapping(row.results.get("random-init")).get("stages", [])
    same = [each["linear"] for each in untrained if each["stage"] == row.own.get("best_stage")]
    return f"{100 * (row.own['best_stage_linear'] - same[0]):+.1f}" if same else "-"


def _loss(row: Row) -> str:
    loss, chance = row.run.last("loss"), row.run.last("chance")
    return "-" if loss is None else f"{loss:.3f}" + (f" ({chance:.2f})" if chance else "")


def _minutes(row: Row) -> str:
    seconds = row.run.cost.get("training_seconds")
    return "-" if seconds is None else f"{seconds / 60:.1f}"


def _rate(row: Row) -> str:
    rate = row.run.cost.get("images_per_second", row.run.last("images_per_second"))
    return "-" if rate is None else f"{rate:,.0f}"


def _few_points(row: Row) -> list[tuple[float, float]]:
    few = row.own.get("few", {})
    return sorted((float(n), 100 * cell["mean"]) for n, cell in few.items())


def _stage_points(row: Row) -> list[tuple[float, float]]:
    return [(float(each["stage"]), 100 * each["linear"]) for each in row.own.get("stages", [])]


def _chart(
    rows: Sequence[Row],
    points: Callable[[Row], list[tuple[float, float]]],
    title: str,
    caption: str,
    *,
    log_x: bool = False,
) -> str:
    found = [(_style(i), points(row)) for i, row in enumerate(rows)]
    lines = [Line(each, style, markers=True) for style, each in found if each]
    if not lines:
        return ""
    chart = line_chart(
        lines,
        title=f"{title}, test accuracy in percent",
        x_label="labels a class" if log_x else "stage",
        log_x=log_x,
        x_ticks=sorted({x for line in lines for x, _ in line.points}),
        y_format="{:g} %",
    )
    return figure(title, chart, caption)


def _style(number: int) -> str:
    return f"c{number % 20}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _basis(results: Mapping[str, Any]) -> tuple[object, ...]:
    protocol = _mapping(results.get("protocol"))
    # Without labels there are neighbours, no probes; older files had one name for both.
    fitted = protocol.get("probe_images", protocol.get("neighbour_images"))
    same = [protocol.get(name) for name in ("data", "test_images", "train_videos", "test_videos")]
    same.append(fitted)
    return (*same, _mapping(protocol.get("linear")).get("classifier"))
