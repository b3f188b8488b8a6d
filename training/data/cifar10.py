"""CIFAR-10: 50,000 + 10,000 colour images, 32x32, from the official archive or as image files."""

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from sslops._names import shown
from sslops.training.data.archives import open_tar
from sslops.training.data.cache import Arrays, cache_dir, cached, fingerprint
from sslops.training.data.dataset import Dataset, Split
from sslops.training.data.folder import load_folder

__all__ = ["load_cifar10"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship",
           "truck")  # fmt: skip
ARCHIVE = "cifar-10-python.tar.gz"
EXTRACTED = "cifar-10-batches-py"
BATCHES = {"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)}
# The pickles hold one dict with an array; nothing else may be constructed by reading them.
PERMITTED = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
}


def load_cifar10(root: Path | None = None) -> Dataset:
    """Load the first copy found: official archive, its folder, or image files by class.

    Args:
        root: a file or a folder, looked at before all other places.

    Raises:
        FileNotFoundError: no copy was found.
        ValueError: a copy was found that is not CIFAR-10.
    """
    places = _places(root)
    for place in places:
        dataset = _official(place) or _images(place)
        if dataset is not None:
            return dataset
    looked = "".join(f"\n  {place}" for place in places)
    raise FileNotFoundError(
        f"cifar10: needs {ARCHIVE} of www.cs.toronto.edu/~kriz/cifar.html, its folder {EXTRACTED},"
        f" or train/<class>/ and test/<class>/ image folders (or a tar of them); looked in{looked}"
        "\nGet the archive and name it, or its folder, by SSLOPS_DATA or root"
    )


def _places(root: Path | None) -> list[Path]:
    """Given places and, inside them, files and folders whose name begins as the data set's."""
    bases = [root] if root else []
    if given := os.environ.get("SSLOPS_DATA"):
        bases.append(Path(given))
    bases = [*(base.expanduser() for base in bases), cache_dir() / "cifar10"]
    places = []
    for base in bases:
        places.append(base)
        for pattern in ("cifar10*", "cifar-10*", "cifar10*/cifar*10*"):
            places += sorted(base.glob(pattern)) if base.is_dir() else []
    return places


def _official(place: Path) -> Dataset | None:
    if place.is_dir() and (place / BATCHES["test"][0]).is_file():
        arrays = _read_batches(lambda name: (place / name).open("rb"), place)
    elif place.is_file() and place.name == ARCHIVE:
        arrays = cached(fingerprint([place], kind="cifar10"), lambda: _read_archive(place))
    else:
        return None
    train, test = (
        Split(
            torch.from_numpy(arrays[f"{part}_images"]), torch.from_numpy(arrays[f"{part}_labels"])
        )
        for part in BATCHES
    )
    return Dataset(
        name="cifar10",
        train=train,
        test=test,
        classes=CLASSES,
        licence="none stated; cite A. Krizhevsky 2009",
        source="www.cs.toronto.edu/~kriz/cifar.html, official python archive",
    )


def _read_archive(path: Path) -> Arrays:
    with open_tar(path, "cifar10: must be a whole archive") as archive:

        def open_batch(name: str) -> IO[bytes]:
            stream = archive.extractfile(f"{EXTRACTED}/{name}")
            if stream is None:
                raise KeyError(name)
            return stream

        return _read_batches(open_batch, path)


def _read_batches(open_batch: Callable[[str], IO[bytes]], origin: Path) -> Arrays:
    arrays: Arrays = {}
    for part, names in BATCHES.items():
        images, labels = [], []
        for name in names:
            try:
                with open_batch(name) as stream:
                    batch = _ArraysOnly(stream, encoding="latin1").load()
                pixels = np.asarray(batch["data"], np.uint8).reshape(-1, 3, 32, 32)
                numbers = np.asarray(batch["labels"], np.int64)
                if len(pixels) != len(numbers) or not np.isin(numbers, range(10)).all():
                    raise ValueError(f"{len(pixels)} images with labels {shown(numbers.tolist())}")
            except Exception as error:  # a damaged pickle raises whatever it stumbles over
                raise ValueError(
                    f"cifar10: {origin} must hold the official batches, got {error!r} in {name}"
                ) from error
            images.append(pixels)
            labels.append(numbers)
        arrays[f"{part}_images"] = np.concatenate(images)
        arrays[f"{part}_labels"] = np.concatenate(labels)
    return arrays


class _ArraysOnly(pickle.Unpickler):
    """Reads the batches' pickles and refuses to construct anything but arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PERMITTED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a CIFAR-10 batch")
        return super().find_class(module, name)


def _images(place: Path) -> Dataset | None:
    """Image files in class folders, as copies of CIFAR-10 come; see the note in `source`."""
    is_tar = place.is_file() and ".tar" in place.suffixes and place.name != ARCHIVE
    if not is_tar and not ((place / "train").is_dir() and (place / "test").is_dir()):
        return None
    dataset = load_folder(place)
    shape = tuple(dataset.train.images.shape[1:])
    if dataset.classes != CLASSES or shape != (3, 32, 32):
        raise ValueError(
            f"cifar10: image folders must be the classes {', '.join(CLASSES)} of 3x32x32 images,"
            f" got {shown(dataset.classes, ', ') or 'no classes'} of {shape} in {place}"
        )
    return replace(
        dataset,
        name="cifar10",
        licence="none stated; cite A. Krizhevsky 2009",
        source=f"image files in {place.name}; if they are JPEG, not comparable with published"
        " numbers",
    )
