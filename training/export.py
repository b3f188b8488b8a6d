"""Encoders on disk: weights beside a description that rebuilds the network."""

import json
import os
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from sslops.training.config import TrainConfig
from sslops.training.methods import DataShape
from sslops.training.models import AudioEncoder, build_encoder

__all__ = ["load_encoder", "save_encoder"]


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
    taken: dict[str, Any] = {
        "channels": shape.channels,
        "image_size": shape.image_size,
        "input": "[B, channels, H, W] float in [0, 1]",
    }
    if shape.rate:
        taken = {"rate": shape.rate, "input": "[B, samples] float, and optionally [B] lengths"}
    if shape.frames:
        taken["frames"] = "each by itself; feature_maps(x)[-1] is [B, dim, h, w]"
    description = {
        "arch": config.arch,
        "options": config.encoder_options(),
        "dim": cast(int, encoder.dim),
        **taken,
        **facts,
    }
    # Copies: safetensors refuses tensors that share memory, such as weights under two names.
    weights = {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in encoder.state_dict().items()
    }
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(save(weights))
    os.replace(temporary, path)
    path.with_suffix(".json").write_text(json.dumps(description, indent=2) + "\n")
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

    path = Path(path)
    if path.is_dir():
        path = path / "encoder.safetensors"
    for file in (path, path.with_suffix(".json")):
        if not file.is_file():
            raise FileNotFoundError(
                f"load_encoder: needs encoder.safetensors and encoder.json, got no {file}"
            )
    about = json.loads(path.with_suffix(".json").read_text())
    encoder: nn.Module
    if "rate" in about:
        encoder = AudioEncoder(about["rate"], **about["options"])
    else:
        encoder = build_encoder(
            about["arch"], about["channels"], about["image_size"], **about["options"]
        )
    encoder.load_state_dict(load_file(path))
    return encoder.eval()
