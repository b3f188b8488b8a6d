"""Losses and the memory of pytorch-metric-learning 2.9: NT-Xent, SupCon and what wraps them.

Differences: docs/migration/pytorch_metric_learning.md.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from sslops import info_nce, nt_xent, sup_con
from sslops.compat._cross_batch import CrossBatchMemory
from sslops.compat._masks import anchor_losses, anchors_among, logits_of, pair_losses
from sslops.compat._pair_loss import PairLoss, pairs_of
from sslops.compat._shared import settings_of

__all__ = ["CrossBatchMemory", "NTXentLoss", "SelfSupervisedLoss", "SupConLoss"]

# more positives than this for a row on average: a row of the op for each pair costs more than
# storing the M x N cosines
_FEW_POSITIVES = 4


class NTXentLoss(PairLoss):
    """NT-Xent: each positive pair among its anchor's negatives, the other positives left out.

    Args:
        temperature: tau > 0.
        distance: None, a `CosineSimilarity` or a `DotProductSimilarity` that normalises.
        reducer: None, a `MeanReducer` (the default: over pairs), an `AvgNonZeroReducer` or a
            `SumReducer`.
        embedding_regularizer: must be None.
        collect_stats: must be None or False.

    Raises:
        ValueError: another distance or reducer, a regularizer or statistics, temperature not
            positive and finite; no labels, or not an integer for each row.

    Example:
        >>> embeddings = torch.randn(8, 16, requires_grad=True)
        >>> NTXentLoss(temperature=0.1)(embeddings, torch.arange(4).repeat(2)).backward()
    """

    default_reducer = "MeanReducer"

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        distance: Any = None,
        reducer: Any = None,
        embedding_regularizer: Any = None,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__(temperature, distance, reducer, embedding_regularizer, collect_stats)

    def among(
        self,
        queries: Tensor,
        ids: Tensor,
        keys: Tensor,
        key_ids: Tensor,
        positive: Tensor,
        own: Tensor | None,
    ) -> Tensor:
        """Loss of each positive pair: [P]."""
        anchors, targets = positive.nonzero(as_tuple=True)
        if not 0 < len(anchors) <= _FEW_POSITIVES * len(queries):
            logits = logits_of(queries, keys, self.temperature)
            return pair_losses(logits, anchors, targets, ids[:, None] != key_ids)
        # a row for each pair; keys of its label are left out, but for the target
        losses = info_nce(
            queries[anchors], keys, targets=targets, query_ids=ids[anchors], key_ids=key_ids,
            temperature=self.temperature, reduction="none",
        )  # fmt: skip
        return cast(Tensor, losses)

    def chosen(self, queries: Tensor, keys: Tensor, indices: Sequence[Tensor]) -> Tensor:
        """Loss of each positive pair of the indices: [P]."""
        a1, p, a2, n = pairs_of(indices)
        logits = logits_of(queries, keys, self.temperature)
        times = torch.zeros_like(logits)
        times.index_put_((a2, n), times.new_ones(()), accumulate=True)
        return pair_losses(logits, a1, p, times)


class SupConLoss(PairLoss):
    """Supervised contrastive loss, the mean over the positives outside the logarithm.

    Args:
        temperature: tau > 0.
        distance: see `NTXentLoss`, like the two arguments below the reducer.
        reducer: None, an `AvgNonZeroReducer` (the default: over anchors of non-zero loss), a
            `MeanReducer` or a `SumReducer`.
        embedding_regularizer: must be None.
        collect_stats: must be None or False.

    Raises:
        ValueError: as `NTXentLoss`.

    Example:
        >>> embeddings = torch.randn(8, 16, requires_grad=True)
        >>> SupConLoss()(embeddings, torch.tensor([0, 0, 0, 0, 1, 1, 2, 3])).backward()
    """

    default_reducer = "AvgNonZeroReducer"

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        distance: Any = None,
        reducer: Any = None,
        embedding_regularizer: Any = None,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__(temperature, distance, reducer, embedding_regularizer, collect_stats)

    def among(
        self,
        queries: Tensor,
        ids: Tensor,
        keys: Tensor,
        key_ids: Tensor,
        positive: Tensor,
        own: Tensor | None,
    ) -> Tensor:
        """Loss of each query: [M]; 0 if all labels are the same."""
        negative = ids[:, None] != key_ids
        if own is not None and queries is keys:
            found = sup_con(queries, ids, temperature=self.temperature, reduction="none")
            losses = cast(Tensor, found)
        else:
            losses = anchors_among(queries, ids, keys, key_ids, positive, own, self.temperature)
        return torch.where(negative.any(), losses, 0.0)

    def chosen(self, queries: Tensor, keys: Tensor, indices: Sequence[Tensor]) -> Tensor:
        """Loss of each query over the pairs of the indices: [M]."""
        a1, p, a2, n = pairs_of(indices)
        logits = logits_of(queries, keys, self.temperature)
        positive = torch.zeros_like(logits, dtype=torch.bool)
        negative = positive.clone()
        positive[a1, p], negative[a2, n] = True, True
        return torch.where(negative.any(), anchor_losses(logits, positive, negative), 0.0)


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

    def __init__(self, loss: nn.Module, symmetric: bool = True) -> None:
        super().__init__()
        self.loss = loss
        self.symmetric = symmetric

    def extra_repr(self) -> str:
        """The settings, as `print(model)` shows them."""
        return settings_of(self, symmetric=True)

    def forward(self, embeddings: Tensor, ref_emb: Tensor) -> Tensor:
        """Loss of two views, [B, D] each, of the same samples."""
        if embeddings.shape != ref_emb.shape:
            raise ValueError(
                "SelfSupervisedLoss: the views must share their shape, got"
                f" {tuple(embeddings.shape)} and {tuple(ref_emb.shape)}"
            )
        loss, both = self.loss, torch.cat([embeddings, ref_emb])
        labels = torch.arange(len(embeddings), device=embeddings.device)
        if self.symmetric and type(loss) is NTXentLoss and len(both):
            # one positive a row: the same numbers by symmetric kernels
            return loss.reduced(nt_xent(both, temperature=loss.temperature, reduction="none"))
        if self.symmetric:
            return cast(Tensor, loss(both, labels.repeat(2)))
        return cast(Tensor, loss(embeddings, labels, ref_emb=ref_emb, ref_labels=labels))
