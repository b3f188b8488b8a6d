"""Any folder of images: sub-folders are classes, train/ and test/ are honoured."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray

from sslops.training.data.archives import has_end, open_tar
from sslops.training.data.cache import Arrays, cached, fingerprint
from sslops.training.data.dataset import Dataset
from sslops.training.data.layout import assemble, divide, find_files, hidden, only
from sslops.training.data.notes import summarise
from sslops.training.data.pictures import large_pictures, open_picture, resized, to_8_bits
from sslops.training.loggers.progress import track

__all__ = ["SUFFIXES", "load_folder"]

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff",
                      ".webp"})  # fmt: skip
TASK = 64  # images a thread decodes at a time
VERSION = 2  # of what is made of the files: older ones may be in the cache

ImageArray = NDArray[np.uint8]


def load_folder(path: str | Path, *, size: int | None = None) -> Dataset:
    """Load a folder of images, or a tar of one; decoded once, then read from the cache.

    Layouts, as of `divide`: `train/<class>/…` with `test/<class>/…` (or `val/`, `validation/`);
    `<class>/…`; images alone. Where no test images are set apart, a tenth is (seeded, stratified
    when labelled). Images that are all grey stay so, otherwise all become RGB. Files are in natural
    order.

    Args:
        path: the folder, or a .tar, .tar.gz, .tar.xz, … of it.
        size: resize the shorter side to this and cut out the middle square; needed unless all
            images are equal in size.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: no images, images beside class folders, classes or sizes that do not agree, a
            file that is no image.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"folder: path must exist, got {path}")
    options = {"kind": "folder", "version": VERSION, "root": str(path.resolve()), "size": size}
    if path.is_dir():
        names = find_files(path, SUFFIXES, "folder")
        _check_any(names, path)
        division = divide(names, kind="folder", items="images", root=path)
        used = [names[i] for i in division.used]
        key = fingerprint([path / name for name in used], **options)
        arrays = cached(key, lambda: _decode(used, [path / name for name in used], size, path))
    else:
        arrays = cached(fingerprint([path], **options), lambda: _decode_tar(path, size))
        names = [PurePosixPath(name) for name in arrays["names"]]
        division = divide(names, kind="folder", items="images", root=path)
    return assemble(torch.from_numpy(arrays["images"]), division, path)


def _check_any(names: Sequence[PurePosixPath], path: Path) -> None:
    if not names:
        raise ValueError(
            f"folder: must hold images ({', '.join(sorted(SUFFIXES))}), got none in {path}"
        )


def _decode_tar(path: Path, size: int | None) -> Arrays:
    """Images that are used, and "names" of all: another run divides them again, and says so."""
    found: dict[PurePosixPath, bytes | None] = {}
    with open_tar(path, "folder: must be a folder or a tar") as archive:
        for member in archive:
            name = PurePosixPath(member.name.lstrip("/"))
            if hidden(name) or member.isdir():
                continue
            stream = archive.extractfile(member) if name.suffix.lower() in SUFFIXES else None
            found[name] = None if stream is None else stream.read()  # the later one of a name
        whole = has_end(archive)
    every = list(found)
    names = [every[i] for i in only(every, SUFFIXES, path)]
    _check_any(names, path)
    division = divide(names, kind="folder", items="images", root=path)
    used = [names[i] for i in division.used]
    files = []
    for name in used:
        content = found[name]
        if content is None:
            raise ValueError(f"folder: every image must be readable, got {name}: no file")
        files.append(content)
    arrays = _decode(used, files, size, path)
    notes = [str(line) for line in arrays["notes"]]
    if not whole:
        notes.append(f"{path} has no mark of its end: it may be cut off")
    return arrays | {
        "names": np.array([str(name) for name in names], dtype=np.str_),
        "notes": np.array(notes, dtype=np.str_),
    }


def _decode(
    names: Sequence[PurePosixPath], files: Sequence[Path | bytes], size: int | None, root: Path
) -> Arrays:
    """All images as [N, C, H, W]; threads help because Pillow decodes without the GIL."""
    tasks = [range(i, min(i + TASK, len(names))) for i in range(0, len(names), TASK)]
    with large_pictures(), ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = pool.map(lambda task: [_open(names[i], files[i], size) for i in task], tasks)
        pairs = [pair for task in track(decoded, "decoding images", len(names), len)
                 for pair in task]  # fmt: skip
    images = [image for image, *_ in pairs]
    shapes = {image.shape[:2]: name for image, name in zip(images, names, strict=True)}
    if len(shapes) > 1:
        (a, first), (b, second), *_ = shapes.items()
        raise ValueError(
            f"folder: images must be equal in size unless `size` is given, got {first} {a} and"
            f" {second} {b}"
        )
    channels = max(image.shape[2] for image in images)
    out = np.empty((len(images), channels, *images[0].shape[:2]), dtype=np.uint8)
    for row, image in zip(out, images, strict=True):
        row[:] = image.transpose(2, 0, 1)  # a grey image among coloured ones is repeated
    remarks = [(str(name), each) for name, (_, found, _) in zip(names, pairs, strict=True)
               for each in found]  # fmt: skip
    notes = summarise(remarks, "images", root)
    if size is not None:
        notes += resized([before for *_, before in pairs], (size, size), "images", root)
    return {"images": out, "notes": np.array(notes, dtype=np.str_)}


def _open(
    name: PurePosixPath, content: Path | bytes, size: int | None
) -> tuple[ImageArray, list[str], tuple[int, int]]:
    """[H, W, 1 or 3], upright, resized and cut if `size` is given.

    Returns:
        Also what was not kept of the file, and its width and height.
    """
    from PIL import Image, ImageOps

    remarks: list[str] = []
    image = open_picture(content, name, "folder: every image must be readable", remarks)
    image = to_8_bits(image, name, "folder", remarks)
    before = image.size
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return (pixels[..., None] if pixels.ndim == 2 else pixels), remarks, before
