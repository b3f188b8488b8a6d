"""Wav files as programs and cameras write them, byte by byte; none needs Python's own module."""

import struct

import numpy as np
import pytest

from sslops.training import data
from sslops.training.data.audio_files import read_audio
from sslops.training.data.wav import MORE_BITS, decode_wav

VALUES = [0, 1, -1, 32767, -32768, 1234]
GUID = bytes.fromhex("000000001000800000aa00389b71")


def samples(values, kind):
    """`values` of 16 bits as bytes of a kind, exactly."""
    wide = np.asarray(values, np.int64)
    if kind == "u8":
        return ((wide >> 8) + 128).astype(np.uint8).tobytes()
    if kind.startswith("f"):
        return (wide / 32768).astype(f"<{kind}").tobytes()
    if kind == "i3":
        return (wide << 8).astype("<i4").reshape(-1, 1).view(np.uint8)[:, :3].tobytes()
    return (wide << (8 * int(kind[1]) - 16)).astype(f"<{kind}").tobytes()


def chunk(name, content, size=None):
    size = len(content) if size is None else size
    return name + struct.pack("<I", size) + content + b"\0" * (len(content) % 2)


def wav(raw, kind="i2", *, channels=1, extensible=False, before=b"", size=None, after=b"", **more):
    """A file of samples `raw`, with chunks before and after them."""
    width = int(kind[1])
    width = 1 if kind == "u8" else width
    tag = more.get("tag", 3 if kind.startswith("f") else 1)
    bits, block = more.get("bits", 8 * width), more.get("block", width * channels)
    rate = more.get("rate", 8000)
    head = struct.pack("<HHIIHH", 0xFFFE if extensible else tag, channels, rate, rate * block,
                       block, bits)  # fmt: skip
    if extensible:
        head += struct.pack("<HHIH", 22, bits, 0, tag) + GUID
    body = b"WAVE" + before + chunk(b"fmt ", head) + more.get("between", b"")
    body += chunk(b"data", raw, size) + after
    return b"RIFF" + struct.pack("<I", more.get("riff", len(body))) + body


def decode(content):
    said = []
    found, rate = decode_wav(content, said)
    assert found.dtype == np.int16
    return found, rate, said


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", ["u8", "i2", "i3", "i4", "f4", "f8"])
def test_every_kind(kind, channels, extensible):
    values = [-256, 512, 0, 32512] if kind == "u8" else VALUES
    found, rate, said = decode(
        wav(samples(values, kind), kind, channels=channels, extensible=extensible, rate=22050)
    )
    assert found.tolist() == np.reshape(values, (-1, channels)).tolist()
    assert (rate, said) == (22050, [])


LIST = chunk(b"LIST", b"INFOIART\3\0\0\0me\0")
ODD = chunk(b"junk", b"abc")  # three bytes and one to make them even
RAW = samples(VALUES, "i2")
DS64 = chunk(b"ds64", struct.pack("<QQQI", 0, len(RAW), 6, 0))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (wav(RAW, before=LIST + ODD), []),
        (wav(RAW, between=ODD + LIST), []),
        (wav(RAW, after=LIST), []),
        (wav(RAW, block=0), []),
        (wav(RAW, block=1), []),
        (wav(RAW, size=0, riff=0), []),  # written into a pipe
        (wav(RAW, size=0xFFFFFFFF, riff=0xFFFFFFFF), []),
        (wav(RAW, size=0x7FFFF000, riff=0x7FFFF024), []),
        (b"RF64" + wav(RAW, before=DS64, size=0xFFFFFFFF, after=LIST)[4:], []),
        (wav(RAW, size=100), ["fewer samples than the header promises"]),
        (wav(RAW + b"\1", size=13), ["an incomplete last frame, which is left out"]),
        (wav(RAW, size=100)[:-1] + b"", None),
    ],
)
def test_headers(content, said):
    found, _, heard = decode(content)
    expected = VALUES if said is not None else VALUES[:-1]
    assert found[:, 0].tolist() == expected
    both = ["fewer samples than the header promises", "an incomplete last frame, which is left out"]
    assert heard == (both if said is None else said)


