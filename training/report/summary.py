"""What is said after a run, and the tables of one or several runs."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from sslops.training.config import TrainConfig
from sslops.training.evaluate.factors import factor_table, factor_titles
from sslops.training.evaluate.stages import stage_table
from sslops.training.evaluate.table import align, arms, score_text, table
from sslops.training.evaluate.tracking import SCORES, tracking_table
from sslops.training.loggers.console import Console, duration
from sslops.training.loggers.words import BATCHED, SAMPLES
from sslops.training.report.next_steps import next_steps

__all__ = [
    "print_closing",
    "print_next",
    "print_tables",
    "summarise",
    "summary_table",
]


def print_closing(
    name: str,
    config: TrainConfig,
    folder: Path,
    results: dict[str, Any],
    console: Console,
    done: Literal["train", "eval"] | None = "train",
) -> None:
    """Results beside controls, cost, where things lie, what to try next.

    Args:
        name: of the method.
        config: of the run.
        folder: of the run.
        results: content of results.json.
        console: where to report.
        done: what has just ended; None where more of the same kind follows.
    """
    cost = results["cost"]
    print_tables(results, console)
    if scores := results.get("pretext"):
        said = ", ".join(f"{key} {score_text(key, value)}" for key, value in scores.items())
        console.print(f"\npretext   {said} on test {SAMPLES[config.kind]}")
    console.print(
        f"\ncost      {duration(cost['training_seconds'])} of training,"
        f" {cost['images_per_second']:,.0f} {BATCHED[config.kind]}/s,"
        f" {cost['peak_memory_gb']:.1f} GB at most, {cost['encoder_parameters']:,} parameters"
    )
    if (folder / "report.html").is_file():
        console.print(f"report    {(folder / 'report.html').resolve()}")
    console.print(f"encoder   {folder / 'encoder.safetensors'}")
    if done is not None:
        print_next(next_steps(done, name, config, folder, results), console)


def print_next(steps: Sequence[str], console: Console) -> None:
    """Commands below one another."""
    console.print("next      " + "\n          ".join(steps))


def print_tables(results: Mapping[str, Any], console: Console) -> None:
    """What `evaluate` measured."""
    if arms(results):
        first = tracking_table(results) or table(results)
        for each in (first, factor_table(results), stage_table(results)):
            if each:
                console.print("\n" + each)


def _cell(key: str, value: Mapping[str, float] | None) -> str:
    if value is None:
        return "-"
    if key in ("nmi", "feature_spread", "rank"):
        digits = 1 if key == "rank" else 3
        return f"{value['mean']:.{digits}f} ± {value['sd']:.{digits}f}"
    return _percent(value["mean"], value["sd"])


def _percent(mean: float, sd: float) -> str:
    return f"{100 * mean:.1f} ± {100 * sd:.1f}"


def summarise(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over runs, arm by arm.

    Returns:
        {arm: {number: {"mean", "sd", "values"}}}; few labels are called "few.1", "few.5", ...,
        linear probes of stages "stage.1", "stage.2", ...
    """
    summary: dict[str, Any] = {}
    for name in [*arms(results[0]), "pretext", "cost"]:
        flat = [_flatten(run[name]) for run in results if name in run]
        if not flat:
            continue
        summary[name] = {
            key: {
                "mean": statistics.fmean(run[key] for run in flat),
                "sd": statistics.stdev(run[key] for run in flat) if len(flat) > 1 else 0.0,
                "values": [run[key] for run in flat],
            }
            for key in flat[0]
            if all(key in run for run in flat)
        }
    return summary


def _flatten(arm: Mapping[str, Any]) -> dict[str, float]:
    numbers = {
        key: float(value)
        for key, value in arm.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
    few = {f"few.{n}": cell["mean"] for n, cell in arm.get("few", {}).items()}
    stages = {f"stage.{each['stage']}": each["linear"] for each in arm.get("stages", [])}
    return numbers | few | stages


def summary_table(summary: Mapping[str, Any]) -> str:
    """The arms of `summarise` as rows, each number as mean ± sd over the seeds."""
    rows = {name: arm for name, arm in summary.items() if name not in ("pretext", "cost")}
    few = sorted({key for arm in rows.values() for key in arm if key.startswith("few.")}, key=_few)
    titles = {**{key: f"{_few(key)}/class" for key in few}, "knn": "kNN", "linear": "linear"}
    titles["nmi"] = "NMI"
    if not any(key in arm for arm in rows.values() for key in titles):  # no labels
        titles = {"feature_spread": "spread", "rank": "eff. rank"}
    titles = {key: text for key, text in titles.items() if any(key in arm for arm in rows.values())}
    lines = [["", *titles.values()]]
    for name, arm in rows.items():
        lines.append([name, *(_cell(key, arm.get(key)) for key in titles)])
    tracking = _tracking_table(rows)
    plain = align(lines) if titles else ""
    parts = [tracking or plain, _stage_table(rows), _factor_table(rows)]
    return "\n\n".join(filter(None, [*parts, _pretext(summary.get("pretext", {}))]))


def _stage_table(rows: Mapping[str, Any]) -> str:
    keys = sorted({key for arm in rows.values() for key in arm if key.startswith("stage.")})
    lines = [["linear probe of", *(key.replace(".", " ") for key in keys)]]
    for name, arm in rows.items():
        found = [arm.get(key) for key in keys]
        if any(found):
            lines.append([name, *(_percent(c["mean"], c["sd"]) if c else "-" for c in found)])
    return align(lines) if keys else ""


def _tracking_table(rows: Mapping[str, Any]) -> str:
    names = dict.fromkeys(key for arm in rows.values() for key in arm if key.split()[-1] in SCORES)
    lines = [["", *names]]
    for arm, row in rows.items():
        found = [row.get(name) for name in names]
        lines.append([arm, *(_percent(c["mean"], c["sd"]) if c else "-" for c in found)])
    return align(lines) if names else ""


def _pretext(scores: Mapping[str, Any]) -> str:
    if not scores:
        return ""
    lines = [["pretext task, test part", "mean ± sd"]]
    for name, each in scores.items():
        if score_text(name, 1.0).endswith("%"):
            lines.append([f"{name}, percent", _percent(each["mean"], each["sd"])])
        else:
            lines.append([name, f"{each['mean']:.4g} ± {each['sd']:.2g}"])
    return align(lines)


def _factor_table(rows: Mapping[str, Any]) -> str:
    """Numbers of evaluate/factors.py: the median over the seeds, and the lowest and highest."""
    plain = ("few.", "stage.")  # flattened here, and shown in tables of their own
    kept = {
        name: {key: value for key, value in arm.items() if not key.startswith(plain)}
        for name, arm in rows.items()
    }
    titles = factor_titles({name: {"dim": 0, **arm} for name, arm in kept.items()})
    if not titles:
        return ""
    lines = [["median (lowest, highest)", *titles.values()]]
    for name, arm in rows.items():
        lines.append(
            [name, *(_median(arm[key]["values"]) if key in arm else "-" for key in titles)]
        )
    return align(lines)


def _median(values: Sequence[float]) -> str:
    middle, low, high = (100 * f(values) for f in (statistics.median, min, max))
    return f"{middle:.1f} ({low:.1f}, {high:.1f})"


def _few(key: str) -> int:
    return int(key.removeprefix("few."))
