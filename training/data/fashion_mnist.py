"""Fashion-MNIST: 60,000 + 10,000 grey images of clothes, 28x28."""

import gzip
import hashlib
import os
import zlib
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import torch

from sslops.training.data.cache import cache_dir
from sslops.training.data.dataset import Dataset, Split

__all__ = ["load_fashion_mnist"]

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker",
           "Bag", "Ankle boot")  # fmt: skip
URL = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
# sha256 of the unpacked files: Debian's package compresses the same content anew.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def load_fashion_mnist(root: Path | None = None, *, download: bool = False) -> Dataset:
    """Read the four idx files, packed or not, from the first folder that has them.

    Args:
        root: looked at before all other places.
        download: fetch missing files (30 MB) from the official repository into the cache.

    Raises:
        FileNotFoundError: no folder has the files and `download` is False.
        ValueError: a file is not the published one.
    """
    places = _places(root)
    folder = next((place for place in places if all(_find(place, name) for name in SHA256)), None)
    if folder is None and download:
        folder = _download(cache_dir() / "fashion-mnist")
    if folder is None:
        looked = "".join(f"\n  {place}" for place in places)
        raise FileNotFoundError(
            "fashion-mnist: needs the four idx files of github.com/zalandoresearch/fashion-mnist,"
            f" found them in none of{looked}\nInstall Debian's package dataset-fashion-mnist, or"
            " put the files into a folder and name it by SSLOPS_DATA or root, or allow the"
            " download (download=True)"
        )
    raw = {name: _read(folder, name) for name in SHA256}
    return Dataset(
        name="fashion-mnist",
        train=_split(raw, "train"),
        test=_split(raw, "t10k"),
        classes=CLASSES,
        licence="MIT",
        source="github.com/zalandoresearch/fashion-mnist, H. Xiao et al. 2017, arXiv:1708.07747",
    )


def _places(root: Path | None) -> list[Path]:
    bases = [root] if root else []
    if given := os.environ.get("SSLOPS_DATA"):
        bases.append(Path(given))
    bases = [base.expanduser() for base in bases]
    inside = [base / "fashion-mnist" for base in bases]
    return [*bases, *inside, DEBIAN, cache_dir() / "fashion-mnist"]


def _find(folder: Path, name: str) -> Path | None:
    return next((f for f in (folder / f"{name}.gz", folder / name) if f.is_file()), None)


def _read(folder: Path, name: str) -> bytes:
    file = _find(folder, name)
    assert file is not None
    return _verified(name, file.read_bytes(), str(file))


def _verified(name: str, data: bytes, origin: str) -> bytes:
    """Unpack `data` if it is packed, and check that it is the published content."""
    try:
        content = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"fashion-mnist: {origin} must be whole, got {error}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256[name]:
        raise ValueError(
            f"fashion-mnist: {origin} must have sha256 {SHA256[name]} (unpacked), got {digest};"
            " delete it and get it again"
        )
    return content


def _download(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in SHA256:
        if _find(folder, name):
            continue
        with urlopen(f"{URL}{name}.gz", timeout=60) as response:
            data = response.read()
        _verified(name, data, f"{URL}{name}.gz")
        part = folder / f".{name}.{os.getpid()}"
        part.write_bytes(data)
        part.replace(folder / f"{name}.gz")
    return folder


def _split(raw: dict[str, bytes], part: str) -> Split:
    # Headers are 16 and 8 bytes; the checksum already vouches for what they say.
    pixels = np.frombuffer(raw[f"{part}-images-idx3-ubyte"], np.uint8, offset=16)
    labels = np.frombuffer(raw[f"{part}-labels-idx1-ubyte"], np.uint8, offset=8)
    images = torch.from_numpy(pixels.copy()).view(-1, 1, 28, 28)
    return Split(images, torch.from_numpy(labels.astype(np.int64)))
