"""Any folder of videos, each a folder of frames, with the masks of objects where there are some."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from sslops.training.data.cache import Arrays, cached, fingerprint
from sslops.training.data.clips import Clips, Video
from sslops.training.data.dataset import Dataset, Split
from sslops.training.data.split import split_validation
from sslops.training.progress import track

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["load_video_folder", "read_videos"]

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp"})
MASK_ENDINGS = ("_mask", "_masks")
TEST_FRACTION = 0.1
SPLIT_SEED = 0  # fixed, so that every run on a folder has the same test videos
MULTIPLE = 8  # what resized sides are a multiple of, so that the strides of encoders fit

Files = tuple[list[Path], list[Path]]  # frames, and masks or []


def load_video_folder(path: str | Path, *, size: int | None = None) -> Dataset:
    """A folder of videos as `read_videos` finds them; a tenth of them, at least one, is for tests.

    Args:
        path: the folder.
        size: as of `read_videos`.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: fewer than two videos, or what `read_videos` refuses.
    """
    clips = read_videos(path, size=size)
    N = len(clips)
    if N < 2:
        raise ValueError(
            f"video: needs two videos, one to train and one to test on, got {N} in {path}"
        )
    share = max(1, round(TEST_FRACTION * N)) / N
    train, test = split_validation(Split(clips, None), share, SPLIT_SEED)
    path = Path(path).expanduser()
    return Dataset(path.name, train, test, (), "that of your files", str(path.resolve()))


def read_videos(path: str | Path, *, size: int | None = None) -> Clips:
    """All videos of a folder in the order of their names; decoded once, then from the cache.

    Layouts: frames alone (one video); a folder of frames for each video; that of DAVIS,
    `JPEGImages/480p/NAME/` with `Annotations/480p/NAME/`. Masks lie in `Annotations/NAME/` or
    beside the frames in `NAME_mask/`, a png for each frame with the frame's name: the number of the
    object at each pixel if it has a palette, else one object where it is bright. A video without
    them has masks of zeros.

    Args:
        path: the folder.
        size: shorter side of the frames in pixels; the longer one follows from the first video, to
            whose shape all others are cut, both in multiples of 8. Needed unless all are equal.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: no frames, a frame without its mask beside others with one, sizes that differ,
            a file that is no image.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"video: path must exist, got {path}")
    found = _find(path)
    if not found:
        raise ValueError(f"video: must hold folders of frames ({', '.join(sorted(SUFFIXES))}),"
                         f" got none in {path}")  # fmt: skip
    listed = [file for frames, masks in found for file in (*frames, *masks)]
    key = fingerprint(listed, kind="video", root=str(path.resolve()), size=size)
    arrays = cached(key, lambda: _decode_all(found, size))
    lengths = torch.from_numpy(arrays["lengths"])
    content = Video(torch.from_numpy(arrays["frames"]), torch.from_numpy(arrays["masks"]))
    return Clips(content, lengths.cumsum(0) - lengths, lengths)


def _find(root: Path) -> list[Files]:
    """The files of every video."""
    base, notes = root, root / "Annotations"
    if (root / "JPEGImages").is_dir():
        base = root / "JPEGImages"
        inner = sorted(each for each in base.iterdir() if each.is_dir())
        if inner and not _images(inner[0]):  # one more level, the resolution
            base, notes = inner[0], notes / inner[0].name
    if _images(base):
        return [_with_masks(base, notes)]
    folders = sorted(each for each in base.iterdir() if each.is_dir()) if base.is_dir() else []
    names = {each.name for each in folders}
    videos = [each for each in folders if not _is_mask(each.name, names) and each != notes]
    return [_with_masks(each, notes) for each in videos if _images(each)]


def _is_mask(name: str, names: set[str]) -> bool:
    return any(name.endswith(end) and name.removesuffix(end) in names for end in MASK_ENDINGS)


def _images(folder: Path) -> list[Path]:
    return sorted(
        each
        for each in folder.iterdir()
        if each.suffix.lower() in SUFFIXES and not each.name.startswith(".")
    )


def _with_masks(folder: Path, notes: Path) -> Files:
    frames = _images(folder)
    places = [notes / folder.name, *(folder.with_name(folder.name + end) for end in MASK_ENDINGS)]
    place = next((each for each in places if each.is_dir()), None)
    if place is None:
        return frames, []
    masks = {file.stem: file for file in _images(place)}
    for frame in frames:
        if frame.stem not in masks:
            raise ValueError(f"video: every frame needs a mask in {place}, got none for {frame}")
    return frames, [masks[frame.stem] for frame in frames]


def _decode_all(videos: Sequence[Files], size: int | None) -> Arrays:
    frames = [file for files, _ in videos for file in files]
    box = None if size is None else _box(frames[0], size)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = pool.map(lambda file: _frame(file, box), frames)
        pictures = list(track(decoded, "decoding frames", len(frames)))
        wanted: list[Path | None] = []
        for files, masks in videos:
            wanted += masks or [None] * len(files)
        masks_read = pool.map(lambda file: None if file is None else _mask(file, box), wanted)
        objects = list(track(masks_read, "reading masks", len(wanted)))
    shapes = {picture.shape: file for picture, file in zip(pictures, frames, strict=True)}
    if len(shapes) > 1:
        (a, first), (b, second), *_ = shapes.items()
        raise ValueError(
            f"video: frames must be equal in size unless `size` is given, got {first} {a[1:]} and"
            f" {second} {b[1:]}"
        )
    side = pictures[0].shape[1:]
    for file, mask in zip(wanted, objects, strict=True):
        if mask is not None and mask.shape != side:
            raise ValueError(
                f"video: a mask must be as large as its frame, got {file} {mask.shape}"
            )
    none = np.zeros(side, np.uint8)
    return {
        "frames": np.stack(pictures),
        "masks": np.stack([none if mask is None else mask for mask in objects]),
        "lengths": np.array([len(files) for files, _ in videos], dtype=np.int64),
    }


def _box(file: Path, size: int) -> tuple[int, int]:
    """Width and height of the frames, near `size` on the shorter side."""
    with _opened(file) as image:
        width, height = image.size
    scale = size / min(width, height)
    sides = (max(MULTIPLE, round(side * scale / MULTIPLE) * MULTIPLE) for side in (width, height))
    return next(sides), next(sides)


def _frame(file: Path, box: tuple[int, int] | None) -> NDArray[np.uint8]:
    """[3, H, W]."""
    from PIL import Image, ImageOps

    with _opened(file) as image:
        picture = image.convert("RGB")
    if box is not None:
        picture = ImageOps.fit(picture, box, Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def _mask(file: Path, box: tuple[int, int] | None) -> NDArray[np.uint8]:
    """[H, W], numbers of objects."""
    from PIL import Image, ImageOps

    with _opened(file) as image:
        named = image.mode == "P"
        picture = image.copy() if named else image.convert("L")
    if box is not None:
        picture = ImageOps.fit(picture, box, Image.Resampling.NEAREST)
    values = np.asarray(picture)
    return values.astype(np.uint8) if named else (values > 127).astype(np.uint8)


def _opened(file: Path) -> "Image.Image":
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(file)
        image.load()
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise ValueError(f"video: every frame must be readable, got {file}: {error}") from error
    return image
