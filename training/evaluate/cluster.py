"""How far k-means finds the classes without any label."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sslops.training.loggers.progress import working

__all__ = ["N_INIT", "POINTS", "Clustering", "agreement", "cluster"]

N_INIT = 10
POINTS = 5000  # ten starts on more take longer than everything else together


class Clustering(NamedTuple):
    """Agreement of clusters with classes; 1 is perfect.

    Attributes:
        nmi: normalised mutual information (arithmetic mean of the entropies).
        ari: adjusted Rand index, 0 for a random assignment.
        accuracy: of the best one-to-one naming of clusters (Hungarian).
    """

    nmi: float
    ari: float
    accuracy: float


@working("clustering")
def cluster(features: Tensor, labels: Tensor, *, classes: int, seed: int) -> Clustering:
    """k-means with as many clusters as classes on L2-normalised features, best of 10 starts.

    Args:
        features: [N, D]; 5,000 of them, drawn with the seed, are used.
        labels: [N] int64; only compared with, after clustering.
        classes: K.
        seed: of the subset and the starts.
    """
    from sklearn.cluster import KMeans  # a second to import

    if len(features) > POINTS:
        generator = torch.Generator().manual_seed(seed)
        index = torch.randperm(len(features), generator=generator)[:POINTS].to(features.device)
        features, labels = features[index], labels[index]
    points = F.normalize(features, dim=1).cpu().numpy()
    k = min(classes, len(points))
    assigned = KMeans(n_clusters=k, n_init=N_INIT, random_state=seed).fit_predict(points)
    return agreement(labels.cpu(), labels.new_tensor(assigned).cpu())


def agreement(labels: Tensor, assigned: Tensor) -> Clustering:
    """Compare two partitions of the same images, [N] and [N]."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    truth, found = labels.numpy(), assigned.numpy()
    table = contingency_matrix(truth, found)
    rows, columns = linear_sum_assignment(table, maximize=True)
    return Clustering(
        nmi=float(normalized_mutual_info_score(truth, found)),
        ari=float(adjusted_rand_score(truth, found)),
        accuracy=float(table[rows, columns].sum() / len(truth)),
    )
