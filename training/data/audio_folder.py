"""Any folder of wav or flac files: train/ and test/ are honoured, folders are speakers."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from sslops.training.data.audio_files import SUFFIXES, read_audio
from sslops.training.data.cache import Arrays, cached, fingerprint
from sslops.training.data.dataset import Dataset, Split
from sslops.training.data.split import split_validation
from sslops.training.data.waves import Waves
from sslops.training.progress import track

__all__ = ["decode_waves", "from_arrays", "holds_audio", "load_audio_folder"]

TEST_FRACTION = 0.1
SPLIT_SEED = 0  # fixed, so that every run on a folder has the same test recordings


def holds_audio(path: Path) -> bool:
    """Whether `path` is a folder with a wav or flac file somewhere in it."""
    return path.is_dir() and next(_walk(path), None) is not None


def load_audio_folder(path: str | Path) -> Dataset:
    """Load a folder of wav and flac files; decoded once, then read from the cache.

    Layouts: `train/<label>/…` with `test/<label>/…`; `<label>/…` (of LibriSpeech the speakers);
    recordings alone. The label is the first folder below. Where no test part is set apart, a tenth
    is (seeded, stratified when labelled).

    Args:
        path: the folder.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: no recordings, recordings beside label folders, rates that differ, labels of
            test/ that train/ lacks, a file that cannot be read.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"audio: path must exist, got {path}")
    files = sorted(_walk(path))
    if not files:
        raise ValueError(f"audio: needs {' or '.join(sorted(SUFFIXES))} files, got none in {path}")
    key = fingerprint(files, kind="audio", root=str(path.resolve()))
    waves = from_arrays(cached(key, lambda: decode_waves([(str(f), f) for f in files])))
    names = [file.relative_to(path).parts for file in files]
    tops = {parts[0] for parts in names if len(parts) > 1}
    parts = {"train": list(range(len(files)))}
    inner = [name for name in names]
    if {"train", "test"} <= tops:
        parts = {
            part: [i for i, name in enumerate(names) if name[0] == part]
            for part in ("train", "test")
        }
        inner = [name[1:] for name in names]
    loose = {len(inner[i]) == 1 for members in parts.values() for i in members}
    if len(loose) == 2:
        raise ValueError(
            f"audio: recordings must all lie in label folders or all outside, got both in {path}"
        )
    classes = () if True in loose else tuple(sorted({inner[i][0] for i in parts["train"]}))
    for members in parts.values():
        unknown = sorted({inner[i][0] for i in members} - set(classes)) if classes else []
        if unknown:
            raise ValueError(f"audio: labels of test/ must be in train/, got {unknown} in {path}")

    def split(part: str) -> Split:
        index = torch.tensor(parts[part])
        labels = (
            torch.tensor([classes.index(inner[i][0]) for i in parts[part]]) if classes else None
        )
        return Split(waves[index], labels)

    train = split("train")
    if "test" in parts:
        test = split("test")
    else:
        train, test = split_validation(train, TEST_FRACTION, SPLIT_SEED)
    return Dataset(path.name, train, test, classes, "that of your files", str(path.resolve()))


def _walk(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root, followlinks=True):
        for name in names:
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                yield Path(folder, name)


def decode_waves(files: Sequence[tuple[str, Path | bytes]]) -> Arrays:
    """Arrays of `Waves` for the cache, from (name, file or its bytes).

    Raises:
        ValueError: a file cannot be read, or two have different rates: nothing is resampled, as
            that would decide about the band a network hears.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waves = pool.map(lambda file: read_audio(*file), files)
        decoded = list(track(waves, "reading recordings", len(files)))
    rates = {rate: name for (name, _), (_, rate) in zip(files, decoded, strict=True)}
    if len(rates) > 1:
        (a, first), (b, second), *_ = rates.items()
        raise ValueError(
            f"audio: recordings must have one sampling rate, got {first} at {a:,} Hz and {second}"
            f" at {b:,} Hz; resample them first (sox, ffmpeg -ar)"
        )
    return {
        "samples": np.concatenate([samples for samples, _ in decoded]),
        "lengths": np.array([len(samples) for samples, _ in decoded], dtype=np.int64),
        "rate": np.array(next(iter(rates))),
    }


def from_arrays(arrays: Arrays) -> Waves:
    """Undo `decode_waves`."""
    lengths = torch.from_numpy(arrays["lengths"])
    starts = lengths.cumsum(0) - lengths
    return Waves(torch.from_numpy(arrays["samples"]), starts, lengths, int(arrays["rate"]))
