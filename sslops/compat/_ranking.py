"""Arguments of sentence-transformers' ranking losses, and the losses of any similarity."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sslops._join import cat, stack
from sslops._names import shown
from sslops.distributed import all_gather_with_grad, rank

DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
_HARDNESS = ("in_batch_negatives", "hard_negatives", "all_negatives")

Similarity = Callable[[Tensor, Tensor], Tensor]


def check_ranking(name: str, scale: float, directions: Sequence[str], partition_mode: str) -> None:
    """Refuse a scale, and directions that do not go together or with the mode."""
    if not scale > 0:
        raise ValueError(f"{name}: scale must be positive, got {scale}")
    if unknown := set(directions) - set(DIRECTIONS):
        raise ValueError(f"{name}: directions must be of {DIRECTIONS}, got {shown(unknown)}")
    if "query_to_doc" not in directions:
        raise ValueError(f"{name}: directions must have query_to_doc, got {shown(directions)}")
    if partition_mode not in ("joint", "per_direction"):
        raise ValueError(
            f"{name}: partition_mode must be joint or per_direction, got {partition_mode!r}"
        )
    if partition_mode == "per_direction" and {"query_to_query", "doc_to_doc"} & set(directions):
        raise ValueError(
            f"{name}: per_direction goes with query_to_doc and doc_to_query alone, got"
            f" {shown(directions)}"
        )


def check_hardness(name: str, mode: str | None, strength: float) -> None:
    """Refuse what sentence-transformers refuses."""
    if mode is not None and mode not in _HARDNESS:
        raise ValueError(f"{name}: hardness_mode must be None or of {_HARDNESS}, got {mode!r}")
    if strength < 0:
        raise ValueError(f"{name}: hardness_strength must not be negative, got {strength}")


def cos_sim(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of all pairs of rows: [M, N]."""
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T


def dot_score(a: Tensor, b: Tensor) -> Tensor:
    """Dot products of all pairs of rows: [M, N]."""
    return a @ b.T


def is_cosine(similarity: Similarity) -> bool | None:
    """True for cos_sim and False for dot_score, ours or the package's; None for another one."""
    name = getattr(similarity, "__name__", "")
    module = str(getattr(similarity, "__module__", "")).split(".", maxsplit=1)[0]
    if module not in ("sslops", "sentence_transformers"):
        return None
    return {"cos_sim": True, "pytorch_cos_sim": True, "dot_score": False}.get(name)


def name_of(similarity: Similarity) -> str:
    """Its name; of a partial one, with its arguments."""
    if isinstance(similarity, partial):
        given = ", ".join(f"{key}={value!r}" for key, value in similarity.keywords.items())
        return f"{name_of(similarity.func)}({given})" if given else name_of(similarity.func)
    return getattr(similarity, "__name__", type(similarity).__name__)


def plain_ranking(
    embeddings: Sequence[Tensor],
    scale: float,
    similarity: Similarity,
    directions: Sequence[str],
    partition_mode: str,
    gather_across_devices: bool,
    hardness_mode: str | None,
    hardness_strength: float,
) -> Tensor:
    """The mean loss of the anchors, with the scores [B, N] of every direction stored."""
    B, device = len(embeddings[0]), embeddings[0].device
    everyone = all_gather_with_grad if gather_across_devices else (lambda each: each)
    queries, *docs = (everyone(each) for each in embeddings)
    W, all_docs = len(queries), cat(docs)
    own = torch.arange(B, device=device) + (rank() * B if gather_across_devices else 0)
    mine = torch.arange(W, device=device) == own[:, None]  # [B, W]
    mine_docs = mine.repeat(1, len(docs))
    scores = {"query_to_doc": similarity(queries[own], all_docs)}
    if "query_to_query" in directions:
        scores["query_to_query"] = similarity(queries[own], queries).masked_fill(mine, -torch.inf)
    if "doc_to_query" in directions:
        scores["doc_to_query"] = similarity(queries, docs[0][own]).T
    if "doc_to_doc" in directions:
        of_docs = similarity(all_docs, docs[0][own]).T
        scores["doc_to_doc"] = of_docs.masked_fill(mine_docs, -torch.inf)
    to_docs = scores["query_to_doc"]
    scores = {key: each * scale for key, each in scores.items()}
    if hardness_mode is not None and hardness_strength > 0:
        first = torch.arange(len(all_docs), device=device) < W  # the positives' column
        harder = {
            "in_batch_negatives": ~mine_docs,
            "hard_negatives": mine_docs & ~first,
            "all_negatives": ~(mine_docs & first),
        }[hardness_mode]
        scores["query_to_doc"] = scores["query_to_doc"] + torch.where(
            harder, hardness_strength * to_docs.detach(), 0.0
        )
    positive = scores["query_to_doc"].gather(1, own[:, None]).squeeze(1)
    if partition_mode == "joint":
        log_z = cat(list(scores.values()), dim=1).logsumexp(1)
    else:
        log_z = stack([each.logsumexp(1) for each in scores.values()]).mean(0)
    return (log_z - positive).mean()
