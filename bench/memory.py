"""Peak memory that one step adds to its inputs.

On CUDA the allocator counts it. On the CPU it is the resident memory of a fresh process, as memory
that was used before hides what is used again: `python -m bench.memory OP SIZE DTYPE PROVIDER`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from bench.cases import OPS, Case, make_case
from bench.providers import PROVIDERS, Job
from bench.timing import step

LINUX = sys.platform == "linux"
ROOT = Path(__file__).resolve().parents[1]


def peak() -> int:
    """Highest resident memory of this process since the last reset, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("bench: /proc/self/status has no VmHWM, got another system than Linux")


def reset_peak() -> None:
    """Let the highest resident memory start again from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def on_cuda(case: Case, job: Job) -> int:
    """Bytes that a step adds, after it has run once."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with job.context():
        step(case, job)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def on_cpu(case: Case, provider: str, timeout: float = 600) -> int | None:
    """Bytes that a step adds in a process of its own; None if that cannot be said here."""
    if not LINUX:
        return None
    run = [sys.executable, "-m", "bench.memory", case.op, case.label, case.dtype, provider]
    run.append(str(torch.get_num_threads()))
    # large blocks go back to the system at once, so that reuse does not hide them
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    out = subprocess.run(
        run, capture_output=True, text=True, check=False, cwd=ROOT, env=env, timeout=timeout
    )
    return int(json.loads(out.stdout)) if out.returncode == 0 else None


def _measure(op: str, size: str, dtype: str, provider: str) -> int:
    build = PROVIDERS[provider].ops[op]

    def once(which: str) -> int:
        case = make_case(op, which, dtype, "cpu")
        job = build(case)
        reset_peak()
        before = peak()
        with job.context():
            step(case, job)
        return peak() - before

    once(OPS[op].tiny)  # loads everything
    if provider == "compile":
        once(size)  # compiles
    return once(size)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[5]))
    print(json.dumps(_measure(*sys.argv[1:5])))
