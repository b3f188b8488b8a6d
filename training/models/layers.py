"""Blocks that the encoders share: input standardisation, conv-BN-ReLU, initialisation."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sslops.training.augment.statistics import MEAN, STD

__all__ = ["Standardise", "conv_bn_relu", "init_kaiming", "run_stages"]


class Standardise(nn.Module):
    """(x - mean) / std with fixed constants, so that an encoder takes plain [0, 1] images."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels not in MEAN:
            raise ValueError(f"Standardise: channels must be 1, 2 or 3, got {channels}")
        self.register_buffer("mean", torch.tensor(MEAN[channels])[:, None, None])
        self.register_buffer("std", torch.tensor(STD[channels])[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> same shape."""
        return (x - self.mean) / self.std


def conv_bn_relu(dim_in: int, dim_out: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution without bias (BN has one), BN, ReLU; keeps H and W at stride 1."""
    return nn.Sequential(
        nn.Conv2d(dim_in, dim_out, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(dim_out),
        nn.ReLU(inplace=True),
    )


def init_kaiming(module: nn.Module) -> None:
    """He initialisation (fan out, ReLU) of every convolution; BN starts as the identity."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def run_stages(x: Tensor, stages: Sequence[nn.Module]) -> list[Tensor]:
    """What each stage makes of what the one before it made."""
    maps = []
    for stage in stages:
        x = stage(x)
        maps.append(x)
    return maps
