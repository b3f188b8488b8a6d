"""Names of the encoders, and the one function that builds them."""

import torch
from torch import nn

from sslops.training.models.cnn import CNN

__all__ = ["build_encoder", "encoder_names"]

BUILDERS = {
    # 8x8 images
    "cnn-tiny": lambda channels, image_size, width=64, pool=1: CNN(
        channels, (width, 2 * width, 4 * width), (1, 1, 2), pool
    ),
    # 28 to 32 px
    "cnn4": lambda channels, image_size, width=64, pool=1: CNN(
        channels, (width, 2 * width, 4 * width, 8 * width), (1, 2, 2, 2), pool
    ),
}


def encoder_names() -> list[str]:
    """What `build_encoder` takes."""
    return list(BUILDERS)


def build_encoder(arch: str, channels: int, image_size: int, **options: int) -> nn.Module:
    """Build an encoder [B, C, H, W] in [0, 1] -> [B, dim]."""
    if arch not in BUILDERS:
        raise ValueError(f"build_encoder: arch must be one of {encoder_names()}, got {arch!r}")
    seed = options.pop("seed", None)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        return BUILDERS[arch](channels, image_size, **options)
