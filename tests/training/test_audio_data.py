"""Sound as data: files, folders, the spoken digits, windows, batches of one speaker."""

import hashlib
import io
import sys
import tarfile
import wave

import numpy as np
import pytest
import torch

from sslops.training import data
from sslops.training.config import TrainConfig
from sslops.training.data import Split, Waves, fsdd, split_validation, subset
from sslops.training.data.audio_files import read_audio
from sslops.training.data.loader import Feed, Sampler, groups_of
from sslops.training.data.tones import TIMBRES
from sslops.training.distributed.process import World
from sslops.training.engine.setup import build_method, shape_of

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def _own_places(tmp_path, monkeypatch):
    monkeypatch.setenv("SSLOPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SSLOPS_DATA", raising=False)


def wav(samples, rate=8000, width=2, channels=1):
    """Bytes of a file; `samples` int16, [length] or [length, channels]."""
    samples = np.asarray(samples, np.int16)
    raw = {
        1: lambda: ((samples >> 8) + 128).astype(np.uint8).tobytes(),
        2: samples.astype("<i2").tobytes,
        3: lambda: (samples.astype("<i4") << 8).reshape(-1, 1).view(np.uint8)[:, :3].tobytes(),
        4: lambda: (samples.astype("<i4") << 16).tobytes(),
    }[width]()
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(raw)
    return stream.getvalue()


def ramp(length, start=0):
    return np.arange(start, start + length, dtype=np.int16)


# files


@pytest.mark.parametrize("width", [2, 3, 4])
def test_wav_of_every_width(width):
    samples = np.array([0, 1, -1, 32767, -32768, 1234], np.int16)
    read, rate = read_audio("a.wav", wav(samples, 22050, width))
    assert rate == 22050
    assert read.tolist() == samples.tolist()


def test_wav_of_one_byte_and_of_two_channels():
    assert read_audio("a.wav", wav([0, 256, -256], width=1))[0].tolist() == [0, 256, -256]
    stereo = np.array([[100, 300], [-100, -300]], np.int16)
    assert read_audio("a.wav", wav(stereo, channels=2))[0].tolist() == [200, -200]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("noise.wav", b"RIFF nothing", "every file must be readable, got noise.wav"),
        ("empty.wav", wav([]), "every file must have a sample, got none in empty.wav"),
    ],
)
def test_bad_files_are_named(name, content, message):
    with pytest.raises(ValueError, match=f"audio: {message}"):
        read_audio(name, content)


def test_flac_names_the_package_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ValueError, match=r"pip install soundfile\), got book\.flac without it"):
        read_audio("book.flac", b"fLaC")


# windows


def test_windows_lie_inside_and_everywhere():
    waves = Waves.of([torch.arange(10, dtype=torch.int16), torch.arange(100, 140).short()], 8000)
    generator = torch.Generator().manual_seed(0)
    both = waves[torch.tensor([1] * 400)]
    windows = both.windows(8, generator) * 32768
    first = windows[:, 0]
    assert torch.equal(windows - first[:, None], torch.arange(8.0).expand(400, 8))
    assert (first.min(), first.max()) == (100, 132)  # the first place and the last one


def test_short_recordings_are_played_over_and_over():
    waves = Waves.of([torch.arange(3, dtype=torch.int16)], 8000)
    generator = torch.Generator().manual_seed(0)
    seen = {tuple((waves.windows(7, generator)[0] * 32768).tolist()) for _ in range(50)}
    assert seen == {(0, 1, 2, 0, 1, 2, 0), (1, 2, 0, 1, 2, 0, 1), (2, 0, 1, 2, 0, 1, 2)}


def test_whole_recordings_have_zeros_behind():
    waves = Waves.of([torch.tensor([5, 6]).short(), torch.tensor([7, 8, 9]).short()], 8000)
    assert (waves.whole() * 32768).tolist() == [[5, 6, 0], [7, 8, 9]]
    assert (waves[torch.tensor([0])].whole() * 32768).tolist() == [[5, 6]]


def test_splits_carry_factors():
    waves = Waves.of([torch.full((4,), i).short() for i in range(20)], 8000)
    split = Split(waves, torch.arange(20) % 2, {"speaker": torch.arange(20)})
    for part in (*split_validation(split, 0.3, 0), subset(split, 5, 0)):
        assert (part.images.whole()[:, 0] * 32768).tolist() == part.factors["speaker"].tolist()


# batches of one speaker


def test_batches_of_one_speaker():
    speakers = torch.arange(50) % 3
    sampler = Sampler(50, 4, 0, ALONE, speakers)
    assert sampler.steps_per_epoch == 4 + 4 + 4
    epochs = []
    for epoch in range(2):
        batches = [sampler.indices(12 * epoch + step) for step in range(12)]
        assert all(len(speakers[batch].unique()) == 1 for batch in batches)
        order = torch.cat(batches)
        assert len(order.unique()) == 48
        heard = speakers[torch.stack(batches)[:, 0]]
        assert len(heard[:4].unique()) > 1  # not one speaker after another
        epochs.append(order)
    assert not torch.equal(*epochs)
    with pytest.raises(ValueError, match="at most the 17 recordings of the largest group, got 18"):
        Sampler(50, 18, 0, ALONE, speakers)


def test_groups_by_name():
    split = data.load("tones").train
    assert groups_of(split, None) is None
    assert torch.equal(groups_of(split, "speaker"), split.factors["speaker"])
    assert torch.equal(groups_of(split, "label"), split.labels)
    with pytest.raises(ValueError, match="group_by must be one of label, speaker, got 'voice'"):
        groups_of(split, "voice")


