"""`losses.MultipleNegativesRankingLoss` and its cached twin, of sentence-transformers 6.

Arguments and differences: docs/migration/sentence_transformers.md.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from sslops.compat._cached_ranking import CachedMultipleNegativesRankingLoss
from sslops.compat._ranking import check_ranking, cos_sim, dot_score
from sslops.compat._ranking_loss import MultipleNegativesRankingLoss, ranking_loss

__all__ = [
    "CachedMultipleNegativesRankingLoss",
    "MultipleNegativesRankingLoss",
    "cos_sim",
    "dot_score",
    "multiple_negatives_ranking_loss",
]


def multiple_negatives_ranking_loss(
    embeddings: Sequence[Tensor],
    scale: float = 20.0,
    *,
    normalize: bool = True,
    directions: Sequence[str] = ("query_to_doc",),
    partition_mode: Literal["joint", "per_direction"] = "joint",
    gather_across_devices: bool = False,
) -> Tensor:
    r"""In-batch negatives of texts: each anchor asks for its positive among all documents.

    $$ L = \frac{1}{B} \sum_i \Big( \log \sum_{j \in A_i} e^{s_{ij}} - s(a_i, p_i) \Big) $$

    where A_i, with "query_to_doc", are the positives and hard negatives of all anchors; the other
    directions add anchor i against the other anchors ("query_to_query"), positive i against all
    anchors ("doc_to_query") and against the documents of other anchors ("doc_to_doc").

    Args:
        embeddings: anchors, positives, then any number of hard negatives, [B, D] floating each.
        scale: multiplies the similarities, 1/tau.
        normalize: cosines; False takes dot products.
        directions: with "query_to_doc"; "doc_to_doc" without "doc_to_query": plain PyTorch.
        partition_mode: "joint", one sum over all directions, or "per_direction", the mean of the
            losses of "query_to_doc" and "doc_to_query".
        gather_across_devices: documents and anchors of all processes are candidates. Each process
            returns the mean over its own rows; after DistributedDataParallel's mean the gradient
            is that of one process with the whole batch.

    Returns:
        Scalar mean over the anchors.

    Raises:
        ValueError: fewer than two tensors, scale not positive, unknown directions or mode, or
            directions that do not go with the mode.

    Example:
        >>> import torch
        >>> anchors, positives, negatives = torch.randn(3, 8, 16)
        >>> multiple_negatives_ranking_loss([anchors, positives, negatives]).shape
        torch.Size([])
    """
    check_ranking("multiple_negatives_ranking_loss", scale, directions, partition_mode)
    return ranking_loss(
        embeddings, scale, cos_sim if normalize else dot_score, directions, partition_mode,
        gather_across_devices,
    )  # fmt: skip
