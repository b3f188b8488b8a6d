"""Signs that a run learns nothing, in words that say what to check."""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

__all__ = ["COLLAPSED", "NEAR_CHANCE", "Diagnosis", "feature_spread"]

NEAR_CHANCE = 0.02  # relative distance of the loss
COLLAPSED = 0.3  # spread of the features; that of even ones is 1
SHORTCUT = 0.99  # accuracy of the pretext task
HINTS = {
    "chance": "the learning rate (--lr), the temperature and that the views of an image still show"
    " the same thing (pictures/views.png)",
    "collapse": "the learning rate and the batch norm of the projector",
    "shortcut": "that the views differ enough (--views) and that no image is repeated in the data",
}


def feature_spread(features: Tensor) -> float:
    """How evenly `features` [N, D] fill the directions there are: 0 on one point, 1 evenly.

    The standard deviation over the rows, at length 1, averaged over the D features and divided by
    1 / sqrt(D), which that of evenly spread ones is.
    """
    unit = F.normalize(features.float(), dim=1)
    return float((unit - unit.mean(0)).pow(2).mean(0).sqrt().mean() * features.shape[1] ** 0.5)


class Diagnosis:
    """Looks at each logged record and says each thing once.

    Args:
        total: steps of the run.
        warmup: steps of the rising learning rate, in which nothing is expected.
        hints: what to check instead, by the name of what is found: chance, collapse, shortcut.
    """

    def __init__(self, total: int, warmup: int, hints: Mapping[str, str] = HINTS) -> None:
        self.hints = {**HINTS, **hints}
        self.patience = warmup + max(50, total // 10)
        self.early = max(20, total // 50)
        self.said: set[str] = set()

    def __call__(self, record: Mapping[str, Any]) -> list[str]:
        """New warnings for a record of metrics.jsonl."""
        found = {}
        step, loss, chance = record["step"], record["loss"], record["chance"]
        if step >= self.patience and abs(loss - chance) < NEAR_CHANCE * chance:
            found["chance"] = (
                f"the loss {loss:.3f} is still its chance value {chance:.3f} after {step} steps:"
                f" nothing is learnt. Check {self.hints['chance']}"
            )
        if record.get("feature_spread", 1.0) < COLLAPSED:
            found["collapse"] = (
                f"the features' spread {record['feature_spread']:.3f} is far below 1 (evenly"
                f" spread): they collapse to a point. Check {self.hints['collapse']}"
            )
        if step <= self.early and record.get("accuracy", 0.0) > SHORTCUT:
            found["shortcut"] = (
                f"the pretext task is solved ({record['accuracy']:.1%}) after {step} steps: there"
                f" may be a shortcut. Check {self.hints['shortcut']}"
            )
        new = [text for name, text in found.items() if name not in self.said]
        self.said |= found.keys()
        return new
