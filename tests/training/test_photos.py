"""Crops of photographs: split by photograph, deterministic, of any size that fits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sslops.training import load_encoder, train
from sslops.training.data import load, photos
from sslops.training.loggers.console import Console


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def two(tmp_path, monkeypatch):
    """A red and a green photograph to train on, a blue one to test on, in two packages."""
    folders = {"sklearn": tmp_path / "a", "skimage": tmp_path / "b"}
    for folder in folders.values():
        folder.mkdir()
    for package, name, colour in (
        ("sklearn", "china.jpg", (255, 0, 0)),
        ("skimage", "chelsea.png", (0, 255, 0)),
        ("sklearn", "flower.jpg", (0, 0, 255)),
    ):
        Image.new("RGB", (90, 60), colour).save(folders[package] / name)
    monkeypatch.setattr(photos, "_folder", folders.get)
    return folders


def test_no_photograph_is_in_both_parts():
    assert not set(photos.TRAIN) & set(photos.TEST)


def test_every_photograph_gives_its_share_and_stays_in_its_part(two):
    data = load("photos", size=16)
    main = data.train.images.float().mean((2, 3)).argmax(1)
    assert main.bincount().tolist() == [2048, 2048]
    assert (data.test.images.float().mean((2, 3)).argmax(1) == 2).all()
    assert data.test.images.shape == (1024, 3, 16, 16)


def test_scikit_learn_alone_is_enough(two, monkeypatch):
    monkeypatch.setattr(
        photos, "_folder", lambda name: two["sklearn"] if name == "sklearn" else None
    )
    assert len(load("photos").train) == 4096
    (two["sklearn"] / "flower.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="photos: needs the photographs of scikit-learn"):
        load("photos")


def test_a_size_above_a_photograph_is_refused(two):
    with pytest.raises(ValueError, match=r"size must be at most the 60 pixels of \w+.\w+, got 61"):
        load("photos", size=61)
    assert load("photos", size=60).image_size == 60


def test_crops_show_the_photograph_at_several_scales_and_places(two):
    ramp = np.tile(np.linspace(0, 255, 90).astype(np.uint8)[None, :, None], (60, 1, 3))
    Image.fromarray(ramp).save(two["skimage"] / "chelsea.png")
    crops = load("photos", size=8).train.images[2048:, 0].float()
    width = crops[:, :, -1].mean(1) - crops[:, :, 0].mean(1)  # how much of the ramp it shows
    assert width.min() < 25
    assert width.max() > 70
    left = crops[:, :, 0].mean(1)
    assert left.min() < 10
    assert left.max() > 200


@pytest.mark.slow
def test_real_photographs_twice_the_same_bits(tmp_path, monkeypatch):
    first = load("photos")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    second = load("photos")
    assert torch.equal(first.train.images, second.train.images)
    assert first.train.images.float().std() > 30
    assert first.channels == 3
    assert first.classes == ()


@pytest.mark.parametrize("size", [32, 64, 96, 224])
def test_sizes_of_the_lecture(size):
    if size > 32:  # the crops of one photograph are enough here
        crops = photos._crops(Path(photos._folder("sklearn"), "china.jpg"), size, 3,
                              np.random.default_rng(0))  # fmt: skip
        assert [crop.shape for crop in crops] == [(size, size, 3)] * 3
    else:
        assert load("photos", size=size).image_size == size


@pytest.mark.slow
def test_trains_without_labels(tmp_path):
    result = train("simclr", data="photos", out=tmp_path, steps=2, batch=32, width=4, threads=1,
                   eval_train=60, eval_test=30, tsne_images=9,
                   console=Console(quiet=True))  # fmt: skip
    assert load_encoder(result.dir).dim == 32
    assert "feature_spread" in result.results["simclr"]
