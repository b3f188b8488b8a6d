"""Seeded splits and subsets; stratified where labels are known."""

import torch
from torch import Tensor

from sslops.training.data.dataset import Split

__all__ = ["split_validation", "stratified", "subset", "take"]


def take(split: Split, index: Tensor) -> Split:
    """The images (with labels and factors) at `index` [n], in that order."""
    labels = None if split.labels is None else split.labels[index]
    factors = {name: values[index] for name, values in split.factors.items()}
    return Split(split.images[index], labels, factors)


def stratified(labels: Tensor, n: int, seed: int) -> Tensor:
    """Bool mask [N] with `n` chosen, each class within one image of its share.

    Shares are rounded down and the images left over go to the classes with the largest
    remainders, smaller label first.
    """
    generator = torch.Generator().manual_seed(seed)
    counts = torch.bincount(labels)  # [classes]
    shares = counts.double() * n / len(labels)
    quota = shares.floor().long()
    order = torch.argsort(shares - quota, descending=True, stable=True)
    quota[order[: n - int(quota.sum())]] += 1
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label, k in enumerate(quota.tolist()):
        members = torch.nonzero(labels == label).flatten()
        chosen[members[torch.randperm(len(members), generator=generator)[:k]]] = True
    return chosen


def _uniform(N: int, n: int, seed: int) -> Tensor:
    chosen = torch.zeros(N, dtype=torch.bool)
    chosen[torch.randperm(N, generator=torch.Generator().manual_seed(seed))[:n]] = True
    return chosen


def split_validation(
    split: Split, fraction: float, seed: int, *, order: Tensor | None = None
) -> tuple[Split, Split]:
    """Split into (train, validation), stratified when labelled; both stay in the order they have.

    Args:
        split: what to divide; stays as it is.
        fraction: of the images that go to validation, in (0, 1).
        seed: same seed, same split.
        order: [N] int64, a permutation: what is drawn depends on this order of the images instead
            of the one they have.

    Raises:
        ValueError: `fraction` leaves one side empty.
    """
    N = len(split)
    n = round(N * fraction)
    if not 0 < n < N:
        raise ValueError(
            f"split_validation: both sides need an image, got fraction = {fraction} of {N} images"
        )
    order = torch.arange(N) if order is None else order
    chosen = torch.zeros(N, dtype=torch.bool)
    if split.labels is None:
        chosen[order] = _uniform(N, n, seed)
    else:
        chosen[order] = stratified(split.labels[order], n, seed)
    return take(split, torch.nonzero(~chosen).flatten()), take(
        split, torch.nonzero(chosen).flatten()
    )


def subset(split: Split, n: int, seed: int) -> Split:
    """`n` images drawn without replacement and without a look at the labels, in original order.

    Raises:
        ValueError: `n` is not in 1..len(split).
    """
    if not 1 <= n <= len(split):
        raise ValueError(f"subset: n must be in 1..{len(split)}, got {n}")
    return take(split, torch.nonzero(_uniform(len(split), n, seed)).flatten())
