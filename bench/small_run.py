"""One small step of every op on every back end, for tools that watch memory: DEVICE as argument."""

import sys

import torch

from bench.cases import OPS, make_case
from bench.providers import PROVIDERS, Skip
from bench.timing import step


def main(device: str) -> int:
    """Print what ran; 1 if nothing did."""
    names = ("sslops-cuda", "sslops-triton") if device == "cuda" else ("sslops",)
    ran = 0
    for name in names:
        if reason := PROVIDERS[name].available(torch.device(device)):
            print(f"{name}: {reason}")
            continue
        for op, build in PROVIDERS[name].ops.items():
            for dtype in ("float32", "bfloat16"):
                case = make_case(op, OPS[op].tiny, dtype, device)
                try:
                    job = build(case)
                    with job.context():
                        step(case, job)
                except Skip as reason:
                    print(f"{name} {op}: {reason}")
                    break
                ran += 1
                print(f"{name} {op} {dtype}: done")
    if device == "cuda":
        torch.cuda.synchronize()
    return int(ran == 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
