"""`losses.MultipleNegativesRankingLoss` and its cached twin, of sentence-transformers 6.

Differences: docs/migration/sentence_transformers.md.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslops import info_nce
from sslops._names import shown
from sslops.compat._grad_cache import cached, pieces
from sslops.compat._ranking import check_hardness, check_ranking
from sslops.compat._shared import settings_of
from sslops.distributed import all_gather_with_grad, rank

__all__ = [
    "CachedMultipleNegativesRankingLoss",
    "MultipleNegativesRankingLoss",
    "cos_sim",
    "dot_score",
    "multiple_negatives_ranking_loss",
]


def cos_sim(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of all pairs of rows: [M, N]."""
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T


def dot_score(a: Tensor, b: Tensor) -> Tensor:
    """Dot products of all pairs of rows: [M, N]."""
    return a @ b.T


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
        directions: with "query_to_doc", and "doc_to_doc" only with "doc_to_query".
        partition_mode: "joint", one sum over all directions, or "per_direction", the mean of the
            losses of "query_to_doc" and "doc_to_query".
        gather_across_devices: documents and anchors of all processes are candidates. Each process
            returns the mean over its own rows; after DistributedDataParallel's mean the gradient
            is that of one process with the whole batch.

    Returns:
        Scalar mean over the anchors.

    Raises:
        ValueError: fewer than two tensors or other shapes, scale not positive and finite, unknown
            directions or mode, or directions that do not go together.

    Example:
        >>> anchors, positives, negatives = torch.randn(3, 8, 16)
        >>> multiple_negatives_ranking_loss([anchors, positives, negatives]).shape
        torch.Size([])
    """
    name = "multiple_negatives_ranking_loss"
    check_ranking(name, scale, directions, partition_mode)
    shapes = [tuple(each.shape) for each in embeddings]
    if len(shapes) < 2 or len(set(shapes)) > 1:
        raise ValueError(
            f"{name}: needs two or more tensors of one shape [B, D], got {shown(shapes)}"
        )
    queries, positives = embeddings[0], embeddings[1]
    everyone = all_gather_with_grad if gather_across_devices else (lambda each: each)
    all_queries, *docs = (everyone(each) for each in embeddings)
    all_docs = torch.cat(docs)
    index = torch.arange(len(all_queries), device=queries.device)
    first = rank() * len(queries) if gather_across_devices else 0
    own = index[first : first + len(queries)]
    nobody = torch.full_like(index, -1)

    def ask(rows: Tensor, keys: list[Tensor], owners: list[Tensor]) -> Tensor:
        """Each row's loss; keys of its own sample are left out, but for its target."""
        losses = info_nce(
            rows, torch.cat(keys), targets=own, query_ids=own, key_ids=torch.cat(owners),
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


class MultipleNegativesRankingLoss(nn.Module):
    """Module of `multiple_negatives_ranking_loss` over a model's "sentence_embedding".

    Args:
        model: callable of a dict of features.
        scale: multiplies the similarities.
        similarity_fct: a function named cos_sim or dot_score, of this module or of the peer's.
        gather_across_devices: see the function, like the two below.
        directions: of the sums.
        partition_mode: of the directions.
        hardness_mode: must be None, or the strength 0.
        hardness_strength: see `hardness_mode`.

    Raises:
        ValueError: another similarity, hardness weighting, or what the function refuses.

    Example:
        >>> loss = MultipleNegativesRankingLoss(lambda x: {"sentence_embedding": x["values"]})
        >>> loss([{"values": torch.randn(8, 16)}, {"values": torch.randn(8, 16)}], None).shape
        torch.Size([])
    """

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
        kind = getattr(similarity_fct, "__name__", repr(similarity_fct))
        if kind not in ("cos_sim", "dot_score"):
            raise ValueError(f"{name}: similarity_fct must be cos_sim or dot_score, got {kind}")
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
            directions=("query_to_doc",), partition_mode="joint",
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
        return multiple_negatives_ranking_loss(
            embeddings,
            self.scale,
            normalize=self.similarity_fct.__name__ == "cos_sim",
            directions=self.directions,
            partition_mode=self.partition_mode,
            gather_across_devices=self.gather_across_devices,
        )

    def _embed(self, features: dict[str, Any]) -> Tensor:
        return cast(Tensor, self.model(features)["sentence_embedding"])

    def get_config_dict(self) -> dict[str, Any]:
        """The hyper-parameters, for a model card."""
        return {
            "scale": self.scale,
            "similarity_fct": self.similarity_fct.__name__,
            "gather_across_devices": self.gather_across_devices,
            "directions": self.directions,
            "partition_mode": self.partition_mode,
            "hardness_mode": self.hardness_mode,
            "hardness_strength": self.hardness_strength,
        }


class CachedMultipleNegativesRankingLoss(MultipleNegativesRankingLoss):
    """The same loss with the encoder's activations of `mini_batch_size` texts at a time.

    The encoder runs twice, the second time in the backward with the random numbers and the
    autocast of the first.

    Args:
        model: see `MultipleNegativesRankingLoss`, like all arguments not listed here.
        scale: multiplies the similarities.
        similarity_fct: cos_sim or dot_score.
        mini_batch_size: texts of one pass of the encoder; the loss needs no pieces.
        mini_batch_num_tokens: must be None.
        gather_across_devices: candidates of all processes.
        directions: of the sums.
        partition_mode: of the directions.
        show_progress_bar: accepted; there is none.
        hardness_mode: must be None, or the strength 0.
        hardness_strength: see `hardness_mode`.

    Raises:
        ValueError: pieces counted by tokens or of no text, features that cannot be cut by texts.

    Example:
        >>> layer = nn.Linear(4, 16)
        >>> model = lambda x: {"sentence_embedding": layer(x["values"])}
        >>> loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=2)
        >>> loss([{"values": torch.randn(8, 4)}, {"values": torch.randn(8, 4)}], None).backward()
        >>> layer.weight.grad.shape
        torch.Size([16, 4])
    """

    uses_gradient_cache = True  # what MatryoshkaLoss and AdaptiveLayerLoss ask for

    def __init__(
        self,
        model: Callable[[dict[str, Any]], Any],
        scale: float = 20.0,
        similarity_fct: Callable[[Tensor, Tensor], Tensor] = cos_sim,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        gather_across_devices: bool = False,
        directions: Sequence[str] = ("query_to_doc",),
        partition_mode: Literal["joint", "per_direction"] = "joint",
        show_progress_bar: bool = False,
        hardness_mode: str | None = None,
        hardness_strength: float = 0.0,
    ) -> None:
        super().__init__(
            model, scale, similarity_fct, gather_across_devices, directions, partition_mode,
            hardness_mode, hardness_strength,
        )  # fmt: skip
        name = type(self).__name__
        if mini_batch_num_tokens is not None:
            raise ValueError(
                f"{name}: mini_batch_num_tokens must be None, got {mini_batch_num_tokens}"
            )
        if mini_batch_size < 1:
            raise ValueError(f"{name}: mini_batch_size must be positive, got {mini_batch_size}")
        self.mini_batch_size = mini_batch_size
        self.mini_batch_num_tokens = mini_batch_num_tokens
        self.show_progress_bar = show_progress_bar

    def extra_repr(self) -> str:
        """The settings, as `print(model)` shows them."""
        return f"{super().extra_repr()}, mini_batch_size={self.mini_batch_size}"

    def forward(
        self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None
    ) -> Tensor:
        """Loss of the columns [anchors, positives, *negatives]; labels are not used."""
        columns = [pieces(features, self.mini_batch_size) for features in sentence_features]
        # looked up now: MatryoshkaLoss wraps it
        return cached(self._embed, partial(self.calculate_loss, labels=labels), columns, self.model)

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """Loss of the pieces of each column; `with_backward`, their gradients are filled too."""
        loss = self.compute_loss_from_embeddings([torch.cat(each) for each in reps], labels)
        if with_backward:
            loss.backward()  # type: ignore[no-untyped-call]
            loss = loss.detach()
        return loss

    def get_config_dict(self) -> dict[str, Any]:
        """The hyper-parameters, for a model card."""
        return {**super().get_config_dict(), "mini_batch_size": self.mini_batch_size}
