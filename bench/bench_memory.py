"""Extra peak memory of one forward and backward pass of NT-Xent, each in a fresh process."""

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

from bench.bench_nt_xent import eager, fused, step
from bench.harness import record
from bench.memory import peak, reset_peak

M, D = 16384, 128
MIB = 1 << 20


def measure(implementation: str, threads: int, dtype: str) -> int:
    """Bytes that one pass adds to the peak, measured after a small pass has loaded everything."""
    torch.set_num_threads(threads)
    loss = {"sslops": fused, "eager": eager}[implementation]
    z = torch.randn(M, D).to(getattr(torch, dtype))
    step(loss, z[:512])()
    reset_peak()
    before = peak()
    step(loss, z)()
    return peak() - before


@pytest.mark.parametrize(
    ("implementation", "threads", "dtype"),
    [
        ("sslops", 1, "float32"),
        ("sslops", 2, "float32"),
        ("sslops", 64, "float32"),
        ("sslops", 2, "bfloat16"),
        ("sslops", 64, "bfloat16"),
        ("eager", 2, "float32"),
    ],
)
def test_memory(benchmark: Any, implementation: str, threads: int, dtype: str) -> None:
    """The bound of the design: 6 M D floats and 2 MiB a thread."""
    run = [sys.executable, "-m", "bench.bench_memory", implementation, str(threads), dtype]
    out = benchmark.pedantic(
        lambda: subprocess.run(run, capture_output=True, text=True, check=True), rounds=1
    )
    extra = json.loads(out.stdout)
    bound = 6 * M * D * 4 + 2 * MIB * threads
    row = {
        "implementation": implementation,
        "M": M,
        "D": D,
        "dtype": dtype,
        "set_threads": threads,
        "extra_mib": round(extra / MIB, 1),
        "bound_mib": round(bound / MIB, 1),
    }
    print(f"\n{row}")
    record("memory", "make bench", op="nt_xent", case="memory", **row)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
