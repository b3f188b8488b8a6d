"""What files of older versions call by other names, under today's: a name has one meaning."""

from collections.abc import Mapping
from typing import Any

__all__ = ["today_record", "today_results"]


def today_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl.

    Older ones have the standard deviation "feature_std" and that of even features,
    "feature_std_even", instead of their ratio, "feature_spread".
    """
    found = dict(record)
    std, even = found.pop("feature_std", None), found.pop("feature_std_even", None)
    if isinstance(std, int | float) and isinstance(even, int | float) and even > 0:
        found["feature_spread"] = std / even
    return found


def today_results(results: Mapping[str, Any]) -> dict[str, Any]:
    """The content of results.json or of transfer/DATA.json.

    In older ones "feature_std" of an arm is its spread, "seconds" the time of an arm's evaluation
    and of the training, and "train_images" of the protocol what the probes were fitted on, or the
    videos.
    """
    found: dict[str, Any] = {}
    for name, part in results.items():
        names = {"feature_std": "feature_spread", "seconds": "evaluation_seconds"}
        if name == "cost":
            names = {"seconds": "training_seconds"}
        elif name == "protocol":
            names = {"train_images": "probe_images"}
            if isinstance(part, Mapping) and "propagation" in part:
                names = {"train_images": "train_videos", "test_images": "test_videos"}
        found[name] = _renamed(part, names) if isinstance(part, Mapping) else part
    return found


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in values.items()}
