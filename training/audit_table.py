"""What an audit found: a table of numbers, and a sentence for each guard."""

from collections.abc import Mapping
from typing import Any

from sslops.training.evaluate.table import align

__all__ = ["EASIER", "SAME", "audit_table", "verdicts"]

EASIER = 0.02  # a rise of the task's accuracy that counts
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
    if task > EASIER and probe < SAME:
        text = f"closes a shortcut ({change})"
        if off["guarded"] < off["pretext"] - EASIER:
            text += (
                f": the network trained without it falls from {off['pretext']:.1%} to"
                f" {off['guarded']:.1%} when it is back"
            )
    elif task > EASIER:
        text = f"no shortcut: what makes the task easier makes the features better too ({change})"
    elif probe < -SAME:
        text = f"nothing to close was found, but features gain by it ({change})"
    else:
        text = f"nothing to close was found ({change})"
    return text + _position(on, off)


def _position(on: Mapping[str, Any], off: Mapping[str, Any]) -> str:
    """What a tile's features tell of its place, where the guard changes that."""
    text = ""
    if off["position"] - on["position"] > EASIER:
        text = f"; a tile's place is read better without it: {off['position']:.1%} against"
        text += f" {on['position']:.1%} (chance {on['position_chance']:.1%})"
    if "position_without_lens" in off:
        by_lens = off["position"] - off["position_without_lens"]
        still = on["position"] - on["position_without_lens"]
        if by_lens - still > EASIER:
            text += f"; chromatic aberration alone gives {_points(by_lens)} of that without the"
            text += f" guard, {_points(still)} with it"
    return text


def _points(change: float) -> str:
    return f"{100 * change:+.1f} points"


def audit_table(found: Mapping[str, Any]) -> str:
    """The settings as rows, in percent, and the verdicts below."""
    rows = found["settings"]
    stages = len(next(iter(rows.values()))["stages"])
    lens = any("position_without_lens" in row for row in rows.values())
    header = ["", "task", "with guards", "probe", *(f"stage {i + 1}" for i in range(stages))]
    lines = [[*header, "place", *(["place, no lens"] if lens else [])]]
    for name, row in rows.items():
        cells = [row.get("pretext"), row.get("guarded"), row["probe"], *row["stages"]]
        cells.append(row["position"])
        if lens:
            cells.append(row["position_without_lens"])
        lines.append([name, *("-" if cell is None else f"{100 * cell:.1f}" for cell in cells)])
    text = [align(lines), ""]
    text += [f"{name}: {sentence}" for name, sentence in found["verdicts"].items()]
    return "\n".join(text)
