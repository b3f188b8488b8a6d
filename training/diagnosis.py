"""Signs that a run learns nothing, in words that say what to check."""

from collections.abc import Mapping
from typing import Any

__all__ = ["Diagnosis"]

NEAR_CHANCE = 0.02  # relative distance of the loss
COLLAPSED = 0.3  # share of the spread that even features have
SHORTCUT = 0.99  # accuracy of the pretext task
HINTS = {
    "chance": "the learning rate (--lr), the temperature and that the views of an image still show"
    " the same thing (pictures/views.png)",
    "collapse": "the learning rate and the batch norm of the projector",
    "shortcut": "that the views differ enough (--views) and that no image is repeated in the data",
}


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
        even = record.get("feature_std_even", 0.0)
        if record.get("feature_std", even) < COLLAPSED * even:
            found["collapse"] = (
                f"the features' standard deviation {record['feature_std']:.4f} is far below"
                f" {even:.4f} (1/sqrt(d), evenly spread): they collapse to a point. Check"
                f" {self.hints['collapse']}"
            )
        if step <= self.early and record.get("accuracy", 0.0) > SHORTCUT:
            found["shortcut"] = (
                f"the pretext task is solved ({record['accuracy']:.1%}) after {step} steps: there"
                f" may be a shortcut. Check {self.hints['shortcut']}"
            )
        new = [text for name, text in found.items() if name not in self.said]
        self.said |= found.keys()
        return new
