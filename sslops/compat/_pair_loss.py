"""Arguments, labels and reduction of pytorch-metric-learning's pair losses.

A loss makes an entry `{"losses", "indices", "reduction_type"}`, which a reducer turns into a
number. Distances, reducers and regularizers are the package's own objects, called as it calls them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from sslops.compat._masks import logits_of
from sslops.compat._shared import as_ids, check_dtypes, factor_fits, rows_fit, steps_of

Entry = dict[str, Any]
Pairs = tuple[Tensor, Tensor, Tensor, Tensor]  # anchors and positives, anchors and negatives

_MEANS = ("NoneType", "MeanReducer", "SumReducer")
_COSINE = {
    "normalize_embeddings": True, "p": 2, "power": 1, "is_inverted": True, "collect_stats": False
}  # fmt: skip


def no_loss() -> Entry:
    """What is left where there is no pair to compare: a zero, without indices."""
    return {"losses": 0, "indices": None, "reduction_type": "already_reduced"}


def is_cosine(distance: Any) -> bool:
    """Whether a distance object, or None, is the cosine that the kernels compute."""
    kind = type(distance).__name__
    return distance is None or (
        kind in ("CosineSimilarity", "DotProductSimilarity")
        and all(getattr(distance, key, value) == value for key, value in _COSINE.items())
    )


def is_mean(loss: Any) -> bool:
    """Whether no loss is left out for being 0: the kernels' zeros are zeros up to rounding."""
    kind = type(getattr(loss, "reducer", None)).__name__
    return kind in _MEANS and (kind != "NoneType" or loss.default_reducer == "MeanReducer")


class Compared(NamedTuple):
    """Rows, labels as numbers from 0, and which pairs are positive."""

    queries: Tensor  # [M, D]
    ids: Tensor  # [M]
    keys: Tensor  # [N, D]
    key_ids: Tensor  # [N]
    positive: Tensor  # [M, N] bool
    own: Tensor | None  # [M] which key is the query itself, and not seen


def fits(loss: Any, queries: Tensor, labels: Tensor, keys: Tensor, key_labels: Tensor) -> bool:
    """Whether the kernels take these rows with these labels."""
    return (
        is_cosine(loss.distance)
        and (loss.drop_in != "NTXentLoss" or is_mean(loss))
        and rows_fit(queries, keys)
        and factor_fits(loss.temperature, queries)
        and len(queries) * len(keys) > 4  # of so few, pairs are counted
        and labels.shape == queries.shape[:1]
        and key_labels.shape == keys.shape[:1]
        and not any(each.is_complex() for each in (labels, key_labels))
    )


def compared(
    queries: Tensor, labels: Tensor, keys: Tensor, key_labels: Tensor, own: Tensor | None
) -> Compared:
    """What a kernel compares, of rows with labels."""
    ids, key_ids = as_ids(labels, key_labels.to(labels.device))
    positive = ids[:, None] == key_ids
    if own is not None:
        positive.scatter_(1, own[:, None], False)
    return Compared(queries, ids, keys, key_ids, positive, own)


def reduce_by(loss: Any, found: dict[str, Entry], embeddings: Tensor, labels: Tensor) -> Any:
    """The loss of an entry, by a drop-in's reducer or by one of the package."""
    if isinstance(loss, PairLoss):
        return loss.reduced(found, embeddings, labels)
    return loss.reducer(found, embeddings, labels)


def own_of(labels: Tensor, ref_labels: Tensor | None) -> Tensor | None:
    """The package takes keys for the queries themselves if their labels are the same object."""
    if ref_labels is not None and ref_labels is not labels:
        return None
    return torch.arange(len(labels), device=labels.device)


def all_pairs(labels: Tensor, ref_labels: Tensor | None) -> Pairs:
    """Every positive and every negative pair."""
    own = own_of(labels, ref_labels)
    equal = labels[:, None] == (labels if ref_labels is None else ref_labels)
    positive = equal.clone()
    if own is not None:
        positive.fill_diagonal_(False)
    a1, p = positive.nonzero(as_tuple=True)
    a2, n = (~equal).nonzero(as_tuple=True)
    return a1, p, a2, n


def pairs_of(indices: Sequence[Tensor]) -> Pairs:
    """Four index vectors from those of pairs or triplets."""
    if len(indices) not in (3, 4):
        raise ValueError(f"indices_tuple: must be triplets or pairs, got {len(indices)} tensors")
    anchor, positive, *_, negative = indices
    return anchor, positive, indices[2] if len(indices) == 4 else anchor, negative


