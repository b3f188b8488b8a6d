"""Checkpoints: everything that a run needs to go on bit for bit, written atomically."""

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["load", "restore_rng", "rng_state", "save"]


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` so that `path` holds the old file or the new one whole, never a part.

    Args:
        path: its folder is made if need be.
        state: tensors and plain Python values: what `torch.load(weights_only=True)` accepts.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())  # or a power cut leaves the new name with no content
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what `save` wrote; runs no code from the file.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: needs an existing file, got {path}")
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
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
