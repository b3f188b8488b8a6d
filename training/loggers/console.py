"""What a run prints: banner, one progress line, warnings."""

import math
import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from sslops.training.loggers.words import amount

__all__ = ["Console", "duration", "format_metrics"]

PLAIN_SECONDS = 10.0  # between lines when the output is a file or a pipe


class Console:
    """Prints to a terminal with one updating line, to anything else with plain lines.

    Args:
        stream: standard output if None.
        quiet: print warnings only.
    """

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self.stream = stream or sys.stdout
        self.quiet = quiet
        self.live = self.stream.isatty()
        self.width = 0  # of the progress line on show
        self.printed_at = -math.inf
        self.doing = ""  # the last task on show

    def print(self, text: str = "") -> None:
        """One or more whole lines."""
        if not self.quiet:
            self._write(text)

    def warn(self, text: str) -> None:
        """A line that must be seen."""
        self._write(f"warning: {text}")

    def banner(self, title: str, facts: Mapping[str, Any]) -> None:
        """A title and aligned facts below it."""
        width = max(len(name) for name in facts)
        self.print(title)
        for name, value in facts.items():
            self.print(f"  {name:<{width}}  {value}")

    def progress(self, metrics: Mapping[str, Any], *, last: bool = False) -> None:
        """Show the state of training; `last` leaves the line standing."""
        if self.quiet:
            return
        self._update(format_metrics(metrics), last=last, due=last or "knn" in metrics)

    def task(self, what: str, state: str = "...") -> None:
        """Show what else is being done, and how far it is; `clear` takes the line away."""
        if not self.quiet:
            self._update(f"{what} {state}", last=False, due=what != self.doing)
            self.doing = what

    def clear(self) -> None:
        """Take the updating line of a terminal away."""
        if self.width:
            self.stream.write("\r" + " " * self.width + "\r")
            self.stream.flush()
            self.width = 0

    def _update(self, text: str, *, last: bool, due: bool) -> None:
        if self.live:
            text = text[: shutil.get_terminal_size().columns - 1]
            self.stream.write("\r" + text.ljust(self.width) + ("\n" if last else ""))
            self.width = 0 if last else len(text)
        elif due or time.monotonic() - self.printed_at >= PLAIN_SECONDS:
            self.stream.write(text + "\n")
            self.printed_at = time.monotonic()
        self.stream.flush()

    def _write(self, text: str) -> None:
        self.clear()
        self.stream.write(text + "\n")
        self.stream.flush()


def format_metrics(metrics: Mapping[str, Any]) -> str:
    """One line of a record of metrics.jsonl, with the totals and eta the loop adds."""
    parts = [
        f"epoch {amount(metrics['epoch'])}/{amount(metrics['epochs'])}",
        f"step {metrics['step']}/{metrics['steps']}",
        f"loss {metrics['loss']:.3f} (chance {metrics['chance']:.2f})",
    ]
    if "accuracy" in metrics:
        parts.append(f"accuracy {metrics['accuracy']:.0%}")
    if "knn" in metrics:
        parts.append(f"kNN {metrics['knn']:.1%}")
    parts += [
        f"lr {metrics['lr']:.2g}",
        f"{metrics['images_per_second']:,.0f} {metrics.get('batched', 'images')}/s",
        f"{metrics['memory_gb']:.1f} GB",
        f"wait {metrics['data_wait']:.0%}",
    ]
    if "feature_spread" in metrics:
        parts.append(f"spread {metrics['feature_spread']:.2f} (even 1)")
    parts.append(f"eta {duration(metrics['eta'])}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """1:05 or 2:03:04."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
