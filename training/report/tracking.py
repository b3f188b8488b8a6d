"""Sections of a run on videos: how well objects are followed, and pictures of it."""

from html import escape

from sslops.training.evaluate.tracking import score_names
from sslops.training.report.page import cell_table, figure, missing, picture, section, titled
from sslops.training.report.results import arm_name
from sslops.training.report.run_folder import Run

__all__ = ["FOLLOWED", "followed", "tracking_scores"]

FOLLOWED = "followed-"  # how the names of such pictures begin
LEAD = (
    "The first frame's masks and key points are given; each later frame copies them from similar "
    "places of the frames before it. J is the overlap with the true mask, F the agreement of the "
    "boundaries, PCK the share of key points found within a tenth of the frame's side, PCK05 "
    "within a twentieth. In percent, without the first frame."
)


def tracking_scores(run: Run) -> str:
    """The table of all arms."""
    arms = run.arms
    title = "Objects followed"
    if not arms:
        return section(
            title, missing("This run was not evaluated. `sslops eval` with its folder does it.")
        )
    names = score_names(run.results)
    if not names:
        return section(title, missing("No test video has masks, so that nothing was followed."))
    rows = [
        [
            escape(arm_name(arm)),
            *(f"{100 * row[name]:.1f}" if name in row else "&ndash;" for name in names),
        ]
        for arm, row in arms.items()
    ]
    return section(title, cell_table(["", *names], rows), lead=LEAD)


def followed(run: Run) -> str:
    """Masks over frames."""
    names = sorted(name for name in run.pictures if name.startswith(FOLLOWED))
    if not names:
        return ""
    rows = ", ".join(["the true masks", *(arm_name(arm) for arm in run.arms)])
    figures = []
    for name in names:
        head = titled(name.removeprefix(FOLLOWED))
        figures.append(
            figure(
                head,
                picture(run.pictures[name], f"Masks, {head}", wide=True),
                f"Rows: {rows}.",
                wide=True,
            )
        )
    return section("Masks over time", f'<div class="charts">{"".join(figures)}</div>')
