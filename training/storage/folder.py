"""The run folder: opened without ever overwriting a run unasked, read back by later commands."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from sslops._names import shown
from sslops.training.config import RunOptions, TrainConfig, changed_fields, default_out, make_config
from sslops.training.config.values import fitting_values
from sslops.training.methods import find_method

__all__ = [
    "check_folder",
    "checkpoint_file",
    "default_config",
    "discard_folder",
    "has_checkpoint",
    "open_folder",
    "read_config",
    "read_json",
    "saved_config",
    "write_json",
]


def has_checkpoint(folder: Path, name: str = "last") -> bool:
    """Whether a run folder has the checkpoint NAME, in one file or divided."""
    path = folder / "checkpoint" / name
    return any(
        each.exists() for each in (checkpoint_file(path), path, path.with_name(f"{name}.old"))
    )


def checkpoint_file(path: Path) -> Path:
    """The one file of the checkpoint PATH; one of sharded weights is a folder of that name."""
    return path.with_name(f"{path.name}.pt")


def check_folder(folder: Path, options: RunOptions, method: str, config: TrainConfig) -> None:
    """See to it that `open_folder` will destroy nothing unasked, before time goes into a run.

    Raises:
        FileExistsError: it is in use, and neither `overwrite` nor `resume` is set.
        FileNotFoundError: `resume` without a checkpoint.
        ValueError: `resume` with another method or another configuration.
    """
    if options.resume:
        if not has_checkpoint(folder):
            raise FileNotFoundError(
                f"train: --resume needs {folder}/checkpoint/last.pt, got no such file; start anew"
                f" {'with --overwrite' if _is_run(folder) else 'without --resume'}"
            )
        saved_method, saved = read_config(folder)
        changed = changed_fields(saved, config)
        if saved_method != method:
            raise ValueError(f"train: the run in {folder} is {saved_method}, got {method}")
        if changed:
            raise ValueError(
                "train: --resume keeps the run's configuration, got another"
                f" {shown(changed, ', ')}; start a new run with another --out"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not options.overwrite:
            ways = ["--out takes another name"]
            if _is_run(folder):
                ways.insert(0, "--overwrite deletes it")
            if has_checkpoint(folder):
                ways.insert(0, "--resume goes on with the run in it")
            raise FileExistsError(
                f"train: --out must be a new or empty folder, got {folder}; {', '.join(ways)}"
            )
        if not _is_run(folder):
            raise FileExistsError(
                f"train: --overwrite deletes only run folders (with config.json), got {folder}"
            )


def _is_run(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def open_folder(folder: Path, options: RunOptions, method: str, config: TrainConfig) -> None:
    """Make a run's folder and write its config.json; `check_folder` has allowed it."""
    if options.overwrite and not options.resume and folder.exists():
        for path in folder.iterdir():  # config.json last: without it nobody may delete the rest
            if path.name != "config.json":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("**/*.tmp"):  # of a run that was killed while writing
        path.unlink()
    write_json(folder / "config.json", {"method": method, **asdict(config)})


def discard_folder(folder: Path) -> None:
    """Delete what `open_folder` and the beginning of a run made, unless there is a checkpoint.

    A run that fails before its first step leaves nothing to go on with, and its folder would only
    be in the way of the next try.
    """
    if not has_checkpoint(folder):
        shutil.rmtree(folder, ignore_errors=True)


def read_config(folder: Path) -> tuple[str, TrainConfig]:
    """The method's name and the configuration of a run.

    Raises:
        FileNotFoundError: it is no run folder.
    """
    values = read_json(folder / "config.json")
    method = values.pop("method")
    return method, saved_config(method, values)


def saved_config(method: str, saved: Mapping[str, Any]) -> TrainConfig:
    """The configuration that was written down, perhaps by another version.

    Fields that this version has no more are left out, those that it has since have their defaults.
    """
    cls = find_method(method).config
    known = {field.name for field in fields(cls)}
    values = {name: value for name, value in saved.items() if name in known}
    if cls.archs and values.get("arch") not in cls.archs:
        # From before `archs`: any --arch was written down, and never built (cpc-audio ignored it,
        # the others failed with it).
        values["arch"] = cls.archs[0]
    return cls(**values)


def default_config(method: str, given: dict[str, Any], options: RunOptions) -> TrainConfig:
    """The configuration before explicit fields: of the run to resume, else of the recipe."""
    cls = find_method(method).config
    if options.resume:
        data = fitting_values("config", cls, given).get("data", cls.data)
        folder = Path(options.out or default_out(method, data))
        if (folder / "config.json").is_file():
            return read_config(folder)[1]
    return make_config(cls, method, given)


def read_json(path: Path) -> dict[str, Any]:
    """Content of a run's JSON file.

    Raises:
        FileNotFoundError: there is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"sslops: {path.parent} is no complete run, got no {path.name}")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` indented, whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)