# folders


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def test_folder_of_speakers(tmp_path):
    files = {
        f"{who}/chapter/{i}.wav": wav(ramp(50 + i, start))
        for who, start in (("anna", 0), ("ben", 500))
        for i in range(10)
    }
    write(tmp_path / "books", files)
    loaded = data.load(str(tmp_path / "books"))
    assert (loaded.rate, loaded.classes) == (8000, ("anna", "ben"))
    assert (len(loaded.train), len(loaded.test)) == (18, 2)
    start = loaded.train.images.whole()[:, 0] * 32768
    assert torch.equal(start, 500.0 * loaded.train.labels)
    again = data.load(str(tmp_path / "books"))  # from the cache
    assert torch.equal(again.train.images.samples, loaded.train.images.samples)


def test_folder_with_test_part_and_without_labels(tmp_path):
    write(tmp_path / "a", {"train/x.wav": wav(ramp(9)), "test/y.wav": wav(ramp(7))})
    loaded = data.load(str(tmp_path / "a"))
    assert (len(loaded.train), len(loaded.test), loaded.classes) == (1, 1, ())
    assert loaded.train.labels is None
    assert int(loaded.test.images.lengths) == 7


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.wav": wav(ramp(5), 8000), "b.wav": wav(ramp(5), 16000)},
         r"one sampling rate, got .*a\.wav at 8,000 Hz and .*b\.wav at 16,000 Hz; resample"),
        ({"a.wav": wav(ramp(5)), "anna/b.wav": wav(ramp(5))}, "must all lie in class folders or"),
        ({"train/anna/a.wav": wav(ramp(5)), "test/ben/a.wav": wav(ramp(5))},
         r"classes of test/ must be in train/, got \['ben'\]"),
    ],
)  # fmt: skip
def test_refused_folders(tmp_path, files, message):
    write(tmp_path / "a", files)
    with pytest.raises(ValueError, match=message):
        data.load(str(tmp_path / "a"))


# the spoken digits


@pytest.fixture
def spoken(monkeypatch):
    """Two takes of two digits by two speakers, as if they were the published ones."""
    files = {
        f"{digit}_{who}_{take}.wav": wav(ramp(20 + take, 100 * digit))
        for digit in (0, 1)
        for who in ("george", "theo")
        for take in (0, 5)
    }
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode() + hashlib.sha256(files[name]).digest())
    monkeypatch.setattr(fsdd, "SHA256", digest.hexdigest())
    return files


def archive(path, files):
    with tarfile.open(path, "w:xz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"free-spoken-digit-dataset-26eb9aa/recordings/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("packed", [True, False])
def test_spoken_digits(tmp_path, spoken, packed):
    if packed:
        archive(tmp_path / "fsdd.tar.xz", spoken)
    else:
        write(tmp_path / "recordings", spoken)
    for _ in range(2):  # decoded, then from the cache
        loaded = data.load("fsdd", root=tmp_path)
        assert loaded.factors == {"speaker": ("george", "theo")}
        assert loaded.test.images.lengths.tolist() == [20] * 4  # takes 0 to 4
        assert loaded.train.images.lengths.tolist() == [25] * 4
        assert loaded.train.labels.tolist() == [0, 0, 1, 1]
        assert loaded.train.factors["speaker"].tolist() == [0, 1, 0, 1]
        assert (loaded.train.images.whole()[:, 0] * 32768).tolist() == [0, 0, 100, 100]
        assert loaded.licence == "CC BY-SA 4.0"


def test_spoken_digits_must_be_the_published_ones(tmp_path, spoken):
    spoken["0_theo_0.wav"] = wav(ramp(20, 7))
    archive(tmp_path / "fsdd.tar.xz", spoken)
    with pytest.raises(ValueError, match=r"fsdd: .*must hold the 3,000 recordings of .*got 8 with"):
        data.load("fsdd", root=tmp_path)


def test_spoken_digits_say_where_they_looked(tmp_path):
    with pytest.raises(FileNotFoundError, match="fsdd: needs the folder recordings") as e:
        data.load("fsdd", root=tmp_path)
    assert str(tmp_path) in str(e.value)


def test_spoken_digits_are_fetched_on_request(tmp_path, spoken, monkeypatch):
    archive(tmp_path / "a.tar.xz", spoken)
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        return io.BytesIO((tmp_path / "a.tar.xz").read_bytes())

    monkeypatch.setattr(fsdd, "urlopen", urlopen)
    assert len(data.load("fsdd", download=True).test) == 4
    assert len(data.load("fsdd").test) == 4
    assert asked == [fsdd.URL]


# tones, and what takes which data


def test_tones_are_balanced_and_always_alike():
    tones = data.load("tones")
    assert (len(tones.train), len(tones.test), tones.rate) == (360, 120, 4000)
    assert tones.train.factors["speaker"].bincount().tolist() == [90] * len(TIMBRES)
    assert tones.train.labels.bincount().tolist() == [60] * 6
    assert torch.equal(tones.train.images.samples, data.load("tones").train.images.samples)


@pytest.mark.parametrize(
    ("method", "name", "message"),
    [
        ("simclr", "tones", "simclr: needs images, got sound at 4,000 Hz: tones"),
        ("cpc-audio", "digits", "cpc-audio: needs sound, got images: digits"),
    ],
)
def test_methods_refuse_the_other_kind(method, name, message):
    with pytest.raises(ValueError, match=message):
        build_method(method, TrainConfig(data=name), shape_of(data.load(name)), ALONE)


def test_recordings_stay_on_the_host():
    split = data.load("tones").train
    feed = Feed(split, torch.device("cpu"))
    batch = feed(torch.tensor([3, 1]))
    assert batch.images.samples is split.images.samples  # nothing is copied
    assert torch.equal(batch.labels, split.labels[[3, 1]])
