"""`info_nce.info_nce` and `info_nce.InfoNCE`, of info-nce-pytorch 0.1.

Arguments and differences: docs/migration/info_nce_pytorch.md.
"""

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sslops
from sslops._join import cat
from sslops.compat._shared import factor_fits, rows_fit, settings_of

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
            ("unpaired"), or [N, M, D], M for each row ("paired"); M may be 0, and the loss is then
            0. They get a gradient if they require one.
        temperature: tau; not positive: plain PyTorch, as for "paired".
        reduction: "mean", "sum" or "none".
        negative_mode: what `negative_keys` are, read only if there are any; "paired" stores its
            N x M cosines.

    Returns:
        Scalar, or [N] for "none".

    Raises:
        ValueError: wrong shapes, unknown mode or reduction.

    Example:
        >>> query, keys, negatives = torch.randn(8, 4), torch.randn(8, 4), torch.randn(32, 4)
        >>> info_nce(query, keys, negatives, reduction="none").shape
        torch.Size([8])
    """
    args = (query, positive_key, negative_keys, temperature, reduction, negative_mode)
    loss = fused_info_nce(*args)
    return cast(Tensor, _plain(*args) if loss is NotImplemented else loss)


def fused_info_nce(
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor | None = None,
    temperature: float = 0.1,
    reduction: str = "mean",
    negative_mode: str = "unpaired",
) -> Any:
    """The loss by kernels, or NotImplemented."""
    tensors = (
        (query, positive_key) if negative_keys is None else (query, positive_key, negative_keys)
    )
    if not (
        rows_fit(*tensors)
        and query.shape == positive_key.shape
        and factor_fits(temperature, query)
        and reduction in ("none", "mean", "sum")
        and (negative_keys is None or negative_mode == "unpaired")
    ):
        return NotImplemented
    options: Any = {"temperature": temperature, "reduction": reduction}
    if negative_keys is None:
        return sslops.info_nce(query, positive_key, **options)
    if not negative_keys.requires_grad:
        queue = F.normalize(negative_keys, dim=1)
        return sslops.info_nce(query, positive_key, queue=queue, **options)
    # trained negatives are keys; the positives of other rows share the rows' id and are left out
    zeros = torch.zeros(len(query), dtype=torch.int64, device=query.device)
    ids = torch.cat([zeros, zeros.new_full((len(negative_keys),), -1)])
    both = cat([positive_key, negative_keys])
    return sslops.info_nce(query, both, query_ids=zeros, key_ids=ids, **options)


def _plain(
    query: Tensor,
    keys: Tensor,
    negatives: Tensor | None,
    temperature: float,
    reduction: str,
    negative_mode: str,
) -> Tensor:
    if query.ndim != 2 or query.shape != keys.shape:
        raise ValueError(
            "info_nce: query and positive_key must be [N, D], got shapes"
            f" {tuple(query.shape)} and {tuple(keys.shape)}"
        )
    N, x, y = len(query), F.normalize(query, dim=1), F.normalize(keys, dim=1)
    if negatives is None:
        logits, target = x @ y.T, torch.arange(N, device=query.device)
        return F.cross_entropy(logits / temperature, target, reduction=reduction)
    if negative_mode not in ("paired", "unpaired"):
        raise ValueError(
            f"info_nce: negative_mode must be paired or unpaired, got {negative_mode!r}"
        )
    paired, shape = negative_mode == "paired", tuple(negatives.shape)
    outer = (N,) if paired else ()
    if len(shape) != 2 + paired or (*shape[:-2], shape[-1]) != (*outer, query.shape[1]):
        raise ValueError(
            f"info_nce: {negative_mode} negative_keys must be"
            f" {'[N, M, D]' if paired else '[M, D]'}, got shape {shape}"
        )
    far = F.normalize(negatives, dim=-1).transpose(-2, -1)
    others = (x[:, None] @ far).squeeze(1) if paired else x @ far  # [N, M]
    logits = cat([(x * y).sum(dim=1, keepdim=True), others], dim=1) / temperature
    target = torch.zeros(N, dtype=torch.int64, device=query.device)
    return F.cross_entropy(logits, target, reduction=reduction)


class InfoNCE(nn.Module):
    """Module of `info_nce`; its arguments are documented there.

    Example:
        >>> InfoNCE(temperature=0.5)(torch.ones(1, 4), torch.ones(1, 4))
        tensor(0.)
    """

    reads = ("temperature", "reduction", "negative_mode")  # `fused` does

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

    def fused(
        self, query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None
    ) -> Any:
        """The loss by kernels, or NotImplemented."""
        return fused_info_nce(
            query, positive_key, negative_keys, self.temperature, self.reduction, self.negative_mode
        )
