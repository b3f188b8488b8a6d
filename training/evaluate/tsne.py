"""A picture of the feature space: PCA, then t-SNE (van der Maaten & Hinton 2008)."""

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sslops.training.loggers.progress import working

__all__ = ["MAX_POINTS", "PERPLEXITY", "tsne"]

MAX_POINTS = 2000
PERPLEXITY = 30.0
PCA_DIMS = 50


def tsne(features: Tensor, seed: int) -> NDArray[np.float32]:
    """Two coordinates for each image; distances between far points mean nothing.

    Args:
        features: [N, D], 4 <= N <= 2,000; L2-normalised here, as the other measures do.
        seed: of PCA's solver and t-SNE.

    Returns:
        [N, 2] float32.

    Raises:
        ValueError: too few or too many images.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    N, D = features.shape
    if not 4 <= N <= MAX_POINTS:
        raise ValueError(f"tsne: needs 4 to {MAX_POINTS} images, got {N}; take a subset")
    points = F.normalize(features, dim=1).cpu().numpy()
    if min(N, D) > PCA_DIMS:
        points = PCA(PCA_DIMS, random_state=seed).fit_transform(points)
    if not points.std() > 0:  # a collapsed encoder: all images on one spot
        return np.zeros((N, 2), dtype=np.float32)
    perplexity = min(PERPLEXITY, (N - 1) / 3)
    with working(f"t-SNE of {N:,} images"):
        embedded = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)
    return np.asarray(embedded, dtype=np.float32)
