"""Results as plain text for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["align", "arms", "has_labels", "score_text", "table"]


def arms(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The arms of `evaluate`'s result, without what is not one."""
    return {
        name: value
        for name, value in results.items()
        if name not in ("protocol", "cost") and isinstance(value, Mapping) and "dim" in value
    }


def has_labels(results: Mapping[str, Any]) -> bool:
    """Whether any arm was scored against labels, or objects were followed."""
    scores = ("knn", "linear", "few", "nmi", "J", "F")
    return any(
        name == key or name.endswith(f" {key}")
        for arm in arms(results).values()
        for name in arm
        for key in scores
    )


def table(results: Mapping[str, Any]) -> str:
    """One row an arm: few labels (mean ± sd), kNN, linear probe, NMI, ARI.

    Args:
        results: of `evaluate`.
    """
    rows = arms(results)
    counts = sorted({int(n) for row in rows.values() for n in row.get("few", {})})
    header = ["", *(f"{n} label{'s' * (n > 1)}" for n in counts)]
    columns = {"kNN": "knn", "linear": "linear", "NMI": "nmi", "ARI": "ari"}
    columns = {title: key for title, key in columns.items() if any(key in r for r in rows.values())}
    if not counts and not columns:
        columns = {"spread": "feature_spread", "eff. rank": "rank"}
        if not any(key in row for row in rows.values() for key in columns.values()):
            return ""  # nothing was measured, as of videos without masks
    lines = [[*header, *columns]]
    for name, row in rows.items():
        few = [_few(row.get("few", {}).get(str(n))) for n in counts]
        lines.append([name, *few, *(_number(row.get(key), key) for key in columns.values())])
    return align(lines)


def score_text(name: str, value: float) -> str:
    """A score of a pretext task: accuracies in percent."""
    share = name.split("_")[0] == "accuracy"
    return f"{100 * value:.1f} %" if share else f"{value:.4g}"


def align(lines: Sequence[Sequence[str]]) -> str:
    """Columns of equal width: the first to the left, the others to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([text[0], "-" * max(len(line) for line in text), *text[1:]])


def _few(value: Mapping[str, Any] | None) -> str:
    return "-" if value is None else f"{100 * value['mean']:.1f} ± {100 * value['sd']:.1f}"


def _number(value: float | None, key: str) -> str:
    if value is None:
        return "-"
    if key in ("knn", "linear"):
        return f"{100 * value:.1f}"
    return f"{value:.1f}" if key == "rank" else f"{value:.3f}"
