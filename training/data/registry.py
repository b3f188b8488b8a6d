"""Names of the data sets, and the one function that loads them."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch.nn.functional as F

from sslops.training.data.audio_files import SUFFIXES as SOUNDS
from sslops.training.data.audio_folder import load_audio_folder
from sslops.training.data.cifar10 import load_cifar10
from sslops.training.data.dataset import Dataset, Split
from sslops.training.data.digits import load_digits
from sslops.training.data.fashion_mnist import load_fashion_mnist
from sslops.training.data.folder import SUFFIXES as IMAGES
from sslops.training.data.folder import load_folder
from sslops.training.data.fsdd import load_fsdd
from sslops.training.data.layout import holds
from sslops.training.data.moving_shapes import load_moving_shapes
from sslops.training.data.notes import say
from sslops.training.data.photos import load_photos
from sslops.training.data.tones import load_tones
from sslops.training.data.video_folder import load_video_folder
from sslops.training.loggers.progress import working

__all__ = ["load", "names"]


def names() -> list[str]:
    """The registered data sets; `load` takes the path of a folder as well."""
    return ["digits", "fashion-mnist", "cifar10", "photos", "tones", "fsdd", "moving-shapes"]


@working("loading the data")
def load(
    data: str,
    *,
    root: str | Path | None = None,
    size: int | None = None,
    download: bool = False,
    kind: Literal["image", "sound", "video"] = "image",
) -> Dataset:
    """Load a data set by name, or any folder of images, recordings or videos.

    Args:
        data: one of `names()`, or the path of a folder (or a tar) of images, of a folder of wav or
            flac files, or of a folder of videos, each a folder of frames.
        root: where the files of a named set lie; before $SSLOPS_DATA and the usual places.
        size: resize images to size x size; of videos the shorter side.
        download: allow fetching files that no place has.
        kind: "video" reads the folders of a folder as videos, which else are classes; "sound" its
            recordings where there are images, too.

    Raises:
        FileNotFoundError: the files are in none of the places, which the message lists.
        ValueError: unknown name, or files that are not what they should be.
    """
    if size is not None and size < 1:
        raise ValueError(f"data: size must be at least 1, got {size}")
    root = None if root is None else Path(root)
    if data == "digits":
        return _resized(load_digits(), size)
    if data == "fashion-mnist":
        return _resized(load_fashion_mnist(root, download=download), size)
    if data == "cifar10":
        return _resized(load_cifar10(root), size)
    if data == "photos":
        return load_photos(size)
    if data == "tones":
        return load_tones()
    if data == "fsdd":
        return load_fsdd(root, download=download)
    if data == "moving-shapes":
        return load_moving_shapes(size)
    path = Path(data).expanduser()
    if path.exists():
        if kind == "video":
            return load_video_folder(path, size=size)
        # Of both in one folder the kind asked for is read, and the other one is what else it holds.
        if kind == "sound":
            sound = holds(path, SOUNDS) or (path.is_dir() and not holds(path, IMAGES))
        else:
            sound = not holds(path, IMAGES) and holds(path, SOUNDS)
        if sound:
            return load_audio_folder(path)
        return load_folder(path, size=size)
    raise ValueError(
        f"data: must be one of {', '.join(names())} or the path of a folder, got {data!r}"
    )


def _resized(dataset: Dataset, size: int | None) -> Dataset:
    """The same images at size x size; the registered sets are square and small."""
    if size is None or size == dataset.image_size:
        return dataset
    say(f"{dataset.name}: images of side {dataset.image_size} are resized to {size}")

    def resize(split: Split) -> Split:
        images = F.interpolate(split.images, (size, size), mode="bilinear", antialias=True)
        return Split(images.contiguous(), split.labels)

    return replace(dataset, train=resize(dataset.train), test=resize(dataset.test))
