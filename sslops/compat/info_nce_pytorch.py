"""`info_nce.info_nce` and `info_nce.InfoNCE`, of info-nce-pytorch 0.1.

Differences: docs/migration/info_nce_pytorch.md.
"""

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sslops
from sslops.compat._shared import settings_of

__all__ = ["InfoNCE", "info_nce"]


def info_nce(
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor | None = None,
    temperature: float = 0.1,
    reduction: Literal["none", "mean", "sum"] = "mean",
    negative_mode: Literal["paired", "unpaired"] = "unpaired",
) -> Tensor:
    """InfoNCE of cosines with one positive a row.

    Args:
        query: [N, D] floating.
        positive_key: [N, D], row i belongs to query i.
        negative_keys: None: the other positives are the negatives; else [M, D] for all rows
            ("unpaired"), or [N, M, D], M for each row ("paired"). They get a gradient if they
            require one.
        temperature: tau > 0.
        reduction: "mean", "sum" or "none".
        negative_mode: "paired" stores its N x M cosines and runs on plain PyTorch.

    Returns:
        Scalar, or [N] for "none".

    Raises:
        ValueError: wrong shapes, unknown mode or reduction, temperature not positive and finite.

    Example:
        >>> query, keys, negatives = torch.randn(8, 4), torch.randn(8, 4), torch.randn(32, 4)
        >>> info_nce(query, keys, negatives, reduction="none").shape
        torch.Size([8])
    """
    if negative_mode not in ("paired", "unpaired"):
        raise ValueError(
            f"info_nce: negative_mode must be paired or unpaired, got {negative_mode!r}"
        )
    if query.ndim != 2 or query.shape != positive_key.shape:
        raise ValueError(
            "info_nce: query and positive_key must be [N, D], got shapes"
            f" {tuple(query.shape)} and {tuple(positive_key.shape)}"
        )
    keys = positive_key
    options: Any = {"temperature": temperature, "reduction": reduction}
    if negative_keys is None:
        return cast(Tensor, sslops.info_nce(query, keys, **options))
    paired = negative_mode == "paired"
    shape = tuple(negative_keys.shape)
    outer = (len(query),) if paired else ()
    if len(shape) != 2 + paired or (*shape[:-2], shape[-1]) != (*outer, query.shape[1]):
        raise ValueError(
            f"info_nce: {negative_mode} negative_keys must be"
            f" {'[N, M, D]' if paired else '[M, D]'}, got shape {shape}"
        )
    if paired:
        return _paired(query, keys, negative_keys, temperature, reduction)
    if not negative_keys.requires_grad:
        queue = F.normalize(negative_keys, dim=1)
        return cast(Tensor, sslops.info_nce(query, keys, queue=queue, **options))
    # trained negatives are keys; the positives of other rows share the rows' id and are left out
    zeros = torch.zeros(len(query), dtype=torch.int64, device=query.device)
    ids = torch.cat([zeros, zeros.new_full((len(negative_keys),), -1)])
    both = torch.cat([keys, negative_keys])
    return cast(Tensor, sslops.info_nce(query, both, query_ids=zeros, key_ids=ids, **options))


def _paired(
    query: Tensor, keys: Tensor, negatives: Tensor, temperature: float, reduction: str
) -> Tensor:
    if not 0 < temperature < float("inf"):
        raise ValueError(f"info_nce: temperature must be positive and finite, got {temperature}")
    x = F.normalize(query, dim=1)
    candidates = torch.cat([keys[:, None], negatives], dim=1)  # [N, 1 + M, D]
    logits = torch.einsum("nd,nmd->nm", x, F.normalize(candidates, dim=2)) / temperature
    target = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    return F.cross_entropy(logits, target, reduction=reduction)


class InfoNCE(nn.Module):
    """Module of `info_nce`; its arguments are documented there.

    Example:
        >>> InfoNCE(temperature=0.5)(torch.ones(1, 4), torch.ones(1, 4))
        tensor(0.)
    """

    def __init__(
        self,
        temperature: float = 0.1,
        reduction: Literal["none", "mean", "sum"] = "mean",
        negative_mode: Literal["paired", "unpaired"] = "unpaired",
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.reduction: Literal["none", "mean", "sum"] = reduction
        self.negative_mode: Literal["paired", "unpaired"] = negative_mode

    def extra_repr(self) -> str:
        """The settings, as `print(model)` shows them."""
        return settings_of(self, "temperature", reduction="mean", negative_mode="unpaired")

    def forward(
        self, query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None
    ) -> Tensor:
        """Loss of [N, D] and [N, D], with negatives as `info_nce` takes them."""
        return info_nce(
            query, positive_key, negative_keys, self.temperature, self.reduction, self.negative_mode
        )
