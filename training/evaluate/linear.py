"""The linear probe: logistic regression whose strength is chosen by cross-validation.

A fixed C moves one arm up and another down by points, so every arm, baselines included, has its
own, chosen on the labels it is fitted to and on nothing else.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sslops.training.data.notes import say
from sslops.training.evaluate.logistic import MAX_ITERATIONS, TOLERANCE, Linear, fit, principal_axes
from sslops.training.loggers.progress import working

__all__ = [
    "ALONE",
    "CS",
    "FIXED_C",
    "FOLDS",
    "Probe",
    "Scaler",
    "choose_strength",
    "fold_of_each",
    "foldable",
    "linear_probe",
]

CS = (0.1, 1.0, 10.0, 100.0, 1000.0)
FOLDS = 3
FIXED_C = 10.0  # for every arm, where a class has too few labels to leave one out
ALONE = "a class has 1 label, which cross-validation cannot leave out"
# Cross-validation compares accuracies, which settle long before the weights do.
CV_TOLERANCE = 3e-3
CV_ITERATIONS = 100
DEAD = 0.1  # a feature that varies less, relative to the rest, is not scaled up to it
_TINY = 1e-12


class Scaler(NamedTuple):
    """Centres features, divides them, and gives rows a mean squared length of 1.

    That length makes C mean the same for 64 pixels as for 1,024 features.
    """

    mean: Tensor  # [D]
    scale: Tensor  # [D]

    @classmethod
    def of(cls, features: Tensor, *, per_feature: bool = True) -> "Scaler":
        """Statistics of [N, D]; they need no labels.

        Args:
            features: of the training images.
            per_feature: a scale for each, which helps every encoder, untrained ones most; or one
                for all, right for pixels, which share a unit already (a scale for each blows up
                digits' border: 59 % instead of 65 % with one label a class).
        """
        mean = features.mean(0)
        deviation = (features - mean).square().mean(0).sqrt()  # [D]
        common = deviation.square().mean().sqrt().clamp_min(_TINY)
        if per_feature:
            scale = torch.maximum(deviation, DEAD * common)
            scale = scale * (deviation / scale).square().sum().sqrt().clamp_min(_TINY)
        else:
            scale = torch.full_like(deviation, common.item() * len(deviation) ** 0.5)
        return cls(mean, scale)

    def __call__(self, features: Tensor) -> Tensor:
        """[N, D] -> [N, D]."""
        return (features - self.mean) / self.scale


class Probe(NamedTuple):
    """What a linear probe found."""

    accuracy: float
    strength: float  # the chosen C
    validation: dict[float, float]  # accuracy of each C in cross-validation; {} without it


@working("fitting linear probes")
def linear_probe(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    classes: int,
    seed: int,
    per_feature: bool = True,
    strengths: Sequence[float] = CS,
    folds: int = FOLDS,
) -> Probe:
    """Fit on all training features with the C that cross-validation on them chose.

    C is 10, which is said in a line, where a class has one label and none can be left out.

    Args:
        train: [N, D] features.
        labels: [N] int64.
        test: [M, D] features, touched once, after the choice.
        test_labels: [M] int64.
        classes: K.
        seed: of the folds.
        per_feature: see `Scaler.of`.
        strengths: candidates for C.
        folds: of the cross-validation.
    """
    scaler = Scaler.of(train, per_feature=per_feature)
    train = scaler(train)
    axes = principal_axes(train)
    strength, validation = FIXED_C, dict[float, float]()
    if foldable(labels):
        strength, validation = choose_strength(
            train, labels, classes=classes, seed=seed, strengths=strengths, folds=folds, axes=axes
        )
    else:
        say(f"{ALONE}: linear probes have C = {FIXED_C:g}")
    classifier = fit(train, labels, classes, torch.tensor([strength]), axes=axes)
    return Probe(accuracy(classifier, scaler(test), test_labels), strength, validation)


def foldable(labels: Tensor) -> bool:
    """Whether every class that there is has the two labels that cross-validation needs."""
    counts = labels.bincount()
    return bool((counts != 1).all())


def choose_strength(
    features: Tensor,
    labels: Tensor,
    *,
    classes: int,
    seed: int,
    strengths: Sequence[float] = CS,
    folds: int = FOLDS,
    axes: Tensor | None = None,
) -> tuple[float, dict[float, float]]:
    """The C with the best mean accuracy on left-out folds; of equals the smallest.

    `axes` are `principal_axes(features)`, for who has them already.

    Returns:
        The C, and the accuracy of each candidate.

    Raises:
        ValueError: a class has fewer than two images, so that no fold can be left out.
    """
    counts = labels.bincount()
    folds = min(folds, int(counts[counts > 0].min()))
    if folds < 2:
        raise ValueError("choose_strength: cross-validation needs 2 labels a class, got 1")
    fold = fold_of_each(labels.cpu(), folds, seed)  # [N]
    grid = sorted(strengths)
    left_out = torch.arange(folds).repeat_interleave(len(grid))  # [folds * Cs]
    members = fold[:, None] != left_out  # [N, folds * Cs]
    classifiers = fit(
        features,
        labels,
        classes,
        torch.tensor(grid * folds),
        members=members,
        axes=axes,
        tolerance=CV_TOLERANCE,
        max_iterations=CV_ITERATIONS,
    )
    predicted = classifiers.predict(features)  # [folds * Cs, N]
    right = (predicted == labels).cpu() & ~members.T  # [folds * Cs, N]
    share = right.sum(1) / (~members).sum(0)
    mean = share.view(folds, -1).mean(0)  # [Cs]
    validation = dict(zip(grid, mean.tolist(), strict=True))
    return max(validation, key=lambda c: (validation[c], -c)), validation


def fold_of_each(labels: Tensor, folds: int, seed: int) -> Tensor:
    """Stratified folds: [N] int64 in [0, folds), classes dealt out in turn."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]
    fold = torch.empty_like(order)
    fold[order] = torch.arange(len(order)) % folds
    return fold


def accuracy(classifier: Linear, features: Tensor, labels: Tensor) -> float:
    """Share of rows that the first classifier names right."""
    return (classifier.predict(features)[0] == labels).float().mean().item()


def protocol(labels: Tensor) -> dict[str, object]:
    """What a reader must know to repeat it; `labels` [N] are those that are fitted to."""
    if foldable(labels):
        chosen_by = "mean accuracy on left-out folds of the training labels, for every arm"
    else:
        chosen_by = f"fixed at {FIXED_C:g} for every arm: {ALONE}"
    return {
        "classifier": "logistic regression, L2 penalty, L-BFGS along the features' principal axes",
        "scaling": "encoder features standardised each, pixels by one scale for all; then rows of "
        "mean squared length 1; statistics of the training images",
        "C_grid": list(CS),
        "folds": FOLDS,
        "chosen_by": chosen_by,
        "max_iterations": f"{MAX_ITERATIONS}; {CV_ITERATIONS} in cross-validation",
        "tolerance": f"{TOLERANCE:g} of the first gradient over the root of each axis's curvature; "
        f"{CV_TOLERANCE:g} in cross-validation",
    }
