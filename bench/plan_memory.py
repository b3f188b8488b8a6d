"""What `sslops plan` predicts beside what an update takes: `python -m bench.plan_memory`.

Names of cases may follow. Each is measured in a fresh process: the highest resident memory of two
updates, less what is resident before the networks are built. Rows go to bench/results/plan.jsonl.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.harness import record
from bench.memory import ROOT, peak, reset_peak
from sslops.training.config import make_config
from sslops.training.distributed.process import World
from sslops.training.experiments.plan.probe import Updates
from sslops.training.experiments.plan.simulate import simulate
from sslops.training.methods import METHODS, DataShape, find_method

GIB = 1 << 30


@dataclass(frozen=True)
class Case:
    """A method with its settings on images of a size."""

    method: str
    image: int
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> Any:
        """The method's configuration."""
        common = {"recipe": "cifar10", "train_images": None, "precision": "fp32"}
        if "width" not in self.fields and not self.fields["arch"].startswith("cnn"):
            common["width"] = common["pool"] = None
        cls = find_method(self.method).config
        return make_config(cls, self.method, {**common, **self.fields})

    @property
    def shape(self) -> DataShape:
        """Of its images."""
        return DataShape(3, self.image, 10)


MICRO, TWICE = {"micro_batch": 64}, {"checkpointing": True}
SMALL = {"micro_batch": 16}
CNN4 = {"arch": "cnn4", "batch": 512}
RESNET18 = {"arch": "resnet18", "batch": 64}
RESNET50 = {"arch": "resnet50", "batch": 32, "views": "imagenet", "optimizer": "lars"}
CASES = {
    "cnn4": Case("simclr", 32, CNN4),
    "cnn4-micro": Case("simclr", 32, CNN4 | MICRO),
    "cnn4-twice": Case("simclr", 32, CNN4 | TWICE),
    "cnn4-micro-twice": Case("simclr", 32, CNN4 | MICRO | TWICE),
    "resnet18": Case("simclr", 32, RESNET18),
    "resnet18-micro": Case("simclr", 32, RESNET18 | SMALL),
    "resnet18-twice": Case("simclr", 32, RESNET18 | TWICE),
    "resnet18-micro-twice": Case("simclr", 32, RESNET18 | SMALL | TWICE),
    "resnet18-supervised": Case("supervised", 32, RESNET18),
    "resnet18-moco": Case("moco", 32, RESNET18 | {"queue": 65536}),
    "resnet18-moco-micro": Case("moco", 32, RESNET18 | SMALL | {"queue": 65536}),
    "resnet50-224": Case("simclr", 224, RESNET50),
    "resnet50-224-micro": Case("simclr", 224, RESNET50 | {"micro_batch": 8}),
    "resnet50-224-micro-twice": Case("simclr", 224, RESNET50 | {"micro_batch": 8} | TWICE),
    "resnet50-224-moco": Case("moco", 224, RESNET50 | {"queue": 65536}),
}


def measure(case: Case) -> int:
    """Bytes that two updates add to what is resident before them."""
    update(Case(case.method, 32, case.fields | {"arch": "cnn4", "batch": 8, "queue": 64}), 1)
    reset_peak()
    before = peak()
    update(case, 2)
    return peak() - before


def update(case: Case, times: int) -> None:
    """Do what the loop does in an update, without its data set."""
    known = find_method(case.method).config.__dataclass_fields__
    fields = {name: value for name, value in case.fields.items() if name in known}
    case = Case(case.method, case.image, fields)
    updates = Updates(case.method, case.config, case.shape, World(0, 1, torch.device("cpu")))
    for _ in range(times):
        updates()


def main(names: list[str]) -> None:
    """Measure and predict; a row each."""
    for name in names or CASES:
        case = CASES[name]
        if case.method not in METHODS:
            print(f"{name}: no {case.method} here")
            continue
        env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        run = [sys.executable, "-m", "bench.plan_memory", "--measure", name]
        out = subprocess.run(run, capture_output=True, text=True, check=True, cwd=ROOT, env=env)
        measured = int(json.loads(out.stdout.splitlines()[-1]))
        memory = simulate(case.method, case.config, case.shape, bf16=False)
        row = {
            "method": case.method,
            "image": case.image,
            **{k: v for k, v in case.fields.items() if k not in ("views",)},
            "predicted_gib": round(memory.total / GIB, 3),
            "measured_gib": round(measured / GIB, 3),
            "error": round(memory.total / measured - 1, 3),
            "parts_mib": {k: round(v / (1 << 20), 1) for k, v in memory.parts.items() if v},
        }
        print(name, row, flush=True)
        record("plan", "python -m bench.plan_memory", case=name, **row)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(measure(CASES[sys.argv[2]]))
    else:
        main(sys.argv[1:])
