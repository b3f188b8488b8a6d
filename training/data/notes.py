"""What is said of data that is not read as it lies there: never in silence, once a process."""

import os
import sys
from collections.abc import Iterable

from sslops.training.loggers.progress import make_room

__all__ = ["Remark", "say", "summarise"]

Remark = tuple[str, str]  # name of a file, and what it has that is not read as it is

_said: set[str] = set()


def say(text: str) -> None:
    """Print a line to standard error, unless this process or the main one has said it."""
    if text not in _said and os.environ.get("RANK", "0") == "0":
        make_room()
        print(f"data: {text}", file=sys.stderr, flush=True)
    _said.add(text)


def summarise(remarks: Iterable[Remark], items: str, where: object) -> list[str]:
    """A line for each thing remarked: how many files have it, and the first of them."""
    kinds: dict[str, list[str]] = {}
    for name, what in remarks:
        kinds.setdefault(what, []).append(name)
    return [
        f"{where}: {len(names):,} {items} with {what} (the first: {names[0]})"
        for what, names in kinds.items()
    ]
