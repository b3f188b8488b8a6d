"""Self-supervised training: one loop, one file a method, one report."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sslops.training.run.run import Result, train
    from sslops.training.storage.encoder import load_encoder

__all__ = ["Result", "load_encoder", "train"]

_HOME = {"Result": "run.run", "load_encoder": "storage.encoder", "train": "run.run"}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `sslops doctor` runs without the packages training needs."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
