"""Accuracy with few labels a class: what self-supervised features are for."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sslops.training.evaluate.linear import FIXED_C, Scaler, accuracy, choose_strength
from sslops.training.evaluate.logistic import fit
from sslops.training.loggers.progress import working

__all__ = ["CV_FROM", "FewLabels", "draw_labels", "feasible", "few_labels"]

CV_FROM = 5  # labels a class from which C is cross-validated


class FewLabels(NamedTuple):
    """Over the draws: mean and (sample) standard deviation of the accuracy, and the Cs."""

    mean: float
    sd: float
    accuracies: list[float]
    strengths: list[float]


def feasible(labels: Tensor, wanted: Sequence[int], classes: int) -> list[int]:
    """Those of `wanted` labels a class that every class has."""
    fewest = int(labels.bincount(minlength=classes).min())
    return [n for n in wanted if n <= fewest]


def draw_labels(labels: Tensor, n: int, classes: int, seed: int) -> Tensor:
    """Indices of `n` images of each class, [classes * n]; the same seed draws the same images."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for label in range(classes):
        members = torch.nonzero(labels.cpu() == label).flatten()
        if len(members) < n:
            raise ValueError(f"draw_labels: class {label} must have {n} images, got {len(members)}")
        drawn.append(members[torch.randperm(len(members), generator=generator)[:n]])
    return torch.cat(drawn)


@working("fitting probes of few labels")
def few_labels(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    n: int,
    classes: int,
    seed: int,
    draws: int = 5,
    per_feature: bool = True,
) -> FewLabels:
    """Logistic regression on `n` labelled images a class, drawn `draws` times.

    From 5 labels a class on, C is cross-validated on the drawn labels; below it is 10. Features
    are scaled by the statistics of all training images, which need no labels. The draws depend on
    `seed` alone, so that all arms see the same images.

    Args:
        train: [N, D] features.
        labels: [N] int64.
        test: [M, D] features.
        test_labels: [M] int64.
        n: labels a class.
        classes: K.
        seed: of the draws.
        draws: how many.
        per_feature: see `Scaler.of`.
    """
    scaler = Scaler.of(train, per_feature=per_feature)
    test = scaler(test)
    accuracies, strengths = [], []
    for draw in range(draws):
        index = draw_labels(labels, n, classes, seed=1000 * seed + draw).to(train.device)
        few, few_targets = scaler(train[index]), labels[index]
        strength = FIXED_C
        if n >= CV_FROM:
            strength, _ = choose_strength(few, few_targets, classes=classes, seed=seed)
        classifier = fit(few, few_targets, classes, torch.tensor([strength]))
        accuracies.append(accuracy(classifier, test, test_labels))
        strengths.append(strength)
    values = torch.tensor(accuracies, dtype=torch.float64)
    sd = float(values.std()) if draws > 1 else 0.0
    return FewLabels(float(values.mean()), sd, accuracies, strengths)
