"""Every method against every kind of folder that a user may have: it trains, or says why not."""

import io
import re
import wave

import numpy as np
import pytest
from PIL import Image

from sslops.training import load_encoder, train
from sslops.training.loggers.console import Console
from sslops.training.methods import METHODS

from .method_cases import METHOD_CASES
from .test_training import assert_same

pytestmark = pytest.mark.slow

FIRST = {name: fields for name, fields in reversed(METHOD_CASES)}
COUNT = 20  # files, of which a tenth is set apart as a test part
FEW = {"batch": 8, "steps": 2, "knn_every": 0, "evaluate": False, "threads": 1}

OWN = {"moco": {"bn_splits": 2}}  # four images in each part


def images(folder, channels, size=(16, 16), classes=("a", "b")):
    """COUNT pictures of (width, height), in folders by class or none."""
    draw = np.random.default_rng(0)
    for i in range(COUNT):
        place = folder / classes[i % len(classes)] if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        shape = size[::-1] if channels == 1 else (*size[::-1], channels)
        Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(place / f"{i}.png")


def recordings(folder):
    draw = np.random.default_rng(0)
    for i in range(COUNT):
        place = folder / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        with wave.open(str(place / f"{i}.wav"), "wb") as file:
            file.setparams((1, 2, 4000, 0, "NONE", None))
            file.writeframes(draw.integers(-3000, 3000, 3000, dtype=np.int16).tobytes())


# What makes a folder, and the kind of data that it is read as by the methods of that kind.
SOURCES = {
    "grey, by class": (lambda folder: images(folder, 1), "image"),
    "colour, loose": (lambda folder: images(folder, 3, classes=()), "image"),
    "colour, one class": (lambda folder: images(folder, 3, classes=("all",)), "image"),
    "colour, oblong": (lambda folder: images(folder, 3, (24, 16)), "image"),
    "recordings": (recordings, "sound"),
    "videos": (lambda folder: images(folder, 3, classes=tuple("bcdefghijk")), "video"),
}
COLOUR = "needs colour images of 3 channels, got 1"
REFUSED = {
    ("colorization", "grey, by class"): COLOUR,
    ("split-brain", "grey, by class"): COLOUR,
    ("supervised", "colour, loose"): "needs labels of 2 classes, got none",
    ("supervised", "colour, one class"): "needs labels of 2 classes, got none",
    # A folder of folders of pictures is read as videos by the methods of videos.
    ("video-colorization", "grey, by class"): "batch must be at most the 1 training images",
    ("video-colorization", "colour, loose"): "needs two videos",
    ("video-colorization", "colour, one class"): "needs two videos",
    ("video-colorization", "colour, oblong"): "batch must be at most the 1 training images",
    ("video-colorization", "recordings"): "must hold folders of frames",
    ("video-colorization", "videos"): "references x spacing must be below the 2 frames",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for number, (name, (make, _)) in enumerate(SOURCES.items()):
        made[name] = tmp_path_factory.mktemp("data") / f"source{number}"
        make(made[name])
    return made


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SSLOPS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_every_folder_or_says_why_not(name, source, folders, tmp_path):
    kind, needed = SOURCES[source][1], METHODS[name].kind
    words = REFUSED.get((name, source))
    # Folders of frames are folders of images to the methods of images.
    if words is None and needed != kind and {needed, kind} != {"image", "video"}:
        words = f"{name}: needs {'images' if needed == 'image' else 'sound'}, got "
    fields = {
        **FIRST[name],
        **FEW,
        **OWN.get(name, {}),
        "data": str(folders[source]),
        "out": tmp_path / "run",
    }
    if words is not None:
        with pytest.raises(ValueError, match=re.escape(words)):
            train(name, console=Console(io.StringIO()), **fields)
        assert not (tmp_path / "run").exists()
        return
    result = train(name, console=Console(io.StringIO()), **fields)
    assert_same(dict(result.encoder.state_dict()), dict(load_encoder(result.dir).state_dict()))