def test_what_is_lost_is_remarked():
    assert decode(wav(b"\1\2\3", "i3"))[2] == [MORE_BITS]
    assert decode(wav(np.array([0.1], "<f4").tobytes(), "f4"))[2] == [MORE_BITS]
    found, _, said = decode(wav(np.array([-2, 1, 1.5], "<f8").tobytes(), "f8"))
    assert found[:, 0].tolist() == [-32768, 32767, 32767]
    assert said == ["samples beyond -1 .. 1, which are clipped"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not begin as a wav file"),
        (b"RIFX" + wav(RAW)[4:], "does not begin as a wav file"),
        (b"ID3\4" + bytes(100), "does not begin as a wav file"),
        (wav(RAW)[:16], "ends before its format"),
        (wav(RAW)[:20], "its format is cut off"),
        (wav(RAW)[:30], "its format is cut off"),
        (wav(RAW, extensible=True)[:50], "its extensible format is cut off"),
        (wav(RAW)[:36], "ends before its samples"),
        (b"RIFF\0\0\0\0WAVE" + chunk(b"data", RAW), "samples come before their format"),
        (wav(RAW, channels=0, block=2), "format must be possible, got 0 channels"),
        (wav(RAW, rate=0), "format must be possible, got 1 channels, 0 Hz"),
        (wav(RAW, block=0, bits=0), "8000 Hz, 0 bits"),
        (wav(RAW, tag=7, bits=8, block=1), r"got mu-law \(tag 7\) of 8 bits; convert it"),
        (wav(RAW, tag=85), r"got MP3 \(tag 85\)"),
        (wav(RAW, extensible=True, tag=2), r"got ADPCM \(tag 2\)"),
        (wav(RAW, "f4", bits=16, block=2), r"got float \(tag 3\) of 16 bits"),
        (wav(bytes(8), "i4", bits=64, block=8), r"got PCM \(tag 1\) of 64 bits"),
        (wav(np.array([np.nan], "<f4").tobytes(), "f4"), "samples must be finite"),
    ],
)
def test_what_cannot_be_read_is_named(content, message):
    with pytest.raises(ValueError, match=rf"every file must be readable, got a\.wav: .*{message}"):
        read_audio("a.wav", content)


def test_an_empty_file_is_not_taken_for_one_of_unknown_length():
    with pytest.raises(ValueError, match=r"every file must have a sample, got none in a\.wav"):
        read_audio("a.wav", wav(b"", after=LIST))


def test_any_cut_is_named_or_loses_its_end_alone():
    """At every byte, of every kind of header: nothing else is raised."""
    for content in (wav(RAW, before=LIST), wav(samples(VALUES, "f4"), "f4", extensible=True)):
        whole = decode(content)[0]
        for end in range(len(content)):
            try:
                found, _ = read_audio("a.wav", content[:end], [])
            except ValueError as error:
                if not str(error).startswith("audio: every file must "):
                    raise
            else:
                assert found.tolist() == whole[: len(found), 0].tolist()


def test_a_folder_says_what_it_loses(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SSLOPS_CACHE", str(tmp_path / "cache"))
    stereo = wav(samples([1, 3, 5, 7], "i2"), channels=2)
    for name, content in {"a1": stereo, "a2": stereo, "a10": stereo[:-1], "b": wav(RAW)}.items():
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / f"{name}.wav").write_bytes(content)
    for _ in range(2):  # the second time from the cache
        loaded = data.load(str(tmp_path / "set"))
    assert loaded.rate == 8000
    said = capsys.readouterr().err
    root = tmp_path / "set"
    assert (
        f"{root}: 3 recordings with 2 channels, of which the mean is read (the first: a1.wav)"
        in said
    )
    assert (
        "1 recordings with an incomplete last frame, which is left out (the first: a10.wav)" in said
    )
    (root / "c.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"every file must be readable, got c\.wav"):
        data.load(str(root))
