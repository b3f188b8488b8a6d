"""Memory, bytes and time of a rank as the processes grow, each with as many rows: gloo, one core.

The formulae beside them are those of bench/scale.py. `python -m bench.bench_distributed` appends to
bench/results/distributed.jsonl what `pytest bench` does.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from bench.harness import record
from bench.memory import peak, reset_peak
from bench.scale import Job
from sslops import Gather, Ring, clip_loss, nt_xent
from sslops.parallel import agree, team_of

B, D, MIB = 64, 4096, 1 << 20  # samples of a rank, each with two views: blocks of 2 MiB
WAYS = {"gather": Gather, "ring": Ring}
COMMAND = "python -m bench.bench_distributed"


class Sent:
    """Counts the bytes that this process sends while a loss runs."""

    def __init__(self) -> None:
        self.bytes = 0

    def __enter__(self) -> "Sent":
        self._originals = dist.batch_isend_irecv, dist.all_gather, dist.all_to_all_single
        ring, gather, exchange = self._originals
        others = dist.get_world_size() - 1

        def count_ring(ops: Any) -> Any:
            self.bytes += sum(op.tensor.nbytes for op in ops if op.op is dist.isend)
            return ring(ops)

        def count_gather(parts: Any, tensor: torch.Tensor, **kwargs: Any) -> Any:
            self.bytes += others * tensor.nbytes
            return gather(parts, tensor, **kwargs)

        def count_exchange(out: Any, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.bytes += tensor.nbytes
            return exchange(out, tensor, *args, **kwargs)

        dist.batch_isend_irecv = count_ring  # type: ignore[assignment]
        dist.all_gather = count_gather  # type: ignore[assignment]
        dist.all_to_all_single = count_exchange  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        dist.batch_isend_irecv, dist.all_gather, dist.all_to_all_single = self._originals


def step(loss: str, x: torch.Tensor, group: Any) -> None:
    """One forward and backward pass."""
    x.grad = None
    if loss == "nt_xent":
        nt_xent(x, group=group).backward()  # type: ignore[no-untyped-call]
    else:
        result = clip_loss(x[0], x[1], 10.0, group=group)
        assert isinstance(result, torch.Tensor)
        result.backward()  # type: ignore[no-untyped-call]


def worker(rank: int, size: int, loss: str, way: str, port: int, folder: str) -> None:
    """Measure as one rank of `size`, and write the results."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size)
    torch.manual_seed(rank)
    group: Gather | Ring = WAYS[way]()  # type: ignore[assignment]
    step(loss, torch.randn(2, 64, D, requires_grad=True), group)  # loads everything
    x = torch.randn(2, B, D, requires_grad=True)
    x.grad = torch.zeros_like(x)  # before the peak is measured
    dist.barrier()
    reset_peak()
    before = peak()
    with Sent() as sent:
        step(loss, x, group)
    extra = peak() - before
    times = []
    for _ in range(3):
        dist.barrier()
        start = time.perf_counter()
        step(loss, x, group)
        times.append(time.perf_counter() - start)
    headers, team = [], team_of(loss, group)
    for _ in range(100 if team else 0):
        assert team is not None
        start = time.perf_counter()
        agree(team, loss, x, {"rows": B}, {"number of features": D}, {})
        headers.append(time.perf_counter() - start)
    results = {
        "extra_bytes": extra,
        "sent_bytes": sent.bytes,
        "min_ms": round(min(times) * 1e3, 1),
        "header_us": round(statistics.median(headers) * 1e6) if headers else 0,
        "header_min_us": round(min(headers, default=0) * 1e6),
    }
    Path(folder, f"{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def measure(size: int, loss: str, way: str) -> dict[str, Any]:
    """The largest of all ranks."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        mp.spawn(worker, (size, loss, way, port, folder), nprocs=size)  # type: ignore[attr-defined, no-untyped-call]
        ranks = [json.loads(Path(folder, f"{n}.json").read_text()) for n in range(size)]
    return {key: max(each[key] for each in ranks) for key in ranks[0]}


def job(size: int, loss: str) -> Job:
    """What the formulae say of it; nt_xent's rows are all views, clip's are the pairs."""
    if loss == "nt_xent":
        return Job(size, 2 * B, D, 4)
    return Job(size, B, D, 4, forward_extra=4, backward_extra=8)


def row(size: int, loss: str, way: str) -> dict[str, Any]:
    """Measured in separate processes, beside the formulae."""
    run = [sys.executable, "-m", "bench.bench_distributed", str(size), loss, way]
    # large blocks go back to the system at once, so that reuse does not hide them
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    out = subprocess.run(run, capture_output=True, text=True, check=True, env=env)
    measured, predicted = json.loads(out.stdout.splitlines()[-1]), job(size, loss)
    blocks = predicted.ring_bytes if way == "ring" else predicted.gather_bytes
    return {
        "op": loss,
        "way": way,
        "processes": size,
        "rows_per_rank": predicted.rows,
        "D": D,
        "dtype": "float32",
        "extra_mib": round(measured.pop("extra_bytes") / MIB, 1),
        "blocks_mib_by_formula": round(blocks / MIB, 1),
        **measured,
        "sent_bytes_by_formula": predicted.sent,
    }


CASES = [
    *((n, "nt_xent", way) for n in (1, 2, 3, 4, 8) for way in WAYS),
    *((n, "clip_loss", "ring") for n in (1, 2, 4)),
]


@pytest.mark.parametrize(("size", "loss", "way"), CASES)
def test_distributed(benchmark: Any, size: int, loss: str, way: str) -> None:
    """One configuration, recorded."""
    result = benchmark.pedantic(lambda: row(size, loss, way), rounds=1)
    print(f"\n{result}")
    record("distributed", COMMAND, **result)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]), sys.argv[2], sys.argv[3])))
    else:
        for case in CASES:
            result = row(*case)
            print(result, flush=True)
            record("distributed", COMMAND, **result)
