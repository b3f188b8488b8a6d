"""All measures for all arms: the method, and the controls it must beat."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sslops.training.data import Dataset, Split, subset
from sslops.training.data.dataset import one_class
from sslops.training.data.notes import say
from sslops.training.evaluate import cluster, few_labels, knn, linear
from sslops.training.evaluate.factors import measure_factors, measure_frames
from sslops.training.evaluate.features import extract, fittable, pixels, spread
from sslops.training.evaluate.stages import has_stages, measure_stages
from sslops.training.evaluate.stages import protocol as stage_protocol

__all__ = ["evaluate"]

LABELS_PER_CLASS = (1, 2, 5, 10, 50)
NEIGHBOURS = 5  # whose change is measured where there are no labels
UNTRAINED = "random-init"
KEPT = (
    f"share of the {NEIGHBOURS} nearest training images of a test image (cosine) that are among"
    " those of the untrained network"
)
PIXELS = "sides above 32 are averaged down to 32"


def evaluate(
    encoders: dict[str, nn.Module | None],
    data: Dataset,
    *,
    seed: int,
    labels_per_class: Sequence[int] = LABELS_PER_CLASS,
    draws: int = 5,
    max_train: int | None = None,
    max_test: int | None = None,
    device: str | torch.device | None = None,
    stages: bool = True,
) -> dict[str, Any]:
    """Measure frozen features of every arm on the same images with the same rules.

    Args:
        encoders: arm -> encoder; None stands for raw pixels, which sound has not.
        data: labels of the training part choose and fit, those of the test part only score. Where
            all used of either part are of one class, there are no scores, and a line says so.
        seed: of subsets, folds, draws and k-means.
        labels_per_class: of the few-label curve; numbers a class has not are left out.
        draws: of each point of that curve.
        max_train: training images to use at most, drawn with the seed; all if None.
        max_test: test images to use at most.
        device: where encoders run and classifiers are fitted; default where each encoder is.
        stages: probe every stage of the encoders that show them (evaluate/stages.py).

    Returns:
        arm -> {"dim", "feature_spread", "rank", without labels "neighbours_kept" (see KEPT), if
        "random-init" is an arm, and with labels "knn", "knn_k", "linear",
        "linear_C", "few", "nmi", "ari", "cluster_accuracy", "evaluation_seconds"}, for sound also
        the numbers that evaluate/factors.py names; and "protocol" with every setting. Accuracies
        are shares of 1. Everything can be written as JSON.
    """
    if not encoders:
        raise ValueError("evaluate: needs at least one arm, got none")
    if "protocol" in encoders:
        raise ValueError("evaluate: an arm must not be called 'protocol'")
    train, test = _at_most(data.train, max_train, seed), _at_most(data.test, max_test, seed)
    train, test, unscored = _scorable(train, test, data)
    classes = _count_classes(data, train, test)
    wanted = list(labels_per_class)
    usable = [] if train.labels is None else few_labels.feasible(train.labels, wanted, classes)
    results: dict[str, Any] = {}
    near: dict[str, Tensor] = {}
    for arm, encoder in encoders.items():
        start = time.perf_counter()
        if encoder is None:
            x, x_test = pixels(train.images), pixels(test.images)
        else:
            x = extract(encoder, train.images, device=device)
            x_test = extract(encoder, test.images, device=device)
        result: dict[str, Any] = {"dim": x.shape[1]}
        if not (fittable(x) and fittable(x_test)):
            result["failed"] = "features are not finite, or too large to be squared"
        else:
            result |= spread(x_test)
            if not classes:
                near[arm] = _nearest(x_test, x)
        if classes and "failed" not in result:
            on = torch.device(device if device is not None else "cpu")
            result |= _measure(
                Split(x.to(on), _to(train.labels, on)),
                Split(x_test.to(on), _to(test.labels, on)),
                classes,
                seed,
                usable,
                draws,
                per_feature=encoder is not None,
            )
        if stages and classes and train.labels is not None and test.labels is not None:
            if encoder is not None and has_stages(encoder):
                result |= measure_stages(
                    encoder, train, test, classes=classes, seed=seed, device=device
                )
        if data.rate and encoder is not None and "failed" not in result:
            result |= measure_factors(data, train, test, x, x_test, seed=seed)
            result |= measure_frames(encoder, data, train, test, seed=seed, device=device)
        results[arm] = {**result, "evaluation_seconds": round(time.perf_counter() - start, 2)}
    for arm, index in near.items():
        if UNTRAINED in near and arm != UNTRAINED:
            same = (index[:, :, None] == near[UNTRAINED][:, None]).any(2)
            results[arm]["neighbours_kept"] = float(same.double().mean())
    probed = bool(classes) and train.labels is not None
    results["protocol"] = {
        "data": data.name,
        "licence": data.licence,
        "source": data.source,
        **({"class_names": list(data.classes)} if classes else {}),
        **({"probe_images": len(train)} if probed else {"neighbour_images": len(train)}),
        "test_images": len(test),
        "classes": classes,
        "seed": seed,
        "features": "encoder output in evaluation mode, computed once; weights and buffers are "
        "checked to be unchanged",
        **_probes(train.labels, usable, wanted, draws),
        **(_clusters() if classes else {"neighbours_kept": KEPT}),
        **({"pixels": PIXELS} if None in encoders.values() else {}),
        **({"not_scored": unscored} if unscored else {}),
        **({"stages": stage_protocol()} if any("stages" in r for r in results.values()) else {}),
    }
    return results


def _nearest(queries: Tensor, keys: Tensor) -> Tensor:
    """Indices of the nearest keys of each query."""
    k = min(NEIGHBOURS, len(keys))
    return torch.cat([index for _, index in knn.neighbours(queries, keys, k)])


def _measure(
    train: Split,
    test: Split,
    classes: int,
    seed: int,
    usable: list[int],
    draws: int,
    *,
    per_feature: bool,
) -> dict[str, Any]:
    """`images` of the splits are features [N, D] here."""
    x, y, x_test, y_test = train.images, train.labels, test.images, test.labels
    result: dict[str, Any] = {}
    if y_test is None:
        return result
    if y is not None:
        k = knn.choose_k(x, y, seed=seed)
        probe = linear.linear_probe(
            x, y, x_test, y_test, classes=classes, seed=seed, per_feature=per_feature
        )
        result |= {
            "knn": knn.knn_accuracy(x, y, x_test, y_test, k=k),
            "knn_k": k,
            "linear": probe.accuracy,
            "linear_C": probe.strength,
            "linear_cv": {f"{c:g}": value for c, value in probe.validation.items()},
            "few": {
                str(n): few_labels.few_labels(
                    x,
                    y,
                    x_test,
                    y_test,
                    n=n,
                    classes=classes,
                    seed=seed,
                    draws=draws,
                    per_feature=per_feature,
                )._asdict()
                for n in usable
            },
        }
    found = cluster.cluster(x_test, y_test, classes=classes, seed=seed)
    return result | {"nmi": found.nmi, "ari": found.ari, "cluster_accuracy": found.accuracy}


def _probes(
    labels: Tensor | None, usable: list[int], wanted: list[int], draws: int
) -> dict[str, Any]:
    """What a reader must know of the probes on [N] labels; nothing without."""
    if labels is None:
        return {}
    return {
        "test_labels": "used only to score; every choice is made on training labels",
        "knn": {
            "metric": "cosine",
            "weights": "exp(similarity / temperature)",
            "temperature": knn.TEMPERATURE,
            "k_candidates": list(knn.KS),
            "chosen_by": f"leave-one-out on at most {knn.QUERIES:,} training images, for every arm",
        },
        "linear": linear.protocol(labels),
        "few": {
            "labels_per_class": usable,
            "skipped": [n for n in wanted if n not in usable],
            "draws": draws,
            "same_draws_for_all_arms": True,
            "C": f"cross-validated from {few_labels.CV_FROM} labels a class on, "
            f"{linear.FIXED_C:g} below",
            "sd": "sample standard deviation over the draws",
        },
    }


def _clusters() -> dict[str, Any]:
    return {
        "cluster": {
            "algorithm": "k-means on L2-normalised features of the test images",
            "k": "number of classes",
            "n_init": cluster.N_INIT,
            "images": f"at most {cluster.POINTS:,}, drawn with the seed",
            "nmi": "arithmetic mean of the entropies",
        },
    }


def _at_most(split: Split, n: int | None, seed: int) -> Split:
    return split if n is None or n >= len(split) else subset(split, n, seed)


def _scorable(train: Split, test: Split, data: Dataset) -> tuple[Split, Split, str]:
    """The parts, without labels if those of one tell nothing, and why."""
    for part, use in ((train, "to fit probes to"), (test, "to test on")):
        name = one_class(part, data.classes)
        if name is not None:
            every = f"all {len(part):,} {use} are" if len(part) > 1 else f"the only one {use} is"
            why = f"{every} of one class, {name}, over which scores tell nothing"
            say(f"{data.source or data.name}: {why}")
            return replace(train, labels=None), replace(test, labels=None), why
    return train, test, ""


def _count_classes(data: Dataset, train: Split, test: Split) -> int:
    """0 without labels; else enough for every label there is."""
    labels = [part.labels for part in (train, test) if part.labels is not None]
    if not labels:
        return 0
    return max(len(data.classes), *(int(part.max()) + 1 for part in labels))


def _to(labels: Tensor | None, device: torch.device) -> Tensor | None:
    return None if labels is None else labels.to(device)
