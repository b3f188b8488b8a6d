"""How far work is that takes more than two seconds: one line on the console of the run."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from sslops.training.loggers.console import Console, duration

__all__ = ["make_room", "shown_on", "track", "working"]

SECONDS = 2.0  # what takes no longer is not worth a line
T = TypeVar("T")
_console: ContextVar[Console | None] = ContextVar("console", default=None)


@contextmanager
def shown_on(console: Console) -> Iterator[None]:
    """Where `track` and `working` report; nowhere outside, as in a program that calls a part."""
    token = _console.set(console)
    try:
        yield
    finally:
        _console.reset(token)


def make_room() -> None:
    """Take the line on show away, for one that is printed elsewhere."""
    console = _console.get()
    if console is not None:
        console.clear()


def track(
    items: Iterable[T], what: str, total: int, size: Callable[[T], int] = lambda item: 1
) -> Iterator[T]:
    """The items, counted while they are used.

    Args:
        items: what is gone through.
        what: is being done, such as "decoding images".
        total: how many that are.
        size: for how many an item counts.
    """
    console = _console.get()
    if console is None or console.quiet:
        yield from items
        return
    started, done, shown = time.monotonic(), 0, False
    try:
        for item in items:
            yield item
            done += size(item)
            spent = time.monotonic() - started
            if spent >= SECONDS and done < total:
                left = duration(spent / done * (total - done))
                console.task(what, f"{done:,}/{total:,}  eta {left}")
                shown = True
    finally:
        if shown:  # else the line there is another's
            console.clear()


@contextmanager
def working(what: str) -> Iterator[None]:
    """Say what is being done where nothing can be counted; decorates functions, too."""
    console = _console.get()
    if console is None or console.quiet:
        yield
        return
    shown = threading.Event()

    def show() -> None:
        console.task(what)
        shown.set()

    timer = threading.Timer(SECONDS, show)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        if shown.is_set():
            console.clear()
