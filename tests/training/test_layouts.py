"""One rule for parts, labels and order of files, over every source that reads people's folders.

A source is registered in SOURCES, a layout in LAYOUTS; each is tried with each.
"""

import os
import re
import tarfile
import wave
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from sslops.training import data
from sslops.training.data import Dataset, Split, split_validation
from sslops.training.data.layout import find_files, natural

CLASSES = ("cat", "dog")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SSLOPS_CACHE", str(tmp_path / "cache"))


# Sources: how to write the item "train/cat/7" with a value, and how to read that value back.


def write_image(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), value).save(path.with_name(path.name + ".png"))


def write_recording(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path) + ".wav", "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(np.full(5, value, "<i2").tobytes())


def write_video(path: Path, value: int) -> None:
    path.mkdir(parents=True)
    Image.new("L", (4, 4), value).save(path / "0.png")


def pack(root: Path) -> Path:
    path = root.with_name("set.tar.gz")
    with tarfile.open(path, "w:gz") as archive:
        archive.add(root, ".")
    return path


class Source(NamedTuple):
    """One kind of data; `module` is where it is read."""

    module: str
    write: Callable[[Path, int], None]
    values: Callable[[Split], list[int]]
    ending: str
    kind: str = "image"
    labelled: bool = True
    pack: Callable[[Path], Path] = lambda root: root


def pixels(split):
    return split.images[:, 0, 0, 0].tolist()


SOURCES = {
    "folder": Source("folder", write_image, pixels, ".png"),
    "tar": Source("folder", write_image, pixels, ".png", pack=pack),
    "recordings": Source(
        "audio_folder",
        write_recording,
        lambda split: (split.images.whole()[:, 0] * 32768).int().tolist(),
        ".wav",
    ),
    "videos": Source(
        "video_folder",
        write_video,
        lambda split: [int(split.images.video(i).frames.max()) for i in range(len(split))],
        "",
        kind="video",
        labelled=False,
    ),
}


def test_every_reader_of_folders_is_a_source():
    folder = Path(data.__file__).parent
    readers = {file.stem for file in folder.glob("*.py") if "assemble(" in file.read_text()}
    assert readers - {"layout"} == {source.module for source in SOURCES.values()}
    for file in folder.glob("*.py"):
        if file.stem != "layout":
            text = file.read_text()
            assert "os.walk" not in text
            assert "iterdir" not in text or file.stem == "cache"


# Layouts.


class Layout(NamedTuple):
    """What lies in a folder: item -> value. Items are in natural order.

    `test` is None where a tenth is set apart. `said` is what a line must tell.
    """

    items: list[str]
    train: list[str] | None = None
    test: list[str] | None = None
    classes: tuple[str, ...] = ()
    said: str = ""
    error: str = ""
    of_labels: bool = False  # says nothing of a source without labels


