"""InfoNCE that leaves similarities for its gradient, in plain PyTorch, which computes them anew."""

from typing import Any

from torch import Tensor

from sslops.reference.info_nce import info_nce_bwd, info_nce_fwd

_PANEL = 32  # kPanel of csrc/cpu/tiles.h


def kept_shape(queries: Tensor, others: Tensor) -> tuple[Any, Any]:
    """Of the similarities that csrc/cpu keeps: whole panels."""
    rows, columns = ((each.shape[0] + _PANEL - 1) // _PANEL * _PANEL for each in (queries, others))
    return rows, columns


def info_nce_kept(
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor | None,
    targets: Tensor | None,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    scale: Tensor | None,
    scale_factor: float,
    within: bool,
    columns: bool,
    normalize: bool,
    stats: bool,
) -> tuple[Tensor, ...]:
    """`info_nce_fwd`, and the similarities that its gradient would compute again.

    Args are those of `info_nce_fwd`.

    Returns:
        (loss, lse, key_loss, key_lse, hit, key_hit) of `info_nce_fwd`, and kept [rows, columns]
        of the dtype of the loss, which only `info_nce_kept_bwd` understands.
    """
    found = info_nce_fwd(
        queries, keys, negatives, targets, query_ids, key_ids, scale, scale_factor, within,
        columns, normalize, stats,
    )  # fmt: skip
    shape = kept_shape(queries, keys if negatives is None else negatives)
    return *found, found[0].new_zeros(shape)


def info_nce_kept_bwd(
    grad_loss: Tensor,
    grad_key_loss: Tensor | None,
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor | None,
    targets: Tensor | None,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    loss: Tensor,
    lse: Tensor,
    key_loss: Tensor,
    key_lse: Tensor,
    kept: Tensor,
    scale: Tensor | None,
    scale_factor: float,
    within: bool,
    normalize: bool,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`info_nce_bwd`; `kept` is what `info_nce_kept` returned."""
    return info_nce_bwd(
        grad_loss, grad_key_loss, queries, keys, negatives, targets, query_ids, key_ids, loss, lse,
        key_loss, key_lse, scale, scale_factor, within, normalize, needs,
    )  # fmt: skip
