"""Any folder of images: sub-folders are classes, train/ and test/ are honoured."""

import io
import os
import tarfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray

from sslops.training.data.cache import Arrays, cached, fingerprint
from sslops.training.data.dataset import Dataset, Split
from sslops.training.data.split import split_validation
from sslops.training.progress import track

__all__ = ["load_folder"]

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff",
                      ".webp"})  # fmt: skip
TEST_FRACTION = 0.1
TASK = 64  # images a thread decodes at a time
SPLIT_SEED = 0  # fixed, so that every run on a folder has the same test images

Files = Mapping[PurePosixPath, Path | bytes]  # path inside the folder -> where its bytes are
ImageArray = NDArray[np.uint8]


def load_folder(path: str | Path, *, size: int | None = None) -> Dataset:
    """Load a folder of images, or a tar of one; decoded once, then read from the cache.

    Layouts: `train/<class>/…` with `test/<class>/…` (or `val/`); `<class>/…`; images alone. Where
    no test images are set apart, a tenth is (seeded, stratified when labelled). Images that are
    all grey stay so, otherwise all become RGB.

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
    sources = sorted(_walk(path)) if path.is_dir() else [path]
    key = fingerprint(sources, kind="folder", root=str(path.resolve()), size=size)
    arrays = cached(key, lambda: _decode_all(path, sources, size))

    classes = tuple(str(name) for name in arrays["classes"])

    def split(part: str) -> Split:
        labels = torch.from_numpy(arrays[f"{part}_labels"]).long() if classes else None
        return Split(torch.from_numpy(arrays[f"{part}_images"]), labels)

    train = split("train")
    if "test_images" in arrays:
        test = split("test")
    else:
        train, test = split_validation(train, TEST_FRACTION, SPLIT_SEED)
    return Dataset(path.name, train, test, classes, "that of your files", str(path.resolve()))


def _walk(root: Path) -> list[Path]:
    return [
        Path(folder, name)
        for folder, _, names in os.walk(root, followlinks=True)
        for name in names
        if _wanted(PurePosixPath(Path(folder, name).relative_to(root).as_posix()))
    ]


def _wanted(path: PurePosixPath) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def _read_tar(path: Path) -> Files:
    try:
        with tarfile.open(path) as archive:
            files: dict[PurePosixPath, Path | bytes] = {}
            for member in archive:
                name = PurePosixPath(member.name)
                stream = archive.extractfile(member) if _wanted(name) else None
                if stream is not None:
                    files[name] = stream.read()
    except tarfile.ReadError as error:
        raise ValueError(f"folder: must be a folder or a tar, got {path} ({error})") from error
    # An archive may wrap everything in one folder, which is not a class.
    while len({name.parts[0] for name in files}) == 1 and all(len(n.parts) > 2 for n in files):
        files = {PurePosixPath(*name.parts[1:]): data for name, data in files.items()}
    return files


def _decode_all(root: Path, sources: list[Path], size: int | None) -> Arrays:
    files: Files
    if root.is_dir():
        files = {PurePosixPath(f.relative_to(root).as_posix()): f for f in sources}
    else:
        files = _read_tar(root)
    if not files:
        raise ValueError(
            f"folder: must hold images ({', '.join(sorted(SUFFIXES))}), got none in {root}"
        )
    parts = _parts(files)
    listed = {part: _classes(part, names, root) for part, names in parts.items()}
    classes = sorted(set(listed["train"]))
    arrays: Arrays = {"classes": np.array(classes, dtype=np.str_)}
    names = [name for part in parts.values() for name in part]
    pixels = _decode(names, files, size)
    start = 0
    for part, members in parts.items():
        arrays[f"{part}_images"] = pixels[start : start + len(members)]
        start += len(members)
        if unknown := sorted(set(listed[part]) - set(classes)):
            raise ValueError(f"folder: classes of test/ must be in train/, got {unknown} in {root}")
        if len(listed[part]) not in (0, len(members)) or bool(listed[part]) != bool(classes):
            raise ValueError(f"folder: train/ and test/ must both have class folders, in {root}")
        index = {name: label for label, name in enumerate(classes)}
        arrays[f"{part}_labels"] = np.array([index[name] for name in listed[part]], dtype=np.int64)
    return arrays


def _parts(files: Files) -> dict[str, list[PurePosixPath]]:
    """Files of "train" and, if set apart, "test"; paths still begin with train/ or test/."""
    names = sorted(files)
    tops = {name.parts[0] for name in names if len(name.parts) > 1}
    test = next((top for top in ("test", "val", "validation") if top in tops), None)
    if "train" not in tops or test is None:
        return {"train": names}
    return {
        "train": [name for name in names if name.parts[0] == "train"],
        "test": [name for name in names if name.parts[0] == test],
    }


def _classes(part: str, names: list[PurePosixPath], root: Path) -> list[str]:
    """The class of each file, or [] for images that lie in no class folder."""
    inner = [name.parts[1:] if name.parts[0] in ("train", "test") else name.parts for name in names]
    loose = [len(parts) == 1 for parts in inner]
    if all(loose):
        return []
    if any(loose):
        example = names[loose.index(True)]
        raise ValueError(
            f"folder: images must all lie in class folders or all outside, got {example} beside"
            f" folders in {root}"
        )
    return [parts[0] for parts in inner]


def _decode(names: list[PurePosixPath], files: Files, size: int | None) -> ImageArray:
    """All images as [N, C, H, W]; threads help because Pillow decodes without the GIL."""
    tasks = [names[i : i + TASK] for i in range(0, len(names), TASK)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = pool.map(lambda task: [_open(name, files[name], size) for name in task], tasks)
        images = [image for task in track(decoded, "decoding images", len(names), len)
                  for image in task]  # fmt: skip
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
    return out


def _open(name: PurePosixPath, data: Path | bytes, size: int | None) -> ImageArray:
    """[H, W, 1 or 3], upright, resized and cut if `size` is given."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as handle:
            image = ImageOps.exif_transpose(handle)
            image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise ValueError(f"folder: every image must be readable, got {name}: {error}") from error
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels
