"""The average of a network beside a copy of as many bytes, in turns: python -m bench.ema_copy cuda.

An average reads each target and source and writes the target; nothing else limits it, so a copy of
the same number of bytes is the bound. One line of JSON a dtype, GB/s of bytes read and written. On
a GPU also as a CUDA graph, which is without what the host does before the launch.
"""

import argparse
import json
import sys

import torch

from bench.cases import OPS, make_case
from bench.check import judge, truth
from bench.providers import PROVIDERS
from bench.timing import Run, make_run, measure


def compare(device: str, size: str, dtype: str, provider: str, seconds: float) -> dict[str, object]:
    """Rates of one case and of the copy, and each over that of the copy."""
    case = make_case("ema_update_", size, dtype, device)
    job = PROVIDERS[provider].ops["ema_update_"](case)
    wrong = judge(case, job, truth(case)).wrong
    moved = OPS["ema_update_"].bytes(case)
    source = torch.empty(moved // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    runs = {"copy": Run(lambda: None, lambda _: target.copy_(source), job.context)}
    runs["average"] = make_run(case, job, "both")
    if case.device.type == "cuda":
        runs["graph"] = make_run(case, job, "graph")
    times = measure(runs, device=case.device, rounds=200, seconds=seconds, flush=True)
    rates = {name: moved / each["p50_ms"] * 1e-6 for name, each in times.items()}
    return {
        "op": "ema_update_", "size": size, "dtype": dtype, "provider": provider, "bytes": moved,
        "status": "wrong" if wrong else "ok", "reason": wrong, "times": times,
        "gb_per_s": rates, "of_copy": {name: rates[name] / rates["copy"] for name in rates},
    }  # fmt: skip


def main() -> int:
    """Print a line for each dtype; 1 if an average was wrong."""
    flags = argparse.ArgumentParser("ema_copy", description=(__doc__ or "").splitlines()[0])
    flags.add_argument("device")
    flags.add_argument("--size", default="64", help="channels of a ResNet-50's first layer")
    flags.add_argument("--provider", default="sslops")
    flags.add_argument("--seconds", type=float, default=1.0, help="of each dtype")
    args = flags.parse_args()
    failed = False
    for dtype in ("float32", "float32/bfloat16", "bfloat16"):
        row = compare(args.device, args.size, dtype, args.provider, args.seconds)
        failed |= row["status"] != "ok"
        print(json.dumps(row), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
