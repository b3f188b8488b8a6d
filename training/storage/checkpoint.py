"""Checkpoints: everything that a run needs to go on bit for bit, written atomically."""

import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = [
    "StorageError",
    "check",
    "load",
    "no_room",
    "of_storage",
    "restore_rng",
    "rng_state",
    "save",
]


FORMAT = "sslops checkpoint"


class StorageError(OSError):
    """A file could not be written; what was there before, if anything, is intact."""


def no_room(path: Path, reason: object, *, before: bool) -> StorageError:
    """The error of a checkpoint that could not be written; `before`: there is an older one."""
    kept = "the checkpoint before it is as it was" if before else "no file was written"
    return StorageError(f"checkpoint: needs room to write {path}, got {reason}; {kept}")


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` so that `path` holds the old file or the new one whole, never a part.

    The new file is on the disk and has been read back before it takes the name.

    Args:
        path: its folder is made if need be.
        state: tensors and plain Python values: what `torch.load(weights_only=True)` accepts.

    Raises:
        StorageError: the disk is full, or the folder cannot be written to.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                torch.save({"format": FORMAT, **state}, file)
                file.flush()
                os.fsync(file.fileno())  # or a power cut leaves the new name with no content
            check(temporary)
            os.replace(temporary, path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        if not of_storage(error):
            raise
        raise no_room(path, error, before=path.exists()) from error


def of_storage(error: BaseException) -> bool:
    """Whether it says that a file could not be written; torch's writer hides an OSError."""
    return isinstance(error, OSError) or (
        isinstance(error, RuntimeError) and "enforce fail" in str(error)
    )


def check(path: Path) -> None:
    """See that every byte of a checkpoint can be read and is what was written.

    Raises:
        OSError: it is not.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        raise OSError(f"a damaged file {path} ({error})") from error
    if damaged is not None:
        raise OSError(f"a damaged file {path} ({damaged})")


def _sync_folder(folder: Path) -> None:
    """The rename itself has to reach the disk as well."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what `save` wrote; runs no code from the file.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is damaged, or no checkpoint of this package.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: needs an existing file, got {path}")
    try:
        check(path)
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"checkpoint: needs a whole file of tensors and plain values, got {path}: {reason}"
        ) from error
    if not isinstance(state, dict) or state.pop("format", None) != FORMAT:
        raise ValueError(f"checkpoint: needs a checkpoint of sslops, got another file, {path}")
    return state


def rng_state() -> dict[str, Any]:
    """State of the global generators of python, numpy and torch on every device."""
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    return {
        "python": random.getstate(),
        "numpy": {
            "bit_generator": numpy_state["bit_generator"],
            "key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "pos": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Put the global generators back to what `rng_state` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    saved = state["numpy"]
    np.random.set_state(
        {
            "bit_generator": saved["bit_generator"],
            "state": {"key": saved["key"].numpy().astype(np.uint32), "pos": saved["pos"]},
            "has_gauss": saved["has_gauss"],
            "gauss": saved["gauss"],
        }
    )
    # Generators live on the host whatever device the checkpoint was mapped to.
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([device.cpu() for device in state["cuda"]])
