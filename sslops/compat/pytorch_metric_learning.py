"""Losses and the memory of pytorch-metric-learning 2.9: NT-Xent, SupCon and what wraps them.

Arguments and differences: docs/migration/pytorch_metric_learning.md.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from sslops import nt_xent
from sslops._join import cat
from sslops.compat._cross_batch import CrossBatchMemory
from sslops.compat._masks import anchor_losses, pair_losses
from sslops.compat._pair_entries import ENTRIES
from sslops.compat._pair_loss import (
    Entry,
    PairLoss,
    Pairs,
    compared,
    fits,
    is_cosine,
    is_mean,
    no_loss,
    own_of,
)
from sslops.compat._shared import drop_in_of, factor_fits, rows_fit, settings_of

__all__ = ["CrossBatchMemory", "NTXentLoss", "SelfSupervisedLoss", "SupConLoss"]


class NTXentLoss(PairLoss):
    """NT-Xent: each positive pair among its anchor's negatives, the other positives left out.

    Args:
        temperature: tau; not positive: plain PyTorch.
        distance: None, or a distance of the package; other than the cosine: plain PyTorch.
        reducer: None, which is a `MeanReducer` (over pairs), or a reducer of the package.
        embedding_regularizer: None, or a regularizer of the package, added to the loss.
        embedding_reg_weight: of the regularizer.
        collect_stats: accepted; what is recorded is the objects' own affair.

    Raises:
        ValueError: no labels and no pairs, or not a label for each row.

    Example:
        >>> embeddings = torch.randn(8, 16, requires_grad=True)
        >>> NTXentLoss(temperature=0.1)(embeddings, torch.arange(4).repeat(2)).backward()
    """

    drop_in = "NTXentLoss"
    default_reducer = "MeanReducer"

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        distance: Any = None,
        reducer: Any = None,
        embedding_regularizer: Any = None,
        embedding_reg_weight: float = 1,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__(
            temperature, distance, reducer, embedding_regularizer, embedding_reg_weight,
            collect_stats,
        )  # fmt: skip

    def fused(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: Sequence[Tensor] | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> Any:
        """`{"loss": entry}` of the positive pairs by kernels, or NotImplemented."""
        if indices_tuple is not None or labels is None:
            return NotImplemented
        return _fused(self, embeddings, labels, ref_emb, ref_labels)

    def entry_of(self, logits: Tensor, pairs: Pairs) -> Entry:
        """The loss of each positive pair: [P]."""
        a1, p, a2, n = pairs
        if not len(a1) or not len(a2):
            return no_loss()
        times = torch.zeros_like(logits)
        times.index_put_((a2, n), times.new_ones(()), accumulate=True)
        losses = pair_losses(logits, a1, p, times)
        if not is_mean(self):  # a mean over those that are not 0, which in theirs e^-s rounds to
            losses = losses * (losses > torch.finfo(losses.dtype).eps / 2)
        return {"losses": losses, "indices": (a1, p), "reduction_type": "pos_pair"}


class SupConLoss(PairLoss):
    """Supervised contrastive loss, the mean over the positives outside the logarithm.

    Args:
        temperature: tau; not positive: plain PyTorch.
        distance: see `NTXentLoss`, like the arguments below the reducer.
        reducer: None, which is an `AvgNonZeroReducer` (over anchors of non-zero loss), or a
            reducer of the package.
        embedding_regularizer: None, or a regularizer of the package.
        embedding_reg_weight: of the regularizer.
        collect_stats: accepted.

    Raises:
        ValueError: as `NTXentLoss`, and a pair of `indices_tuple` that is positive and negative.

    Example:
        >>> embeddings = torch.randn(8, 16, requires_grad=True)
        >>> SupConLoss()(embeddings, torch.tensor([0, 0, 0, 0, 1, 1, 2, 3])).backward()
    """

    drop_in = "SupConLoss"
    default_reducer = "AvgNonZeroReducer"

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        distance: Any = None,
        reducer: Any = None,
        embedding_regularizer: Any = None,
        embedding_reg_weight: float = 1,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__(
            temperature, distance, reducer, embedding_regularizer, embedding_reg_weight,
            collect_stats,
        )  # fmt: skip

    def fused(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: Sequence[Tensor] | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> Any:
        """`{"loss": entry}` of the anchors by kernels, or NotImplemented."""
        if indices_tuple is not None or labels is None:
            return NotImplemented
        return _fused(self, embeddings, labels, ref_emb, ref_labels)

    def entry_of(self, logits: Tensor, pairs: Pairs) -> Entry:
        """The loss of each query: [M]."""
        a1, p, a2, n = pairs
        if not len(a1) or not len(a2):
            return no_loss()
        positive = torch.zeros_like(logits, dtype=torch.bool)
        negative = positive.clone()
        positive[a1, p], negative[a2, n] = True, True
        if (positive & negative).any():
            raise ValueError(
                "SupConLoss: a pair must be positive or negative, got one that is both"
            )
        index = torch.arange(len(logits), device=logits.device)
        losses = anchor_losses(logits, positive, negative)
        return {"losses": losses, "indices": index, "reduction_type": "element"}


def _fused(
    loss: Any, queries: Tensor, labels: Tensor, keys: Tensor, key_labels: Tensor | None
) -> Any:
    own = own_of(labels, key_labels)
    if key_labels is None:
        key_labels = labels
    if own is not None and keys is not queries:
        keys, key_labels = keys[: len(queries)], labels  # row i of both is one sample
    if not fits(loss, queries, labels, keys, key_labels):
        return NotImplemented
    entry_of = ENTRIES[loss.drop_in]
    return {"loss": entry_of(loss, compared(queries, labels, keys, key_labels, own))}


class SelfSupervisedLoss(nn.Module):
    """Gives a loss the labels of two views.

    Args:
        loss: of (embeddings, labels).
        symmetric: both views ask, among all rows; else `embeddings` ask among `ref_emb`.

    Example:
        >>> loss = SelfSupervisedLoss(NTXentLoss(temperature=0.1))
        >>> loss(torch.randn(8, 16), torch.randn(8, 16)).shape
        torch.Size([])
    """

    reads = ("loss", "symmetric")  # `fused` does

    def __init__(self, loss: nn.Module, symmetric: bool = True) -> None:
        super().__init__()
        self.loss = loss
        self.symmetric = symmetric

    def extra_repr(self) -> str:
        """The settings, as `print(model)` shows them."""
        return settings_of(self, symmetric=True)

    def forward(self, embeddings: Tensor, ref_emb: Tensor) -> Tensor:
        """Loss of two views, [B, D] each, of the same samples."""
        found = self.fused(embeddings, ref_emb)
        if found is not NotImplemented:
            return cast(Tensor, found)
        if embeddings.shape != ref_emb.shape:
            raise ValueError(
                "SelfSupervisedLoss: the views must share their shape, got"
                f" {tuple(embeddings.shape)} and {tuple(ref_emb.shape)}"
            )
        labels = torch.arange(len(embeddings), device=embeddings.device)
        if self.symmetric:
            return cast(Tensor, self.loss(cat([embeddings, ref_emb]), labels.repeat(2)))
        # labels of their own: the package takes rows of the same labels object for themselves
        return cast(
            Tensor, self.loss(embeddings, labels, ref_emb=ref_emb, ref_labels=labels.clone())
        )

    def fused(self, embeddings: Tensor, ref_emb: Tensor) -> Any:
        """The loss by symmetric kernels, or NotImplemented."""
        loss: Any = self.loss
        if not (
            self.symmetric
            and drop_in_of(loss) == "NTXentLoss"
            and rows_fit(embeddings, ref_emb)
            and embeddings.shape == ref_emb.shape
            and len(embeddings) > 1  # one sample has no negatives
            and is_cosine(loss.distance)
            and factor_fits(loss.temperature, embeddings)
            and type(loss.reducer).__name__ in ("NoneType", "MeanReducer")
            and loss.embedding_regularizer is None
        ):
            return NotImplemented
        return nt_xent(cat([embeddings, ref_emb]), temperature=loss.temperature)
