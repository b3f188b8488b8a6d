"""Batch norm over the rows of all processes, on a CPU too (torch's own is for GPUs only)."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["SyncBatchNorm", "convert_sync_batchnorm"]


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """`nn.SyncBatchNorm` in plain PyTorch; every process must have the same number of rows.

    While training, mean and variance are those of the rows of all processes, and gradients flow
    through them. In evaluation mode, and in one process, an ordinary batch norm.

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"SyncBatchNorm: input must be [B, C, ...], got {input.ndim}-d")

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, ...] -> same shape."""
        alone = not dist.is_initialized() or dist.get_world_size() == 1
        if alone or not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        x = input.float()
        dims = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        size = dist.get_world_size()
        mean = _sum(x.mean(dims)) / size
        centred = x - mean.view(shape)
        var = _sum(centred.square().mean(dims)) / size  # about the mean of all: no cancellation
        if self.running_mean is not None and self.running_var is not None:
            n = size * x.numel() // x.shape[1]
            assert self.momentum is not None
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * (n / max(n - 1, 1)), self.momentum)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked += 1
        y = centred * (var + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)


def convert_sync_batchnorm(module: nn.Module, *, cuda: bool = False) -> nn.Module:
    """Put a `SyncBatchNorm` for every plain batch norm inside `module`, with its parameters.

    Subclasses that compute statistics in their own way are left as they are.

    Args:
        module: changed in place.
        cuda: take torch's `nn.SyncBatchNorm`.
    """
    kind = nn.SyncBatchNorm if cuda else SyncBatchNorm
    plain = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    for name, child in module.named_children():
        if isinstance(child, plain) and type(child) in plain:
            new = kind(
                child.num_features, child.eps, child.momentum, child.affine,
                child.track_running_stats,
            )  # fmt: skip
            new.train(child.training)
            for key, parameter in child._parameters.items():
                new._parameters[key] = parameter
            for key, buffer in child._buffers.items():
                new._buffers[key] = buffer
            setattr(module, name, new)
        else:
            convert_sync_batchnorm(child, cuda=cuda)
    return module


class _Sum(torch.autograd.Function):
    """Sum over processes, forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def _sum(x: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(x)  # type: ignore[no-untyped-call]
    return total
