"""What can end a run early: signals, a lost process, a failing evaluation."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist

from sslops.training.distributed.process import World

__all__ = [
    "EvaluationFailed",
    "Interrupted",
    "ProcessLost",
    "StopRequest",
    "watch_processes",
]


class Interrupted(RuntimeError):
    """A signal asked the run to stop; its checkpoint is saved."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")
        self.exit_code = 128 + number


class ProcessLost(RuntimeError):
    """Another process of the run died; the last checkpoint, if there is one, is as it was."""


class EvaluationFailed(RuntimeError):
    """Training is over and its weights are safe, but evaluating them raised."""


class StopRequest:
    """Remembers the first SIGINT or SIGTERM; a second one acts at once."""

    def __init__(self) -> None:
        self.number: int | None = None

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Catch signals inside the block (of the main thread: Python allows no other)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.getsignal(number) for number in numbers}

        def remember(number: int, frame: FrameType | None) -> None:
            self.number = number
            for known, handler in before.items():
                signal.signal(known, handler)

        for number in numbers:
            signal.signal(number, remember)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def agreed(self, world: World) -> int | None:
        """The signal that any process has got; all processes must ask at the same step."""
        if world.size == 1:
            return self.number
        number = torch.tensor(self.number or 0, device=world.device)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number) or None


@contextmanager
def watch_processes(world: World) -> Iterator[None]:
    """Say in plain words what a broken connection inside the block means.

    Raises:
        ProcessLost: another process is gone.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        gone = any(sign in text for sign in ("onnection closed", "onnection reset", "imed out"))
        if world.size == 1 or not (gone or isinstance(error, dist.DistBackendError)):
            raise
        raise ProcessLost(
            f"train: process {world.rank} of {world.size} lost another one"
            f" ({text.splitlines()[0]}); the cause stands in that one's output"
        ) from error
