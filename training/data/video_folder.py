"""Any folder of videos, each a folder of frames, with the masks of objects where there are some."""

import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sslops._names import shown
from sslops.training.data.cache import Arrays, cached, fingerprint
from sslops.training.data.clips import Clips, Video
from sslops.training.data.dataset import Dataset
from sslops.training.data.layout import assemble, divide, find_files, is_part, natural
from sslops.training.data.mask_files import object_numbers, read_mask
from sslops.training.data.notes import say, summarise
from sslops.training.data.pictures import large_pictures, open_picture, resized, to_8_bits
from sslops.training.loggers.progress import track

__all__ = ["load_video_folder", "read_videos"]

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp"})
MASK_ENDINGS = ("_mask", "_masks")
FRAMES, MASKS = "JPEGImages", "Annotations"  # the folders of DAVIS
MULTIPLE = 8  # what resized sides are a multiple of, so that the strides of encoders fit
VERSION = 2  # of what is made of the files: older ones may be in the cache
READABLE = "video: every frame must be readable"


class Files(NamedTuple):
    """One video: its name, its frames, and their masks or []."""

    name: PurePosixPath
    frames: list[Path]
    masks: list[Path]


def load_video_folder(path: str | Path, *, size: int | None = None) -> Dataset:
    """A folder of videos, in parts as of `divide`: `train/` with `test/`, `val/`, `validation/`.

    Where no part is set apart, a tenth of the videos is, and one at least. There are no labels.

    Args:
        path: the folder, laid out as for `read_videos`.
        size: as of `read_videos`.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: fewer than two videos, or what `read_videos` refuses.
    """
    path = _existing(path)
    found = _find(path)
    division = divide(
        [video.name for video in found], kind="video", items="videos", root=path, labelled=False
    )
    clips = _read([found[i] for i in division.used], path, size)
    if len(clips) < 2:
        raise ValueError(
            f"video: needs two videos, one to train and one to test on, got {len(clips)} in {path}"
        )
    return assemble(clips, division, path)


def read_videos(path: str | Path, *, size: int | None = None) -> Clips:
    """All videos of a folder in natural order; decoded once, then from the cache.

    Layouts: frames alone (one video); a folder of frames for each video, inside of other folders
    if you like; that of DAVIS, `JPEGImages/480p/NAME/` with `Annotations/480p/NAME/`. Frames are in
    natural order. Masks lie in `Annotations/NAME/` or beside the frames in `NAME_mask/`, a png for
    each frame with the frame's name. `read_mask` says what values mean. A video without them has
    masks of zeros.

    Args:
        path: the folder.
        size: shorter side of the frames in pixels; the longer one follows from the first video, to
            whose shape all others are cut, both in multiples of 8. Needed unless all are equal.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: no frames, a frame without its mask beside others with one, sizes that differ,
            a file that is no image, masks that do not say which object is where.
    """
    path = _existing(path)
    return _read(_find(path), path, size)


def _existing(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"video: path must exist, got {path}")
    return path


def _read(found: Sequence[Files], root: Path, size: int | None) -> Clips:
    listed = [file for video in found for file in (*video.frames, *video.masks)]
    options = {"kind": "video", "version": VERSION, "root": str(root.resolve()), "size": size}
    arrays = cached(fingerprint(listed, **options), lambda: _decode_all(found, root, size))
    lengths = torch.from_numpy(arrays["lengths"])
    content = Video(torch.from_numpy(arrays["frames"]), torch.from_numpy(arrays["masks"]))
    return Clips(content, lengths.cumsum(0) - lengths, lengths)


def _find(root: Path) -> list[Files]:
    """The files of every video, in the order of names."""
    folders: dict[PurePosixPath, list[Path]] = defaultdict(list)
    for file in find_files(root, SUFFIXES, "video") if root.is_dir() else []:
        folders[file.parent].append(root / file)
    videos = _of_one_resolution([each for each in folders if not _is_mask(each, root)], root)
    if not videos:
        raise ValueError(f"video: must hold folders of frames ({', '.join(sorted(SUFFIXES))}),"
                         f" got none in {root}")  # fmt: skip
    found = []
    for folder, name in sorted(videos.items(), key=lambda pair: natural(pair[1])):
        if inside := next((each for each in videos if folder in each.parents), None):
            raise ValueError(
                "video: frames must lie in folders that hold no other video, got"
                f" {folders[folder][0]} beside {inside}/ in {root}"
            )
        found.append(_with_masks(name, folders[folder], _mask_folder(folder, root)))
    used = {mask.parent for video in found for mask in video.masks}
    if unused := [
        str(each) for each in folders if _is_mask(each, root) and root / each not in used
    ]:
        say(f"{root}: masks without a video are not used: {shown(unused, ', ')}")
    return found


def _is_mask(folder: PurePosixPath, root: Path) -> bool:
    """Whether it lies in Annotations, or in NAME_mask beside NAME."""
    for each in (folder, *folder.parents):
        endings = [end for end in MASK_ENDINGS if each.name.endswith(end) and each.name != end]
        if any((root / each).with_name(each.name.removesuffix(end)).is_dir() for end in endings):
            return True
    return MASKS in folder.parts