class PairLoss(nn.Module):
    """What NTXentLoss and SupConLoss share."""

    drop_in: str
    drop_in_steps: dict[str, Any]
    default_reducer: str
    reads = ("temperature", "distance", "reducer")  # `fused` does

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.drop_in_steps = steps_of(cls)

    def __init__(
        self,
        temperature: float,
        distance: Any = None,
        reducer: Any = None,
        embedding_regularizer: Any = None,
        embedding_reg_weight: float = 1,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.distance = distance
        self.reducer = reducer
        self.embedding_regularizer = embedding_regularizer
        self.embedding_reg_weight = embedding_reg_weight
        self.collect_stats = bool(collect_stats)

    def extra_repr(self) -> str:
        """The settings, as `print(model)` shows them."""
        kind = type(self.reducer).__name__
        other = "" if kind in ("NoneType", self.default_reducer) else f", reducer={kind}"
        return f"temperature={self.temperature}{other}"

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Sequence[Tensor] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Loss of [M, D] and labels [M], among themselves or against [N, D] and [N].

        `indices_tuple` chooses pairs (anchor, positive, anchor, negative) or triplets instead of
        labels, as a miner returns them; M x N cosines are then stored. Labels may be of any dtype.
        `ref_labels` that are left out, or the same object as `labels`, say that row i of `ref_emb`
        is row i of `embeddings` itself.
        """
        name = type(self).__name__
        if ref_emb is None:
            ref_emb, ref_labels = embeddings, labels
        for rows, each in ((embeddings, labels), (ref_emb, ref_labels)):
            if each is not None and each.shape != rows.shape[:1]:
                raise ValueError(
                    f"{name}: labels must be [{len(rows)}], one for each row, got shape"
                    f" {tuple(each.shape)}"
                )
        if labels is None and indices_tuple is None:
            raise ValueError(f"{name}: labels or indices_tuple are needed, got None")
        same = ref_labels is labels
        labels = None if labels is None else labels.to(embeddings.device)
        if same:
            ref_labels = labels
        elif ref_labels is not None:
            ref_labels = ref_labels.to(ref_emb.device)
        found = self.fused(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        if found is NotImplemented:
            if indices_tuple is not None:
                pairs = pairs_of(indices_tuple)
            else:
                pairs = all_pairs(cast(Tensor, labels), ref_labels)
            found = {"loss": self.plain(embeddings, ref_emb, pairs)}
        return cast(Tensor, self.reduced(found, embeddings, labels))

    def fused(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: Sequence[Tensor] | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> Any:
        """The entry by kernels, as the package's `compute_loss` has it, or NotImplemented."""
        raise NotImplementedError

    def plain(self, queries: Tensor, keys: Tensor, pairs: Pairs) -> Entry:
        """The entry of any pairs and distance."""
        if all(len(each) <= 1 for each in pairs):
            return no_loss()
        if self.distance is None:
            check_dtypes(type(self).__name__, embeddings=queries, ref_emb=keys)
            return self.entry_of(logits_of(queries, keys, self.temperature), pairs)
        found = self.distance(queries, keys)
        sign = 1 if self.distance.is_inverted else -1
        return self.entry_of(sign * found / self.temperature, pairs)

    def entry_of(self, logits: Tensor, pairs: Pairs) -> Entry:
        """The entry of logits [M, N]."""
        raise NotImplementedError

    def reduced(self, found: dict[str, Entry], embeddings: Tensor, labels: Tensor | None) -> Any:
        """What the reducer makes of the losses; 0 if there is none."""
        kind = type(self.reducer).__name__
        if self.embedding_regularizer is None:
            return self._reduced(kind, found, embeddings, labels)
        weighted = self.embedding_regularizer(embeddings) * self.embedding_reg_weight
        extra = {**no_loss(), "losses": weighted}
        if kind in ("MultipleReducers", "DoNothingReducer"):
            return self.reducer({**found, "embedding_reg_loss": extra}, embeddings, labels)
        loss = self._reduced(kind, found, embeddings, labels)
        return loss + self._reduced(kind, {"embedding_reg_loss": extra}, embeddings, labels)

    def _reduced(
        self, kind: str, found: dict[str, Entry], embeddings: Tensor, labels: Tensor | None
    ) -> Any:
        if kind == "NoneType":
            kind = self.default_reducer
        elif kind not in _REDUCED or getattr(self.reducer, "collect_stats", False):
            return self.reducer(found, embeddings, labels)
        (entry,) = found.values()
        losses = entry["losses"]
        if not isinstance(losses, Tensor):
            return _zero(embeddings)
        if entry["reduction_type"] == "already_reduced":
            return losses
        return _REDUCED[kind](losses, embeddings)


def _zero(embeddings: Tensor) -> Tensor:
    # NaN of what is not finite, or a diverged network would look like a perfect one
    return (embeddings * 0).sum(dtype=torch.promote_types(embeddings.dtype, torch.float32))


def _mean_of_non_zero(losses: Tensor, embeddings: Tensor) -> Tensor:
    count = (losses > 0).sum()
    # what is NaN gets no gradient either, where looking does not wait for a GPU
    if losses.device.type == "cpu" and not torch.compiler.is_compiling() and not count:
        return _zero(embeddings)
    mean = torch.where(losses > 0, losses, 0.0).sum() / count.clamp_min(1)
    return torch.where(count > 0, mean, _zero(embeddings))


_REDUCED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "MeanReducer": lambda losses, _: losses.sum() / max(len(losses), 1),
    "AvgNonZeroReducer": _mean_of_non_zero,
    "SumReducer": lambda losses, _: losses.sum(),
}
