"""metrics.jsonl: means over the steps between two records, and where the time went."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslops.training.distributed.process import World, mean_over

__all__ = ["Clock", "MetricsFile", "Window", "truncate_metrics"]


class Window:
    """Sums of a step's scalars, kept on their device until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps = 0

    def add(self, out: dict[str, Tensor]) -> None:
        """Add one step's 0-d tensors."""
        for name, value in out.items():
            if value.ndim == 0:
                value = value.detach().float()
                self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.steps += 1

    def read(self, world: World) -> dict[str, float]:
        """Means over steps since the last read and over processes. Empties the window."""
        means = mean_over(world, torch.stack(list(self.sums.values())) / self.steps).tolist()
        names, self.sums, self.steps = list(self.sums), {}, 0
        return dict(zip(names, means, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: a record after resuming covers the steps before it too."""
        return {"sums": self.sums, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`."""
        self.sums, self.steps = dict(state["sums"]), state["steps"]


class Clock:
    """Wall time of the loop, and how much of it went into waiting for data.

    Args:
        seconds: already spent, before a resumption.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._start = time.perf_counter() - seconds
        self._lap = time.perf_counter()
        self._waited = 0.0

    @property
    def seconds(self) -> float:
        """All time so far."""
        return time.perf_counter() - self._start

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The block waits for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """The block is no part of training: it counts for `seconds`, not for the rates."""
        start = time.perf_counter()
        yield
        self._lap += time.perf_counter() - start

    def lap(self, images: int) -> dict[str, float]:
        """Rates since the last lap in which `images` were trained on."""
        now = time.perf_counter()
        elapsed = max(now - self._lap, 1e-9)
        rates = {"images_per_second": images / elapsed, "data_wait": self._waited / elapsed}
        self._lap, self._waited = now, 0.0
        return rates


class MetricsFile:
    """Appends records to metrics.jsonl and, on request, to TensorBoard's event files.

    Args:
        folder: run folder; None writes nothing.
        tensorboard: write event files into folder/tensorboard.
    """

    def __init__(self, folder: Path | None, *, tensorboard: bool) -> None:
        self.path = None if folder is None else folder / "metrics.jsonl"
        self.writer: Any = None
        if tensorboard and folder is not None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, rarely wanted

            self.writer = SummaryWriter(str(folder / "tensorboard"))

    def write(self, record: dict[str, Any]) -> None:
        """One line."""
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        if self.writer is not None:
            for name, value in record.items():
                self.writer.add_scalar(name, value, record["step"])
            self.writer.flush()


def truncate_metrics(folder: Path, step: int) -> None:
    """Drop records after `step`: what a killed run wrote past its last checkpoint."""
    path = folder / "metrics.jsonl"
    if path.is_file():
        kept = []
        for line in path.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break  # the line it was killed in
            if record["step"] <= step:
                kept.append(line + "\n")
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        temporary.write_text("".join(kept))
        os.replace(temporary, path)  # a run may be killed here as well
