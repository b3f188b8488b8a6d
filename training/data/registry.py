"""Names of the data sets, and the one function that loads them."""

from pathlib import Path

from sslops.training.data.dataset import Dataset
from sslops.training.data.digits import load_digits

__all__ = ["load", "names"]


def names() -> list[str]:
    """The registered data sets; `load` takes the path of a folder as well."""
    return ["digits"]


def load(data: str, *, root: str | Path | None = None, size: int | None = None) -> Dataset:
    """Load a data set by name."""
    if data == "digits":
        return load_digits()
    raise ValueError(f"data: must be one of {', '.join(names())} or a folder, got {data!r}")
