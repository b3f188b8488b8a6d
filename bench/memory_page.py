"""Writes docs/memory.md from bench/results/plan.jsonl and `sslops plan`'s predictions.

`python -m bench.memory_page`, after `python -m bench.plan_memory`.
"""

import json
from typing import Any

from bench.memory import ROOT
from sslops.training.config import make_config
from sslops.training.experiments.plan import Memory, simulate
from sslops.training.methods import METHODS, DataShape, find_method

GIB = 1 << 30
IMAGENET = DataShape(3, 224, 1000)

TOP = """# Memory

Written by `bench/memory_page.py`. Predicted: by `sslops plan`, which runs an update on tensors
without content and counts what is alive; nothing of the size is ever allocated. Measured: the
highest resident memory of two updates in a fresh process on a CPU, less what is resident before the
networks are built (`bench/plan_memory.py`). Neither counts the data set, nor what libraries load;
on a GPU the workspace of cuDNN and the allocator's unused blocks come on top.

## MoCo's table

ResNet-50, 224 px, float32, memory of one device. The published column is Chen et al. 2020,
arXiv:2003.04297, table 3: 8 V100 of 16 GB, of which 93.0 is their estimate. Ours is predicted, in
GiB of live tensors.

"""
MIDDLE = """
One device takes the whole batch of 4096 with every negative, at the price of a second forward pass:
`--micro-batch 32`. What it cannot shrink are the views of the batch; what a micro-batch does to
batch norm is said in [grad_cache.md](grad_cache.md). The same at a batch that this machine can
measure is among the rows below.

## Predicted and measured

"""
BOTTOM = """
float32, two views, {threads} thread(s), {device}. Micro-batch and checkpointing are flags of
`sslops train`.
"""


def imagenet(method: str, **fields: Any) -> Any:
    """The published settings with some changed."""
    settings = {"recipe": "imagenet", "precision": "fp32", "arch": "resnet50", **fields}
    known = find_method(method).config.__dataclass_fields__
    return make_config(
        find_method(method).config, method, {k: settings[k] for k in settings if k in known}
    )


def cell(memory: Memory) -> str:
    """GiB and what dominates."""
    share = 100 * memory.parts[memory.largest] // memory.total
    return f"{memory.total / GIB:.1f} GiB, {memory.largest} {share} %"


def published() -> list[list[str]]:
    """Rows of the published table, and what is possible on one device."""
    rows = [["mechanism", "batch", "devices", "published", "here, predicted"]]

    def row(
        label: str, method: str, devices: int, number: str, bf16: bool = False, **fields: Any
    ) -> None:
        config = imagenet(method, **fields)
        memory = simulate(method, config, IMAGENET, bf16=bf16, processes=devices)
        rows.append([label, str(config.batch), str(devices), number, cell(memory)])

    if "moco" in METHODS:
        moco: dict[str, Any] = {
            "queue": 65536,
            "views": "imagenet",
            "bn_splits": 8,
            "optimizer": "sgd",
        }
        row("MoCo", "moco", 8, "5.0 GB", batch=256, **moco)
    row("end-to-end", "simclr", 8, "7.4 GB", batch=256)
    row("end-to-end", "simclr", 8, "93.0 GB", batch=4096)
    ways: dict[str, dict[str, Any]] = {
        "`--micro-batch 32`": {"micro_batch": 32},
        "`--micro-batch 32 --checkpointing`": {"micro_batch": 32, "checkpointing": True},
        "`--micro-batch 32 --precision bf16`": {"micro_batch": 32, "precision": "bf16"},
    }
    for flags, changes in ways.items():
        bf16 = changes.get("precision") == "bf16"
        row(f"end-to-end, {flags}", "simclr", 1, "-", bf16, batch=4096, **changes)
    return rows


def table(rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Write the page."""
    by_case: dict[str, dict[str, Any]] = {}
    for text in (ROOT / "bench/results/plan.jsonl").read_text().splitlines():
        row = json.loads(text)
        by_case[row["case"]] = row  # of a case that was measured twice the last counts
    rows = [["method", "encoder", "px", "batch", "micro-batch", "checkpointing", "measured",
             "predicted", "error"]]  # fmt: skip
    for row in by_case.values():
        queue = f", queue {row['queue']:,}" if "queue" in row else ""
        rows.append([
            row["method"] + queue, row["arch"], str(row["image"]), str(row["batch"]),
            str(row.get("micro_batch", "-")), "yes" if row.get("checkpointing") else "-",
            f"{row['measured_gib']:.3f} GiB", f"{row['predicted_gib']:.3f} GiB",
            f"{100 * row['error']:+.1f} %",
        ])  # fmt: skip
    last = next(reversed(by_case.values()))
    page = TOP + table(published()) + MIDDLE + table(rows)
    page += BOTTOM.format(threads=last["threads"], device=last["device"])
    (ROOT / "docs/memory.md").write_text(page)


if __name__ == "__main__":
    main()
