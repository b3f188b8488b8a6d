"""Wav files: PCM of 8 to 32 bits and floats of 32 or 64, in plain and in extensible headers.

Python's own module reads no floats and, before 3.12, no extensible header.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["decode_wav"]

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
OTHERS = {2: "ADPCM", 6: "A-law", 7: "mu-law", 17: "IMA ADPCM", 85: "MP3"}
# Sizes from here on stand for "not known": whoever wrote the file could not go back to its start.
STREAMED = 0x7FFF0000
MORE_BITS = "more than 16 bits a sample, of which 16 are read"


class _Format(NamedTuple):
    tag: int
    channels: int
    rate: int
    width: int  # bytes of a sample


def decode_wav(content: bytes, remarks: list[str]) -> tuple[NDArray[np.int16], int]:
    """[frames, channels] int16, and frames a second.

    Args:
        content: of the file.
        remarks: what is not kept of it is appended here.

    Raises:
        ValueError: what is wrong with the file, without its name.
    """
    if content[:4] not in (b"RIFF", b"RF64") or content[8:12] != b"WAVE":
        raise ValueError("it does not begin as a wav file")
    layout: _Format | None = None
    large = None  # size of the data in RF64
    for name, start, size in _chunks(content):
        if name == b"ds64" and start + 16 <= len(content):
            large = struct.unpack_from("<Q", content, start + 8)[0]
        elif name == b"fmt ":
            layout = _format(content[start : start + size])
        elif name == b"data":
            if layout is None:
                raise ValueError("its samples come before their format")
            size = large if large is not None and size == 0xFFFFFFFF else size
            return _samples(_data(content, start, size, layout, remarks), layout, remarks)
    raise ValueError("it ends before its samples" if layout else "it ends before its format")


def _chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, first byte and size of each part; sizes are even, and one more byte if they are not."""
    at = 12
    while at + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, at)
        yield name, at + 8, size
        at += 8 + size + size % 2


def _format(chunk: bytes) -> _Format:
    if len(chunk) < 16:
        raise ValueError("its format is cut off")
    tag, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == EXTENSIBLE:
        if len(chunk) < 40:
            raise ValueError("its extensible format is cut off")
        tag = struct.unpack_from("<H", chunk, 24)[0]  # the identifier of the format begins with it
    width = block // max(channels, 1)
    if block != width * channels or not width or bits > 8 * width:  # written wrongly, and read
        width = (bits + 7) // 8
    if not (channels and rate and width):
        raise ValueError(
            f"its format must be possible, got {channels} channels, {rate} Hz, {bits} bits"
        )
    if not (tag == PCM and width <= 4) and not (tag == FLOAT and width in (4, 8)):
        raise ValueError(
            "its samples must be PCM of 8 to 32 bits or floats of 32 or 64, got"
            f" {OTHERS.get(tag, 'PCM' if tag == PCM else 'float' if tag == FLOAT else 'format')}"
            f" (tag {tag}) of {bits} bits; convert it first (sox, ffmpeg)"
        )
    return _Format(tag, channels, rate, width)


def _data(content: bytes, start: int, size: int, layout: _Format, remarks: list[str]) -> memoryview:
    """The bytes of whole frames, as many as there are."""
    rest = len(content) - start
    riff = struct.unpack_from("<I", content, 4)[0]
    # A size of 0 is true where the outer one agrees with the file's.
    unknown = (size >= STREAMED and size > rest) or (size == 0 and riff + 8 < len(content))
    if size > rest and not unknown:
        remarks.append("fewer samples than the header promises")
    taken = rest if unknown else min(size, rest)
    frame = layout.width * layout.channels
    if taken % frame:
        remarks.append("an incomplete last frame, which is left out")
    return memoryview(content)[start : start + taken // frame * frame]


def _samples(raw: memoryview, layout: _Format, remarks: list[str]) -> tuple[NDArray[np.int16], int]:
    width = layout.width
    samples: NDArray[np.int16]
    if layout.tag == FLOAT:
        samples = _from_float(np.frombuffer(raw, f"<f{width}"), remarks)
    elif width == 1:  # the only unsigned kind
        samples = (np.frombuffer(raw, np.uint8).astype(np.int16) - 128) << 8
    elif width == 2:
        samples = np.frombuffer(raw, "<i2").astype(np.int16)
    else:  # the upper two bytes of each sample
        rows = np.frombuffer(raw, np.uint8).reshape(-1, width)
        if rows[:, :-2].any():
            remarks.append(MORE_BITS)
        samples = rows[:, -2:].copy().view("<i2")[:, 0].astype(np.int16)
    return samples.reshape(-1, layout.channels), layout.rate


def _from_float(values: NDArray[np.floating], remarks: list[str]) -> NDArray[np.int16]:
    """[-1, 1) to 16 bits, undone by `Waves`."""
    if not np.isfinite(values).all():
        raise ValueError("its samples must be finite")
    scaled = values.astype(np.float64) * 32768
    whole = np.rint(scaled)
    if (np.abs(values) > 1).any():
        remarks.append("samples beyond -1 .. 1, which are clipped")
    if (whole != scaled).any():
        remarks.append(MORE_BITS)
    clipped: NDArray[np.int16] = whole.clip(-32768, 32767).astype(np.int16)
    return clipped
