"""What the numbers of a run come to, in plain sentences."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sslops.training.engine.collapse import COLLAPSED, NEAR_CHANCE
from sslops.training.evaluate.table import arms, has_labels
from sslops.training.loggers.words import count, listed

__all__ = ["over_seeds", "verdict"]

NAMES = {
    "pixels": "raw pixels",
    "log-mel": "log-mel",
    "random-init": "the same network untrained",
    "identity": "copying the first frame's masks",
}
LOW_RANK = 2.0  # effective rank of features; on one line it is 1


class Gap(NamedTuple):
    """How far the method is above a control, in points, and how that differs between draws."""

    name: str
    points: float
    spread: float | None = None


def verdict(
    results: Mapping[str, Any],
    method: str,
    samples: str,
    *,
    loss: float | None = None,
    chance: float | None = None,
    outputs: float | None = None,
) -> str:
    """One or a few sentences on an evaluated run; "" where nothing can be said.

    Args:
        results: content of results.json.
        method: its arm.
        samples: images, recordings or videos.
        loss: the last that was logged.
        chance: its value for a model that knows nothing.
        outputs: feature_spread of what the loss sees, the last that was logged.
    """
    own = arms(results).get(method)
    if own is None:
        return ""
    if not has_labels(results):
        return _unlabelled(own, samples, loss, chance, outputs)
    scores = [key for key in own if key.split()[-1] == "J"]
    if scores:
        lead = f"Objects are followed with an overlap J of {100 * own[scores[0]]:.1f} %"
        gaps = [
            Gap(NAMES[arm], 100 * (own[scores[0]] - row[scores[0]]))
            for arm, row in _controls(results)
            if scores[0] in row
        ]
        return _sentences(lead, gaps)
    return _labelled(results, own, method, samples)


def _labelled(results: Mapping[str, Any], own: Mapping[str, Any], method: str, samples: str) -> str:
    few = own.get("few") or {}
    right = f"features of {method} name %.1f %% of the test {samples} right"
    if not few:
        if "linear" not in own:
            return ""
        gaps = [
            Gap(NAMES[arm], 100 * (own["linear"] - row["linear"]))
            for arm, row in _controls(results)
            if "linear" in row
        ]
        return _sentences(f"With all labels, {right % (100 * own['linear'])}", gaps)
    fewest = min(few, key=int)
    cell = few[fewest]
    gaps = []
    for arm, row in _controls(results):
        other = row.get("few", {}).get(fewest)
        if other is not None:
            points = 100 * (cell["mean"] - other["mean"])
            gaps.append(Gap(NAMES[arm], points, _over_draws(cell, other)))
    draws = len(cell.get("accuracies", ())) or results["protocol"].get("few", {}).get("draws")
    over = f"over {draws} draws of the labels" if draws else "over the draws of the labels"
    lead = f"With {count(int(fewest), 'labels')} a class, {right % (100 * cell['mean'])}"
    return _sentences(lead, gaps, over)


def _over_draws(own: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Standard deviation of the difference, in points; every draw gives both the same labels."""
    pairs = own.get("accuracies", ()), other.get("accuracies", ())
    if len(pairs[0]) == len(pairs[1]) > 1:
        between = [float(a - b) for a, b in zip(*pairs, strict=True)]
        return 100 * statistics.stdev(between)
    return 100 * math.hypot(float(own["sd"]), float(other["sd"]))  # of files that have no more


def over_seeds(summary: Mapping[str, Any], method: str) -> str:
    """The same of several runs, from the content of summary.json; "" of fewer than two."""
    own = summary.get(method, {})
    few = sorted((key for key in own if key.startswith("few.")), key=lambda key: int(key[4:]))
    followed = [key for key in own if key.split()[-1] == "J"]
    key = next(iter([*few, *(["linear"] if "linear" in own else []), *followed]), None)
    if key is None or len(own[key]["values"]) < 2:
        return ""
    values = own[key]["values"]
    gaps = []
    for arm, row in _controls(summary):
        others = row.get(key, {}).get("values", ())
        if len(others) == len(values):
            between = [100 * (a - b) for a, b in zip(values, others, strict=True)]
            gaps.append(Gap(NAMES[arm], statistics.fmean(between), statistics.stdev(between)))
    what = "linear probe" if key == "linear" else f"overlap {key}"
    if key in few:
        what = f"{count(int(key[4:]), 'labels')} a class"
    lead = f"Over {len(values)} seeds {method} reaches {100 * own[key]['mean']:.1f} % ({what})"
    return _sentences(lead, gaps, f"over {len(values)} seeds")


def _controls(results: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(arm, results[arm]) for arm in NAMES if isinstance(results.get(arm), Mapping)]


def _sentences(lead: str, gaps: Sequence[Gap], over: str = "") -> str:
    """The lead with the gaps, and whether they are more than what they differ by."""
    if not gaps:
        return f"{lead}."
    parts = []
    for gap in gaps:
        where = "above" if gap.points >= 0 else "below"
        spread = "" if gap.spread is None else f" (± {gap.spread:.1f})"
        parts.append(f"{abs(gap.points):.1f} points {where} {gap.name}{spread}")
    said = f"{lead}: {listed(parts)}."
    known = [gap for gap in gaps if gap.spread is not None]
    within = [gap.name for gap in known if abs(gap.points) <= (gap.spread or 0.0)]
    if not known:
        return said
    if not within:
        which = "The difference is" if len(known) == 1 else "Each difference is"
        return f"{said} {which} more than its spread {over}."
    which = "The difference" if len(known) == 1 else f"The difference from {listed(within)}"
    if len(within) > 1:
        which = f"The differences from {listed(within)}"
    verb = "are within their" if len(within) > 1 else "is within its"
    luck = "they may be luck" if len(within) > 1 else "it may be luck"
    return f"{said} {which} {verb} spread {over}: {luck}."


def _unlabelled(
    own: Mapping[str, Any],
    samples: str,
    loss: float | None,
    chance: float | None,
    outputs: float | None,
) -> str:
    said = []
    if loss is not None and chance is not None:
        if abs(loss - chance) < NEAR_CHANCE * chance:
            said.append(
                f"The loss ended at {loss:.2f}, where a model that knows nothing is"
                f" ({chance:.2f}): nothing was learnt."
            )
        else:
            where = "below" if loss < chance else "above"
            said.append(
                f"The loss ended at {loss:.2f}, {where} the {chance:.2f} of a model that knows"
                " nothing."
            )
    rank = own.get("rank")
    low = rank is not None and rank < LOW_RANK
    if outputs is not None:
        # Even outputs of a head do not say that what is below it is even.
        found = "" if low else ": no collapse"
        said.append(
            "The outputs of the head, or of an encoder without one, are spread"
            f" {100 * outputs:.0f} % as evenly as can be"
            f"{': they have collapsed' if outputs < COLLAPSED else found}."
        )
    if low:
        said.append(
            f"The encoder's features have an effective rank of {rank:.1f} of {own['dim']}: they"
            " hardly differ but along one direction."
        )
    if "neighbours_kept" in own:
        said.append(
            f"Of the nearest training {samples} of a test"
            f" {count(1, samples).removeprefix('1 ')}, {100 * (1 - own['neighbours_kept']):.0f} %"
            " are others than before training."
        )
    said.append(f"Without labels of the {samples} nothing says how good the features are.")
    return " ".join(said)
