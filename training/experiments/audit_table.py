"""What an audit found: a table of numbers, and a sentence for each guard."""

from collections.abc import Mapping
from typing import Any

from sslops.training.evaluate.table import align

__all__ = ["EASIER", "SAME", "audit_table", "verdicts"]

EASIER = 0.02  # a rise of the task's accuracy that counts
LOST = 0.5  # of what is known with the guard: whoever knows less with it has learned something else
SAME = 0.01  # a change of the probe's accuracy that may be chance, in a short run of one seed


def verdicts(found: Mapping[str, Any]) -> dict[str, str]:
    """A sentence for each guard, and one for all of them together.

    Args:
        found: content of audit.json, without its verdicts.
    """
    rows = found["settings"]
    on = rows["all guards on"]
    names = {f"without {name}": name for name in found["guards"]}
    names["all guards off"] = "all guards together"
    return {names[key]: _verdict(on, row) for key, row in rows.items() if key in names}


def _verdict(on: Mapping[str, Any], off: Mapping[str, Any]) -> str:
    task, probe = off["pretext"] - on["pretext"], off["probe"] - on["probe"]
    change = f"off: task {_points(task)}, probe {_points(probe)}"
    lens = _by_lens(off, "pretext") - _by_lens(on, "pretext")
    if task > EASIER and lens > EASIER:
        text = f"closes a shortcut, chromatic aberration ({change}): the network trained without it"
        text += f" falls from {off['pretext']:.1%} to {off['pretext_without_lens']:.1%} on images"
        text += " without aberration"
        if probe >= SAME:
            text += "; that features are better without it is the colours' doing"
    elif task > EASIER and (probe < SAME or off["guarded"] < LOST * on["pretext"]):
        text = f"closes a shortcut ({change})"
        if off["guarded"] < off["pretext"] - EASIER:
            text += (
                f": the network trained without it falls from {off['pretext']:.1%} to"
                f" {off['guarded']:.1%} when it is back"
            )
        if probe >= SAME:
            text += ", in spite of the features of its best stage"
    elif task > EASIER:
        text = f"no shortcut: what makes the task easier makes the features better too ({change})"
    elif probe < -SAME:
        text = f"nothing to close was found, but features gain by it ({change})"
    else:
        text = f"nothing to close was found ({change})"
    return text + _position(on, off)


def _by_lens(row: Mapping[str, Any], key: str) -> float:
    """What an accuracy owes to the chromatic aberration that was added."""
    return float(row[key] - row.get(f"{key}_without_lens", row[key]))


def _position(on: Mapping[str, Any], off: Mapping[str, Any]) -> str:
    """What a tile's features tell of its place, where the guard changes that."""
    if off["position"] - on["position"] <= EASIER:
        return ""
    text = f"; a tile's place is read better without it, {off['position']:.1%} against"
    text += f" {on['position']:.1%} (chance {on['position_chance']:.1%})"
    if _by_lens(off, "position") - _by_lens(on, "position") > EASIER:
        text += f", and {off['position_without_lens']:.1%} on images without aberration"
    return text


def _points(change: float) -> str:
    return f"{100 * change:+.1f} points"


def audit_table(found: Mapping[str, Any]) -> str:
    """The settings as rows, in percent, and the verdicts below.

    Columns: accuracy of the task; of the same network with all guards, and on images without the
    added aberration; linear probe of the stage that the training labels chose, and of every stage;
    how often a tile's place is named from its features, and without the aberration.
    """
    rows = found["settings"]
    stages = len(next(iter(rows.values()))["stages"])
    lens = any("position_without_lens" in row for row in rows.values())
    header = ["", "task", "guarded", *(["no lens"] if lens else []), "probe"]
    header += [f"stage {i + 1}" for i in range(stages)]
    lines = [[*header, "place", *(["no lens"] if lens else [])]]
    for name, row in rows.items():
        cells = [row.get("pretext"), row.get("guarded")]
        cells += [row.get("pretext_without_lens")] if lens else []
        cells += [row["probe"], *row["stages"], row["position"]]
        cells += [row["position_without_lens"]] if lens else []
        lines.append([name, *("-" if cell is None else f"{100 * cell:.1f}" for cell in cells)])
    text = [align(lines), ""]
    text += [f"{name}: {sentence}" for name, sentence in found["verdicts"].items()]
    return "\n".join(text)
