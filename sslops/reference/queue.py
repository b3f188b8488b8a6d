"""enqueue_ in plain PyTorch. The arithmetic of the slots: docs/math/queue.md."""

import torch
from torch import Tensor

from sslops.reference._rows import unit_rows


def enqueue_(
    queue: Tensor,
    pointer: Tensor,
    keys: Tensor,
    queue_ids: Tensor | None,
    ids: Tensor | None,
    normalize: bool,
) -> None:
    """Write the newest keys over the oldest of the ring, in place.

    Args:
        queue: [K, D] floating, contiguous.
        pointer: int64, one element: how many keys were ever enqueued.
        keys: [B, D] floating; norms are computed in float32, or float64 if either is float64.
        queue_ids: [K] int64, written beside the queue; with `ids`, or neither.
        ids: [B] int64.
        normalize: divide each key by max(its L2 norm, 1e-12) first.
    """
    K, B = queue.shape[0], keys.shape[0]
    first = max(0, B - K)  # the newest K win
    slots = torch.arange(first, B, device=queue.device)
    slots = (slots + pointer.reshape(())) % K
    rows = keys[first:].to(torch.promote_types(keys.dtype, queue.dtype))
    rows, _ = unit_rows(rows, normalize)
    queue.index_copy_(0, slots, rows.to(queue.dtype))
    if queue_ids is not None and ids is not None:
        queue_ids.index_copy_(0, slots, ids[first:])
    pointer.add_(B)
