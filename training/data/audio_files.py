"""Samples of one wav or flac file."""

import io
import wave
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

__all__ = ["SUFFIXES", "read_audio"]

SUFFIXES = frozenset({".wav", ".flac"})


def read_audio(name: str, content: Path | bytes) -> tuple[NDArray[np.int16], int]:
    """[length] int16 (the mean of its channels), and samples a second.

    Args:
        name: what to call the file in an error; its ending says which kind it is.
        content: the file, or its bytes.

    Raises:
        ValueError: the file cannot be read, has no sample, or is a flac file and the package
            soundfile is not installed.
    """
    stream = io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")
    with stream:
        samples, rate = (_flac if name.lower().endswith(".flac") else _wav)(name, stream)
    if not len(samples):
        raise ValueError(f"audio: every file must have a sample, got none in {name}")
    return samples, rate


def _wav(name: str, stream: IO[bytes]) -> tuple[NDArray[np.int16], int]:
    try:
        with wave.open(stream) as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            raw = file.readframes(file.getnframes())
    except (wave.Error, EOFError, OSError) as error:
        raise ValueError(f"audio: every file must be readable, got {name}: {error}") from error
    if width == 1:  # the only unsigned kind
        wide = (np.frombuffer(raw, np.uint8).astype(np.int32) - 128) << 8
    elif width == 2:
        wide = np.frombuffer(raw, "<i2").astype(np.int32)
    elif width in (3, 4):  # the upper two bytes of each sample
        wide = np.frombuffer(raw, np.uint8).reshape(-1, width)[:, -2:].copy().view("<i2")[:, 0]
        wide = wide.astype(np.int32)
    else:
        raise ValueError(f"audio: samples must have 1 to 4 bytes, got {width} in {name}")
    return _mono(wide.reshape(-1, channels)), rate


def _flac(name: str, stream: IO[bytes]) -> tuple[NDArray[np.int16], int]:
    try:
        import soundfile
    except ImportError as error:
        raise ValueError(
            f"audio: flac files need the package soundfile (pip install soundfile), got {name}"
            " without it"
        ) from error
    try:
        samples, rate = soundfile.read(stream, dtype="int16", always_2d=True)
    except (RuntimeError, OSError) as error:
        raise ValueError(f"audio: every file must be readable, got {name}: {error}") from error
    return _mono(samples.astype(np.int32)), rate


def _mono(samples: NDArray[np.int32]) -> NDArray[np.int16]:
    """[length, channels] -> [length]."""
    mean: NDArray[np.int16] = np.rint(samples.mean(1)).astype(np.int16)
    return mean
