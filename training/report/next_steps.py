"""What to try after a command, as commands to type; never what was just done."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from sslops.training import data
from sslops.training.config import TrainConfig, departures
from sslops.training.evaluate.table import arms, has_labels

__all__ = ["next_steps"]

OWN_FOLDER = "PATH/TO/FOLDER"


def next_steps(
    done: Literal["train", "eval", "seeds"],
    name: str,
    config: TrainConfig,
    folder: Path,
    results: Mapping[str, Any],
) -> list[str]:
    """Commands that make sense when `done` has ended.

    Args:
        done: a training, an evaluation by itself, or the trainings of several seeds.
        name: of the method.
        config: of the run.
        folder: of the run, or of the runs of the seeds.
        results: of its evaluation, if there was one.
    """
    one = folder / f"seed{config.seed}" if done == "seeds" else folder
    code = f"from sslops.training import load_encoder; print(load_encoder({str(one)!r}))"
    steps = [f"python -c {_quoted(code)}"]
    evaluated = bool(arms(results))
    if done == "train" and not evaluated:
        steps.append(f"sslops eval {shlex.quote(str(folder))}")
    if evaluated and not has_labels(results) and config.kind == "image" and not config.eval_data:
        steps.append(f"sslops eval {shlex.quote(str(one))} --eval-data {OWN_FOLDER}/WITH/CLASSES")
    part = folder.name == f"seed{config.seed}"  # of several seeds already
    seeds = Path(f"{folder}-seeds")
    if done != "seeds" and not part and not seeds.exists():  # one in use would be refused
        flags = "".join(f" {flag}" for flag in _flags(name, config))
        steps.append(f"sslops train {name}{flags} --seeds 3 --out {shlex.quote(str(seeds))}")
    if config.data in data.names():
        steps.append(f"sslops train {name} --data {OWN_FOLDER}")
    beside = folder if done == "seeds" else folder.parent
    if len(list(beside.glob("*/config.json"))) > 1:
        steps.append(f"sslops compare {shlex.quote(str(beside))}/*")
    return steps


def _quoted(code: str) -> str:
    """One word of the shell, in double quotes where they change nothing in it."""
    return shlex.quote(code) if set(code) & set('"\\$`!') else f'"{code}"'


def _flags(name: str, config: TrainConfig) -> list[str]:
    """Those of `sslops train` that give this configuration, but for the seed."""
    flags = []
    for key, value in departures(name, config).items():
        if key == "seed":
            continue
        flag = key.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags.append(f"--{flag} {shlex.quote(str(value))}")
    return flags
