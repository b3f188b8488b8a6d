"""A linear probe of every stage: pretext tasks are read best below the last one."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sslops.training.data import Split
from sslops.training.data.notes import say
from sslops.training.evaluate.features import STAGE_FEATURES, extract_stages, fittable
from sslops.training.evaluate.linear import ALONE, foldable, linear_probe
from sslops.training.evaluate.table import align, arms
from sslops.training.loggers.progress import working

__all__ = ["MOST", "has_stages", "measure_stages", "protocol", "stage_count", "stage_table"]

MOST = 6  # stages probed; of deeper networks so many, evenly spread, with the last


def has_stages(encoder: nn.Module | None) -> bool:
    """Whether the encoder can show what its stages make of an image."""
    return hasattr(encoder, "feature_maps")


@working("probing every stage")
def measure_stages(
    encoder: nn.Module,
    train: Split,
    test: Split,
    *,
    classes: int,
    seed: int,
    device: str | torch.device | None = None,
) -> dict[str, Any]:
    """Linear probes of the stages, by the rules of `linear_probe`.

    Returns:
        "stages", for each {"stage" (from 1), "dim", "linear", "cv", "C"}; "best_stage", the one
        with the best accuracy in cross-validation on the training labels; "best_stage_linear", its
        accuracy on the test images; "last_stage_linear". Nothing, and a line, where a class has
        one label, so that there is no cross-validation to choose by.
    """
    assert train.labels is not None
    assert test.labels is not None
    if not foldable(train.labels):
        say(f"{ALONE}: stages are not probed, as it would choose the best")
        return {}
    features = extract_stages(encoder, train.images, device=device)
    test_features = extract_stages(encoder, test.images, device=device)
    y, y_test = train.labels.to(device), test.labels.to(device)
    stages = []
    for stage in _probed(len(features)):
        x, x_test = (part[stage].to(device) for part in (features, test_features))
        if not (fittable(x) and fittable(x_test)):
            continue
        probe = linear_probe(x, y, x_test, y_test, classes=classes, seed=seed)
        stages.append(
            {
                "stage": stage + 1,
                "dim": x.shape[1],
                "linear": probe.accuracy,
                "cv": probe.validation[probe.strength],
                "C": probe.strength,
            }
        )
    if not stages:
        return {}
    best = max(stages, key=lambda each: each["cv"])
    return {
        "stages": stages,
        "best_stage": best["stage"],
        "best_stage_linear": best["linear"],
        "last_stage_linear": stages[-1]["linear"],
    }


def _probed(count: int) -> list[int]:
    if count <= MOST:
        return list(range(count))
    return [round((i + 1) * count / MOST) - 1 for i in range(MOST)]


def protocol() -> dict[str, object]:
    """What a reader must know to repeat it."""
    return {
        "features": "output of every stage, averaged to the largest s x s cells with at most "
        f"{STAGE_FEATURES:,} features",
        "classifier": "as of the linear probe; C cross-validated for every stage of every arm",
        "best_stage": "the best in cross-validation on training labels",
        "stages": f"at most {MOST}, evenly spread, with the last",
    }


def stage_count(results: Mapping[str, Any]) -> list[int]:
    """Numbers of the stages that any arm has."""
    rows = arms(results).values()
    return sorted({each["stage"] for row in rows for each in row.get("stages", [])})


def stage_table(results: Mapping[str, Any]) -> str:
    """One row an arm: the linear probe of each stage in percent; "" where none was measured."""
    numbers = stage_count(results)
    if not numbers:
        return ""
    lines = [["linear probe of", *(f"stage {number}" for number in numbers), "best"]]
    for name, arm in arms(results).items():
        found = {each["stage"]: f"{100 * each['linear']:.1f}" for each in arm.get("stages", [])}
        if found:
            cells = [found.get(number, "-") for number in numbers]
            lines.append([name, *cells, f"{arm['best_stage']}"])
    return align(lines)
