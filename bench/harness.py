"""How everything is measured: interleaved rounds in one process, medians, one JSON line a row."""

import gc
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import sslops

RESULTS = Path(__file__).parent / "results"


def interleave(
    jobs: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    first: Callable[..., Any] | None = None,
) -> dict[str, dict[str, float]]:
    """Run every job once a round and return the statistics of each, in milliseconds.

    A neighbour on the machine then slows all jobs of a round alike, and ratios hold. The order
    rotates from round to round; two first rounds are not counted.

    Args:
        jobs: name -> what to time.
        rounds: that are counted.
        first: pytest-benchmark's `benchmark.pedantic`; it then times the first job itself, and
            the jobs whose turn is before that run in its set-up.
    """
    names = list(jobs)
    times: dict[str, list[float]] = {name: [] for name in names}

    def run(name: str, keep: bool) -> None:
        start = time.perf_counter()
        jobs[name]()
        if keep:
            times[name].append((time.perf_counter() - start) * 1e3)

    # As in any process that has freed a larger tensor: glibc keeps what jobs free from now on.
    torch.empty(31 << 20, dtype=torch.uint8)
    for name in 2 * names:
        run(name, keep=False)
    gc.collect()
    turns = iter([names[(n + k) % len(names)] for n in range(rounds) for k in range(len(names))])

    def others() -> None:
        for name in turns:
            if first is not None and name == names[0]:
                return
            run(name, keep=True)

    if first is not None:
        first(lambda: run(names[0], keep=True), setup=others, rounds=rounds, iterations=1)
    others()
    return {name: quantiles(values) for name, values in times.items()}


def quantiles(times: list[float]) -> dict[str, float]:
    """Of times in milliseconds."""
    points = torch.tensor([0.0, 0.2, 0.5, 0.8, 1.0], dtype=torch.float64)
    values = torch.tensor(times, dtype=torch.float64).quantile(points).tolist()
    names = ("min_ms", "p20_ms", "median_ms", "p80_ms", "max_ms")
    return {name: round(value, 4) for name, value in zip(names, values, strict=True)}


def device_name(device: torch.device | str | None = None) -> str:
    """The GPU, or the processor as the system names it."""
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if kind.type == "cuda":
        return torch.cuda.get_device_name(kind)
    for line in Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """The commit that is checked out, with a + if files differ from it, results aside."""

    def git(*args: str) -> str:
        run = ["git", *args]
        try:
            done = subprocess.run(
                run, capture_output=True, text=True, check=False, cwd=RESULTS.parent
            )
        except FileNotFoundError:  # a machine without git
            return ""
        return done.stdout.strip()

    return git("rev-parse", "--short", "HEAD") + (
        "+" if git("status", "--porcelain", "-uno", "--", ":/", ":(exclude)results") else ""
    )


def environment(device: torch.device | str | None, command: str) -> dict[str, Any]:
    """Everything that is needed to judge a number."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "cuda": torch.version.cuda,
        "sslops": sslops.__version__,
        "commit": commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "command": command,
    }


def version(package: str) -> str | None:
    """Of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def record(file: str, command: str, **row: Any) -> None:
    """Append a row to `bench/results/<file>.jsonl` with everything needed to judge it."""
    row |= {"backends": [each.runs for each in sslops.backends()]} | environment(None, command)
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{file}.jsonl").open("a") as out:
        out.write(json.dumps(row) + "\n")
