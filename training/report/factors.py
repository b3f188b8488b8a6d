"""The section on what features tell of who speaks, and of speakers that the probe has not heard."""

from sslops.training.evaluate.factors import factor_titles
from sslops.training.report.page import cell_table, section
from sslops.training.report.results import arm_name
from sslops.training.report.run_folder import Run

__all__ = ["factor_numbers"]


def factor_numbers(run: Run) -> str:
    """A table, or nothing where no factor was measured."""
    titles = factor_titles(run.results)
    if not titles:
        return ""
    rows = [
        [arm_name(name), *(f"{100 * arm[key]:.1f}" if key in arm else "&ndash;" for key in titles)]
        for name, arm in run.arms.items()
    ]
    return section(
        "Who speaks, what is said, and new speakers",
        cell_table(["", *titles.values()], rows),
        lead="Accuracies in percent. 1 label: one labelled recording of each, mean over draws. "
        "Unseen: labels of recordings of that speaker, the probe fitted on the others. Frames: a "
        "probe on single frames instead of whole recordings.",
    )
