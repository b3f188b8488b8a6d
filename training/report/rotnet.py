"""The section of the semi-supervised protocol, `sslops eval RUN --protocol rotnet`."""

from sslops.training.report.page import figure, legend, section
from sslops.training.report.run_folder import Run
from sslops.training.report.svg import Line, line_chart

__all__ = ["rotnet_curve"]


def rotnet_curve(run: Run) -> str:
    """Accuracy against labels with frozen first blocks and from scratch; nothing without it."""
    accuracy = run.rotnet.get("accuracy")
    protocol = run.rotnet.get("protocol")
    if not accuracy or not protocol:
        return ""
    counts = sorted(accuracy, key=int)
    arms = list(accuracy[counts[0]])
    styles = {arm: "method" if arm == run.method else "supervised" for arm in arms}
    lines = [
        Line([(int(n), 100 * accuracy[n][arm]) for n in counts], styles[arm], markers=True)
        for arm in reversed(arms)
    ]
    chart = line_chart(
        lines, title="Accuracy against labels a class", x_label="labels a class", y_label="%",
        log_x=len(counts) > 1, x_ticks=[int(n) for n in counts],
    )  # fmt: skip
    caption = (
        f"Test accuracy after {protocol['steps']:,} steps of {protocol['batch']} labelled images:"
        f" the first {protocol['freeze']} blocks frozen as {run.method} left them and the rest "
        "trained from fresh weights, against the whole network from the same fresh weights."
    )
    return section(
        "Frozen first blocks and few labels",
        f'<div class="charts">{figure("Test accuracy", legend(styles) + chart, caption)}</div>',
        lead="The protocol of RotNet (Gidaris et al. 2018): what the first blocks are worth when "
        "the others are trained on few labels.",
    )
