"""Samples of one wav or flac file."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sslops.training.data.notes import say
from sslops.training.data.wav import MORE_BITS, decode_wav

__all__ = ["SUFFIXES", "read_audio"]

SUFFIXES = frozenset({".wav", ".flac"})


def read_audio(
    name: str, content: Path | bytes, remarks: list[str] | None = None
) -> tuple[NDArray[np.int16], int]:
    """[length] int16 (the mean of its channels), and samples a second.

    Args:
        name: what to call the file in an error; its ending says which kind it is.
        content: the file, or its bytes.
        remarks: what is not kept of the file is appended here; printed if None.

    Raises:
        ValueError: the file cannot be read, has no sample, or is a flac file and the package
            soundfile is not installed.
    """
    found: list[str] = []
    decode = _decode_flac if name.lower().endswith(".flac") else decode_wav
    try:
        raw = content if isinstance(content, bytes) else content.read_bytes()
        samples, rate = decode(raw, found)  # [length, channels]
    except ImportError as error:
        raise ValueError(
            f"audio: flac files need the package soundfile (pip install soundfile), got {name}"
            " without it"
        ) from error
    except (ValueError, RuntimeError, OSError) as error:
        raise ValueError(f"audio: every file must be readable, got {name}: {error}") from error
    if not len(samples):
        raise ValueError(f"audio: every file must have a sample, got none in {name}")
    if (samples != samples[:, :1]).any():
        found.append(f"{samples.shape[1]} channels, of which the mean is read")
    if remarks is None:
        for what in found:
            say(f"{name} has {what}")
    else:
        remarks += found
    mean: NDArray[np.int16] = np.rint(samples.mean(1)).astype(np.int16)
    return mean, rate


def _decode_flac(content: bytes, remarks: list[str]) -> tuple[NDArray[np.int16], int]:
    import soundfile

    with soundfile.SoundFile(io.BytesIO(content)) as file:
        if file.subtype not in ("PCM_S8", "PCM_16"):
            remarks.append(MORE_BITS)
        return file.read(dtype="int16", always_2d=True), file.samplerate
