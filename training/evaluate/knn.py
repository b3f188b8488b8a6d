"""Weighted nearest-neighbour classification, a probe without training.

The k training images most similar to a query (cosine) vote for their class with weight
exp(similarity / temperature). Source: Wu et al. 2018, arXiv:1805.01978, section 3.4.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sslops.training.loggers.progress import working

__all__ = ["KS", "TEMPERATURE", "choose_k", "knn_accuracy", "knn_predict", "neighbours"]

TEMPERATURE = 0.07
KS = (5, 10, 20, 50, 100, 200)  # candidates of choose_k
QUERIES = 2000  # training images that choose_k asks for their class
_CELLS = 1 << 24  # similarities (or votes) in memory at once: 64 MiB


def neighbours(
    queries: Tensor, keys: Tensor, k: int, *, exclude: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The k most similar keys of each query, a chunk of queries at a time.

    Args:
        queries: [N, D].
        keys: [M, D].
        k: at most M.
        exclude: [N] int64; a key that each query may not have, itself say.

    Yields:
        Cosine similarities [n, k], largest first, and indices [n, k].
    """
    queries, keys = F.normalize(queries, dim=1), F.normalize(keys, dim=1)
    step = max(1, _CELLS // max(1, len(keys)))
    for start in range(0, len(queries), step):
        similarity = queries[start : start + step] @ keys.T  # [n, M]
        if exclude is not None:
            similarity.scatter_(1, exclude[start : start + step, None], -torch.inf)
        top = similarity.topk(k, dim=1)
        yield top.values, top.indices


def knn_predict(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    *,
    k: int = 20,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Class of each test row.

    Args:
        train: [M, D] features.
        labels: [M] int64.
        test: [N, D] features.
        k: voters, cut to M.
        temperature: of the weights.

    Returns:
        [N] int64; a tie goes to the smaller label.
    """
    if k < 1 or not temperature > 0:
        raise ValueError(f"knn: k and temperature must be positive, got {k} and {temperature}")
    classes = int(labels.max()) + 1
    predicted = []
    for similarity, index in neighbours(test, train, min(k, len(train))):
        predicted.append(_vote(similarity, labels[index], classes, temperature).argmax(1))
    return torch.cat(predicted)


@working("looking for neighbours")
def knn_accuracy(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = TEMPERATURE,
) -> float:
    """Share of test rows that `knn_predict` names right."""
    predicted = knn_predict(train, labels, test, k=k, temperature=temperature)
    return (predicted == test_labels).float().mean().item()


@working("looking for neighbours")
def choose_k(
    train: Tensor,
    labels: Tensor,
    *,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
    seed: int = 0,
) -> int:
    """The k that names the training images best, each left out of its own neighbours.

    At most 2,000 of them are asked; of equals the smallest k is taken.
    """
    ks = [k for k in ks if k < len(train)] or [max(1, len(train) - 1)]
    generator = torch.Generator().manual_seed(seed)
    asked = torch.randperm(len(train), generator=generator)[:QUERIES].to(train.device)
    classes = int(labels.max()) + 1
    found = list(neighbours(train[asked], train, max(ks), exclude=asked))
    similarity = torch.cat([chunk[0] for chunk in found])
    index = torch.cat([chunk[1] for chunk in found])
    right = {}
    for k in ks:
        votes = _vote(similarity[:, :k], labels[index[:, :k]], classes, temperature)
        right[k] = int((votes.argmax(1) == labels[asked]).sum())
    return max(right, key=lambda k: (right[k], -k))


def _vote(similarity: Tensor, labels: Tensor, classes: int, temperature: float) -> Tensor:
    """[n, k] and [n, k] -> [n, classes]."""
    # Relative to the nearest, so that small temperatures do not overflow.
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    votes = weights.new_zeros(len(labels), classes)
    for rank in range(labels.shape[1]):  # no scatter_add: its order of addition varies on CUDA
        column = labels[:, rank : rank + 1]
        votes.scatter_(1, column, votes.gather(1, column) + weights[:, rank : rank + 1])
    return votes
