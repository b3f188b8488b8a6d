"""What a run folder holds; whatever is missing or cut off is simply empty."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslops.training.evaluate.table import arms, has_labels
from sslops.training.loggers.words import SAMPLES, Kind
from sslops.training.methods import METHODS
from sslops.training.storage.folder import has_checkpoint
from sslops.training.storage.older import today_record, today_results

__all__ = ["CONTROLS", "Run", "is_run", "read_run"]

CONTROLS = ("random-init", "pixels", "log-mel", "supervised", "simclr")


@dataclass(frozen=True)
class Run:
    """A run folder in memory.

    Attributes:
        folder: where it lies.
        config: config.json.
        env: env.json.
        results: results.json.
        records: lines of metrics.jsonl.
        points: arrays of features.npz.
        pictures: PNG files by name without ending.
        encoder: encoder.json.
        figures: figures.json, the method's own charts by name.
        transfer: transfer/*.json, results on other data sets by name.
        rotnet: rotnet.json, of the semi-supervised protocol.
        resumable: there is a checkpoint to go on from.
    """

    folder: Path
    config: Mapping[str, Any]
    env: Mapping[str, Any]
    results: Mapping[str, Any]
    records: list[dict[str, Any]]
    points: Mapping[str, NDArray[Any]]
    pictures: Mapping[str, bytes]
    encoder: Mapping[str, Any]
    figures: Mapping[str, Any]
    transfer: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rotnet: Mapping[str, Any] = field(default_factory=dict)
    resumable: bool = False

    @property
    def method(self) -> str:
        """Name of the trained method."""
        return str(self.config.get("method", "run"))

    @property
    def data(self) -> str:
        """Name of the data set; of a folder of images its last part."""
        return Path(str(self.config.get("data", "unknown data"))).name

    @property
    def kind(self) -> Kind:
        """What is learnt from; images, of a method that is not known here."""
        if self.method in METHODS:
            return METHODS[self.method].kind
        if "rate" in self.encoder:
            return "sound"
        return "video" if "frames" in self.encoder else "image"

    @property
    def sound(self) -> bool:
        """Whether the encoder hears, and there is nothing to look at."""
        return self.kind == "sound"

    @property
    def video(self) -> bool:
        """Whether objects are followed through videos, and nothing is probed."""
        return self.kind == "video"

    @property
    def samples(self) -> str:
        """Images, recordings or videos."""
        return SAMPLES[self.kind]

    @property
    def labelled(self) -> bool:
        """Whether there were labels to score features by."""
        return has_labels(self.results)

    @property
    def arms(self) -> dict[str, Mapping[str, Any]]:
        """Evaluated arms, the method first, then its controls."""
        found = arms(self.results)
        order = [self.method, *CONTROLS]
        known = [name for name in order if name in found]
        return {name: found[name] for name in [*known, *(n for n in found if n not in order)]}

    @property
    def protocol(self) -> Mapping[str, Any]:
        """How the arms were evaluated."""
        return _mapping(self.results.get("protocol"))

    @property
    def cost(self) -> Mapping[str, Any]:
        """Time, rate, memory."""
        return _mapping(self.results.get("cost"))

    def series(self, name: str, x: str = "step") -> list[tuple[float, float]]:
        """(x, value) of the records that have a finite `name`."""
        pairs = []
        for record in self.records:
            a, b = record.get(x), record.get(name)
            if _finite(a) and _finite(b):
                pairs.append((float(a), float(b)))  # type: ignore[arg-type]
        return pairs

    def last(self, name: str) -> float | None:
        """Last finite value of a metric."""
        values = self.series(name)
        return values[-1][1] if values else None


def is_run(folder: Path) -> bool:
    """Whether it has a config.json."""
    return (folder / "config.json").is_file()


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        FileNotFoundError: there is no config.json, so that it is no run folder.
    """
    if not is_run(folder):
        raise FileNotFoundError(
            f"report: {folder} must be a run folder with a config.json, got none; "
            "give the folder that `sslops train` printed as out"
        )
    return Run(
        folder=folder,
        config=_json(folder / "config.json"),
        env=_json(folder / "env.json"),
        results=today_results(_json(folder / "results.json")),
        records=_records(folder / "metrics.jsonl"),
        points=_arrays(folder / "features.npz"),
        pictures={
            path.stem: path.read_bytes() for path in sorted((folder / "pictures").glob("*.png"))
        },
        encoder=_json(folder / "encoder.json"),
        figures=_json(folder / "figures.json"),
        transfer={
            path.stem: today_results(_json(path))
            for path in sorted((folder / "transfer").glob("*.json"))
        },
        rotnet=_json(folder / "rotnet.json"),
        resumable=has_checkpoint(folder),
    )


def _json(path: Path) -> Mapping[str, Any]:
    try:
        return _mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _records(path: Path) -> list[dict[str, Any]]:
    records = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the line that an interruption cut
        if isinstance(record, dict):
            records.append(today_record(record))
    return records


def _arrays(path: Path) -> Mapping[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError):
        return {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
