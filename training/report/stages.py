"""The section on what each stage of the networks knows, and on the pretext task itself."""

from collections.abc import Mapping, Sequence
from html import escape

from sslops.training.evaluate.stages import stage_count
from sslops.training.evaluate.table import score_text
from sslops.training.report.page import cell_table, figure, section
from sslops.training.report.results import arm_name, arm_style
from sslops.training.report.run_folder import Run
from sslops.training.report.svg import Line, line_chart

__all__ = ["pretext_scores", "stage_section"]


def stage_section(run: Run) -> str:
    """A chart and a table of the linear probes, or nothing where none was made."""
    numbers = stage_count(run.results)
    if not numbers:
        return ""
    arms = {name: arm["stages"] for name, arm in run.arms.items() if arm.get("stages")}
    lines = [
        Line(
            [(each["stage"], 100 * each["linear"]) for each in stages],
            arm_style(run, name),
            label=arm_name(name),
            markers=True,
        )
        for name, stages in reversed(list(arms.items()))
    ]
    chart = line_chart(
        lines,
        title="Linear probe of each stage, test accuracy in percent",
        x_label="stage",
        x_ticks=numbers,
        y_format="{:g} %",
    )
    rows = [[arm_name(name), *_cells(numbers, stages)] for name, stages in arms.items()]
    return section(
        "Stage by stage",
        f'<div class="charts">{figure("Linear probe of each stage", chart)}</div>',
        cell_table(["", *(f"stage {number}" for number in numbers)], rows),
        lead="Features of every stage, averaged to a comparable number of cells. A pretext task "
        "that asks for something else than the classes bends the last stages towards itself.",
    )


def _cells(numbers: Sequence[int], stages: Sequence[Mapping[str, float]]) -> list[str]:
    found = {each["stage"]: each for each in stages}
    return [
        f"{100 * found[n]['linear']:.1f}<small class=under>{found[n]['dim']:,} features</small>"
        if n in found
        else "&ndash;"
        for n in numbers
    ]


def pretext_scores(run: Run) -> str:
    """What the method scores at its own task on test images, or nothing."""
    scores = run.results.get("pretext")
    if not isinstance(scores, Mapping) or not scores:
        return ""
    rows = [
        [escape(name.replace("_", " ")), score_text(name, value)] for name, value in scores.items()
    ]
    return section(f"The task itself, on test {run.samples}", cell_table(["", "value"], rows))
