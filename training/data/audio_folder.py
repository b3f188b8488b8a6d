"""Any folder of wav or flac files: train/ and test/ are honoured, folders are speakers."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from sslops.training.data.audio_files import SUFFIXES, read_audio
from sslops.training.data.cache import Arrays, cached, fingerprint
from sslops.training.data.dataset import Dataset
from sslops.training.data.layout import assemble, divide, find_files
from sslops.training.data.notes import summarise
from sslops.training.data.waves import Waves
from sslops.training.loggers.progress import track

__all__ = ["decode_waves", "from_arrays", "load_audio_folder"]

VERSION = 2  # of what is made of the files: older ones may be in the cache


def load_audio_folder(path: str | Path) -> Dataset:
    """Load a folder of wav and flac files; decoded once, then read from the cache.

    Layouts, as of `divide`: `train/<label>/…` with `test/<label>/…` (or `val/`, `validation/`);
    `<label>/…` (of LibriSpeech the speakers); recordings alone. Where no test part is set apart, a
    tenth is (seeded, stratified when labelled). Files are in natural order.

    Args:
        path: the folder.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: no recordings, recordings beside label folders, rates that differ, labels of
            the test part that train/ lacks, a file that cannot be read.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"audio: path must exist, got {path}")
    if not path.is_dir():
        raise ValueError(f"audio: must be a folder of wav or flac files, got {path}")
    names = find_files(path, SUFFIXES, "audio")
    if not names:
        raise ValueError(f"audio: needs {' or '.join(sorted(SUFFIXES))} files, got none in {path}")
    division = divide(names, kind="audio", items="recordings", root=path)
    used = [(str(names[i]), path / names[i]) for i in division.used]
    files = [file for _, file in used]
    key = fingerprint(files, kind="audio", version=VERSION, root=str(path.resolve()))
    arrays = cached(key, lambda: decode_waves(used, str(path)))
    return assemble(from_arrays(arrays), division, path)


def decode_waves(files: Sequence[tuple[str, Path | bytes]], where: str) -> Arrays:
    """Arrays of `Waves` for the cache, from (name, file or its bytes).

    Args:
        files: names, and what they name.
        where: they lie, for what is said of them.

    Raises:
        ValueError: a file cannot be read, or two have different rates: nothing is resampled, as
            that would decide about the band a network hears.
    """
    found: list[list[str]] = [[] for _ in files]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waves = pool.map(lambda file, into: read_audio(file[0], file[1], into), files, found)
        decoded = list(track(waves, "reading recordings", len(files)))
    rates = {rate: name for (name, _), (_, rate) in zip(files, decoded, strict=True)}
    if len(rates) > 1:
        (a, first), (b, second), *_ = rates.items()
        raise ValueError(
            f"audio: recordings must have one sampling rate, got {first} at {a:,} Hz and {second}"
            f" at {b:,} Hz; resample them first (sox, ffmpeg -ar)"
        )
    remarks = [(name, each) for (name, _), said in zip(files, found, strict=True) for each in said]
    return {
        "samples": np.concatenate([samples for samples, _ in decoded]),
        "lengths": np.array([len(samples) for samples, _ in decoded], dtype=np.int64),
        "rate": np.array(next(iter(rates))),
        "notes": np.array(summarise(remarks, "recordings", where), dtype=np.str_),
    }


def from_arrays(arrays: Arrays) -> Waves:
    """Undo `decode_waves`."""
    lengths = torch.from_numpy(arrays["lengths"])
    starts = lengths.cumsum(0) - lengths
    return Waves(torch.from_numpy(arrays["samples"]), starts, lengths, int(arrays["rate"]))
