"""InfoNCE that leaves similarities for its gradient, in plain PyTorch, which computes them anew."""

from typing import Any

from torch import Tensor

from sslops.reference.info_nce import info_nce_bwd, info_nce_fwd

_PANEL = 32  # kPanel of csrc/cpu/tiles/tiles.h


def kept_shape(queries: Tensor, others: Tensor) -> tuple[Any, Any]:
    """Of the similarities that csrc/cpu keeps: whole panels."""
    rows, columns = ((each.shape[0] + _PANEL - 1) // _PANEL * _PANEL for each in (queries, others))
    return rows, columns


def info_nce_kept(
    queries: Tensor, keys: Tensor, negatives: Tensor | None, *args: Any
) -> tuple[Tensor, ...]:
    """`info_nce_fwd`, and the similarities that its gradient would compute again.

    Args are those of `info_nce_fwd`.

    Returns:
        (loss, lse, key_loss, key_lse, hit, key_hit) of `info_nce_fwd`, and kept [rows, columns]
        of the dtype of the loss, which only `info_nce_kept_bwd` understands.
    """
    found = info_nce_fwd(queries, keys, negatives, *args)
    shape = kept_shape(queries, keys if negatives is None else negatives)
    return *found, found[0].new_zeros(shape)


def info_nce_kept_bwd(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`info_nce_bwd`, with what `info_nce_kept` kept after `key_lse`."""
    return info_nce_bwd(*args[:12], *args[13:])
