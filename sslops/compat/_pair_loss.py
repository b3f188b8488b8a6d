"""Arguments, labels and reduction of pytorch-metric-learning's pair losses."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sslops.compat._shared import as_ids

_REDUCERS = ("MeanReducer", "AvgNonZeroReducer", "SumReducer")


def _check_distance(name: str, distance: Any) -> None:
    if distance is None:
        return
    kind = type(distance).__name__
    cosine = {"normalize_embeddings": True, "p": 2, "power": 1, "is_inverted": True}
    other = {
        key: getattr(distance, key)
        for key, value in cosine.items()
        if getattr(distance, key, value) != value
    }
    if kind not in ("CosineSimilarity", "DotProductSimilarity") or other:
        raise ValueError(
            f"{name}: distance must be CosineSimilarity, or DotProductSimilarity of normalised"
            f" embeddings, with power=1 and p=2, got {kind} {other or ''}".rstrip()
        )


class PairLoss(nn.Module):
    """What NTXentLoss and SupConLoss share."""

    default_reducer: str

    def __init__(
        self,
        temperature: float,
        distance: Any = None,
        reducer: Any = None,
        embedding_regularizer: Any = None,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if not 0 < temperature < float("inf"):
            raise ValueError(f"{name}: temperature must be positive and finite, got {temperature}")
        _check_distance(name, distance)
        reducer = self.default_reducer if reducer is None else type(reducer).__name__
        if reducer not in _REDUCERS:
            raise ValueError(f"{name}: reducer must be one of {_REDUCERS}, got {reducer}")
        if embedding_regularizer is not None:
            raise ValueError(
                f"{name}: embedding_regularizer must be None, got {embedding_regularizer!r}"
            )
        if collect_stats:
            raise ValueError(f"{name}: collect_stats must be None or False, got {collect_stats}")
        self.temperature = temperature
        self._reducer = reducer

    def extra_repr(self) -> str:
        """The settings, as `print(model)` shows them."""
        other = "" if self._reducer == self.default_reducer else f", reducer={self._reducer}"
        return f"temperature={self.temperature}{other}"

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Sequence[Tensor] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Loss of [M, D] and the integers [M], among themselves or against [N, D] and [N].

        `indices_tuple` chooses pairs (anchor, positive, anchor, negative) or triplets instead of
        labels, as a miner returns them; M x N cosines are then stored.
        """
        name = type(self).__name__
        keys = embeddings if ref_emb is None else ref_emb.to(embeddings.dtype)
        if indices_tuple is not None:
            return self.reduced(self.chosen(embeddings, keys, indices_tuple))
        if labels is None or (ref_emb is None) != (ref_labels is None):
            raise ValueError(f"{name}: labels, and with ref_emb ref_labels, are needed, got None")
        labels = labels.to(embeddings.device)
        if ref_labels is None:
            own = torch.arange(len(labels), device=labels.device)
            return self.compare(embeddings, labels, keys, labels, own)
        return self.compare(embeddings, labels, keys, ref_labels.to(labels.device), None)

    def compare(
        self, queries: Tensor, labels: Tensor, keys: Tensor, key_labels: Tensor, own: Tensor | None
    ) -> Tensor:
        """Loss of the queries among the keys; `own` [M] says which key is the query itself."""
        name = type(self).__name__
        for rows, each in ((queries, labels), (keys, key_labels)):
            if each.shape != rows.shape[:1] or each.is_floating_point():
                raise ValueError(
                    f"{name}: every row needs an integer label, got {each.dtype} of shape"
                    f" {tuple(each.shape)} for {tuple(rows.shape)}"
                )
        if len(queries) == 0 or len(keys) < (1 if own is None else 2):  # no pair
            dtype = torch.promote_types(queries.dtype, torch.float32)
            return self.reduced(queries[:0].sum(1, dtype=dtype) + keys[:0].sum(1, dtype=dtype))
        ids, key_ids = as_ids(labels, key_labels)
        positive = ids[:, None] == key_ids
        if own is not None:
            positive.scatter_(1, own[:, None], False)
        return self.reduced(self.among(queries, ids, keys, key_ids, positive, own))

    def among(
        self,
        queries: Tensor,
        ids: Tensor,
        keys: Tensor,
        key_ids: Tensor,
        positive: Tensor,
        own: Tensor | None,
    ) -> Tensor:
        """Losses by labels.

        Args:
            queries: [M, D].
            ids: [M].
            keys: [N, D].
            key_ids: [N].
            positive: [M, N] bool.
            own: [M] which key is the query itself, and not seen; None if none is.
        """
        raise NotImplementedError

    def chosen(self, queries: Tensor, keys: Tensor, indices: Sequence[Tensor]) -> Tensor:
        """Losses of the pairs or triplets of the indices."""
        raise NotImplementedError

    def reduced(self, losses: Tensor) -> Tensor:
        """Sum, or mean over all losses or over those that are not zero; 0 if there is none."""
        if self._reducer == "SumReducer":
            return losses.sum()
        if self._reducer == "AvgNonZeroReducer":
            return losses.sum() / (losses > 0).sum().clamp_min(1)
        return losses.sum() / max(len(losses), 1)


def pairs_of(indices: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four index vectors from those of pairs or triplets."""
    if len(indices) not in (3, 4):
        raise ValueError(f"indices_tuple: must be triplets or pairs, got {len(indices)} tensors")
    anchor, positive, *_, negative = indices
    return anchor, positive, indices[2] if len(indices) == 4 else anchor, negative
