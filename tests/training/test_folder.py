import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sslops.training import data
from sslops.training.data import cache, folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSLOPS_CACHE", str(tmp_path / "cache"))


def save(path: Path, seed: int, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> np.ndarray:
    """A random picture of (width, height) pixels at `path`; returns it as [H, W(, 3)]."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return np.asarray(image)


def entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "decoded").iterdir())


def test_class_folders_with_train_and_test(tmp_path: Path) -> None:
    root = tmp_path / "set"
    first = save(root / "train" / "b" / "1.png", 0)
    save(root / "train" / "a" / "deep" / "2.png", 1)
    save(root / "train" / "a" / "3.PNG", 2)
    second = save(root / "test" / "b" / "4.png", 3)
    (root / "train" / "a" / "notes.txt").write_text("not an image")
    save(root / "train" / ".thumbnails" / "5.png", 4)
    found = data.load(str(root))
    assert found.name == "set"
    assert found.classes == ("a", "b")
    assert found.train.labels is not None
    assert found.test.labels is not None
    assert found.train.labels.tolist() == [0, 0, 1]
    assert found.test.labels.tolist() == [1]
    assert np.array_equal(found.train.images[2], first.transpose(2, 0, 1))
    assert np.array_equal(found.test.images[0], second.transpose(2, 0, 1))
    assert found.source == str(root)


def test_class_folders_alone_are_split_nine_to_one(tmp_path: Path) -> None:
    for k in range(40):
        save(tmp_path / "set" / ("x" if k % 2 else "y") / f"{k:02}.png", k)
    found, again = data.load(str(tmp_path / "set")), data.load(str(tmp_path / "set"))
    assert found.test.labels is not None
    assert found.test.labels.tolist() == [0, 0, 1, 1]
    assert len(found.train) == 36
    assert torch.equal(found.test.images, again.test.images)


def test_images_without_classes_have_no_labels(tmp_path: Path) -> None:
    for k in range(20):
        save(tmp_path / "set" / f"{k:02}.png", k)
    found = data.load(str(tmp_path / "set"))
    assert found.train.labels is None
    assert found.classes == ()
    assert (len(found.train), len(found.test)) == (18, 2)


def test_a_tar_of_a_folder(tmp_path: Path) -> None:
    for k in range(20):
        save(tmp_path / "set" / f"class{k % 2}" / f"{k:02}.png", k)
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "set", "set")
    packed, plain = data.load(str(tmp_path / "set.tar.gz")), data.load(str(tmp_path / "set"))
    assert packed.classes == ("class0", "class1")
    assert torch.equal(packed.train.images, plain.train.images)
    assert torch.equal(packed.test.labels, plain.test.labels)


@pytest.mark.parametrize("mode,channels", [("L", 1), ("1", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)])
def test_modes(tmp_path: Path, mode: str, channels: int) -> None:
    for k in range(10):
        save(tmp_path / "set" / f"{k}.png", k, mode=mode)
    assert data.load(str(tmp_path / "set")).channels == channels


def test_grey_images_among_coloured_ones_are_repeated(tmp_path: Path) -> None:
    grey = save(tmp_path / "set" / "train" / "1.png", 0, mode="L")
    save(tmp_path / "set" / "train" / "2.png", 1)
    save(tmp_path / "set" / "test" / "3.png", 2)
    images = data.load(str(tmp_path / "set")).train.images
    assert np.array_equal(images[0], np.stack([grey] * 3))


def test_size_resizes_the_shorter_side_and_cuts_the_middle(tmp_path: Path) -> None:
    stripes = np.zeros((20, 60, 3), np.uint8)
    stripes[:, 20:40] = 255  # the middle third is white
    (tmp_path / "set").mkdir()
    for k in range(5):
        Image.fromarray(stripes).save(tmp_path / "set" / f"{k}.png")
        Image.fromarray(stripes.transpose(1, 0, 2)).save(tmp_path / "set" / f"t{k}.png")
    images = data.load(str(tmp_path / "set"), size=10).train.images
    assert images.shape == (9, 3, 10, 10)
    assert (images > 200).all()


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4] = 255  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate clockwise to view
    for part in ("train", "test"):
        (tmp_path / "set" / part).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "set" / part / "1.png", exif=exif)
    image = data.load(str(tmp_path / "set")).train.images[0]
    assert image.shape == (3, 8, 4)
    assert (image[:, :4] == 255).all()
    assert (image[:, 4:] == 0).all()


def test_errors_name_the_file_or_folder(tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    with pytest.raises(ValueError, match=rf"folder: must hold images .*got none in {root}"):
        data.load(str(root))
    save(root / "a" / "1.png", 0)
    save(root / "2.png", 1)
    with pytest.raises(ValueError, match=r"all lie in class folders .* got 2.png beside"):
        data.load(str(root))
    (root / "2.png").unlink()
    save(root / "a" / "3.png", 2, size=(9, 9))
    with pytest.raises(ValueError, match=r"equal in size unless `size` is given, got a/1.png"):
        data.load(str(root))
    (root / "a" / "3.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"every image must be readable, got a/3.png"):
        data.load(str(root))
    with pytest.raises(FileNotFoundError, match="folder: path must exist"):
        folder.load_folder(tmp_path / "nowhere")
    (tmp_path / "list.csv").write_text("a,b")
    with pytest.raises(ValueError, match="folder: must be a folder or a tar"):
        data.load(str(tmp_path / "list.csv"))


def test_classes_of_test_must_be_known_from_train(tmp_path: Path) -> None:
    save(tmp_path / "set" / "train" / "a" / "1.png", 0)
    save(tmp_path / "set" / "test" / "b" / "2.png", 1)
    with pytest.raises(ValueError, match=r"classes of test/ must be in train/, got \['b'\]"):
        data.load(str(tmp_path / "set"))
    (tmp_path / "set" / "test" / "b" / "2.png").rename(tmp_path / "set" / "test" / "2.png")
    with pytest.raises(ValueError, match="train/ and test/ must both have class folders"):
        data.load(str(tmp_path / "set"))


# The cache of decoded images.


def test_decoded_once_and_anew_when_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "set"
    for k in range(10):
        save(root / f"{k}.png", k)
    first = data.load(str(root))
    assert len(entries(tmp_path)) == 1
    with monkeypatch.context() as patch:
        patch.setattr(folder, "_open", None)  # any decoding would fail
        assert torch.equal(data.load(str(root)).train.images, first.train.images)
    save(root / "3.png", 99, size=(6, 5))
    changed = data.load(str(root))
    assert not torch.equal(
        torch.cat([changed.train.images, changed.test.images]),
        torch.cat([first.train.images, first.test.images]),
    )
    data.load(str(root), size=4)
    assert len(entries(tmp_path)) == 3


def test_a_damaged_entry_is_built_anew(tmp_path: Path) -> None:
    calls = []

    def build() -> cache.Arrays:
        calls.append(1)
        return {"a": np.arange(100)}

    cache.cached("key", build)
    file = tmp_path / "cache" / "decoded" / "key" / "a.npy"
    file.write_bytes(file.read_bytes()[:-50])
    for _ in range(2):
        assert np.array_equal(cache.cached("key", build)["a"], np.arange(100))
    assert len(calls) == 2


def test_a_stop_while_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = np.save

    def stop(file: Path, array: np.ndarray, **options: bool) -> None:
        if file.name == "b.npy":
            raise KeyboardInterrupt
        saved(file, array, **options)

    monkeypatch.setattr(np, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        cache.cached("key", lambda: {"a": np.arange(3), "b": np.arange(4)})
    assert entries(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_only_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SSLOPS_CACHE", str(tmp_path / "file"))
    assert list(cache.cached("key", lambda: {"a": np.arange(3)})) == ["a"]
    assert "data: cannot cache decoded images" in capsys.readouterr().err