def _of_one_resolution(
    folders: Sequence[PurePosixPath], root: Path
) -> dict[PurePosixPath, PurePosixPath]:
    """Folder -> name of its video: without JPEGImages/480p, and with one such resolution alone."""
    davis = [each for each in folders if FRAMES in each.parts]
    if not davis:
        itself = PurePosixPath(Path(os.path.abspath(root)).name)  # the name of frames alone
        return {each: each if each.parts else itself for each in folders}
    if len(davis) < len(folders):
        others = [f"{each}/" for each in folders if each not in davis]
        say(f"{root}: {FRAMES}/ is read, not {shown(others, ', ')}")
    names: dict[PurePosixPath, PurePosixPath] = {}
    chosen: dict[tuple[str, ...], str] = {}
    for folder in sorted(davis, key=natural):
        at = folder.parts.index(FRAMES)
        before, after = folder.parts[:at], folder.parts[at + 1 :]
        if len(after) > 1 and not is_part(after[0]):
            first = chosen.setdefault(before, after[0])
            if first != after[0]:
                say(f"{root}: {FRAMES}/{first}/ is read, {FRAMES}/{after[0]}/ is not")
                continue
            after = after[1:]
        names[folder] = PurePosixPath(*before, *after)
    return names


def _mask_folder(folder: PurePosixPath, root: Path) -> Path | None:
    """Where the masks of a video lie, if anywhere."""
    place = Path(os.path.abspath(root / folder))  # with a name, for frames alone in ".", too
    places = [root / above / MASKS / folder.relative_to(above) for above in folder.parents]
    if FRAMES in folder.parts:
        parts = [MASKS if part == FRAMES else part for part in folder.parts]
        places.append(root.joinpath(*parts))
    if folder == PurePosixPath():
        places.append(root / MASKS / place.name)
    places += [place.with_name(place.name + end) for end in MASK_ENDINGS]
    return next((each for each in places if each.is_dir()), None)


def _with_masks(name: PurePosixPath, frames: list[Path], place: Path | None) -> Files:
    if place is None:
        return Files(name, frames, [])
    masks: dict[str, Path] = {}
    for file in find_files(place, SUFFIXES, "video"):
        masks[file.stem] = place / file
    for frame in frames:
        if frame.stem not in masks:
            raise ValueError(f"video: every frame needs a mask in {place}, got none for {frame}")
    if len(masks) > len(frames):
        say(f"{place}: {len(masks) - len(frames):,} masks belong to no frame and are not used")
    return Files(name, frames, [masks[frame.stem] for frame in frames])


def _decode_all(videos: Sequence[Files], root: Path, size: int | None) -> Arrays:
    frames = [file for video in videos for file in video.frames]
    files = [file for video in videos for file in video.masks]
    with large_pictures(), ThreadPoolExecutor(os.cpu_count()) as pool:
        box = None if size is None else _box(frames[0], size)
        decoded = pool.map(lambda file: _frame(file, box), frames)
        pictures = list(track(decoded, "decoding frames", len(frames)))
        read = pool.map(lambda file: read_mask(file, box), files)
        masks = dict(zip(files, track(read, "reading masks", len(files)), strict=True))
    shapes = {picture.shape: file for (picture, *_), file in zip(pictures, frames, strict=True)}
    if len(shapes) > 1:
        (a, first), (b, second), *_ = shapes.items()
        raise ValueError(
            f"video: frames must be equal in size unless `size` is given, got {first} {a[1:]} and"
            f" {second} {b[1:]}"
        )
    side = pictures[0][0].shape[1:]
    none = np.zeros(side, np.uint8)
    objects = []
    for video in videos:
        objects += object_numbers([masks[file] for file in video.masks]) or [none] * len(
            video.frames
        )
    for file, mask in masks.items():
        if mask.values.shape != side:
            raise ValueError(
                f"video: a mask must be as large as its frame, got {file} {mask.values.shape}"
            )
    notes = [] if box is None else resized([size for _, _, size in pictures], box, "frames", root)
    remarks = [
        (str(file.relative_to(root)), each)
        for file, (_, found, _) in zip(frames, pictures, strict=True)
        for each in found
    ]
    return {
        "frames": np.stack([picture for picture, *_ in pictures]),
        "masks": np.stack(objects),
        "lengths": np.array([len(video.frames) for video in videos], dtype=np.int64),
        "notes": np.array([*notes, *summarise(remarks, "frames", root)], dtype=np.str_),
    }


def _box(file: Path, size: int) -> tuple[int, int]:
    """Width and height of the frames, near `size` on the shorter side."""
    width, height = open_picture(file, file, READABLE).size
    scale = size / min(width, height)
    sides = (max(MULTIPLE, round(side * scale / MULTIPLE) * MULTIPLE) for side in (width, height))
    return next(sides), next(sides)


def _frame(
    file: Path, box: tuple[int, int] | None
) -> tuple[NDArray[np.uint8], list[str], tuple[int, int]]:
    """[3, H, W], what was not kept of the file, and its width and height."""
    from PIL import Image, ImageOps

    remarks: list[str] = []
    picture = open_picture(file, file, READABLE, remarks)
    picture = to_8_bits(picture, file, "video", remarks).convert("RGB")
    size = picture.size
    if box is not None:
        picture = ImageOps.fit(picture, box, Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1)), remarks, size
