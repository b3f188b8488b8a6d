import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sslops.training import data
from sslops.training.data import cache, cifar10, fashion_mnist
from sslops.training.data.dataset import Split

CIFAR_CLASSES = cifar10.CLASSES


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSLOPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SSLOPS_DATA", raising=False)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "no-debian")


def picture(seed: int, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def write_classes(root: Path, classes: tuple[str, ...], each: int, **options: object) -> None:
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for k in range(each):
            picture(100 * label + k, **options).save(root / name / f"{k}.png")


# digits


def test_digits_are_split_by_class_and_always_alike() -> None:
    digits = data.load("digits")
    assert digits.train.images.shape == (1297, 1, 8, 8)
    assert digits.test.images.shape == (500, 1, 8, 8)
    assert digits.train.images.dtype is torch.uint8
    assert digits.train.images.is_contiguous()
    assert int(digits.train.images.max()) == 255
    assert digits.train.labels is not None
    assert digits.test.labels is not None
    whole = torch.bincount(torch.cat([digits.train.labels, digits.test.labels]))
    assert (torch.bincount(digits.test.labels) - whole * 500 / 1797).abs().max() < 1
    # the split is part of every published number: it must never change
    assert digits.test.labels[:12].tolist() == FIRST_TEST_LABELS
    assert (digits.channels, digits.image_size) == (1, 8)
    assert digits.licence
    assert digits.source


FIRST_TEST_LABELS = [1, 2, 6, 0, 3, 4, 6, 1, 2, 5, 9, 9]


def test_size_resizes_the_small_sets(capsys: pytest.CaptureFixture[str]) -> None:
    data.notes._said.clear()
    digits = data.load("digits", size=16)
    assert capsys.readouterr().err == "data: digits: images of side 8 are resized to 16\n"
    assert digits.train.images.shape == (1297, 1, 16, 16)
    assert digits.train.images.dtype is torch.uint8


# fashion-mnist


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


@pytest.fixture
def clothes(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The four files with 20 + 10 images, declared to be the published ones."""
    rng = np.random.default_rng(0)
    files = {}
    for part, n in (("train", 20), ("t10k", 10)):
        files[f"{part}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (n, 28, 28), np.uint8))
        files[f"{part}-labels-idx1-ubyte"] = idx(np.arange(n, dtype=np.uint8) % 10)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(fashion_mnist, "SHA256", sums)
    return files


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("where", ["root", "env", "env-inside", "debian", "cache"])
def test_fashion_mnist_is_found(
    clothes: dict[str, bytes], packed: bool, where: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = {
        "root": tmp_path / "r",
        "env": tmp_path / "e",
        "env-inside": tmp_path / "e" / "fashion-mnist",
        "debian": tmp_path / "no-debian",
        "cache": tmp_path / "cache" / "fashion-mnist",
    }[where]
    folder.mkdir(parents=True)
    for name, content in clothes.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    monkeypatch.setenv("SSLOPS_DATA", str(tmp_path / "e"))
    found = data.load("fashion-mnist", root=tmp_path / "r")
    assert found.train.images.shape == (20, 1, 28, 28)
    assert found.test.images.shape == (10, 1, 28, 28)
    raw = clothes["train-images-idx3-ubyte"][16:]
    assert found.train.images.numpy().tobytes() == raw
    assert found.train.labels is not None
    assert found.train.labels.tolist() == [k % 10 for k in range(20)]
    assert found.licence == "MIT"


def test_fashion_mnist_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist") as caught:
        data.load("fashion-mnist", root=tmp_path / "nowhere")
    for place in ("nowhere", "no-debian", "cache/fashion-mnist"):
        assert str(tmp_path / place) in str(caught.value)


def test_fashion_mnist_downloads_only_when_asked(
    clothes: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def opener(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        name = url.removeprefix(fashion_mnist.URL).removesuffix(".gz")
        return io.BytesIO(gzip.compress(clothes[name]))

    monkeypatch.setattr(fashion_mnist, "urlopen", opener)
    with pytest.raises(FileNotFoundError):
        data.load("fashion-mnist")
    assert not asked
    assert len(data.load("fashion-mnist", download=True).train) == 20
    assert len(asked) == 4
    assert len(data.load("fashion-mnist", download=True).train) == 20
    assert len(asked) == 4  # kept in the cache
    assert len(list((tmp_path / "cache" / "fashion-mnist").iterdir())) == 4


@pytest.mark.parametrize("damage", ["other", "cut"])
def test_a_damaged_download_is_not_kept(
    clothes: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: str
) -> None:
    packed = gzip.compress(clothes["train-images-idx3-ubyte"])
    content = gzip.compress(b"something else") if damage == "other" else packed[:-200]
    monkeypatch.setattr(fashion_mnist, "urlopen", lambda url, timeout: io.BytesIO(content))
    with pytest.raises(ValueError, match=r"fashion-mnist: https.* must "):
        data.load("fashion-mnist", download=True)
    assert not list((tmp_path / "cache" / "fashion-mnist").iterdir())


# cifar10


def write_batches(root: Path) -> Path:
    folder = root / cifar10.EXTRACTED
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for name in (*cifar10.BATCHES["train"], *cifar10.BATCHES["test"]):
        batch = {"data": rng.integers(0, 256, (10, 3072), np.uint8), "labels": list(range(10))}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return folder


def test_cifar10_official_folder_and_archive(tmp_path: Path) -> None:
    folder = write_batches(tmp_path)
    found = data.load("cifar10", root=folder)
    assert found.train.images.shape == (50, 3, 32, 32)
    assert found.test.images.shape == (10, 3, 32, 32)
    with tarfile.open(tmp_path / cifar10.ARCHIVE, "w:gz") as archive:
        archive.add(folder, folder.name)
    for _ in range(2):  # decoded, then cached
        packed = data.load("cifar10", root=tmp_path / cifar10.ARCHIVE)
        assert torch.equal(packed.train.images, found.train.images)
        assert packed.train.labels is not None
        assert packed.train.labels.tolist() == list(range(10)) * 5


@pytest.mark.parametrize("form", ["folder", "tar", "wrapped-tar"])
def test_cifar10_as_image_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    root = tmp_path / "images"
    write_classes(root / "train", CIFAR_CLASSES, 2)
    write_classes(root / "test", CIFAR_CLASSES, 1)
    if form == "folder":
        monkeypatch.setenv("SSLOPS_DATA", str(root))
    else:
        (tmp_path / "env" / "cifar10-copy").mkdir(parents=True)
        name = tmp_path / "env" / "cifar10-copy" / "cifar10-copy.tar.xz"
        with tarfile.open(name, "w:xz") as archive:
            archive.add(root, "copy" if form == "wrapped-tar" else ".")
        monkeypatch.setenv("SSLOPS_DATA", str(tmp_path / "env"))
    found = data.load("cifar10")
    assert found.name == "cifar10"
    assert found.classes == CIFAR_CLASSES
    assert found.train.images.shape == (20, 3, 32, 32)
    assert found.train.labels is not None
    assert found.train.labels.tolist() == [k // 2 for k in range(20)]
    expected = np.asarray(picture(201)).transpose(2, 0, 1)
    assert np.array_equal(found.train.images[5].numpy(), expected)
    assert "not comparable" in found.source


def test_cifar10_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="SSLOPS_DATA") as caught:
        data.load("cifar10", root=tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(caught.value)
    write_classes(tmp_path / "two" / "train", ("cat", "dog"), 1)
    write_classes(tmp_path / "two" / "test", ("cat", "dog"), 1)
    with pytest.raises(ValueError, match="cifar10: image folders must be the classes airplane"):
        data.load("cifar10", root=tmp_path / "two")


def test_cifar10_batches_can_only_hold_arrays(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    folder = write_batches(tmp_path)
    (folder / "data_batch_3").write_bytes(pickle.dumps({"data": Evil(), "labels": []}))
    with pytest.raises(ValueError, match="mkdir has no place in a CIFAR-10 batch"):
        data.load("cifar10", root=folder)
    assert not (tmp_path / "ran").exists()


# splits


def labelled(counts: list[int]) -> Split:
    labels = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None]
    return Split(images.expand(-1, 1, 2, 2).contiguous(), labels)


def test_validation_is_stratified_seeded_and_disjoint() -> None:
    whole = labelled([100, 50, 30])
    train, validation = data.split_validation(whole, 0.1, seed=0)
    assert torch.bincount(validation.labels).tolist() == [10, 5, 3]
    together = torch.cat([train.images, validation.images])[:, 0, 0, 0].sort().values
    assert torch.equal(together, whole.images[:, 0, 0, 0])
    again = data.split_validation(whole, 0.1, seed=0)[1]
    other = data.split_validation(whole, 0.1, seed=1)[1]
    assert torch.equal(again.images, validation.images)
    assert not torch.equal(other.images, validation.images)
    unlabelled = data.split_validation(Split(whole.images, None), 0.25, seed=0)
    assert [len(part) for part in unlabelled] == [135, 45]
    assert unlabelled[0].labels is None


def test_subset_draws_without_replacement() -> None:
    part = data.subset(labelled([60, 60]), 70, seed=3)
    values = part.images[:, 0, 0, 0]
    assert len(values.unique()) == 70
    assert torch.equal(part.labels, (values >= 60).long())


@pytest.mark.parametrize("n", [0, 4])
def test_subset_and_validation_errors(n: int) -> None:
    with pytest.raises(ValueError, match=rf"subset: n must be in 1..3, got {n}"):
        data.subset(labelled([3]), n, seed=0)
    with pytest.raises(ValueError, match="split_validation: both sides need an image"):
        data.split_validation(labelled([3]), n / 4, seed=0)


def test_unknown_name_and_size() -> None:
    with pytest.raises(
        ValueError, match=r"data: must be one of digits, .*, moving-shapes or the path"
    ):
        data.load("mnits")
    with pytest.raises(ValueError, match="data: size must be at least 1, got 0"):
        data.load("digits", size=0)


def test_cache_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache.cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("SSLOPS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_dir() == tmp_path / "xdg" / "sslops"
