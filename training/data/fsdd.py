"""Free Spoken Digit Dataset: 3,000 recordings of ten digits by six speakers, 8 kHz."""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from urllib.request import urlopen

import numpy as np
import torch
from torch import Tensor

from sslops.training.data.archives import open_tar
from sslops.training.data.audio_folder import decode_waves, from_arrays
from sslops.training.data.cache import Arrays, cache_dir, cached, fingerprint
from sslops.training.data.dataset import Dataset, Split

__all__ = ["load_fsdd"]

COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"
URL = f"https://github.com/Jakobovski/free-spoken-digit-dataset/archive/{COMMIT}.tar.gz"
# Of every file's name and content in the order of names: archives of a commit are packed anew.
SHA256 = "0fbe6612aaa20a80ef4371894a46e060038337a518fe3d4728cb7eee7caa013c"
NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")
TEST_TAKES = 5  # the official split: takes 0 to 4 of every digit and speaker


def load_fsdd(root: Path | None = None, *, download: bool = False) -> Dataset:
    """Read the recordings from the first folder or archive that has them.

    Labels are digits; the factor "speaker" goes beside them.

    Args:
        root: a folder or a tar, looked at before all other places.
        download: fetch the archive (16 MB) from the official repository into the cache.

    Raises:
        FileNotFoundError: no place has the recordings and `download` is False.
        ValueError: a file is missing, added or not the published one.
    """
    places = _places(root)
    source = next((found for place in places if (found := _find(place)) is not None), None)
    if source is None and download:
        source = _download(cache_dir() / "fsdd")
    if source is None:
        looked = "".join(f"\n  {place}" for place in places)
        raise FileNotFoundError(
            "fsdd: needs the folder recordings of github.com/Jakobovski/free-spoken-digit-dataset"
            f" or a tar of it, found it in none of{looked}\nPut it into a folder and name that by"
            " SSLOPS_DATA or root, or allow the download (download=True)"
        )
    files = [source] if source.is_file() else sorted(source.glob("*.wav"))
    key = fingerprint(files, kind="fsdd", sha256=SHA256)
    arrays = cached(key, lambda: _decode(source))
    waves, speakers = from_arrays(arrays), tuple(str(name) for name in arrays["speakers"])
    digit, speaker, take = (torch.from_numpy(arrays[name]) for name in ("digit", "speaker", "take"))

    def split(chosen: Tensor) -> Split:
        index = torch.nonzero(chosen).flatten()
        return Split(waves[index], digit[index], {"speaker": speaker[index]})

    return Dataset(
        name="fsdd",
        train=split(take >= TEST_TAKES),
        test=split(take < TEST_TAKES),
        classes=tuple("0123456789"),
        licence="CC BY-SA 4.0",
        source="github.com/Jakobovski/free-spoken-digit-dataset, Zohar Jackson and contributors,"
        f" commit {COMMIT[:7]}",
        factors={"speaker": speakers},
    )


def _places(root: Path | None) -> list[Path]:
    bases = [root] if root else []
    if given := os.environ.get("SSLOPS_DATA"):
        bases.append(Path(given))
    return [*(base.expanduser() for base in bases), cache_dir() / "fsdd"]


def _find(place: Path) -> Path | None:
    """The folder that holds the recordings, or a tar of them."""
    if place.is_file():
        return place if ".tar" in place.name or place.suffix == ".tgz" else None
    for folder in (place, place / "recordings", place / "fsdd", place / "fsdd" / "recordings"):
        if (folder / "0_george_0.wav").is_file():
            return folder
    tars = [*place.glob("*digit*.tar*"), *place.glob("*fsdd*.tar*"), *place.glob("fsdd/*.tar*")]
    return min(tars, default=None)


def _read(source: Path) -> Iterable[tuple[str, bytes]]:
    if source.is_dir():
        for path in source.glob("*.wav"):
            yield path.name, path.read_bytes()
        return
    with open_tar(source, "fsdd: must be a whole tar") as archive:
        for member in archive:
            inside = PurePosixPath(member.name)
            stream = archive.extractfile(member) if inside.suffix == ".wav" else None
            if stream is not None and inside.parent.name == "recordings":
                yield inside.name, stream.read()


def _decode(source: Path) -> Arrays:
    files = _verified(source)
    fields = [match.groups() for name, _ in files if (match := NAME.fullmatch(name))]
    speakers = sorted({speaker for _, speaker, _ in fields})
    return {
        **decode_waves(files, str(source)),
        "digit": np.array([int(digit) for digit, _, _ in fields]),
        "speaker": np.array([speakers.index(speaker) for _, speaker, _ in fields]),
        "take": np.array([int(take) for _, _, take in fields]),
        "speakers": np.array(speakers, dtype=np.str_),
    }


def _verified(source: Path) -> list[tuple[str, bytes]]:
    """Names and contents in the order of names, if they are the published ones."""
    files = sorted(_read(source))
    digest = hashlib.sha256()
    for name, content in files:
        digest.update(name.encode() + hashlib.sha256(content).digest())
    if digest.hexdigest() != SHA256:
        raise ValueError(
            f"fsdd: {source} must hold the 3,000 recordings of commit {COMMIT[:7]} (sha256 {SHA256}"
            f" of their names and contents), got {len(files):,} with {digest.hexdigest()}"
        )
    return files


def _download(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with urlopen(URL, timeout=60) as response:
        data = response.read()
    part = folder / f".part.{os.getpid()}"
    part.write_bytes(data)
    archive = folder / f"free-spoken-digit-dataset-{COMMIT[:7]}.tar.gz"
    part.replace(archive)
    return archive