def under(part, count, classes=CLASSES):
    """`count` items of the classes in turn."""
    return [f"{part}{name}/{k}" for name in classes for k in range(count // len(classes))]


def parts(train, test, prefix="", **more):
    """12 train and 6 test images of cat and dog."""
    a, b = under(f"{prefix}{train}/", 12), under(f"{prefix}{test}/", 6)
    return Layout(a + b, a, b, CLASSES, **more)


LOOSE = [str(k) for k in range(20)]
T, V, S = under("train/", 12), under("val/", 6), under("test/", 4)
LAYOUTS = {
    "train-test": parts("train", "test"),
    "train-val": parts("train", "val"),
    "train-validation": parts("train", "validation"),
    "train-valid": parts("train", "valid"),
    "capitals": parts("Train", "Val"),
    "training-testing": parts("training", "testing"),
    "wrapped": parts("train", "val", "some/more/"),
    "val-beside-test": Layout(T + V + S, T, S, CLASSES, r"not used: val/ \(6 "),
    "test-without-labels": Layout(
        [*T, "test/a", *V], T, V, CLASSES, r"val/ tested on; not used: test/ \(1 ", of_labels=True
    ),
    "more-beside": Layout(
        [*T, *S, "other/a", "b"], T, S, CLASSES, r"not used: 1 .* beside them, other/ \(1 "
    ),
    "loose-parts": Layout(["train/1", "train/2", "val/3"], ["train/1", "train/2"], ["val/3"]),
    "train-alone": Layout(T, T, None, CLASSES),
    "test-alone": Layout(S, S, None, CLASSES, "holds test/ alone"),
    "classes": Layout(under("", 20), under("", 20), None, CLASSES),
    "deep": Layout([f"{c}/x/{k}" for c in CLASSES for k in range(5)], None, None, CLASSES),
    "train-is-a-class": Layout(
        under("", 20, ("car", "train")),
        None,
        None,
        ("car", "train"),
        "train/ is read (as a class|like the rest), as no test/",
    ),
    "one-class": Layout(under("all/", 20, ("",)), None, None, (), "one class, all,"),
    "one-class-in-parts": Layout(
        ["train/all/1", "train/all/2", "val/all/3"],
        ["train/all/1", "train/all/2"],
        ["val/all/3"],
        (),
        "one class, all,",
    ),
    "no-classes": Layout(LOOSE, LOOSE),
    "two-files": Layout(["a", "b"]),
    "valid-beside-invalid": Layout(
        under("", 20, ("invalid", "valid")),
        None,
        None,
        ("invalid", "valid"),
        "valid/ is read (as a class|like the rest), as no train/ is there",
    ),
    "held-out-beside-classes": Layout(
        under("", 30, ("Test", "cat", "val")),
        None,
        None,
        ("Test", "cat", "val"),
        "Test/ and val/ are read (as classes|like the rest), as no train/ is there",
    ),
    "test-beside-files": Layout(["1", "2", "test/1"], error=r"test/ is a part and needs train/"),
    "val-beside-test-alone": Layout([*V, *S], error=r"(val|test)/ is a part and needs train/"),
    "beside-classes": Layout([*under("", 4), "1"], error="all outside, got 1", of_labels=True),
    "unknown-classes": Layout(
        [*T, "val/cow/1"], error=r"classes of val/ must be in train/, got \['cow'\]", of_labels=True
    ),
    "classes-in-one-part": Layout(
        [*T, "val/1"], error="train/ and val/ must both have class folders", of_labels=True
    ),
    "one-file": Layout(["a"], error="needs two"),
}


PAIRS = [
    (source, layout)
    for source, how in SOURCES.items()
    for layout, what in LAYOUTS.items()
    if how.labelled or not what.of_labels
]


@pytest.mark.parametrize(("source", "layout"), PAIRS)
def test_source_by_layout(tmp_path, capsys, source, layout):
    how, what = SOURCES[source], LAYOUTS[layout]
    value = {item: 10 + 3 * i for i, item in enumerate(what.items)}
    for item in reversed(what.items):
        how.write(tmp_path / "set" / item, value[item])
    path = how.pack(tmp_path / "set")
    if what.error:
        with pytest.raises(ValueError, match=what.error):
            data.load(str(path), kind=how.kind)
        return
    for _ in range(2):  # decoded, then from the cache
        found = data.load(str(path), kind=how.kind)
        train, test = how.values(found.train), how.values(found.test)
        expected = [value[item] for item in what.train or what.items]
        if what.test is None:
            assert sorted(train + test) == expected
            assert train == sorted(train)
            assert len(test) == max(1, round(len(expected) / 10))
        else:
            assert (train, test) == (expected, [value[item] for item in what.test])
    if what.said and (how.labelled or "one class" not in what.said):
        assert len(re.findall(what.said, capsys.readouterr().err)) == 1
    elif not what.said:
        assert capsys.readouterr().err == ""
    classes = what.classes if how.labelled else ()
    assert found.classes == classes
    for split, values in ((found.train, train), (found.test, test)):
        if not classes:
            assert split.labels is None
            continue
        item = {number: name for name, number in value.items()}
        names = [classes[label] for label in split.labels.tolist()]
        assert all(name in item[each].split("/") for name, each in zip(names, values, strict=True))


@pytest.mark.parametrize("source", SOURCES)
def test_numbers_in_names_count(tmp_path, source):
    how = SOURCES[source]
    names = [f"frame{k}" for k in range(1, 13)]
    for k, name in enumerate(names):
        how.write(tmp_path / "set" / "train" / name, 10 + k)
    how.write(tmp_path / "set" / "test" / "x", 99)
    found = data.load(str(how.pack(tmp_path / "set")), kind=how.kind)
    assert how.values(found.train) == list(range(10, 22))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("layout", ["loose", "classes", "in train"])
def test_the_tenth_set_apart_is_drawn_over_the_plain_order(tmp_path, source, layout):
    """Natural order would draw another one, of files that runs of earlier versions trained on."""
    how = SOURCES[source]
    numbers = range(1, 31)
    names = [f"f{k}" for k in numbers]
    if layout != "loose":
        names = [f"{'train/' * (layout != 'classes')}{'dog' if k % 3 else 'cat'}/f{k}"
                 for k in numbers]  # fmt: skip
    value = {name: 10 + 3 * k for k, name in enumerate(names)}
    for name in names:
        how.write(tmp_path / "set" / name, value[name])
    plain = sorted(names, key=lambda name: name.split("/"))
    labels = None
    if how.labelled and layout != "loose":
        labels = torch.tensor([int("dog" in name) for name in plain])
    held_out = split_validation(
        Split(torch.tensor([value[name] for name in plain]), labels), 0.1, 0
    )[1].images.tolist()
    found = data.load(str(how.pack(tmp_path / "set")), kind=how.kind)
    assert sorted(how.values(found.test)) == sorted(held_out)
    ordered = [value[name] for name in sorted(names, key=natural)]
    assert how.values(found.train) == [each for each in ordered if each not in held_out]
    assert how.values(found.test) == [each for each in ordered if each in held_out]


def test_frames_of_a_video_are_in_natural_order(tmp_path):
    for k in (10, 9, 12, 1, 2, 11):
        write_image(tmp_path / "v" / f"frame{k}", 10 * k)
        write_image(tmp_path / "w" / f"frame{k}", 10 * k)
    found = data.load(str(tmp_path), kind="video").train.images.video(0)
    assert found.frames[:, 0, 0, 0].tolist() == [10, 20, 90, 100, 110, 120]


def test_natural_order():
    names = ["a", "a-1", "a1", "a01", "a2", "a10", "a10/b", "b9c2", "b9c10", "b10c1", "ab", "a.png"]
    expected = [
        "a",
        "a-1",
        "a.png",
        "a01",
        "a1",
        "a2",
        "a10",
        "a10/b",
        "ab",
        "b9c2",
        "b9c10",
        "b10c1",
    ]
    assert sorted(names, key=natural) == expected
    padded = [f"x{k:03}{end}" for k in (3, 20, 100) for end in ("", "a", "-", "(1)")]
    assert sorted(padded, key=natural) == sorted(padded)
    assert natural("x" + "9" * 200) < natural("x" + "1" * 201)


# What else lies in folders.


def test_other_files_are_said_once(tmp_path, capsys):
    for k in range(4):
        write_image(tmp_path / "set" / str(k), k)
    for name in ("a.heic", "b.heic", ".DS_Store", "c"):
        (tmp_path / "set" / name).write_bytes(b"x")
    for _ in range(2):
        data.load(str(tmp_path / "set"))
    assert (
        capsys.readouterr().err.count(f"other files in {tmp_path}/set are not read: 2 .heic, 1 no")
        == 1
    )


@pytest.mark.parametrize("source", ["folder", "recordings", "videos"])
@pytest.mark.parametrize("odd", ["link to nothing", "pipe", "link to its folder"])
def test_odd_files(tmp_path, capsys, source, odd):
    how = SOURCES[source]
    for name in ("a", "b"):
        how.write(tmp_path / "set" / name, 1)
    place = tmp_path / "set" / f"c{how.ending or '/0.png'}"
    if odd == "link to its folder":
        (tmp_path / "set" / "c").symlink_to(tmp_path / "set")
        found = data.load(str(tmp_path / "set"), kind=how.kind)
        assert len(found.train) + len(found.test) == 2
        assert "set/c is not followed" in capsys.readouterr().err
        return
    place.parent.mkdir(exist_ok=True)
    place.symlink_to("nowhere") if odd == "link to nothing" else os.mkfifo(place)
    with pytest.raises(ValueError, match=f"every file must be readable, got {place}: "):
        data.load(str(tmp_path / "set"), kind=how.kind)


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    """Not dropped; the tests may run as root, who can."""
    write_image(tmp_path / "set" / "a" / "1", 1)
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ValueError, match=r"every folder must be readable, got .*/a: Permission"):
        find_files(tmp_path / "set", frozenset({".png"}), "folder")


# One class.


def test_labels_of_one_class_are_none_wherever_they_come_from(capsys):
    x = torch.zeros(6, 1, 4, 4, dtype=torch.uint8)
    speaker = {"speaker": torch.zeros(6).long(), "room": torch.arange(6)}
    names = {"speaker": ("anna",), "room": tuple("abcdef")}
    one = Split(x, torch.ones(6).long(), speaker)
    found = Dataset("mine", one, one, ("cat", "dog"), "", "", names)
    assert (found.classes, found.train.labels, found.test.labels) == ((), None, None)
    assert list(found.factors) == list(found.train.factors) == list(found.test.factors) == ["room"]
    said = capsys.readouterr().err
    assert "mine: all 6 to train on are of one class, dog, which is read as no labels" in said
    assert "mine has one value of speaker alone" in said
    two = Dataset("mine", Split(x, torch.arange(6) % 2), one, ("cat", "dog"), "", "")
    assert two.classes == ("cat", "dog")
    assert two.test.labels is not None


@pytest.mark.parametrize("kind", ["image", "sound"])
def test_sounds_among_images(tmp_path, capsys, kind):
    """One wav in a folder of pictures made it a folder of one recording."""
    for k in range(3):
        write_image(tmp_path / "set" / str(k), k)
        write_recording(tmp_path / "set" / str(k), k)
    found = data.load(str(tmp_path / "set"), kind=kind)
    assert (found.rate > 0) == (kind == "sound")
    assert f"are not read: 3 {'.wav' if kind == 'image' else '.png'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("image", "a.heic", "folder: must hold images"),
        ("sound", "a.mp3", "audio: needs .flac or .wav files"),
        ("video", "a.mp4", "video: must hold folders of frames"),
    ],
)
def test_a_folder_of_other_files_says_which(tmp_path, capsys, kind, name, message):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=message):
        data.load(str(tmp_path), kind=kind)
    assert f"are not read: 1 {Path(name).suffix}" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["image", "video"])
def test_resizing_is_said(tmp_path, capsys, kind):
    for k, side in enumerate((4, 6, 8, 9)):
        path = tmp_path / "set" / str(k) / "0.png"
        path.parent.mkdir(parents=True)
        Image.new("L", (side, 8)).save(path)
    data.load(str(tmp_path / "set"), size=8, kind=kind)
    what = {"image": ("3 images", "8x8"), "video": ("4 frames", "8x16")}[kind]
    said = f"{what[0]} of 4x8 to 9x8 pixels are cut and resized to {what[1]}"
    assert said in capsys.readouterr().err


def test_frames_alone_are_one_video_and_too_few(tmp_path, monkeypatch):
    for k in range(3):
        write_image(tmp_path / "set" / str(k), k)
    monkeypatch.chdir(tmp_path / "set")
    for path in (".", str(tmp_path / "set")):
        with pytest.raises(ValueError, match="video: needs two videos"):
            data.load(path, kind="video")
