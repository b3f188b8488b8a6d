"""One setting at several values: a run each, all evaluated side by side, in one table."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sslops.training.config import RunOptions, TrainConfig, closest
from sslops.training.distributed.process import World, join
from sslops.training.engine.setup import DataSource, build_method, load_data, shape_of
from sslops.training.evaluate.baselines import plain_features, supervised_arms
from sslops.training.evaluate.run import evaluate_arms, forget_seen
from sslops.training.loggers.console import Console
from sslops.training.loggers.words import count
from sslops.training.report.summary import summarise, summary_table
from sslops.training.run.run import execute
from sslops.training.storage import encoder as export
from sslops.training.storage.folder import read_json, write_json
from sslops.training.storage.older import today_results

__all__ = ["ablate", "parse_value"]


def ablate(
    method: str,
    field: str,
    values: Sequence[Any],
    config: TrainConfig,
    out: Path,
    seeds: int,
    console: Console,
) -> dict[str, Any]:
    """Train with every value of one field, evaluate all encoders and the controls together.

    A run that is complete in `out` is not repeated, so that a broken-off ablation goes on. The
    controls with labels are trained for the first seed alone.

    Args:
        method: a name from `sslops list`.
        field: of its config.
        values: what it takes in turn.
        config: everything else.
        out: folder; runs go to FIELD=VALUE/seedN, the table's numbers to ablation.json.
        seeds: runs of each value, with seeds from `config.seed` on.
        console: where to report.

    Returns:
        What ablation.json holds: `summary` as of several seeds, and the `results` of each seed.

    Raises:
        TypeError: no such field.
        ValueError: no values, or one that the config refuses.
    """
    if not hasattr(config, field):
        raise TypeError(f"ablate: no such option, got {field!r}{closest(field, vars(config))}")
    if not values:
        raise ValueError("ablate: needs at least one value, got none")
    runs = {f"{field}={value}": replace(config, **{field: value}) for value in values}
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    results, source = [], DataSource()
    for seed in range(config.seed, config.seed + seeds):
        encoders: dict[str, nn.Module | None] = {}
        costs = {}
        for name, each in runs.items():
            folder = out / name / f"seed{seed}"
            if not (folder / "encoder.safetensors").is_file():
                begun = (folder / "checkpoint" / "last.pt").is_file()
                options = RunOptions(out=str(folder), resume=begun)
                own = replace(each, seed=seed, evaluate=False)
                execute(method, own, options, console, source, part=True)
            encoders[name] = export.load_encoder(folder)
            costs[name] = _cost(folder)
        first = seed == config.seed
        own = replace(config, seed=seed)
        found = _evaluate(method, own, encoders, out, first, console, source)
        for name, cost in costs.items():
            found[name] |= cost
        results.append({**found, "cost": {}})
    summary = summarise(results)
    content = {"method": method, "field": field, "seeds": seeds, "summary": summary}
    write_json(out / "ablation.json", {**content, "results": results})
    console.print(f"\n{method}, {count(seeds, 'seeds')}\n{summary_table(summary)}")
    console.print(f"numbers   {out / 'ablation.json'}")
    return content


def _cost(folder: Path) -> dict[str, float]:
    """Where a run's training ended, and how long it took."""
    record = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    cost = today_results(read_json(folder / "results.json"))["cost"]
    names = {"loss": record, "chance": record, "training_seconds": cost}
    return {name: where[name] for name, where in names.items()}


def _evaluate(
    method: str,
    config: TrainConfig,
    encoders: dict[str, nn.Module | None],
    out: Path,
    labelled: bool,
    console: Console,
    source: DataSource,
) -> dict[str, Any]:
    """Results of `evaluate` for the encoders and the controls, for one seed."""
    world = World(0, 1, join(config.device).device)
    data, train, _ = load_data(config, source)
    shape = shape_of(data)
    arms = {**encoders, "random-init": build_method(method, config, shape, world).encoder.eval()}
    arms |= plain_features(data)
    if labelled:
        arms |= supervised_arms(out, config, data, train, shape, world, console)
    console.print(f"evaluating {', '.join(arms)} ...")
    results = evaluate_arms(arms, data, config, world)
    forget_seen(results, config)
    return results


def parse_value(text: str) -> Any:
    """A value of the command line: a number, true, false, null, else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
