"""The ranking losses of sentence-transformers: by kernels where they cover the similarity."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from sslops import info_nce
from sslops._join import cat
from sslops._names import shown
from sslops.compat._ranking import (
    Similarity,
    check_hardness,
    check_ranking,
    cos_sim,
    is_cosine,
    name_of,
    plain_ranking,
)
from sslops.compat._shared import factor_fits, is_number, rows_fit, settings_of
from sslops.distributed import all_gather_with_grad, rank


def ranking_loss(
    embeddings: Sequence[Tensor],
    scale: float,
    similarity: Similarity,
    directions: Sequence[str],
    partition_mode: str,
    gather: bool = False,
    hardness_mode: str | None = None,
    hardness_strength: float = 0.0,
) -> Tensor:
    """The loss by kernels, or else by plain PyTorch."""
    args = (scale, similarity, directions, partition_mode, gather, hardness_mode, hardness_strength)
    if len(embeddings) < 2:
        raise ValueError(
            "multiple_negatives_ranking_loss: needs two or more tensors [B, D], got"
            f" {shown(tuple(each.shape) for each in embeddings)}"
        )
    loss = fused_ranking(embeddings, *args)
    return cast(Tensor, plain_ranking(embeddings, *args) if loss is NotImplemented else loss)


def fused_ranking(
    embeddings: Sequence[Tensor],
    scale: float,
    similarity: Similarity,
    directions: Sequence[str],
    partition_mode: str,
    gather: bool,
    hardness_mode: str | None,
    hardness_strength: float,
) -> Any:
    """The loss by kernels, or NotImplemented."""
    if not (
        len(embeddings) > 1
        and rows_fit(*embeddings)
        and len({each.shape for each in embeddings}) == 1
        and factor_fits(scale, embeddings[0])
        and is_number(scale)
        and is_cosine(similarity) is not None
        and ("doc_to_doc" not in directions or "doc_to_query" in directions)
        and (hardness_mode is None or not hardness_strength > 0)
    ):
        return NotImplemented
    normalize = bool(is_cosine(similarity))
    queries, positives = embeddings[0], embeddings[1]
    everyone = all_gather_with_grad if gather else (lambda each: each)
    all_queries, *docs = (everyone(each) for each in embeddings)
    all_docs = cat(docs)
    index = torch.arange(len(all_queries), device=queries.device)
    first = rank() * len(queries) if gather else 0
    own = index[first : first + len(queries)]
    nobody = torch.full_like(index, -1)

    def ask(rows: Tensor, keys: list[Tensor], owners: list[Tensor]) -> Tensor:
        """Each row's loss; keys of its own sample are left out, but for its target."""
        losses = info_nce(
            rows, cat(keys), targets=own, query_ids=own, key_ids=torch.cat(owners),
            temperature=1.0 / scale, normalize=normalize, reduction="none",
        )  # fmt: skip
        return cast(Tensor, losses)

    keys, owners = [all_docs], [nobody] * len(docs)
    if "query_to_query" in directions:
        keys, owners = [*keys, all_queries], [*owners, index]
    losses = ask(queries, keys, owners)
    if "doc_to_query" in directions:
        keys, owners = [all_queries], [nobody]
        if "doc_to_doc" in directions:
            keys, owners = [*keys, all_docs], [*owners, *[index] * len(docs)]
        back = ask(positives, keys, owners)
        # both are log-sums over the same positive, so that their sums add
        joint = partition_mode == "joint"
        losses = torch.logaddexp(losses, back) if joint else 0.5 * (losses + back)
    return losses.mean()


def settings(loss: Any) -> tuple[Any, ...]:
    """What `ranking_loss` wants, of a drop-in or of one of the package's own losses."""
    return (
        loss.scale, loss.similarity_fct, loss.directions, loss.partition_mode,
        loss.gather_across_devices, loss.hardness_mode, loss.hardness_strength,
    )  # fmt: skip


class MultipleNegativesRankingLoss(nn.Module):
    """Module of `multiple_negatives_ranking_loss` over a model's "sentence_embedding".

    Args:
        model: callable of a dict of features.
        scale: multiplies the similarities.
        similarity_fct: cos_sim or dot_score, of this module or of the package; any other function
            of [M, D] and [N, D]: plain PyTorch, with the scores [B, N] stored.
        gather_across_devices: see the function, like the two below.
        directions: of the sums.
        partition_mode: of the directions.
        hardness_mode: which negatives weigh more the nearer they are: "in_batch_negatives",
            "hard_negatives" (the anchor's own) or "all_negatives"; plain PyTorch.
        hardness_strength: what multiplies their similarity, without gradient, in the weight.

    Raises:
        ValueError: an unknown hardness mode, a negative strength, or what the function refuses.

    Example:
        >>> loss = MultipleNegativesRankingLoss(lambda x: {"sentence_embedding": x["values"]})
        >>> loss([{"values": torch.randn(8, 16)}, {"values": torch.randn(8, 16)}], None).shape
        torch.Size([])
    """

    reads = (  # `fused` does
        "scale", "similarity_fct", "directions", "partition_mode", "gather_across_devices",
        "hardness_mode", "hardness_strength",
    )  # fmt: skip

    def __init__(
        self,
        model: Callable[[dict[str, Any]], Any],
        scale: float = 20.0,
        similarity_fct: Callable[[Tensor, Tensor], Tensor] = cos_sim,
        gather_across_devices: bool = False,
        directions: Sequence[str] = ("query_to_doc",),
        partition_mode: Literal["joint", "per_direction"] = "joint",
        hardness_mode: str | None = None,
        hardness_strength: float = 0.0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_ranking(name, scale, directions, partition_mode)
        check_hardness(name, hardness_mode, hardness_strength)
        self.model = model
        self.scale = scale
        self.similarity_fct = similarity_fct
        self.gather_across_devices = gather_across_devices
        self.directions = tuple(directions)
        self.partition_mode: Literal["joint", "per_direction"] = partition_mode
        self.hardness_mode = hardness_mode
        self.hardness_strength = hardness_strength

    def extra_repr(self) -> str:
        """The settings, as `print(model)` shows them."""
        return settings_of(
            self, "scale", similarity_fct="cos_sim", gather_across_devices=False,
            directions=("query_to_doc",), partition_mode="joint", hardness_mode=None,
        )  # fmt: skip

    def forward(
        self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None
    ) -> Tensor:
        """Loss of the columns [anchors, positives, *negatives]; labels are not used."""
        embeddings = [self._embed(features) for features in sentence_features]
        return self.compute_loss_from_embeddings(embeddings, labels)

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None = None
    ) -> Tensor:
        """Loss of the embeddings of the columns, [B, D] each; labels are not used."""
        return ranking_loss(embeddings, *settings(self))

    def fused(self, embeddings: Sequence[Tensor], labels: Tensor | None = None) -> Any:
        """The loss of embeddings by kernels, or NotImplemented."""
        return fused_ranking(embeddings, *settings(self))

    def _embed(self, features: dict[str, Any]) -> Tensor:
        return cast(Tensor, self.model(features)["sentence_embedding"])

    @property
    def temperature(self) -> float:
        """1 / scale."""
        return 1.0 / self.scale

    def get_config_dict(self) -> dict[str, Any]:
        """The hyper-parameters, for a model card."""
        return {
            "scale": self.scale,
            "similarity_fct": name_of(self.similarity_fct),
            "gather_across_devices": self.gather_across_devices,
            "directions": self.directions,
            "partition_mode": self.partition_mode,
            "hardness_mode": self.hardness_mode,
            "hardness_strength": self.hardness_strength,
        }
