"""Shuffle-BN: a network's batch norm sees other images together than its caller does."""

from collections.abc import Callable

import torch
from torch import Tensor

from sslops.distributed import all_gather, rank, world_size

__all__ = ["encode_shuffled"]


def encode_shuffled(encode: Callable[[Tensor], Tensor], images: Tensor, seed: int) -> Tensor:
    """`encode(images)` without gradient, the images dealt anew over all processes on the way.

    The order comes from `seed` alone, so that processes agree on it without a message.

    Args:
        encode: [B, ...] -> [B, D].
        images: this process's [B, ...], as many on every process.
        seed: of the order, the same on every process.

    Returns:
        [B, D], row i of image i.

    Source:
        He et al. 2020, arXiv:1911.05722, section 3.3.
    """
    B = len(images)
    here = slice(rank() * B, (rank() + 1) * B)
    order = torch.randperm(world_size() * B, generator=torch.Generator().manual_seed(seed))
    back = order.argsort()[here].to(images.device)
    dealt = all_gather(images)[order[here].to(images.device)]
    return all_gather(encode(dealt))[back]
