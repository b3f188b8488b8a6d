"""Encoders on disk: weights beside a description that rebuilds the network."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from sslops.training.config import TrainConfig
from sslops.training.data import DataShape
from sslops.training.models import rebuild_encoder
from sslops.training.storage.folder import read_config

__all__ = [
    "Trained",
    "exported",
    "find",
    "fresh_encoder",
    "load_encoder",
    "read_shape",
    "read_trained",
    "save_encoder",
]


class Trained(NamedTuple):
    """A run whose training is over: what is evaluated, and probed on other data.

    Attributes:
        folder: of the run.
        name: of the method.
        config: of the run.
        encoder: as exported, in eval mode.
    """

    folder: Path
    name: str
    config: TrainConfig
    encoder: nn.Module


def read_trained(folder: Path, device: torch.device) -> Trained:
    """A run from the disk.

    Raises:
        FileNotFoundError: it is no run folder, or its training is not over.
    """
    name, config = read_config(folder)
    return Trained(folder, name, config, load_encoder(folder).to(device))


def save_encoder(
    path: Path, encoder: nn.Module, config: TrainConfig, shape: DataShape, **facts: Any
) -> Path:
    """Write `path` (.safetensors) and its description, the same name with .json.

    Args:
        path: file to write.
        encoder: what `build_encoder` returned, trained.
        config: names the architecture and its options.
        shape: of the images it takes.
        facts: more to write down, such as the method and the data.

    Returns:
        `path`.
    """
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    description = {**_describe(config, shape, cast(int, encoder.dim)), **facts}
    weights = _plain(encoder)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(save(weights))
    os.replace(temporary, path)
    path.with_suffix(".json").write_text(json.dumps(description, indent=2) + "\n")
    return path


def _plain(encoder: nn.Module) -> dict[str, Tensor]:
    """The weights on the CPU in the plain memory layout.

    Copies: safetensors refuses tensors that share memory, such as weights under two names.
    """
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in encoder.state_dict().items()
    }


def exported(encoder: nn.Module, config: TrainConfig, shape: DataShape) -> nn.Module:
    """What `load_encoder` gives once `save_encoder` has written `encoder`, without the disk."""
    copy = fresh_encoder(config, shape)
    copy.load_state_dict(_plain(encoder))
    return copy.eval()


def _describe(config: TrainConfig, shape: DataShape, dim: int) -> dict[str, Any]:
    """What rebuilds the encoder, and what it takes."""
    taken: dict[str, Any] = {
        "channels": shape.channels,
        "image_size": shape.image_size,
        "input": "[B, channels, H, W] float in [0, 1]",
    }
    if shape.rate:
        taken = {"rate": shape.rate, "input": "[B, samples] float, and optionally [B] lengths"}
    if shape.frames:
        taken["frames"] = "each by itself; feature_maps(x)[-1] is [B, dim, h, w]"
    return {
        "arch": config.arch,
        "options": config.encoder_options(),
        "dim": dim,
        **taken,
        "data_shape": shape._asdict(),
    }


def fresh_encoder(config: TrainConfig, shape: DataShape) -> nn.Module:
    """The encoder that a method with this configuration trains, untrained."""
    return rebuild_encoder(_describe(config, shape, 0))


def read_shape(folder: Path) -> DataShape | None:
    """The shape of the data that a run's encoder was trained on; None where it is not written."""
    path = folder / "encoder.json"
    about = json.loads(path.read_text()) if path.is_file() else {}
    return DataShape(**about["data_shape"]) if "data_shape" in about else None


def find(path: str | Path) -> Path:
    """The weights of a run folder, or the file itself.

    Raises:
        FileNotFoundError: the weights or their description are not there.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(
            "load_encoder: path must be that of a run folder (result.dir) or of a .safetensors"
            f" file, got {type(path).__name__}"
        )
    path = Path(path)
    if path.is_dir():
        path = path / "encoder.safetensors"
    for file in (path, path.with_suffix(".json")):
        if not file.is_file():
            raise FileNotFoundError(
                f"load_encoder: needs encoder.safetensors and encoder.json, got no {file}"
            )
    return path


def load_encoder(path: str | Path) -> nn.Module:
    """Rebuild an exported encoder, in eval mode.

    Args:
        path: a run folder, or the .safetensors file inside it or elsewhere.

    Returns:
        A module [B, C, H, W] in [0, 1] -> [B, dim], with the width in its attribute `dim`. Of
        sound one [B, samples] -> [B, dim], whose method `frames` gives [B, T, width].

    Raises:
        FileNotFoundError: the weights or their description are not there.

    Example:
        >>> encoder = load_encoder("runs/simclr-digits")  # doctest: +SKIP
        >>> features = encoder(images)  # doctest: +SKIP
    """
    from safetensors.torch import load_file

    path = find(path)
    encoder = rebuild_encoder(json.loads(path.with_suffix(".json").read_text()))
    encoder.load_state_dict(load_file(path))
    return encoder.eval()
