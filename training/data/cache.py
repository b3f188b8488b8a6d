"""Decoded images on disk: uint8 arrays, keyed by what they were made from."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sslops.training.data.notes import say

__all__ = ["Arrays", "cache_dir", "cached", "fingerprint"]

Arrays = dict[str, NDArray[np.generic]]


def cache_dir() -> Path:
    """$SSLOPS_CACHE, else `sslops` in the user's cache folder; it may be deleted at any time."""
    if given := os.environ.get("SSLOPS_CACHE"):
        return Path(given).expanduser()
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "sslops"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "sslops"
    return Path.home() / ".cache" / "sslops"


def fingerprint(files: list[Path], **options: object) -> str:
    """Key of data made from `files` (their paths, sizes, times) with `options`."""
    listing = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    text = json.dumps([listing, options], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def cached(key: str, build: Callable[[], Arrays]) -> Arrays:
    """The arrays stored under `key`, built and stored if they are not there.

    An entry is a folder of .npy files that is renamed into place when complete, so a stop half
    way leaves nothing that could be read; one that cannot be read is built anew. A cache that
    cannot be written is no error: the arrays are there, they only cost the same next time.

    Lines under the name "notes" are said, whether built or read, and are not among what is
    returned.
    """
    entry = cache_dir() / "decoded" / key
    try:
        arrays = {f.stem: np.load(f) for f in sorted(entry.iterdir())}
    except (OSError, ValueError, EOFError):
        arrays = build()
        try:
            _store(entry, arrays)
        except OSError as error:
            say(f"cannot cache decoded images in {entry.parent}: {error}")
    for line in arrays.pop("notes", ()):
        say(str(line))
    return arrays


def _store(entry: Path, arrays: Arrays) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".part-", dir=entry.parent))
    try:
        for name, array in arrays.items():
            np.save(scratch / f"{name}.npy", array, allow_pickle=False)
        shutil.rmtree(entry, ignore_errors=True)  # only an unreadable one can be there
        scratch.rename(entry)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
