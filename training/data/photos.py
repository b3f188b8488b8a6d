"""Crops of the colour photographs that scikit-learn and scikit-image bring: nothing to fetch."""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sslops.training.data.cache import Arrays, cached, fingerprint
from sslops.training.data.dataset import Dataset, Split
from sslops.training.data.pictures import open_picture

__all__ = ["load_photos"]

# A photograph is in one part alone, and so are the two halves of a stereo pair.
PACKAGES = {"sklearn": "datasets/images", "skimage": "data"}
TRAIN = (
    "china.jpg",
    "astronaut.png",
    "chelsea.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
)
TEST = ("flower.jpg", "coffee.png", "retina.jpg", "rocket.jpg")
CROPS = {"train": 4096, "test": 1024}
SIZE = 32
LARGEST, SMALLEST = 2, 8  # a crop's side is a half to an eighth of the photograph's shorter one
SEED = 0  # of the crops, fixed for every user


def load_photos(size: int | None = None) -> Dataset:
    """4,096 training and 1,024 test crops, RGB, without labels; no photograph is in both parts.

    Scikit-learn has one photograph for each part; with scikit-image there are seven and four. Every
    photograph gives as many crops as the others of its part.

    Args:
        size: side of the crops in pixels, 32 if None. A crop is taken at a scale between an eighth
            and a half of the photograph and at least at its own resolution, then averaged down.

    Raises:
        FileNotFoundError: a package has lost its photographs.
        ValueError: `size` is larger than a photograph.
    """
    size = SIZE if size is None else size
    places = [place for name in PACKAGES if (place := _folder(name)) is not None]
    files = {part: _find(places, names) for part, names in (("train", TRAIN), ("test", TEST))}
    for part, found in files.items():
        if not found:
            raise FileNotFoundError(
                f"photos: needs the photographs of scikit-learn, got none for {part} in"
                f" {', '.join(map(str, places)) or 'any package'}"
            )
    key = fingerprint([*files["train"], *files["test"]], kind="photos", size=size)
    arrays = cached(key, lambda: _cut(files, size))
    parts = {part: Split(torch.from_numpy(arrays[part]), None) for part in files}
    return Dataset(
        name="photos",
        train=parts["train"],
        test=parts["test"],
        classes=(),
        licence="those of the photographs: CC BY (china, flower), CC0, public domain and others",
        source="scikit-learn: sklearn/datasets/images/README.txt; scikit-image: skimage.data",
    )


def _folder(package: str) -> Path | None:
    """Where a package keeps its photographs; it is not imported for that."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0], PACKAGES[package])


def _find(places: list[Path], names: tuple[str, ...]) -> list[Path]:
    return [place / name for name in names for place in places if (place / name).is_file()]


def _cut(files: dict[str, list[Path]], size: int) -> Arrays:
    generator = np.random.default_rng(SEED)
    arrays: Arrays = {}
    for part, paths in files.items():
        count = -(-CROPS[part] // len(paths))
        crops = [crop for path in paths for crop in _crops(path, size, count, generator)]
        # The last photograph gives what is left over.
        arrays[part] = np.stack(crops[: CROPS[part]]).transpose(0, 3, 1, 2).copy()
    return arrays


def _crops(
    path: Path, size: int, count: int, generator: np.random.Generator
) -> list[NDArray[np.uint8]]:
    from PIL import Image

    photo = open_picture(path, path, "photos: every photograph must be readable").convert("RGB")
    short = min(photo.size)
    if size > short:
        raise ValueError(
            f"photos: size must be at most the {short} pixels of {path.name}, got {size}"
        )
    low, high = (min(short, max(size, short // part)) for part in (SMALLEST, LARGEST))
    crops = []
    for _ in range(count):
        side = int(generator.integers(low, high + 1))
        x, y = (int(generator.integers(0, length - side + 1)) for length in photo.size)
        box = (x, y, x + side, y + side)
        crop = photo.resize((size, size), Image.Resampling.BOX, box=box)
        crops.append(np.asarray(crop, dtype=np.uint8))
    return crops
