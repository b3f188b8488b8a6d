"""Sections on the training itself: curves with their chance lines, collapse gauges, cost."""

from collections.abc import Mapping
from typing import Any

from sslops.training.engine.collapse import COLLAPSED
from sslops.training.loggers.words import BATCHED
from sslops.training.report.page import definitions, figure, missing, section
from sslops.training.report.run_folder import Run
from sslops.training.report.svg import Line, Rule, line_chart

__all__ = ["cost", "curves"]

MAX_POINTS = 400


def curves(run: Run) -> str:
    """Loss, retrieval and the gauges that show a collapse."""
    if not run.series("loss"):
        return section("Training", missing("No training record was found (metrics.jsonl)."))
    figures = [_loss(run), _progress(run), _spread(run), _rate(run)]
    return section(
        "Training",
        f'<div class="charts">{"".join(figures)}</div>',
        lead="A curve says little without the value of a model that knows nothing: the dashed "
        "lines.",
    )


def _loss(run: Run) -> str:
    points = _thin(run.series("loss"))
    chance = run.last("chance")
    rules = []
    if chance is not None:
        below = points[0][1] > chance
        rules.append(Rule(chance, f"chance {chance:.2f}: knows nothing", below=below))
    return figure(
        "Loss",
        line_chart(
            [Line(points, "method")],
            title="Training loss against steps, with its chance value",
            x_label="step",
            rules=rules,
        ),
        f"Last value {points[-1][1]:.3f}"
        + (f", chance {chance:.3f}." if chance is not None else "."),
    )


def _progress(run: Run) -> str:
    hits = [(x, 100 * y) for x, y in _thin(run.series("accuracy"))]
    knn = [(x, 100 * y) for x, y in _thin(run.series("knn"))]
    lines = []
    if hits:
        lines.append(Line(hits, "other", label="own task"))
    if knn:
        lines.append(Line(knn, "method", label="kNN", markers=len(knn) < 40))
    if not lines:
        return ""
    says = []
    if hits:
        says.append(
            "Own task: right answers to what the method asks of itself (of contrastive losses, how "
            "often a view's partner is the nearest of all candidates)."
        )
    if knn:
        says.append(f"kNN: validation {run.samples} named by their nearest training {run.samples}.")
    return figure(
        "Accuracy while training",
        line_chart(
            lines,
            title="Accuracy at the own task and of nearest neighbours in percent",
            x_label="step",
            y_range=(0, 100),
            y_format="{:g} %",
        ),
        " ".join(says),
    )


def _spread(run: Run) -> str:
    points = _thin(run.series("feature_spread"))
    if not points:
        return ""
    rules = [
        Rule(1.0, "1: evenly spread", style="even"),
        Rule(COLLAPSED, f"collapse below {COLLAPSED:g}"),
    ]
    top = max([y for _, y in points] + [1.0])
    return figure(
        "Spread of the features",
        line_chart(
            [Line(points, "method")],
            title="Spread of the features against steps",
            x_label="step",
            rules=rules,
            y_range=(0.0, 1.2 * top),
        ),
        "Standard deviation of the unit-length outputs the loss sees, as a share of that of evenly "
        "spread ones. Zero means that all of them fall on one point.",
    )


def _rate(run: Run) -> str:
    points = _thin(run.series("lr"))
    if not points:
        return figure("Learning rate", missing("The learning rate was not logged."))
    return figure(
        "Learning rate",
        line_chart(
            [Line(points, "random-init")],
            title="Learning rate against steps",
            x_label="step",
            y_range=(0.0, None),
        ),
        f"Peak {max(y for _, y in points):.3g}.",
    )


def cost(run: Run) -> str:
    """Time, throughput, memory, device."""
    entries = _cost_entries(run)
    if not entries:
        return section("Cost", missing("The run recorded no cost."))
    return section("Cost", definitions(entries))


def _cost_entries(run: Run) -> dict[str, str]:
    known, env = run.cost, run.env
    entries: dict[str, str] = {}
    _put(entries, "training time", known.get("training_seconds"), _duration)
    _put(
        entries,
        f"{BATCHED[run.kind]} per second",
        known.get("images_per_second", run.last("images_per_second")),
        lambda v: f"{v:,.0f}",
    )
    _put(
        entries,
        "peak memory",
        known.get("peak_memory_gb", run.last("memory_gb")),
        lambda v: f"{v:.2f} GB",
    )
    _put(entries, "waiting for data", run.last("data_wait"), lambda v: f"{100 * v:.1f} %")
    _put(entries, "energy", known.get("energy_joules"), lambda v: f"{v / 3600:.2f} Wh")
    _put(entries, "evaluation, controls included", known.get("evaluation_seconds"), _duration)
    _put(entries, "encoder parameters", known.get("encoder_parameters"), lambda v: f"{v:,.0f}")
    _put(entries, "parameters in all", known.get("parameters"), lambda v: f"{v:,.0f}")
    _put(entries, "steps", known.get("steps", run.last("step")), lambda v: f"{v:,.0f}")
    device = env.get("device_name") or env.get("device")
    if device:
        entries["device"] = f"{device} ({env['device']})" if env.get("device") else str(device)
    for name, label in (("threads", "CPU threads"), ("precision", "precision")):
        if env.get(name) is not None:
            entries[label] = str(env[name])
    return entries


def _put(entries: dict[str, str], name: str, value: Any, form: Any) -> None:
    if isinstance(value, int | float):
        entries[name] = form(value)


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of neighbours where there are more points than a chart has pixels for."""
    if len(points) <= MAX_POINTS:
        return points
    size = -(-len(points) // MAX_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def setting_entries(values: Mapping[str, Any]) -> dict[str, str]:
    """Flat text of a nested mapping, for definitions."""
    entries: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            entries |= {f"{name}: {key}": text for key, text in setting_entries(value).items()}
        elif isinstance(value, list | tuple):
            entries[name] = ", ".join(str(item) for item in value)
        else:
            entries[name] = "not set" if value is None else str(value)
    return entries
