"""enqueue_ alone, against the enqueue of MoCo's code and of lightly's memory bank: `make bench`.

The peers are written here after facebookresearch/moco, moco/builder.py, and lightly 1.6,
memory_bank.py: position read on the host, then slices. Their users normalise the keys beforehand,
so that is part of their time. A whole MoCo step is measured elsewhere.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sslops
from bench.harness import interleave, record

COMMAND = "make bench"
K = 65536
# B, D: a small batch; MoCo's; a batch of eight processes; MoCo v3's width; the whole queue
SHAPES = [(32, 128), (256, 128), (2048, 128), (4096, 256), (65536, 128)]
REPEATS = 20  # of a batch in one timing, as one takes microseconds


def moco(stored: torch.dtype, D: int) -> Callable[[Tensor], None]:
    """Columns of [D, K]; the batch must divide K."""
    queue, position = torch.zeros(D, K, dtype=stored), torch.zeros(1, dtype=torch.int64)

    def enqueue(keys: Tensor) -> None:
        keys = F.normalize(keys, dim=1)
        start, B = int(position), len(keys)
        assert K % B == 0
        queue[:, start : start + B] = keys.T
        position[0] = (start + B) % K

    return enqueue


def lightly(stored: torch.dtype, D: int) -> Callable[[Tensor], None]:
    """Rows of [K, D]; what does not fit before the end is dropped."""
    bank, position = torch.zeros(K, D, dtype=stored), torch.zeros(1, dtype=torch.int64)

    def enqueue(keys: Tensor) -> None:
        keys = F.normalize(keys, dim=1)
        start, B = int(position), len(keys)
        if start + B >= K:
            bank[start:] = keys[: K - start].detach()
            position[0] = 0
        else:
            bank[start : start + B] = keys.detach()
            position[0] = start + B

    return enqueue


def fused(stored: torch.dtype, D: int) -> Callable[[Tensor], None]:
    """The package's op."""
    queue, pointer = torch.zeros(K, D, dtype=stored), torch.zeros((), dtype=torch.int64)
    return lambda keys: sslops.enqueue_(queue, pointer, keys)


def repeated(enqueue: Callable[[Tensor], None], keys: Tensor) -> Callable[[], None]:
    """Many batches, so that the clock's own time does not count."""
    times = max(1, REPEATS * 256 // len(keys))

    def run() -> None:
        for _ in range(times):
            enqueue(keys)

    return run


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("B", "D"), SHAPES)
def test_enqueue(benchmark: Any, B: int, D: int, dtype: torch.dtype, stored: torch.dtype) -> None:
    keys = torch.randn(B, D).to(dtype)
    jobs = {"sslops": fused, "moco": moco, "lightly": lightly}
    stats = interleave(
        {name: repeated(make(stored, D), keys) for name, make in jobs.items()},
        rounds=31,
        first=benchmark.pedantic,
    )
    times = max(1, REPEATS * 256 // B)
    micros = {name: round(s["min_ms"] * 1e3 / times, 2) for name, s in stats.items()}
    ratios = {f"{name} / sslops": round(us / micros["sslops"], 2) for name, us in micros.items()}
    del ratios["sslops / sslops"]
    names = {"keys": str(dtype).removeprefix("torch."), "queue": str(stored).removeprefix("torch.")}
    benchmark.extra_info.update(ratios)
    print(f"\nenqueue B {B}, D {D}, {names}: {micros} us, {ratios}")
    record(
        "queue", COMMAND, op="enqueue_", case="enqueue", B=B, D=D, K=K, **names,
        min_us=micros, ratios=ratios,
    )  # fmt: skip
    assert ratios["moco / sslops"] >= 0.9
    assert ratios["lightly / sslops"] >= 0.9
