"""One small step of every op, for tools that watch memory: DEVICE and PROVIDER as arguments."""

import sys

import torch

from bench.cases import OPS, make_case
from bench.providers import PROVIDERS, Skip
from bench.timing import step


def main(device: str, name: str) -> int:
    """Print what ran; 1 if nothing did."""
    ran = 0
    if reason := PROVIDERS[name].available(torch.device(device)):
        print(f"{name}: {reason}")
    for op, build in () if reason else PROVIDERS[name].ops.items():
        for dtype in ("float32", "bfloat16"):
            case = make_case(op, OPS[op].tiny, dtype, device)
            try:
                job = build(case)
                with job.context():
                    step(case, job)
            except Skip as skipped:
                print(f"{name} {op}: {skipped}")
                break
            ran += 1
            print(f"{name} {op} {dtype}: done")
    if device == "cuda":
        torch.cuda.synchronize()
    return int(ran == 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
