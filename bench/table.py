"""Result files as Markdown tables, one an op: `python -m bench.table FILE.jsonl ...`.

Of a size that was measured twice the last counts. A provider that could not be timed is shown with
the reason, never left out in silence.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.cases import OPS


def cells(row: dict[str, Any]) -> dict[str, str]:
    """Provider -> what its cell says, from either kind of row."""
    if "times" in row:
        cells = {name: f"{t['median_ms']:.3g} ms" for name, t in row["times"].items()}
        return cells | {name: f"({why})" for name, why in row.get("left_out", {}).items()}
    if row.get("status") == "ok" and row.get("mode") == "both":
        peak = "" if row["peak_mib"] is None else f", {row['peak_mib']:.3g} MiB"
        return {row["provider"]: f"{row['p50_ms']:.3g} ms{peak}"}
    if row.get("provider") and row.get("status") in ("wrong", "failed", "skipped"):
        return {row["provider"]: f"({row['status']}: {row['reason']})"}
    return {}


def tables(files: Sequence[Path]) -> str:
    """One table an op and device: a line for every size and dtype, a column for every provider."""
    tables: dict[tuple[str, str], dict[tuple[str, str], dict[str, str]]] = {}
    for file in files:
        for text in file.read_text().splitlines():
            row = json.loads(text)
            if row.get("op") not in OPS:
                continue
            new = cells(row)
            dims = OPS[row["op"]].dims
            size = row.get("size") or "x".join(str(row.get(dim)) for dim in dims)
            lines = tables.setdefault((row["op"], row["device"]), {})
            if new:
                lines.setdefault((size, row["dtype"]), {}).update(new)
    parts = []
    for (op, device), lines in tables.items():
        names = list(dict.fromkeys(name for line in lines.values() for name in line))
        if not names:
            continue
        parts += [f"`{op}` on {device}, forward + backward, p50, extra peak memory", ""]
        parts += ["| " + " | ".join([" x ".join(OPS[op].dims), "dtype", *names]) + " |"]
        parts += ["|" + "---|" * (len(names) + 2)]
        for (size, dtype), line in lines.items():
            parts += ["| " + " | ".join([size, dtype, *(line.get(n, "") for n in names)]) + " |"]
        parts += [""]
    return "\n".join(parts)


if __name__ == "__main__":
    print(tables([Path(name) for name in sys.argv[1:]]))
